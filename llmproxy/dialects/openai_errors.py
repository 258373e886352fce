"""Errors in the OpenAI format: ours on their way out, and providers' on their way in, whatever shape they have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from llmproxy.dialects.refusals import client_form, failure_of, masked
from llmproxy.dialects.retry_after import retry_after_seconds
from llmproxy.errors import Failure, LLMProxyError, MethodNotAllowed, UpstreamError, UpstreamRefused, UpstreamWithheld
from llmproxy.request import Document, Operation
from llmproxy.sse import encode_event

# Error objects stand inside each other at most so deep.
_MAX_SHELLS: Final = 4
_MAX_NAME_CHARACTERS: Final = 200
_MAX_PLAIN_TEXT_BYTES: Final = 300
# More than is ever shown, and little enough to be searched for every signature.
_MAX_TEXT_CHARACTERS: Final = 8192
_AUTH_MESSAGE: Final = "The provider refused the gateway's own credentials; ask the gateway's operator to check them."
_NO_MESSAGE: Final = "The provider answered with an error and gave no reason."

# For errors inside a 200, where no status tells what they are.
_STATUS_BY_NAME: Final = {
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "notfounderror": 404,
    "model_not_found": 404,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "requests": 429,
    "tokens": 429,
    "overloaded_error": 529,
    "server_is_overloaded": 503,
    "timeout_error": 504,
}


def error_body(error: LLMProxyError, request_id: str | None) -> bytes:
    """The body of an error response."""
    # A message may quote a client's bytes; what is no valid text must not break the answer that says so.
    message = error.message.encode(errors="replace").decode()
    content = {"message": message, "type": _type(error), "param": error.param, "code": error.error_code}
    reason = error.failure.value if isinstance(error, UpstreamError) else error.error_code
    return orjson.dumps({"error": {**content, "llmproxy": {"reason": reason, "request_id": request_id}}})


def error_headers(error: LLMProxyError) -> list[tuple[str, str]]:
    """The header fields of an error response: what it is, when to come back, what may be done instead."""
    headers = [("content-type", "application/json")]
    if error.retry_after_seconds is not None:
        headers.append(("retry-after", str(max(0, math.ceil(error.retry_after_seconds)))))
    if isinstance(error, MethodNotAllowed):
        headers.append(("allow", ", ".join(error.allowed)))
    return headers


def error_event(error: LLMProxyError, request_id: str | None) -> bytes:
    """The error as the last event of a stream; no `[DONE]` follows it."""
    return encode_event(error_body(error, request_id))


def _type(error: LLMProxyError) -> str:
    if isinstance(error, UpstreamWithheld):
        return error.refusal.type
    if not isinstance(error, UpstreamRefused):
        return error.type
    return error.native_type or client_form(error.failure, error.http_status).type


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamRefused:
    """A provider's error response, classified. Never raises, whatever the body is."""
    return _refused(status, status, _Reply.read(_decoded(body)), headers)


def error_in(document: Document, operation: Operation) -> UpstreamRefused | None:
    """The error inside an answer that came with status 200; None when it is an answer."""
    stated = stated_error(document)
    if stated is not None or operation is Operation.EMBEDDINGS:
        return stated
    return None if document.get("choices") else _refused(200, 502, _Reply("The provider's answer holds no choices."))


def stated_error(document: Document) -> UpstreamRefused | None:
    """The error that an answer, or one event of a stream, states in so many words."""
    base = document.get("base_resp")
    if isinstance(base, dict) and _text(base, "status_code") not in ("", "0"):
        return _inside_200(base)
    if document.get("error") or document.get("object") == "error":
        return _inside_200(document)
    return None


def _inside_200(document: Document) -> UpstreamRefused:
    reply = _Reply.read(document)
    code = reply.code or ""
    if code.isdecimal() and len(code) == 3 and code >= "400":
        return _refused(200, int(code), reply)
    names = (name.lower() for name in (code, reply.type or ""))
    return _refused(200, next((_STATUS_BY_NAME[name] for name in names if name in _STATUS_BY_NAME), 502), reply)


