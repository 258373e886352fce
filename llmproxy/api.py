"""Everything a plugin may import. What stands in `__all__` is public and kept stable; nothing else is.

Beside the classes, which say themselves what they are:

    Document: A decoded JSON object.
    Headers: Header fields as pairs of name and value, in order.
    LedgerShare: What of the ledger an allowance is held to: its `unit` and what columns of the entries have to be.
    Pattern: A name pattern in a configuration, never empty.
    RouteHandler: What `Router.add` takes: an async function from a RouteRequest to an Answer.
    Row: One row of a query's result, by column name.
    Scope: What a limit may hold: the whole gateway, a workspace, a model and so on.
    ScopeName: What a request is called in one scope, and what else a pattern may call it by.
    Seconds: A duration in a configuration, greater than zero.
    TimeoutPhase: Which of the four timers of an attempt ran out.
    completion_events: A whole completion as the server-sent events of a streamed one.
    encode_event: A server-sent event with some data.
    event_data: The data of a server-sent event.
    has_repeated_members: Whether an object in some JSON names a member twice.
    hookimpl: Marks a method as the implementation of the hook of the same name.
    lies_within: Whether a target's region satisfies a constraint.
    post_alert: Posts an alert to somebody's webhook; that it failed is logged.
    spoken_subject: A subject of a limit as a person would say it.
    suggestion: What misspelt words may have been meant to be, as ` (did you mean …?)` or nothing.
"""

from __future__ import annotations

from llmproxy.allowances import Allowance, AllowanceExhausted, AllowanceUsage, HeldLease, LedgerShare, WorstCase
from llmproxy.claims import Claim
from llmproxy.config import Config, ModelName, Pattern, ProviderConfig, Seconds, Section, Timeouts
from llmproxy.config_mistakes import suggestion
from llmproxy.dialects.chat_collect import ChunkCollector
from llmproxy.dialects.chat_events import WholeEvents, completion_events
from llmproxy.errors import (
    BadRequest,
    BodyTooLarge,
    BudgetExceeded,
    ClientDisconnected,
    ClientError,
    ConfigError,
    Conflict,
    Failure,
    LLMProxyError,
    ModelNotAllowed,
    ModelNotFound,
    NotFound,
    PluginError,
    RateLimited,
    Refused,
    StorageError,
    TimeoutPhase,
    Unauthenticated,
    Unavailable,
    UpstreamBroken,
    UpstreamCut,
    UpstreamError,
    UpstreamRefused,
    UpstreamSuperseded,
    UpstreamTimeout,
    UpstreamUnreachable,
    UpstreamUnsupported,
    UpstreamWithheld,
)
from llmproxy.exchange import (
    Answer,
    AnswerStream,
    Attempt,
    Attribution,
    Chunk,
    Decision,
    Exchange,
    Hedge,
    Outcome,
    Principal,
    Resume,
    Retry,
    State,
    StateKey,
    StreamProgress,
    Target,
)
from llmproxy.follower import Follower
from llmproxy.hookspecs import hookimpl
from llmproxy.providers import Provider, StreamDecoder, Transport
from llmproxy.regions import lies_within
from llmproxy.request import Document, Headers, Operation, Request
from llmproxy.scopes import CallerKey, Scope, ScopedSection, ScopeName, Scopes, spoken_subject
from llmproxy.services import (
    Clock,
    Commands,
    Connection,
    Database,
    Exchanges,
    HTTPClient,
    Log,
    Pricing,
    Quotas,
    Reservation,
    RouteHandler,
    Router,
    RouteRequest,
    Row,
    RunningGateway,
    Services,
    Tasks,
    UpstreamRequest,
    UpstreamResponse,
    Vitals,
)
from llmproxy.splice import has_repeated_members
from llmproxy.sse import SSEDecoder, encode_event, event_data
from llmproxy.usage import Cost, Usage
from llmproxy.webhooks import post_alert

__all__ = [
    "Allowance",
    "AllowanceExhausted",
    "AllowanceUsage",
    "Answer",
    "AnswerStream",
    "Attempt",
    "Attribution",
    "BadRequest",
    "BodyTooLarge",
    "BudgetExceeded",
    "CallerKey",
    "Chunk",
    "ChunkCollector",
    "Claim",
    "ClientDisconnected",
    "ClientError",
    "Clock",
    "Commands",
    "Config",
    "ConfigError",
    "Conflict",
    "Connection",
    "Cost",
    "Database",
    "Decision",
    "Document",
    "Exchange",
    "Exchanges",
    "Failure",
    "Follower",
    "HTTPClient",
    "Headers",
    "Hedge",
    "HeldLease",
    "LLMProxyError",
    "LedgerShare",
    "Log",
    "ModelName",
    "ModelNotAllowed",
    "ModelNotFound",
    "NotFound",
    "Operation",
    "Outcome",
    "Pattern",
    "PluginError",
    "Pricing",
    "Principal",
    "Provider",
    "ProviderConfig",
    "Quotas",
    "RateLimited",
    "Refused",
    "Request",
    "Reservation",
    "Resume",
    "Retry",
    "RouteHandler",
    "RouteRequest",
    "Router",
    "Row",
    "RunningGateway",
    "SSEDecoder",
    "Scope",
    "ScopeName",
    "ScopedSection",
    "Scopes",
    "Seconds",
    "Section",
    "Services",
    "State",
    "StateKey",
    "StorageError",
    "StreamDecoder",
    "StreamProgress",
    "Target",
    "Tasks",
    "TimeoutPhase",
    "Timeouts",
    "Transport",
    "Unauthenticated",
    "Unavailable",
    "UpstreamBroken",
    "UpstreamCut",
    "UpstreamError",
    "UpstreamRefused",
    "UpstreamRequest",
    "UpstreamResponse",
    "UpstreamSuperseded",
    "UpstreamTimeout",
    "UpstreamUnreachable",
    "UpstreamUnsupported",
    "UpstreamWithheld",
    "Usage",
    "Vitals",
    "WholeEvents",
    "WorstCase",
    "completion_events",
    "encode_event",
    "event_data",
    "has_repeated_members",
    "hookimpl",
    "lies_within",
    "post_alert",
    "spoken_subject",
    "suggestion",
]
