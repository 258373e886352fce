"""The most that an attempt can take: what has to be reserved before it is sent.

Text has no more tokens than bytes, with every tokenizer there is, and JSON only makes it longer. What is not text is
bounded by documented allowances, and everything by the model's context window, where that is known.
"""

from __future__ import annotations

from typing import Any, Final

from llmproxy.dialects.embedded_media import EmbeddedMedia, embedded_media
from llmproxy.estimate import max_output_tokens, written_answers
from llmproxy.request import Document, Operation, Request

# The dearest image there is: in high detail with GPT-4o mini.
IMAGE_TOKENS: Final = 50_000
# Audio that is stored in as little as a kilobit a second has a token for every four characters of base64.
AUDIO_BYTES_PER_TOKEN: Final = 4
# What of a file, a video or a search is read is not known beforehand; this stands in where the window is not known.
UNKNOWN_WINDOW_TOKENS: Final = 1_000_000
# Searches that a request may cause when it sets no `max_uses`.
SEARCHES: Final = 10
# What vendors write around messages and answers, and what they add to explain tools to the model.
_TEMPLATE_TOKENS: Final = 64
_TOOL_PROMPT_TOKENS: Final = 1024
_UNBOUNDED_MEMBERS: Final = frozenset({"previous_response_id", "conversation", "container", "search_parameters"})
_BEYOND_TEXT: Final = _UNBOUNDED_MEMBERS | {"tools", "functions", "response_format", "web_search_options"}


def input_ceiling_tokens(request: Request, context_window_tokens: int | None = None) -> int:
    """No request has more input tokens than this, short of what a vendor's own tools read in again and again.

    Args:
        context_window_tokens: The model's; None when it is not known.
    """
    document = request.document
    tokens = len(request.encode()) + _TEMPLATE_TOKENS
    # Most requests are text and nothing else, for which this is all.
    if (media := embedded_media(document)) or not _BEYOND_TEXT.isdisjoint(document):
        if _is_unbounded(document, media):
            return context_window_tokens or UNKNOWN_WINDOW_TOKENS
        tokens -= sum(each.size_bytes for each in media)
        tokens += sum(IMAGE_TOKENS if each.kind == "image" else _audio_tokens(each) for each in media)
        if document.get("tools") or document.get("functions") or document.get("response_format"):
            tokens += _TOOL_PROMPT_TOKENS
    return min(tokens, context_window_tokens) if context_window_tokens else tokens


def output_ceiling_tokens(request: Request, model_max_tokens: int | None, default_tokens: int) -> int:
    """The most that a request's answers can have together: what it asks for, else what the model can, else a default.

    Args:
        model_max_tokens: The model's own limit for one answer; None when it is not known.
        default_tokens: Stands in for the limit of one answer when nobody sets any.
    """
    if request.operation is Operation.EMBEDDINGS:
        return 0
    own = max_output_tokens(request.document)
    return own if own is not None else written_answers(request.document) * (model_max_tokens or default_tokens)


def search_ceiling(document: Document) -> int:
    """How many searches of the web a request may cause."""
    tools, options = document.get("tools"), document.get("web_search_options")
    if not tools and options is None:
        return 0
    offered = [tool for tool in tools if _is_search(tool)] if isinstance(tools, list) else []
    limits = [tool.get("max_uses") for tool in offered]
    searches = sum(limit if isinstance(limit, int) and limit >= 0 else SEARCHES for limit in limits)
    return searches + (SEARCHES if options is not None else 0)


# The tool is whatever the client sent.
def _is_search(tool: Any) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and ("web_search" in kind or kind == "google_search")


def _is_unbounded(document: Document, media: list[EmbeddedMedia]) -> bool:
    if (media and any(each.kind in ("file", "video") for each in media)) or search_ceiling(document):
        return True
    if _UNBOUNDED_MEMBERS.isdisjoint(document):
        return False
    return any(document.get(name) is not None for name in _UNBOUNDED_MEMBERS)


def _audio_tokens(audio: EmbeddedMedia) -> int:
    return audio.size_bytes // AUDIO_BYTES_PER_TOKEN