@dataclass(frozen=True, slots=True)
class _Reply:
    """What a provider said, out of whatever shape it said it in; `words` is all that may hold a signature."""

    message: str = ""
    type: str | None = None
    code: str | None = None
    param: str | None = None
    words: str = ""
    delay: str = ""

    @classmethod
    def read(cls, content: object) -> _Reply:
        error = _innermost(content)
        message = _text(error, "message", "Message", "msg", "status_msg")
        code = _text(error, "code", "error_code", "status_code") or _text(_object(error, "details"), "error_code")
        return cls(
            message,
            _text(error, "type")[:_MAX_NAME_CHARACTERS] or None,
            code[:_MAX_NAME_CHARACTERS] or None,
            _parameter(error)[:_MAX_NAME_CHARACTERS] or None,
            " ".join((message, code, *_signs(error))),
            next((_text(detail, "retryDelay") for detail in _details(error) if "retryDelay" in detail), ""),
        )


def _refused(
    upstream_status: int, status: int, reply: _Reply, headers: Mapping[str, str] | None = None
) -> UpstreamRefused:
    failure = failure_of(status, reply.words, reply.code)
    form = client_form(failure, status)
    # The client's own key is fine: the vendor's words about ours would only mislead, and may quote it.
    is_ours = failure is Failure.AUTH
    return UpstreamRefused(
        _AUTH_MESSAGE if is_ours else masked(reply.message) or _NO_MESSAGE,
        failure=failure,
        upstream_status=upstream_status,
        status=form.status,
        native_type=None if is_ours else reply.type,
        code=form.code if is_ours else reply.code or form.code,
        param=None if is_ours else reply.param,
        retry_after_seconds=retry_after_seconds(headers or {}, delay=reply.delay, message=reply.message),
    )


def _decoded(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # A page made for browsers says nothing to a program; a line of plain text may.
        is_page = body.lstrip()[:1] == b"<"
        return {} if is_page else body[:_MAX_PLAIN_TEXT_BYTES].decode(errors="replace")


def _innermost(content: object) -> Document:
    """The object that holds the message, out of its shells: `error`, `errors`, `detail`, or a list of one."""
    for _ in range(_MAX_SHELLS):
        if isinstance(content, list):
            content = content[0] if content else {}
        if not isinstance(content, dict):
            break
        inner = next((content[name] for name in ("error", "errors", "detail") if content.get(name)), None)
        if isinstance(inner, str):
            return {**content, "message": inner}
        if not isinstance(inner, dict | list):
            return content
        content = inner
    return {"message": content} if isinstance(content, str) else {}


def _parameter(error: Document) -> str:
    """The field at fault: `param`, or the path a validator gives, without its leading "body"."""
    location = error.get("loc")
    if isinstance(location, list):
        return ".".join(str(step) for step in location if step != "body")
    return _text(error, "param")


def _signs(error: Document) -> Iterator[str]:
    """Further words, outside of message and code, by which vendors say what is wrong."""
    yield from (_text(error, name) for name in ("type", "status"))
    yield _text(_object(error, "innererror"), "code")
    metadata = _object(error, "metadata")
    yield _text(metadata, "raw")
    yield "flagged_input" if "flagged_input" in metadata else ""
    for detail in _details(error):
        yield _text(detail, "reason")
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            yield _text(violation, "quotaId") if isinstance(violation, dict) else ""


def _details(error: Document) -> list[Document]:
    details = error.get("details")
    return [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []


def _object(error: Document, name: str) -> Document:
    value = error.get(name)
    return value if isinstance(value, dict) else {}


# The values are whatever the provider sent.
def _text(holder: Mapping[str, Any], *names: str) -> str:
    """The first of these members that is text or a whole number, as text; "" when none is."""
    for name in names:
        value = holder.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)[:_MAX_TEXT_CHARACTERS]
    return ""
