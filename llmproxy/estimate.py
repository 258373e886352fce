"""Usage where the provider gave none: counted roughly from sizes, and marked as what it is.

Four bytes of JSON text a token is the usual rule of thumb for English; the provenance says it is no measurement.
What is reserved before anybody knows is in `ceilings`.
"""

from __future__ import annotations

from typing import Final

from llmproxy.dialects.embedded_media import EmbeddedMedia, embedded_media
from llmproxy.request import Document, Operation, Request
from llmproxy.usage import Usage

_BYTES_PER_TOKEN: Final = 4
# What an interrupted request is assumed to have produced when it set no limit of its own.
ASSUMED_OUTPUT_TOKENS: Final = 4096
# No model writes more in one answer, whatever limit a client sets.
_LONGEST_ANSWER_TOKENS: Final = 1_000_000
_MOST_CHOICES: Final = 128
# Without any of them there is one answer.
_MULTIPLIERS: Final = frozenset({"n", "best_of", "prompt"})
# What legacy completions write when nobody sets a limit.
_COMPLETION_TOKENS: Final = 16
# How fast an answer grows that nobody sees: quick models write a hundred tokens a second, most of them fewer.
_TOKENS_PER_SECOND: Final = 100
# An image of usual size; a minute of speech has some two thousand tokens and half a megabyte; a page of a PDF some two
# thousand and fifty kilobytes.
_IMAGE_TOKENS: Final = 1000
_BYTES_PER_MEDIA_TOKEN: Final = {"audio": 300, "file": 30, "video": 300}


def estimated(request: Request, output_tokens: int) -> Usage:
    """Usage of an answer that was seen, at least in part."""
    return Usage(
        uncached_input_tokens=input_tokens(request),
        text_output_tokens=output_tokens,
        provenance="estimated",
    )


def assumed(request_bytes: int, max_output_tokens: int | None) -> Usage:
    """Usage of an answer that nobody saw: the most it may have been."""
    return Usage(
        uncached_input_tokens=max(1, request_bytes // _BYTES_PER_TOKEN),
        text_output_tokens=ASSUMED_OUTPUT_TOKENS if max_output_tokens is None else max_output_tokens,
        provenance="assumed",
    )


def input_tokens(request: Request) -> int:
    """About how many tokens a request has; at least one."""
    media = embedded_media(request.document)
    text_bytes = max(0, request.size_bytes - sum(each.size_bytes for each in media))
    return max(1, text_bytes // _BYTES_PER_TOKEN + sum(_media_tokens(each) for each in media))


def tokens_in(answer_bytes: int) -> int:
    """Tokens of an answer of this size."""
    return answer_bytes // _BYTES_PER_TOKEN


def unseen(request: Request, duration_seconds: float) -> Usage:
    """Usage of a whole answer that nobody waited for any longer: what it had grown to is charged, but was not shown."""
    limit = 0 if request.operation is Operation.EMBEDDINGS else max_output_tokens(request.document)
    grown = int(duration_seconds * _TOKENS_PER_SECOND)
    return Usage(
        uncached_input_tokens=input_tokens(request),
        text_output_tokens=min(grown, ASSUMED_OUTPUT_TOKENS if limit is None else limit),
        provenance="assumed",
    )


def max_output_tokens(document: Document) -> int | None:
    """The limit a request sets on its own answer, all choices together; None when it sets none."""
    for name in ("max_completion_tokens", "max_tokens"):
        limit = document.get(name)
        if isinstance(limit, int) and limit > 0:
            return min(limit, _LONGEST_ANSWER_TOKENS) * written_answers(document)
    return _COMPLETION_TOKENS * written_answers(document) if "prompt" in document else None


def written_answers(document: Document) -> int:
    """How many answers are written to a request: `n`, or `best_of` to choose from, for each of its prompts."""
    if _MULTIPLIERS.isdisjoint(document):
        return 1
    prompts = document.get("prompt")
    # A list of numbers is one prompt, as tokens.
    is_batch = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
    wanted = (value for value in (document.get("n"), document.get("best_of")) if isinstance(value, int))
    choices = max((value for value in wanted if 0 < value <= _MOST_CHOICES), default=1)
    return choices * (len(prompts or ()) if is_batch else 1)


def _media_tokens(media: EmbeddedMedia) -> int:
    return _IMAGE_TOKENS if media.kind == "image" else media.size_bytes // _BYTES_PER_MEDIA_TOKEN[media.kind]
