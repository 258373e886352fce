"""What a provider's error means: one class for failover and health, whatever words the vendor chose.

The words are data. A new vendor's wording is one more string here and one more row in the test.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from llmproxy.errors import Failure


class _Signature(NamedTuple):
    failure: Failure
    statuses: frozenset[int]
    words: tuple[str, ...]
    codes: frozenset[str] = frozenset()


# Refusals of the content; 401 is about the key, 413 and 429 about a rate.
_CONTENT_STATUSES: Final = frozenset(range(400, 600)) - {401, 413, 429}

_SIGNATURES: Final = (
    _Signature(
        Failure.QUOTA,
        frozenset({400, 402, 403, 429}),
        (
            "insufficient_quota",
            "credit_balance_exhausted",
            "credit balance is too low",
            "billing_hard_limit_reached",
            "_spend_limit_",
            "_usage_limit_exceeded",
            "exceeded_current_quota_error",
            "servicequotaexceeded",
            "perday",
        ),
        frozenset({"1113"}),
    ),
    _Signature(
        Failure.CONTENT_POLICY,
        _CONTENT_STATUSES,
        (
            "content_policy_violation",
            "content_filter",
            "content filter",
            "invalid_prompt",
            "cyber_policy",
            "bio_policy",
            "misalignment_policy_violation",
            "responsibleaipolicyviolation",
            "output blocked by content filtering policy",
            "guardrail_intervened",
            "flagged_input",
            "data_inspection_failed",
        ),
        frozenset({"1301"}),
    ),
    _Signature(
        Failure.CONTEXT_LENGTH,
        _CONTENT_STATUSES - {403},
        (
            "context_length_exceeded",
            "maximum context length",
            "prompt is too long",
            "input length and `max_tokens` exceed context limit",
            "exceeds the maximum number of tokens allowed",
            "input is too long",
            "input tokens exceeded",
            "too many tokens",
            "reduce the length of the messages",
            "longer than the model's context length",
            "maximum prompt length",
            "exceed_context_size_error",
            "exceeds the available context size",
            "`inputs` tokens + `max_new_tokens` must be",
            "input tokens exceed the configured limit",
            "too large for model with",
        ),
    ),
    _Signature(
        Failure.AUTH,
        frozenset({400}),
        ("invalid_api_key", "api_key_invalid", "incorrect api key", "api key not valid"),
    ),
    _Signature(
        Failure.MODEL,
        frozenset({400, 403}),
        (
            "model_not_found",
            "model not found",
            "invalid_model",
            "provided model identifier is invalid",
            "don't have access to the model",
            "with on-demand throughput isn",
            "reached the end of its life",
        ),
    ),
)
# Two numbers around fixed words, which only a pattern can say.
_CURRENT_LENGTH_OVER_LIMIT: Final = re.compile(r"current length is .{1,40} while limit is")
# These speak of lengths and tokens and are something else.
_NOT_CONTEXT_LENGTH: Final = ("string_above_max_length", "per minute")

_BY_STATUS: Final = {
    401: Failure.AUTH,
    402: Failure.QUOTA,
    403: Failure.AUTH,
    404: Failure.MODEL,
    408: Failure.TIMEOUT,
    409: Failure.OVERLOADED,
    410: Failure.MODEL,
    424: Failure.BROKEN,
    425: Failure.OVERLOADED,
    429: Failure.RATE_LIMIT,
    498: Failure.OVERLOADED,
    503: Failure.OVERLOADED,
    504: Failure.TIMEOUT,
    522: Failure.TIMEOUT,
    524: Failure.TIMEOUT,
    529: Failure.OVERLOADED,
}


class ClientForm(NamedTuple):
    """How a failure looks to the client: its status, and the code and type it gets where the vendor gave none."""

    status: int
    code: str
    type: str


_FORMS: Final = {
    Failure.AUTH: ClientForm(502, "upstream_auth_error", "server_error"),
    Failure.QUOTA: ClientForm(429, "insufficient_quota", "insufficient_quota"),
    Failure.RATE_LIMIT: ClientForm(429, "rate_limit_exceeded", "rate_limit_error"),
    Failure.MODEL: ClientForm(404, "model_not_found", "invalid_request_error"),
    Failure.CONTEXT_LENGTH: ClientForm(400, "context_length_exceeded", "invalid_request_error"),
    Failure.CONTENT_POLICY: ClientForm(400, "content_policy_violation", "invalid_request_error"),
    Failure.INVALID_REQUEST: ClientForm(400, "invalid_request", "invalid_request_error"),
    Failure.TIMEOUT: ClientForm(504, "request_timeout", "timeout_error"),
    Failure.OVERLOADED: ClientForm(503, "service_unavailable", "server_error"),
}
_TOO_LARGE: Final = ClientForm(413, "request_too_large", "invalid_request_error")
_OTHERWISE: Final = ClientForm(502, "server_error", "server_error")


def failure_of(status: int, words: str, code: str | None = None) -> Failure:
    """The class of a failure, from its status and all the words the vendor gave with it."""
    words = words.lower()
    for signature in _SIGNATURES:
        if status in signature.statuses and _matches(signature, words, code):
            return signature.failure
    otherwise = Failure.INVALID_REQUEST if 400 <= status < 500 else Failure.BROKEN
    return _BY_STATUS.get(status, otherwise)


def client_form(failure: Failure, upstream_status: int | None) -> ClientForm:
    """How the client gets to see a failure of this class."""
    if failure is Failure.INVALID_REQUEST and upstream_status == _TOO_LARGE.status:
        return _TOO_LARGE
    return _FORMS.get(failure, _OTHERWISE)


def _matches(signature: _Signature, words: str, code: str | None) -> bool:
    if code in signature.codes:
        return True
    if signature.failure is Failure.CONTEXT_LENGTH:
        if any(word in words for word in _NOT_CONTEXT_LENGTH):
            return False
        if _CURRENT_LENGTH_OVER_LIMIT.search(words):
            return True
    return any(word in words for word in signature.words)


_MAX_MESSAGE_CHARACTERS: Final = 2000
_KEY: Final = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|csk|fw|pplx|nvapi)[-_][\w*.-]{6,}"
    r"|\b(?:hf|r8|tgp)_[\w*]{6,}"
    r"|\b(?:AIza|AKIA|ASIA|ya29\.|eyJ)[\w*.-]{12,}"
    r"|\b[Bb]earer\s+[\w~+/.=*-]{8,}"
    r"|\b(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{32,}\b"
)


def masked(message: str) -> str:
    """A vendor's message, fit to be shown: anything that looks like a key is masked, and its length bounded."""
    # Cut first, so that a hostile length costs nothing; the margin keeps a key at the edge whole until it is masked.
    shown = _KEY.sub("[masked]", message[: _MAX_MESSAGE_CHARACTERS * 2]).strip()
    return shown if len(shown) <= _MAX_MESSAGE_CHARACTERS else shown[: _MAX_MESSAGE_CHARACTERS - 1] + "…"
