"""Tokens counted as OpenAI's models do, where `estimates.tokenizer` asks for it. Loading takes half a second, once."""

from __future__ import annotations

from functools import lru_cache

from llmproxy.config import TokenizerName
from llmproxy.estimate import CountTokens


@lru_cache(maxsize=2)
def tokenizer(name: TokenizerName) -> CountTokens:
    """The tokenizer of that name. Raises ImportError when `llmproxy[tokenizer]` is not installed."""
    # Imported here: 140 MB of vocabulary that hardly anybody needs.
    from bpe_openai import get_encoding  # noqa: PLC0415 - see above

    encode = get_encoding(name).encode_ordinary

    def count(text: str) -> int:
        # Half of a pair of surrogates is no text to it.
        return len(encode(text.encode(errors="replace").decode()))

    count("Its tables are made when it is asked for the first time.")
    return count
