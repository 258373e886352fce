"""Usage where the provider gave none: counted roughly from sizes, and marked as what it is.

Four bytes of JSON text a token is the usual rule of thumb for English; the provenance says it is no measurement.
"""

from __future__ import annotations

from typing import Final

from llmproxy.exchange import Document, Usage

_BYTES_PER_TOKEN: Final = 4
# What an interrupted request is assumed to have produced when it set no limit of its own.
ASSUMED_OUTPUT_TOKENS: Final = 4096
# No model writes more in one answer, whatever limit a client sets.
_LONGEST_ANSWER_TOKENS: Final = 1_000_000


def estimated(request_bytes: int, output_tokens: int) -> Usage:
    """Usage of an answer that was seen, at least in part."""
    return Usage(
        uncached_input_tokens=max(1, request_bytes // _BYTES_PER_TOKEN),
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


def tokens_in(answer_bytes: int) -> int:
    """Tokens of an answer of this size."""
    return answer_bytes // _BYTES_PER_TOKEN


def max_output_tokens(document: Document) -> int | None:
    """The limit a request sets on its own answer, all choices together; None when it sets none."""
    for name in ("max_completion_tokens", "max_tokens"):
        limit = document.get(name)
        if isinstance(limit, int) and limit > 0:
            choices = document.get("n")
            return min(limit, _LONGEST_ANSWER_TOKENS) * (
                choices if isinstance(choices, int) and 0 < choices <= 128 else 1
            )
    return None
