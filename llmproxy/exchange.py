"""The exchange, one client request and all that follows from it, and the values it is filled with.

No I/O and no HTTP library here: what these types hold can be made, compared and tested anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from math import inf
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from llmproxy.allowances import WorstCase
from llmproxy.errors import LLMProxyError
from llmproxy.request import Document, Headers, Operation, Request
from llmproxy.usage import Cost, Usage

T = TypeVar("T")


class Outcome(StrEnum):
    """How an exchange ended."""

    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    FAILED = "failed"
    DISCONNECTED = "disconnected"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking: the virtual key and the workspace it belongs to.

    `models` and `workspace_models` are shell-style patterns over model names; both must allow a model.
    `feature` and `user`, when the key carries them, win over what the client claims.
    """

    workspace: str
    key_id: str
    key_name: str = ""
    models: tuple[str, ...] = ("*",)
    workspace_models: tuple[str, ...] = ("*",)
    region: str | None = None
    feature: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whom a row is for: the client's own words, from `x-llmproxy-*` headers, and its trace."""

    feature: str | None = None
    user: str | None = None
    session: str | None = None
    prompt_version: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One place a request may go: a configured provider and the model's name there.

    `credential` tells the keys of a provider apart that has several, by a label that is no secret. Each of them makes
    a target of its own. `zero_retention`: the vendor keeps nothing of what it is sent. `takes_prefill`: the model goes
    on from a last message that is its own.
    """

    provider: str
    model: str
    region: str | None = None
    weight: float = 1.0
    credential: str | None = None
    zero_retention: bool = False
    takes_prefill: bool = False

    @property
    def name(self) -> str:
        """The name clients see: `provider/model`."""
        return f"{self.provider}/{self.model}"


class StreamProgress(Protocol):
    """What a streamed answer has shown so far.

    Attributes:
        usage: A document whose `usage` is what the provider has told; None as long as it told nothing.
        has_content: Whether anything a user could notice has passed.
        event_count: How many events it has had.
        size_bytes: The size of them all.
    """

    usage: Document | None
    has_content: bool
    event_count: int
    size_bytes: int

    @property
    def sample(self) -> bytes:
        """The first events with content: as many whole ones as tell what the others are like."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer has come to its end."""

    @property
    def estimated_tokens(self) -> int:
        """About how many tokens have passed."""

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Those that have passed, in the order of the choices."""


@dataclass(slots=True)
class Attempt:
    """One try at a target.

    `request` is rebuilt from the client's original for every attempt and may be edited by `pre_attempt`.
    `is_sent` tells that the provider may have seen it, and so charge for it.
    `first_chunk_seconds` and `duration_seconds` count from the start of the attempt. `headers` are those of the
    provider's response that clients may rely on. `dropped` names request parameters that the provider does not have.
    `timeout_seconds`: how long the provider may take to its answer, or to the first content of its stream; a plugin may
    set it in `pre_attempt`, and the provider's own timers hold all the same.
    `progress` is there for streamed answers. `is_over` once nothing more comes of it, and `post_attempt` was told.
    `reserved`: what is charged should its worker die; None when nothing was reserved for it. `ceiling` is core's way to
    the worst case of a request.
    """

    number: int
    target: Target
    request: Request
    started_at: datetime
    started_monotonic: float
    timeout_seconds: float | None = None
    is_sent: bool = False
    status: int | None = None
    headers: Headers = ()
    dropped: tuple[str, ...] = ()
    upstream_request_id: str | None = None
    progress: StreamProgress | None = None
    error: LLMProxyError | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    finish_reasons: tuple[str, ...] = ()
    first_chunk_seconds: float | None = None
    duration_seconds: float | None = None
    is_over: bool = False
    reserved: WorstCase | None = None
    ceiling: Callable[[Request, int], WorstCase] | None = field(default=None, repr=False)

    def worst_case(self, assumed_output_tokens: int) -> WorstCase:
        """The most it may use and cost, as its request stands now.

        Args:
            assumed_output_tokens: What it writes at most where neither the request nor the model has a limit.
        """
        if self.ceiling is None:
            return WorstCase(self.request.size_bytes, assumed_output_tokens, None)
        return self.ceiling(self.request, assumed_output_tokens)


class AnswerStream(Protocol):
    """Server-sent events in the client's dialect, as bytes."""

    async def read(self) -> bytes:
        """The next bytes, in pieces of any size; b"" once, at the end. Raises an UpstreamError when cut."""

    def close(self) -> None:
        """Stop: nobody will read on. Cancels the upstream at once; harmless when already ended."""


