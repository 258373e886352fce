"""Usage where the provider gave none: counted by a tokenizer, or roughly from sizes, and marked as what it is.

Four bytes of JSON text a token is the usual rule of thumb for English; the provenance says it is no measurement.
What is reserved before anybody knows is in `ceilings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from llmproxy.dialects.embedded_media import EmbeddedMedia, embedded_media
from llmproxy.dialects.texts import answer_texts, request_texts, streamed_texts, tokens_beside_text
from llmproxy.dialects.upstream_events import object_or_none
from llmproxy.exchange import StreamProgress
from llmproxy.request import Document, Operation, Request
from llmproxy.usage import Usage

# How many tokens a text has, in time that grows no faster than the text.
CountTokens = Callable[[str], int]

_BYTES_PER_TOKEN: Final = 4
# So many are counted in a few milliseconds, in which nobody else is served; and a short text takes as long as these.
_COUNTED_CHARACTERS: Final = 32_768
_LEAST_CHARACTERS: Final = 64
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


class Estimator:
    """Usage of answers of which no provider told any.

    Args:
        count: The tokenizer; without one, sizes are all there is to go by.
    """

    def __init__(self, count: CountTokens | None = None) -> None:
        self._count = count

    def estimated(self, request: Request, output_tokens: int) -> Usage:
        """Usage of an answer that was seen, at least in part."""
        return Usage(
            uncached_input_tokens=self.input_tokens(request),
            text_output_tokens=output_tokens,
            provenance="estimated",
        )

    def unseen(self, request: Request, duration_seconds: float) -> Usage:
        """Usage of a whole answer that nobody waited for any longer.

        What it had grown to is charged, but was not shown.
        """
        limit = 0 if request.operation is Operation.EMBEDDINGS else max_output_tokens(request.document)
        grown = int(duration_seconds * _TOKENS_PER_SECOND)
        return Usage(
            uncached_input_tokens=self.input_tokens(request),
            text_output_tokens=min(grown, ASSUMED_OUTPUT_TOKENS if limit is None else limit),
            provenance="assumed",
        )

    def input_tokens(self, request: Request) -> int:
        """About how many tokens a request has; at least one."""
        document = request.document
        media = embedded_media(document)
        if self._count is None:
            text_bytes = max(0, request.size_bytes - sum(each.size_bytes for each in media))
            text_tokens = text_bytes // _BYTES_PER_TOKEN
        else:
            text_tokens = _counted(request_texts(document), self._count) + tokens_beside_text(document)
        return max(1, text_tokens + sum(_media_tokens(each) for each in media))

    def answer_tokens(self, body: bytes) -> int:
        """About how many tokens were written for a whole answer."""
        answer = object_or_none(body)
        return len(body) // _BYTES_PER_TOKEN if answer is None else self._tokens(answer_texts(answer))

    def streamed_tokens(self, progress: StreamProgress) -> int:
        """About how many tokens of a stream have passed: one an event, or as many a byte as at its beginning."""
        sample = progress.sample
        if not sample:
            return progress.event_count
        return max(progress.event_count, self._tokens(streamed_texts(sample)) * progress.size_bytes // len(sample))

    def _tokens(self, texts: Iterable[str]) -> int:
        if self._count is None:
            return sum(len(text.encode(errors="replace")) for text in texts) // _BYTES_PER_TOKEN
        return _counted(texts, self._count)


def assumed(request_bytes: int, max_output_tokens: int | None) -> Usage:
    """Usage of an answer that nobody saw: the most it may have been."""
    return Usage(
        uncached_input_tokens=max(1, request_bytes // _BYTES_PER_TOKEN),
        text_output_tokens=ASSUMED_OUTPUT_TOKENS if max_output_tokens is None else max_output_tokens,
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


def _counted(texts: Iterable[str], count: CountTokens) -> int:
    """Their tokens; where they are long, those of their beginning, and the rest taken to be like it."""
    room, tokens, counted, left = _COUNTED_CHARACTERS, 0, 0, 0
    for text in texts:
        part = text[: max(room, 0)]
        left += len(text) - len(part)
        if part:
            tokens += count(part)
            counted += len(part)
            room -= max(len(part), _LEAST_CHARACTERS)
    return tokens + left * tokens // max(counted, 1)
