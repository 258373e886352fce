"""What of a request is compared by meaning, and what has to be the same to the letter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from llmproxy.api import Document, Exchange, Operation, has_repeated_members

# How an answer travels, whose it is, and where the vendor keeps it; none of these changes what it says.
_IGNORED: Final = frozenset(
    {
        *("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "store", "stream"),
        *("stream_options", "user"),
    }
)
# Tools that the client runs. Others the vendor runs, and what they find changes by the hour.
_CLIENTS_TOOLS: Final = ("custom", "function")
# What a client says beside the body of which answers it may be given.
_CONSTRAINTS: Final = ("x-llmproxy-region", "x-llmproxy-cache-namespace")
# Changes when what goes into a scope does: entries of another form must not be found.
_FORM: Final = 1


@dataclass(frozen=True, slots=True)
class Question:
    """The last user turn of a request.

    Attributes:
        scope: SHA-256 of everything else: only within the same scope are two questions compared.
    """

    text: str = field(repr=False)
    scope: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode(errors="surrogatepass")).digest()


def question_of(exchange: Exchange, embeddings: str, vary_headers: Sequence[str]) -> Question | None:
    """The question that a request ends with; None when it is not one that can be answered by its meaning.

    Args:
        embeddings: The model that makes questions comparable.
        vary_headers: The client's headers that may change an answer.
    """
    document = exchange.request.document
    text = _last_words(document)
    if exchange.operation is not Operation.CHAT or text is None or _asks_for_more(document):
        return None
    if has_repeated_members(exchange.request.encode()):
        # One reader takes the first of two, another the last: nobody can say what was asked.
        return None
    headers = [exchange.headers.get(name) for name in (*_CONSTRAINTS, *vary_headers)]
    targets = sorted(target.name for target in exchange.candidates)
    context = [_FORM, exchange.principal.workspace, embeddings, targets, headers, _rest(document)]
    try:
        return Question(text, hashlib.sha256(orjson.dumps(context, option=orjson.OPT_SORT_KEYS)).digest())
    except TypeError:
        # Nested too deep to be written.
        return None


def _asks_for_more(document: Document) -> bool:
    """Whether an answer would have to be stored at the vendor, be several, or come from the web."""
    is_plain = document.get("n") in (None, 1) and document.get("modalities") in (None, ["text"])
    is_searched = document.get("web_search_options") is not None or _has_vendors_tools(document.get("tools"))
    return not is_plain or is_searched or document.get("store") is True


# Tools are whatever the client sent.
def _has_vendors_tools(tools: Any) -> bool:
    if not isinstance(tools, list):
        return tools is not None
    return any(not isinstance(tool, dict) or tool.get("type") not in _CLIENTS_TOOLS for tool in tools)


def _last_words(document: Document) -> str | None:
    """The text of the last message, if that is a user's and has nothing but text in it."""
    messages = document.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    content = last.get("content")
    if isinstance(content, str):
        return content.strip() or None
    if not isinstance(content, list) or not all(map(_is_text, content)):
        return None
    return "\n".join(part["text"] for part in content).strip() or None


def _rest(document: Document) -> Document:
    """The request without its question, and without what does not count."""
    *earlier, last = document["messages"]
    content = last["content"]
    shape = None if isinstance(content, str) else [{**part, "text": None} for part in content]
    counted = {name: value for name, value in document.items() if name not in _IGNORED}
    return {**counted, "messages": [*earlier, {**last, "content": shape}]}


# A part is whatever the client sent.
def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
