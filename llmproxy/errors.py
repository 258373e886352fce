"""Everything that can go wrong, as one tree; each class knows its HTTP status, OpenAI error type and code.

A message is one sentence for the person who reads it: what happened, what to do. It never holds an internal
name, a secret or a stack; `__cause__` keeps the truth for the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar, Final, Literal


class LLMProxyError(Exception):
    """Root of the tree.

    Args:
        message: One sentence for the client.
        code: What a program acts on; defaults to the class's own.
        param: The request field at fault, if one is.
        status: HTTP status; defaults to the class's own.
        retry_after_seconds: Set when waiting can help; becomes `retry-after`.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message: Final = message
        self.error_code: Final = code or self.code
        self.param: Final = param
        self.http_status: Final = status or self.status
        self.retry_after_seconds = retry_after_seconds


# The client's side


class ClientError(LLMProxyError):
    """The request cannot be served as it stands."""

    status = 400
    type = "invalid_request_error"
    code = "bad_request"


class BadRequest(ClientError):
    """The request is malformed."""


class Unauthenticated(ClientError):
    """No key, a wrong key, an expired or a revoked one."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class BudgetExceeded(ClientError):
    """A hard budget has no room for this request."""

    status = 402
    type = "insufficient_quota"
    code = "budget_exceeded"


class Refused(ClientError):
    """A policy forbids this request."""

    status = 403
    type = "permission_error"
    code = "refused"


class ModelNotAllowed(Refused):
    """The key may not use this model."""

    code = "model_not_allowed"


class NotFound(ClientError):
    """No such path or object."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """No configured provider or alias has this model."""

    code = "model_not_found"


class MethodNotAllowed(ClientError):
    """The path exists, the method does not.

    Args:
        allowed: The methods that do; they become `allow`.
    """

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: Sequence[str]) -> None:
        super().__init__(message)
        self.allowed: Final = tuple(allowed)


class RequestTimeout(ClientError):
    """The client took too long to send its request."""

    status = 408
    type = "timeout_error"
    code = "request_timeout"


class Conflict(ClientError):
    """The object already exists or is in another state."""

    status = 409
    code = "conflict"


class BodyTooLarge(ClientError):
    """The body is over `server.max_body_bytes`."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(ClientError):
    """The content type or content encoding is not one we read."""

    status = 415
    code = "unsupported_media_type"


class RateLimited(ClientError):
    """A limit of the gateway's own has been reached."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class ClientDisconnected(ClientError):
    """The client hung up; nobody is left to read this."""

    status = 499
    code = "client_disconnected"


# The upstream's side


class Failure(StrEnum):
    """What kind of upstream failure it is: the one classification that failover and health decide by."""

    CONNECT = "connect"
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    RATE_LIMIT = "rate_limit"
    QUOTA = "quota"
    AUTH = "auth"
    MODEL = "model"
    UNSUPPORTED = "unsupported"
    CONTEXT_LENGTH = "context_length"
    CONTENT_POLICY = "content_policy"
    INVALID_REQUEST = "invalid_request"
    BROKEN = "broken"
    CUT = "cut"
    WITHHELD = "withheld"
    SUPERSEDED = "superseded"


TimeoutPhase = Literal["connect", "first_byte", "idle", "total"]


class UpstreamError(LLMProxyError):
    """An attempt failed at the provider.

    Attributes:
        failure: The class of the failure.
        upstream_status: The provider's own HTTP status, when it answered at all.
    """

    status = 502
    code = "upstream_error"
    default_failure: ClassVar[Failure] = Failure.BROKEN

    def __init__(
        self,
        message: str,
        *,
        failure: Failure | None = None,
        upstream_status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param, status=status, retry_after_seconds=retry_after_seconds)
        self.failure: Final = failure or self.default_failure
        self.upstream_status: Final = upstream_status


class UpstreamUnreachable(UpstreamError):
    """No connection could be made; nothing was sent."""

    code = "upstream_unreachable"
    default_failure = Failure.CONNECT


class UpstreamTimeout(UpstreamError):
    """One of the four timers ran out; `phase` says which."""

    status = 504
    type = "timeout_error"
    code = "upstream_timeout"
    default_failure = Failure.TIMEOUT

    def __init__(self, message: str, *, phase: TimeoutPhase) -> None:
        super().__init__(message, code=f"upstream_{phase}_timeout")
        self.phase: Final = phase


class UpstreamBroken(UpstreamError):
    """The provider answered something that is not an answer."""

    code = "upstream_broken"


class UpstreamCut(UpstreamError):
    """The provider's answer ended before it was complete."""

    code = "upstream_cut"
    default_failure = Failure.CUT


class UpstreamUnsupported(UpstreamError):
    """The target cannot do what is asked, so that it was not asked; another may be able to."""

    status = 400
    type = "invalid_request_error"
    code = "bad_request"
    default_failure = Failure.UNSUPPORTED


class UpstreamWithheld(UpstreamError):
    """A limit of the target itself is used up, so that it was not asked; another may have room.

    Args:
        refusal: What the client is told when there is no other.
    """

    default_failure = Failure.WITHHELD

    def __init__(self, refusal: ClientError) -> None:
        super().__init__(
            refusal.message,
            code=refusal.error_code,
            param=refusal.param,
            status=refusal.http_status,
            retry_after_seconds=refusal.retry_after_seconds,
        )
        self.refusal: Final = refusal


class UpstreamSuperseded(UpstreamError):
    """Another attempt of the same exchange answered first, and this one was given up."""

    code = "upstream_superseded"
    default_failure = Failure.SUPERSEDED


class UpstreamRefused(UpstreamError):
    """The provider answered with an error of its own.

    Attributes:
        native_type: The provider's `type`, kept for the client; None when it gave none.
    """

    code = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        failure: Failure,
        upstream_status: int | None,
        status: int,
        native_type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(
            message,
            failure=failure,
            upstream_status=upstream_status,
            status=status,
            code=code,
            param=param,
            retry_after_seconds=retry_after_seconds,
        )
        self.native_type: Final = native_type


# Our own side


class Unavailable(LLMProxyError):
    """The gateway cannot serve this now: draining, or a part it depends on is missing."""

    status = 503
    code = "unavailable"


class StorageError(Unavailable):
    """Postgres or the local journal cannot be used.

    Args:
        reason: Why, for the operator; clients are told that the log has it.

    Attributes:
        for_operator: The message with the reason in it.
    """

    code = "storage_unavailable"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reason: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        told = f"{message}; the log says why." if reason else message
        super().__init__(told, code=code, retry_after_seconds=retry_after_seconds)
        self.for_operator: Final = f"{message}: {reason}." if reason else message


class PluginError(LLMProxyError):
    """A plugin raised something of its own, or returned what its hook does not allow.

    Args:
        plugin: The plugin's name, where core has caught it.
        hook: The hook in which it failed.
    """

    code = "plugin_error"

    def __init__(self, message: str, *, plugin: str | None = None, hook: str | None = None) -> None:
        super().__init__(message)
        self.plugin: Final = plugin
        self.hook: Final = hook


class ConfigError(LLMProxyError):
    """The configuration is wrong; `mistakes` holds one line for each, with file, line and column.

    Args:
        mistakes: One line per mistake.
    """

    code = "config_error"

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes: Final = mistakes
