"""The hooks of all enabled plugins, resolved once into an immutable, typed `Hooks`.

pluggy registers, validates and orders; calling is `hookcalls`' business. A hook that nobody implements is None
or (), so that a request pays one comparison for it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar

import pluggy

from llmproxy import hookspecs
from llmproxy.claims import Claim
from llmproxy.errors import ConfigError, UpstreamError
from llmproxy.exchange import Answer, Attempt, Chunk, Exchange, Hedge, Principal, Resume, Retry, Target
from llmproxy.hookcalls import (
    OnFailure,
    Step,
    Trace,
    at_once,
    bind,
    chain,
    chunk_chain,
    fail_closed,
    gather,
    in_turn,
    isolate,
    timed,
)
from llmproxy.hookrules import RULES, Kind, Rule
from llmproxy.hookwrappers import Wrapper, around

T = TypeVar("T")

# What a call gives before it is awaited.
Result = Awaitable[T]


@dataclass(frozen=True, slots=True)
class RegisteredPlugin:
    """A plugin object and the name it goes by."""

    name: str
    plugin: object


@dataclass(frozen=True, slots=True)
class Hooks:
    """One callable per hook; () or None where no plugin implements it.

    The hooks of starting and stopping are steps, one per plugin. `callers` names, for each hook that somebody
    implements, the plugins in the order in which they run.
    """

    register_providers: tuple[Step, ...] = ()
    register_routes: tuple[Step, ...] = ()
    register_commands: tuple[Step, ...] = ()
    startup: tuple[Step, ...] = ()
    shutdown: tuple[Step, ...] = ()
    authenticate: Callable[[Exchange], Result[Principal | None]] | None = None
    claims: Callable[[Exchange, Target | None, datetime], Sequence[tuple[str, Claim]]] | None = None
    pre_request: Callable[[Exchange], Result[Answer | None]] | None = None
    narrow_targets: Callable[[Exchange, Sequence[Target]], Result[Sequence[Target]]] | None = None
    choose_provider: Callable[[Exchange], Result[Target | None]] | None = None
    pre_attempt: Callable[[Exchange, Attempt], Result[None]] | None = None
    hedge: Callable[[Exchange, Attempt], Hedge | None] | None = None
    on_answer: Callable[[Exchange, Attempt, Answer], Result[Answer]] | None = None
    post_attempt: Callable[[Exchange, Attempt], None] | None = None
    on_error: Callable[[Exchange, Attempt, UpstreamError], Result[Retry | Answer | None]] | None = None
    on_stream_chunk: Callable[[Exchange, Chunk], Sequence[Chunk]] | None = None
    on_stream_error: Callable[[Exchange, Attempt, UpstreamError], Result[Resume | None]] | None = None
    post_response: Callable[[Exchange], Result[None]] | None = None
    on_response_head: Callable[[Exchange], None] | None = None
    on_complete: Callable[[Exchange], Result[None]] | None = None
    callers: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))


_COMPOSE: Final[Mapping[Kind, Callable[[Sequence[Step]], Any]]] = {  # what comes out differs from kind to kind
    Kind.EACH: tuple,
    Kind.ALL: in_turn,
    Kind.FIRST: in_turn,
    Kind.GATHER: gather,
    Kind.CHAIN: chain,
    Kind.CHUNK_CHAIN: chunk_chain,
}


def resolve(plugins: Sequence[RegisteredPlugin], *, on_failure: OnFailure, trace: Trace | None = None) -> Hooks:
    """The hooks of these plugins, which are in the order of the configuration.

    `on_failure` learns of failures in hooks that are isolated. With `trace`, every call is timed and reported;
    without, nothing is added. Raises ConfigError with every mistake in every plugin.
    """
    # pluggy runs what was registered last first: the way in is registered backwards, the way back forwards.
    way_in, way_back = _manager(tuple(reversed(plugins))), _manager(plugins)
    composed: dict[str, Any] = {}  # each hook's callable has a type of its own, which `Hooks` states
    callers: dict[str, tuple[str, ...]] = {}
    for hook, rule in RULES.items():
        implementations = _implementations(way_back if rule.is_inside_out else way_in, hook)
        if implementations:
            composed[hook] = _compose(hook, rule, implementations, on_failure, trace)
            callers[hook] = tuple(each.plugin_name for each in implementations)
    return Hooks(**composed, callers=MappingProxyType(callers))


def parameters_of(hook: str) -> tuple[str, ...]:
    """The names of a hook's arguments, in order."""
    return tuple(inspect.signature(getattr(hookspecs, hook)).parameters)