@dataclass(slots=True)
class Answer:
    """What the client gets: a whole `body`, or a `stream` of events; never both.

    `headers` are the provider's (or the plugin's) own; core adds its `x-llmproxy-*` and framing.
    `cache` is what `x-llmproxy-cache` says, None when no cache took part.
    """

    status: int = 200
    headers: Headers = ()
    body: bytes = b""
    stream: AnswerStream | None = None
    cache: Literal["hit", "miss", "bypass", "semantic", "coalesced"] | None = None


class Chunk:
    """One server-sent event of a streamed answer, as `on_stream_chunk` sees it.

    Attributes:
        raw: The event's bytes, blank line included; unchanged chunks travel on as exactly these.
        document: The decoded `data`, None for comments, `[DONE]` and the last call.
        last: True for the one call after the last event: flush what was held back.
    """

    __slots__ = ("document", "last", "raw")

    def __init__(self, raw: bytes = b"", document: Document | None = None, *, last: bool = False) -> None:
        self.raw = raw
        self.document = document
        self.last = last


@dataclass(frozen=True, slots=True)
class Retry:
    """`on_error`'s word that another attempt should be made, after a pause."""

    after_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Hedge:
    """`hedge`'s word that a second attempt should begin elsewhere when the first has no answer by then.

    `may_begin` is asked once, when it comes to that.
    """

    target: Target
    after_seconds: float
    may_begin: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class Resume:
    """`on_stream_error`'s word that another attempt should go on where a stream was cut.

    `request` asks for the rest: it takes the place of the client's for the attempts that follow.
    """

    request: Request


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the record that says why an exchange went the way it did."""

    by: str
    what: str
    why: str


class StateKey(Generic[T]):
    """A typed key for a plugin's own data on an exchange: `exchange.state[KEY]` has the key's type."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"StateKey({self.name!r})"


class State(Protocol):
    """Plugin side data, by StateKey: a dictionary, of which the keys know the types."""

    def __getitem__(self, key: StateKey[T], /) -> T:
        """The value; raises KeyError when there is none."""

    def __setitem__(self, key: StateKey[T], value: T, /) -> None:
        """Keep a value."""

    def __contains__(self, key: object, /) -> bool:
        """Whether there is a value."""

    def get(self, key: StateKey[T], default: T | None = None, /) -> T | None:
        """The value, or `default`."""


@dataclass(slots=True)
class Exchange:
    """One client request and all that follows from it, filled from left to right, each field set once.

    `principal`, then `attribution` and `request`, are unset until the walk has reached them: reading one too
    early is an AttributeError, which is the point. Times in seconds count from `started_monotonic`.
    `response_headers` are added to the answer's head as long as it has not been sent.
    `deadline_monotonic`: when there must be an answer, or the beginning of a stream; no attempt outlives it without
    one, and a plugin may make it earlier. `expires_monotonic`: when the client is out of patience, streams included.
    `origin` names the plugin that asked in the gateway's own name, for the exchange `parent_id`; None for clients.
    """

    id: str
    admitted_at: datetime
    started_monotonic: float
    operation: Operation
    path: str
    headers: Mapping[str, str]
    client_address: str | None = None
    origin: str | None = None
    parent_id: str | None = None
    deadline_monotonic: float = inf
    expires_monotonic: float = inf
    principal: Principal = field(init=False)
    attribution: Attribution = field(init=False)
    request: Request = field(init=False)
    candidates: tuple[Target, ...] = ()
    targets: tuple[Target, ...] = ()
    attempts: list[Attempt] = field(default_factory=list)
    answer: Answer | None = None
    first_chunk_seconds: float | None = None
    duration_seconds: float | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    outcome: Outcome | None = None
    error: LLMProxyError | None = None
    decisions: list[Decision] = field(default_factory=list)
    response_headers: list[tuple[str, str]] = field(default_factory=list)
    state: State = field(default_factory=cast("Callable[[], State]", dict))  # a key's type is its value's

    @property
    def target(self) -> Target | None:
        """Where the last attempt went; None when none was made."""
        return self.attempts[-1].target if self.attempts else None

    def decide(self, by: str, what: str, why: str) -> None:
        """Add a line to the decision record that `requests show` and `explain` print."""
        self.decisions.append(Decision(by, what, why))
