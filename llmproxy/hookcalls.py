"""How the implementations of one hook become one callable, composed once at start.

pluggy has registered, validated and ordered them. Calling is not pluggy's here, because its first result is
wrong for coroutines: a coroutine is never None, even when what it would return is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pluggy import HookImpl

from llmproxy.errors import LLMProxyError, PluginError
from llmproxy.exchange import Chunk, Exchange

# Arguments and results differ from hook to hook; `Hooks` gives each composed call its type.
Function = Callable[..., Any]
# Raises TypeError or ValueError when a result is not what the hook allows; gets the arguments and the result.
Check = Callable[[tuple[Any, ...], Any], None]
# What to raise for a failure; None when it has been dealt with and the walk goes on.
Verdict = Callable[[Exception], Exception | None]
# Gets the plugin, the hook and what was raised.
OnFailure = Callable[[str, str, Exception], None]
# Gets the plugin, the hook and how many seconds its part took.
Trace = Callable[[str, str, float], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One plugin's part in a hook.

    Attributes:
        function: Takes all the hook's arguments.
        call: The same, failures and results already judged.
    """

    plugin: str
    function: Function
    check: Check
    verdict: Verdict
    is_async: bool
    call: Function = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "call", guard(self.function, self.check, self.verdict, is_async=self.is_async))

    async def run(self, *args: object) -> object:
        """Call it, whichever its colour. Raises an LLMProxyError."""
        result: object = await self.call(*args) if self.is_async else self.call(*args)
        return result


# Failures


def fail_closed(plugin: str, hook: str) -> Verdict:
    """The failure as a PluginError naming the plugin; an LLMProxyError is the plugin's own word and passes."""

    def verdict(error: Exception) -> Exception:
        if isinstance(error, LLMProxyError):
            return error
        sentence = f"The plugin {plugin!r} failed in {hook}; the gateway's log has the reason."
        failure = PluginError(sentence, plugin=plugin, hook=hook)
        failure.__cause__ = error
        return failure

    return verdict


def isolate(plugin: str, hook: str, on_failure: OnFailure) -> Verdict:
    """The failure goes to `on_failure` and stops nobody."""

    def verdict(error: Exception) -> None:
        on_failure(plugin, hook, error)

    return verdict


def raise_unless_settled(verdict: Verdict, error: Exception) -> None:
    """Raise what the verdict on `error` is; return when the failure has been dealt with."""
    failure = verdict(error)
    if failure is not None:
        raise failure


# One implementation


def bind(implementation: HookImpl, parameters: Sequence[str]) -> Function:
    """The implementation as a function of all `parameters`, of which it may want only some."""
    function: Function = implementation.function
    if implementation.argnames == tuple(parameters):
        return function
    places = [parameters.index(name) for name in implementation.argnames]
    named = {name: parameters.index(name) for name in implementation.kwargnames if name in parameters}
    start, stop = min(places, default=0), max(places, default=-1) + 1
    if not named and places == list(range(start, stop)):
        # Nearly all of them: neighbours in order, for which one slice is several times cheaper than the rest.
        return lambda *args: function(*args[start:stop])
    return lambda *args: function(*[args[place] for place in places], **{name: args[named[name]] for name in named})


def timed(function: Function, report: Callable[[float], None], *, is_async: bool) -> Function:
    """The same function, and `report` learns how many seconds each call took."""

    async def call_async(*args: object) -> object:
        started = time.perf_counter()
        try:
            return await function(*args)
        finally:
            report(time.perf_counter() - started)

    def call(*args: object) -> object:
        started = time.perf_counter()
        try:
            return function(*args)
        finally:
            report(time.perf_counter() - started)

    return call_async if is_async else call


def guard(function: Function, check: Check, verdict: Verdict, *, is_async: bool) -> Function:
    """The same function, its results checked and its failures judged; None when a failure was settled."""

    async def call_async(*args: object) -> object:
        try:
            result = await function(*args)
            if result is not None:
                check(args, result)
        except Exception as error:  # noqa: BLE001  # a plugin may raise anything, and the verdict says what follows
            raise_unless_settled(verdict, error)
            return None
        return result

    def call(*args: object) -> object:
        try:
            result = function(*args)
            if result is not None:
                check(args, result)
        except Exception as error:  # noqa: BLE001  # a plugin may raise anything, and the verdict says what follows
            raise_unless_settled(verdict, error)
            return None
        return result

    return call_async if is_async else call