def _implementations(manager: pluggy.PluginManager, hook: str) -> Sequence[pluggy.HookImpl]:
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    found = caller.get_hookimpls()[::-1]
    return [each for each in found if hook not in getattr(each.plugin, "unused_hooks", ())]


def _compose(
    hook: str, rule: Rule, implementations: Sequence[pluggy.HookImpl], on_failure: OnFailure, trace: Trace | None
) -> object:
    wrappers: list[Wrapper] = []
    steps: list[Step] = []
    for each in implementations:
        function, plugin = bind(each, parameters_of(hook)), each.plugin_name
        verdict = isolate(plugin, hook, on_failure) if rule.is_isolated else fail_closed(plugin, hook)
        if each.wrapper:
            wrappers.append(Wrapper(function, rule.check, verdict))
            continue
        is_async = inspect.iscoroutinefunction(each.function)
        if trace is not None:
            function = timed(function, partial(trace, plugin, hook), is_async=is_async)
        steps.append(Step(plugin, function, rule.check, verdict, is_async))
    run = at_once(steps) if rule.is_plain and rule.kind in (Kind.ALL, Kind.FIRST) else _COMPOSE[rule.kind](steps)
    return around(wrappers, run) if wrappers else run


# Registering


def _manager(plugins: Sequence[RegisteredPlugin]) -> pluggy.PluginManager:
    """A manager with these plugins registered, all of their mistakes found before pluggy stops at the first."""
    manager = pluggy.PluginManager("llmproxy")
    for each in plugins:
        manager.register(each.plugin, name=each.name)
    if mistakes := [mistake for each in plugins for mistake in _mistakes(manager, each)]:
        raise ConfigError(*mistakes)
    manager.add_hookspecs(hookspecs)
    return manager


def _mistakes(manager: pluggy.PluginManager, registered: RegisteredPlugin) -> Iterator[str]:
    plugin, callers = registered.plugin, manager.get_hookcallers(registered.plugin) or []
    for caller in callers:
        for each in caller.get_hookimpls():
            if each.plugin is plugin:
                yield from (f"The plugin {registered.name!r} {what}." for what in _wrong_with(each, caller.name))
    for name in sorted(set(getattr(plugin, "unused_hooks", ())) - RULES.keys()):
        yield f"The plugin {registered.name!r} names a hook {name!r} as unused that does not exist."
    # A guard that lacks its mark would never be called, and nobody would know.
    for hook in RULES.keys() - {caller.name for caller in callers}:
        if inspect.isfunction(getattr(type(plugin), hook, None)):
            yield f"The plugin {registered.name!r} has a method {hook} that is not marked with @hookimpl."


def _wrong_with(implementation: pluggy.HookImpl, hook: str) -> Iterator[str]:
    rule = RULES.get(hook)
    if rule is None:
        if not implementation.optionalhook:
            yield f"implements a hook {hook} that does not exist{did_you_mean(hook, RULES)}"
        return
    for name in sorted(set(implementation.argnames) - set(parameters_of(hook))):
        yield f"asks for an argument {name} that {hook} does not have{did_you_mean(name, parameters_of(hook))}"
    yield from _wrong_with_form(implementation, hook, rule)


def _wrong_with_form(implementation: pluggy.HookImpl, hook: str, rule: Rule) -> Iterator[str]:
    function = implementation.function
    is_wrapper = implementation.wrapper or implementation.hookwrapper
    if implementation.hookwrapper:
        yield f"declares {hook} with hookwrapper=True; use wrapper=True"
    if is_wrapper and not rule.takes_wrappers:
        yield f"declares {hook} as a wrapper, which this hook does not take"
    if is_wrapper != inspect.isgeneratorfunction(function):
        yield f"must have `yield` in {hook} if, and only if, it is declared with wrapper=True"
    if inspect.isasyncgenfunction(function):
        yield f"declares {hook} as an async generator; it must be a coroutine or a plain function"
    if rule.is_plain and inspect.iscoroutinefunction(function):
        yield f"declares {hook} with `async def`, and it must be a plain `def`"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is nearest, to be put behind a sentence; empty when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