# All implementations of a hook


class Finished:
    """What a hook gives to await when nothing in it had to wait: whoever looks first needs no task for it."""

    __slots__ = ("_result",)

    def __init__(self, result: object) -> None:
        self._result = result

    def __await__(self) -> Generator[None, None, object]:
        """Give the result without waiting."""
        return self._result
        yield


def in_turn(steps: Sequence[Step]) -> Function:
    """Call one after the other until one has a result; where a hook returns nothing, that is all of them."""
    # Judged right here, and the colours spread out: each call less is a tenth of what calling a hook costs.
    parts = tuple((step.function, step.check, step.verdict, step.is_async) for step in steps)

    async def run(*args: object) -> object:
        for function, check, verdict, is_async in parts:
            try:
                result: object = await function(*args) if is_async else function(*args)
                if result is not None:
                    check(args, result)
                    return result
            except Exception as error:  # noqa: BLE001  # a plugin may raise anything, and the verdict says what follows
                raise_unless_settled(verdict, error)
        return None

    if any(step.is_async for step in steps):
        return run
    plain = at_once(steps)
    return lambda *args: Finished(plain(*args))


def at_once(steps: Sequence[Step]) -> Function:
    """The same for a hook of plain functions, which is then plain itself."""
    parts = tuple((step.function, step.check, step.verdict) for step in steps)

    def run(*args: object) -> object:
        for function, check, verdict in parts:
            try:
                result: object = function(*args)
                if result is not None:
                    check(args, result)
                    return result
            except Exception as error:  # noqa: BLE001  # a plugin may raise anything, and the verdict says what follows
                raise_unless_settled(verdict, error)
        return None

    return run


def gather(steps: Sequence[Step]) -> Function:
    """Every result there is, with the plugin that gave it."""
    calls = tuple((step.plugin, step.call) for step in steps)

    def run(*args: object) -> object:
        return [(plugin, result) for plugin, call in calls if (result := call(*args)) is not None]

    return run


def chain(steps: Sequence[Step]) -> Function:
    """Each plugin gets, as the last argument, what the one before it made of it."""
    parts = tuple((step.function, step.check, step.verdict, step.is_async) for step in steps)

    async def run(*args: object) -> object:
        for function, check, verdict, is_async in parts:
            try:
                result: object = await function(*args) if is_async else function(*args)
                if result is not None:
                    check(args, result)
                    args = (*args[:-1], result)
            except Exception as error:  # noqa: BLE001  # a plugin may raise anything, and the verdict says what follows
                raise_unless_settled(verdict, error)
        return args[-1]

    return run


def chunk_chain(steps: Sequence[Step]) -> Function:
    """Each plugin gets every chunk that the one before it let out, and its last call after all of them."""
    calls = tuple(step.call for step in steps)

    def run(exchange: Exchange, chunk: Chunk) -> Sequence[Chunk]:
        if chunk.last:
            return flush(exchange)
        chunks: Sequence[Chunk] = (chunk,)
        for call in calls:
            chunks = _through(call, exchange, chunks)
        return chunks

    def flush(exchange: Exchange) -> Sequence[Chunk]:
        chunks: Sequence[Chunk] = ()
        for call in calls:
            chunks = _flushed(_through(call, exchange, (*chunks, Chunk(last=True))))
        return chunks

    return run


def _through(call: Function, exchange: Exchange, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
    let_out: list[Chunk] = []
    for chunk in chunks:
        result = call(exchange, chunk)
        if result is None:
            let_out.append(chunk)
        else:
            let_out.extend(result)
    return let_out


def _flushed(chunks: Sequence[Chunk]) -> Sequence[Chunk]:
    """Without the last-call marker; what a plugin wrote on it counts as a chunk."""
    return [Chunk(each.raw, each.document) if each.last else each for each in chunks if not _is_bare_marker(each)]


def _is_bare_marker(chunk: Chunk) -> bool:
    return chunk.last and not chunk.raw and chunk.document is None
