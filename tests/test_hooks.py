"""Resolving and calling hooks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import FrozenInstanceError, dataclass, fields
from datetime import UTC, datetime
from typing import Any, cast

import pluggy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy import hookspecs
from llmproxy.errors import ConfigError, PluginError, Refused, UpstreamBroken
from llmproxy.exchange import Answer, Attempt, Chunk, Exchange, Principal, Retry, Target
from llmproxy.hookrules import RULES, Kind
from llmproxy.hooks import Hooks, RegisteredPlugin, parameters_of, resolve
from llmproxy.hookspecs import hookimpl
from llmproxy.request import Operation, Request

ONE, TWO, THREE = Target("a", "one"), Target("b", "two"), Target("c", "three")


def make_exchange() -> Exchange:
    """An exchange whose request has come in, with two targets left."""
    exchange = Exchange("x1", datetime(2026, 1, 1, tzinfo=UTC), 0.0, Operation.CHAT, "/v1/chat/completions", {})
    exchange.request = Request(Operation.CHAT, b"{}", {})
    exchange.targets = (ONE, TWO)
    return exchange


def make_attempt(exchange: Exchange) -> Attempt:
    """A first attempt at the first target."""
    return Attempt(1, ONE, exchange.request, exchange.admitted_at, 0.0)


def unexpected_failure(plugin: str, hook: str, error: Exception) -> None:
    """For tests in which no isolated hook may fail."""
    raise AssertionError((plugin, hook, error))


def resolved(*plugins: object, **options: Any) -> Hooks:
    """The hooks of plugins that are called p0, p1 and so on, in the order of the configuration."""
    registered = [RegisteredPlugin(f"p{number}", plugin) for number, plugin in enumerate(plugins)]
    return resolve(registered, **{"on_failure": unexpected_failure, **options})


def with_hook(name: str, function: Callable[..., Any], **options: Any) -> object:
    """A plugin that implements one hook by `function`, which takes no `self`."""
    return type("Plugin", (), {name: staticmethod(hookimpl(**options)(function))})()


# Nobody


def test_without_plugins_every_hook_is_none_or_empty() -> None:
    """`Hooks()` has nothing to call, and resolving no plugins gives the same."""
    assert all(getattr(Hooks(), field.name) in (None, ()) for field in fields(Hooks) if field.name != "callers")
    assert Hooks().callers == {}
    assert resolve([], on_failure=unexpected_failure) == Hooks()


def test_hooks_cannot_be_changed() -> None:
    """A resolved set of hooks is immutable: a reload makes a new one."""
    hooks = resolved(with_hook("authenticate", lambda: None))
    for field in fields(Hooks):
        with pytest.raises(FrozenInstanceError):
            setattr(hooks, field.name, None)
    with pytest.raises(TypeError):
        cast("dict[str, object]", hooks.callers)["authenticate"] = ()


# Resolved calls are pluggy's calls


@dataclass(frozen=True)
class Plan:
    """What one random plugin does."""

    shape: str
    act: str
    order: str | None
    is_async: bool
    is_foreign: bool

    @property
    def is_wrapper(self) -> bool:
        """Whether it is a wrapper rather than an implementation."""
        return self.act.startswith("wrap")


# Argument lists an implementation of on_error may have: subsets, another order, a default.
SHAPES = ("", "error", "exchange attempt", "error exchange", "exchange attempt error", "exchange error=")
ACTS = (
    *("none", "none", "answer", "raise"),
    *("wrap pass", "wrap change", "wrap swallow", "wrap replace", "wrap raise before", "wrap raise after"),
)
PLANS = st.builds(
    Plan, st.sampled_from(SHAPES), st.sampled_from(ACTS), st.sampled_from([None, None, "tryfirst", "trylast"]),
    st.booleans(), st.booleans(),
)  # fmt: skip
ANSWERS: dict[str, Callable[[str], object]] = {
    "authenticate": lambda name: Principal(name, name),
    "on_error": lambda name: Retry(float(len(name))),
    "pre_attempt": lambda name: None,
    "post_response": lambda name: None,
}


class Actor:
    """Acts out a plan and writes down when, with which arguments, and what a wrapper saw."""

    def __init__(self, name: str, plan: Plan, hook: str, log: list[object]) -> None:
        self.name, self.plan, self.log = name, plan, log
        self.answer = ANSWERS[hook](name)

    def error(self) -> Exception:
        """What it raises: its own word to the client, or something foreign."""
        return ValueError(self.name) if self.plan.is_foreign else Refused(self.name)

    def implement(self, *args: object) -> object:
        """An implementation's body."""
        self.log.append((self.name, args))
        if self.plan.act == "raise":
            raise self.error()
        return self.answer if self.plan.act == "answer" else None

    def wrap(self, *args: object) -> Generator[None, object, object]:
        """A wrapper's body."""
        self.log.append((self.name, args))
        if self.plan.act == "wrap raise before":
            raise self.error()
        try:
            result = yield
        except Exception as error:
            self.log.append((self.name, told(error)))
            if self.plan.act == "wrap swallow":
                return self.answer
            if self.plan.act == "wrap replace":
                raise self.error() from error
            raise
        self.log.append((self.name, result or None))
        if self.plan.act == "wrap raise after":
            raise self.error()
        return self.answer if self.plan.act == "wrap change" else result


def told(error: BaseException) -> tuple[type, str]:
    """What an error says, looking through the PluginError that names the plugin."""
    truth = error.__cause__ if isinstance(error, PluginError) else error
    return type(truth), str(truth)


def shaped(actor: Actor, parameters: Sequence[str], *, is_async: bool) -> Callable[..., Any]:
    """A function with the argument list of the plan, as far as the hook has those arguments."""
    wanted = [each for each in actor.plan.shape.split() if each.rstrip("=") in parameters]
    signature = ", ".join(f"{each}None" if each.endswith("=") else each for each in wanted)
    arguments = ", ".join(each.rstrip("=") for each in wanted)
    body = f"return (yield from actor.wrap({arguments}))" if actor.plan.is_wrapper else None
    body = body or f"return actor.implement({arguments})"
    pause = "await sleep(0); " if is_async and not actor.plan.is_wrapper else ""
    source = f"{'async ' if pause else ''}def implementation({signature}): {pause}{body}"
    names: dict[str, Any] = {"actor": actor, "sleep": asyncio.sleep}
    exec(source, names)  # noqa: S102  # pluggy reads argument names from the code object: only code can vary them
    function: Callable[..., Any] = names["implementation"]
    return function


def plugins_of(plans: Sequence[Plan], hook: str, log: list[object], *, coloured: bool) -> list[object]:
    """One plugin per plan; without `coloured`, all of them plain `def`."""
    plugins = []
    for number, plan in enumerate(plans):
        function = shaped(
            Actor(f"p{number}", plan, hook, log), parameters_of(hook), is_async=coloured and plan.is_async
        )
        options = {plan.order: True} if plan.order else {}
        plugins.append(with_hook(hook, function, wrapper=plan.is_wrapper, **options))
    return plugins


async def outcome(call: Callable[[], Awaitable[object]]) -> object:
    """What came of a call: its result, or what it raised."""
    try:
        return await call() or None
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the outcome
        return told(error)


async def pluggys_outcome(plugins: Sequence[object], hook: str, arguments: dict[str, object]) -> object:
    """What pluggy's own loop makes of the call, the plugins registered so that it runs them in our order."""
    manager = pluggy.PluginManager("llmproxy")
    manager.add_hookspecs(hookspecs)
    for plugin in plugins if RULES[hook].is_inside_out else reversed(plugins):
        manager.register(plugin)

    async def call() -> object:
        return getattr(manager.hook, hook)(**arguments)

    return await outcome(call)


@given(hook=st.sampled_from(sorted(ANSWERS)), plans=st.lists(PLANS, max_size=6))
async def test_a_resolved_call_is_pluggys_call(hook: str, plans: list[Plan]) -> None:
    """Result, error, order and arguments are those of pluggy's own loop over plain functions, whatever the colour."""
    exchange = make_exchange()
    values = {"exchange": exchange, "attempt": make_attempt(exchange), "error": UpstreamBroken("It broke.")}
    arguments = {name: values[name] for name in parameters_of(hook)}
    expected_log: list[object] = []
    expected = await pluggys_outcome(plugins_of(plans, hook, expected_log, coloured=False), hook, arguments)
    log: list[object] = []
    call = getattr(resolved(*plugins_of(plans, hook, log, coloured=True)), hook)
    assert (call is None) == (not plans)
    if call is not None:
        assert await outcome(lambda: call(*arguments.values())) == expected
    assert log == expected_log


async def test_an_async_none_leaves_it_to_the_next_plugin() -> None:
    """A coroutine that returns None is no result, and the ones after a result are never begun."""
    began: list[str] = []

    async def undecided() -> None:
        began.append("undecided")

    async def decided() -> Principal:
        began.append("decided")
        return Principal("acme", "k1")

    async def late() -> Principal:
        raise AssertionError

    hooks = resolved(*(with_hook("authenticate", each) for each in (undecided, decided, late)))
    assert hooks.authenticate is not None
    assert await hooks.authenticate(make_exchange()) == Principal("acme", "k1")
    assert began == ["undecided", "decided"]


# Order


class Everywhere:
    """Implements every hook and notes on the class who ran."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    @hookimpl
    def pre_request(self) -> None:
        self.order.append(f"pre_request {self.name}")

    @hookimpl
    async def post_response(self) -> None:
        self.order.append(f"post_response {self.name}")

    @hookimpl
    def on_complete(self) -> None:
        self.order.append(f"on_complete {self.name}")


async def test_the_way_in_is_config_order_and_the_way_back_is_inside_out() -> None:
    """What redaction restores on the way back, caching, which stands behind it, has already seen masked."""
    order: list[str] = []
    hooks = resolved(Everywhere("redaction", order), Everywhere("caching", order))
    assert hooks.pre_request
    assert hooks.post_response
    assert hooks.on_complete
    for call in (hooks.pre_request, hooks.post_response, hooks.on_complete):
        await call(make_exchange())
    assert order == [
        *("pre_request redaction", "pre_request caching"),
        *("post_response caching", "post_response redaction"),
        *("on_complete caching", "on_complete redaction"),
    ]


def test_callers_names_the_plugins_in_run_order() -> None:
    """`callers` lists, per implemented hook, who runs when: wrappers first, then tryfirst, then trylast at the end."""

    def wrap() -> Generator[None, object, object]:
        return (yield)

    hooks = resolved(
        with_hook("pre_request", lambda: None, trylast=True),
        with_hook("pre_request", lambda: None),
        with_hook("pre_request", lambda: None, tryfirst=True),
        with_hook("pre_request", wrap, wrapper=True),
        with_hook("on_stream_chunk", lambda: None),
        with_hook("on_stream_chunk", lambda: None),
    )
    assert hooks.callers == {"pre_request": ("p3", "p2", "p1", "p0"), "on_stream_chunk": ("p5", "p4")}


# Targets


async def narrowed(*functions: Callable[..., object]) -> Sequence[Target]:
    """What plugins leave of three targets."""
    hooks = resolved(*(with_hook("narrow_targets", each) for each in functions))
    assert hooks.narrow_targets is not None
    return tuple(await hooks.narrow_targets(make_exchange(), (ONE, TWO, THREE)))


async def test_narrowing_hands_each_plugin_what_the_one_before_left() -> None:
    """Targets go through the plugins in order; None leaves them as they are."""

    async def reverse(targets: Sequence[Target]) -> list[Target]:
        return list(targets)[::-1]

    def drop_first(targets: Sequence[Target]) -> Sequence[Target]:
        return targets[1:]

    assert await narrowed(reverse, lambda: None, drop_first) == (TWO, ONE)
    assert await narrowed(lambda targets: ()) == ()


@given(st.lists(st.lists(st.sampled_from([ONE, TWO, THREE]), unique=True) | st.none(), min_size=1, max_size=4))
async def test_narrowing_never_widens(choices: list[list[Target] | None]) -> None:
    """What is left was left by every plugin; a plugin that brings a target back is an error."""
    functions = [lambda choice=choice: choice for choice in choices]
    left = {ONE, TWO, THREE}
    is_widened = False
    for choice in choices:
        is_widened = is_widened or (choice is not None and not set(choice) <= left)
        left = left if choice is None else set(choice)
    if is_widened:
        with pytest.raises(PluginError):
            await narrowed(*functions)
    else:
        assert set(await narrowed(*functions)) == left


async def test_a_chosen_target_must_be_one_of_those_left() -> None:
    """choose_provider cannot go outside exchange.targets."""
    hooks = resolved(with_hook("choose_provider", lambda exchange: THREE))
    assert hooks.choose_provider is not None
    with pytest.raises(PluginError, match="'p0' failed in choose_provider"):
        await hooks.choose_provider(make_exchange())
    chosen = resolved(with_hook("choose_provider", lambda exchange: TWO)).choose_provider
    assert chosen is not None
    assert await chosen(make_exchange()) == TWO


# Chunks


def chunk_call(*functions: Callable[..., object]) -> Callable[[Exchange, Chunk], Sequence[Chunk]]:
    """The stream hook of plugins, the first of which gets each chunk last."""
    call = resolved(*(with_hook("on_stream_chunk", each) for each in functions)).on_stream_chunk
    assert call is not None
    return call


def streamed(call: Callable[[Exchange, Chunk], Sequence[Chunk]], *raws: bytes) -> list[list[bytes]]:
    """What comes out for each event of a stream, and for its end."""
    exchange = make_exchange()
    given_chunks = [*(Chunk(raw) for raw in raws), Chunk(last=True)]
    return [[each.raw for each in call(exchange, chunk)] for chunk in given_chunks]


def test_chunks_can_be_left_replaced_multiplied_and_swallowed() -> None:
    """None leaves a chunk, a sequence replaces it, an empty one swallows it."""

    def edit(chunk: Chunk) -> Sequence[Chunk] | None:
        return {b"twice": (chunk, chunk), b"never": (), b"other": [Chunk(b"another")]}.get(chunk.raw)

    out = streamed(chunk_call(edit), b"same", b"twice", b"never", b"other")
    assert out == [[b"same"], [b"twice", b"twice"], [], [b"another"], []]


def test_an_unchanged_chunk_is_the_same_object() -> None:
    """A chunk that nobody changes is not copied."""
    chunk = Chunk(b"data: 1\n\n", {"n": 1})
    assert chunk_call(lambda: None, lambda: None)(make_exchange(), chunk)[0] is chunk


def test_what_a_plugin_flushes_passes_the_later_plugins_before_their_last_call() -> None:
    """The last call comes once per plugin, after everything that plugin is given."""
    seen: list[str] = []

    def upper(chunk: Chunk) -> Sequence[Chunk] | None:
        seen.append(f"outer {'last' if chunk.last else chunk.raw.decode()}")
        return [Chunk(b"end")] if chunk.last else [Chunk(chunk.raw.upper())]

    def hold(chunk: Chunk) -> Sequence[Chunk]:
        seen.append(f"inner {'last' if chunk.last else chunk.raw.decode()}")
        return [Chunk(b"held"), chunk] if chunk.last else []

    assert streamed(chunk_call(upper, hold), b"a", b"b") == [[], [], [b"HELD", b"end"]]
    assert seen == ["inner a", "inner b", "inner last", "outer held", "outer last"]


def test_what_is_written_on_the_last_chunk_is_not_lost() -> None:
    """A plugin that puts its tail on the last call's chunk has flushed it, and nobody gets a second last call."""
    lasts: list[bool] = []

    def write_on_it(chunk: Chunk) -> None:
        if chunk.last:
            chunk.raw = b"tail"

    def note(chunk: Chunk) -> None:
        lasts.append(chunk.last)

    assert streamed(chunk_call(note, write_on_it)) == [[b"tail"]]
    assert lasts == [False, True]


def test_a_plugin_cannot_end_the_stream_for_the_others() -> None:
    """A last chunk out of an ordinary call is an error."""
    with pytest.raises(PluginError, match="'p0' failed in on_stream_chunk"):
        streamed(chunk_call(lambda chunk: [Chunk(b"x", last=True)]), b"a")


@given(
    raws=st.lists(st.binary(min_size=1), max_size=5),
    held=st.lists(st.integers(min_value=0, max_value=4), max_size=3),
)
def test_plugins_that_hold_chunks_back_lose_none(raws: list[bytes], held: list[int]) -> None:
    """However many chunks each plugin holds back, all come out, in order, and each plugin ends once."""
    lasts: list[int] = []

    def holder(size: int) -> Callable[..., object]:
        kept: list[Chunk] = []

        def hold(chunk: Chunk) -> Sequence[Chunk]:
            if chunk.last:
                lasts.append(size)
                return kept
            kept.append(chunk)
            return [kept.pop(0)] if len(kept) > size else []

        return hold

    call = chunk_call(lambda: None, *(holder(size) for size in held))
    assert [raw for out in streamed(call, *raws) for raw in out] == raws
    assert lasts == held[::-1]


# Failures


def returning(result: Callable[[], object]) -> Callable[[], object]:
    """A plain function, as plugins have them, that gives what `result` makes."""

    def implementation() -> object:
        return result()

    return implementation


def plain_coroutine() -> Awaitable[None]:
    """A plain `def` that returns an awaitable."""
    return asyncio.sleep(0)


@pytest.mark.parametrize(
    ("hook", "result", "truth"),
    [
        ("authenticate", lambda: "acme", "returned str, where Principal or None is expected"),
        ("pre_request", dict, "returned dict, where Answer or None is expected"),
        ("pre_request", plain_coroutine, "declare it `async def`"),
        ("narrow_targets", lambda: {ONE}, "returned set, where a sequence of targets"),
        ("narrow_targets", lambda: [THREE], "not among those handed in"),
        ("choose_provider", lambda: "a/one", "not among exchange.targets"),
        ("pre_attempt", lambda: 1, "returned int, where None is expected"),
        ("pre_attempt", plain_coroutine, "declare it `async def`"),
        ("on_error", lambda: True, "returned bool, where Retry or Answer or None is expected"),
        ("on_stream_chunk", lambda: Chunk(b"x"), "returned Chunk, where a sequence of chunks"),
        ("on_stream_chunk", lambda: [b"x"], "returned list, where a sequence of chunks"),
        ("post_response", Answer, "returned Answer, where None is expected"),
    ],
)
async def test_a_result_that_the_hook_does_not_allow_is_the_plugins_error(
    hook: str, result: Callable[[], object], truth: str
) -> None:
    """Core never acts on a result of the wrong kind: it answers 500 naming the plugin, and the log has the reason."""
    exchange = make_exchange()
    values: dict[str, object] = {
        "exchange": exchange, "targets": (ONE, TWO), "attempt": make_attempt(exchange),
        "error": UpstreamBroken("It broke."), "chunk": Chunk(b"x"),
    }  # fmt: skip
    call = getattr(resolved(with_hook(hook, returning(result))), hook)

    async def make() -> object:
        return await call(*(values[name] for name in parameters_of(hook)))

    with pytest.raises(PluginError, match=f"The plugin 'p0' failed in {hook}") as caught:
        await make()
    assert truth in str(caught.value.__cause__)


async def result_of(call: object) -> object:
    """What a composed hook gives, whichever its colour."""
    return await call if inspect.isawaitable(call) else call


@pytest.mark.parametrize(
    ("hook", "is_async"),
    [
        (name, is_async)
        for name, rule in RULES.items()
        for is_async in (False, True)
        if rule.kind in (Kind.ALL, Kind.FIRST) and not (rule.is_plain and is_async)
    ],
)
async def test_deciders_fail_closed_and_name_the_plugin(hook: str, *, is_async: bool) -> None:
    """A foreign error becomes a PluginError that keeps it as its cause and does not repeat it; nobody runs after it."""
    reported: list[tuple[str, str, str]] = []

    def fail() -> None:
        raise ValueError("password=hunter2")

    async def fail_async() -> None:
        fail()

    hooks = resolved(
        with_hook(hook, fail_async if is_async else fail),
        on_failure=lambda plugin, where, error: reported.append((plugin, where, str(error))),
    )
    arguments = [make_exchange()] * len(parameters_of(hook))
    if RULES[hook].is_isolated:
        assert await result_of(getattr(hooks, hook)(*arguments)) is None
        assert reported == [("p0", hook, "password=hunter2")]
        return
    with pytest.raises(PluginError) as caught:
        await result_of(getattr(hooks, hook)(*arguments))
    assert "'p0'" in caught.value.message
    assert "hunter2" not in caught.value.message
    assert str(caught.value.__cause__) == "password=hunter2"
    assert reported == []


async def test_a_plugins_own_refusal_passes_as_it_is() -> None:
    """An LLMProxyError is how a plugin refuses: the client gets exactly that."""
    refusal = Refused("The office is closed.", code="quiet_hours")

    def refuse() -> None:
        raise refusal

    call = resolved(with_hook("pre_request", refuse)).pre_request
    assert call is not None
    with pytest.raises(Refused) as caught:
        await call(make_exchange())
    assert caught.value is refusal


async def test_on_complete_runs_everybody_whatever_fails() -> None:
    """Failures of observers, wrappers included, are reported one by one and stop nobody."""
    order: list[str] = []
    reported: list[tuple[str, str]] = []

    def fail() -> None:
        order.append("fail")
        raise Refused("No.")

    def broken_wrapper() -> Generator[None, object, object]:
        order.append("wrapper")
        raise ValueError
        yield

    def late_wrapper() -> Generator[None, object, object]:
        yield
        raise ValueError

    hooks = resolved(
        Everywhere("first", order),
        with_hook("on_complete", fail),
        with_hook("on_complete", broken_wrapper, wrapper=True),
        with_hook("on_complete", late_wrapper, wrapper=True),
        with_hook("on_complete", lambda: 1),
        on_failure=lambda plugin, hook, error: reported.append((plugin, type(error).__name__)),
    )
    assert hooks.on_complete is not None
    await hooks.on_complete(make_exchange())
    assert order == ["wrapper", "fail", "on_complete first"]
    assert reported == [("p2", "ValueError"), ("p4", "TypeError"), ("p1", "Refused"), ("p3", "ValueError")]


@pytest.mark.parametrize("hook", ["pre_request", "on_complete"])
async def test_a_cancellation_passes_and_cannot_be_swallowed(hook: str) -> None:
    """A cancelled call ends as cancelled, even if a wrapper would have it otherwise."""
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    def swallow() -> Generator[None, object, None]:
        with suppress(BaseException):
            yield

    call = getattr(resolved(with_hook(hook, wait), with_hook(hook, swallow, wrapper=True)), hook)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(call(make_exchange()))
        await started.wait()
        task.cancel()
    assert task.cancelled()


def never_yields() -> Generator[None, object, None]:
    """A wrapper that returns too early."""
    yield from ()


def yields_twice() -> Generator[None, object, None]:
    """A wrapper that does not end."""
    yield
    yield


@pytest.mark.parametrize("wrapper", [never_yields, yields_twice])
async def test_a_wrapper_must_yield_exactly_once(wrapper: Callable[..., Any]) -> None:
    """Too few and too many yields are the wrapper's error."""
    call = resolved(with_hook("pre_request", wrapper, wrapper=True)).pre_request
    assert call is not None
    with pytest.raises(PluginError, match="'p0'") as caught:
        await call(make_exchange())
    assert "must yield once" in str(caught.value.__cause__)


async def test_a_wrappers_result_is_checked_too() -> None:
    """A wrapper cannot bring in what an implementation may not return."""

    def wrap() -> Generator[None, object, object]:
        yield
        return "acme"

    call = resolved(with_hook("authenticate", wrap, wrapper=True)).authenticate
    assert call is not None
    with pytest.raises(PluginError, match="'p0'"):
        await call(make_exchange())


# Mistakes found at start


async def async_function() -> None:
    """A coroutine function."""


def generator_function() -> Generator[None, object, object]:
    """A wrapper's body."""
    return (yield)


async def async_generator() -> Any:
    """An async generator."""
    yield


@pytest.mark.parametrize(
    ("hook", "function", "options", "sentence"),
    [
        ("pre_requst", lambda: None, {}, "a hook pre_requst that does not exist (did you mean 'pre_request'?)."),
        ("pre_request", lambda exchang: None, {}, "an argument exchang that pre_request does not have (did you mean"),
        ("on_stream_chunk", async_function, {}, "declares on_stream_chunk with `async def`, and it must be a plain"),
        ("register_routes", async_function, {}, "declares register_routes with `async def`, and it must be a plain"),
        ("pre_request", generator_function, {"hookwrapper": True}, "hookwrapper=True; use wrapper=True."),
        ("pre_request", lambda: None, {"wrapper": True}, "must have `yield` in pre_request if, and only if,"),
        ("pre_request", generator_function, {}, "must have `yield` in pre_request if, and only if,"),
        ("pre_request", async_generator, {}, "declares pre_request as an async generator"),
        ("narrow_targets", generator_function, {"wrapper": True}, "a wrapper, which this hook does not take."),
        ("startup", generator_function, {"wrapper": True}, "a wrapper, which this hook does not take."),
    ],
)
def test_a_mistake_in_a_plugin_is_found_at_load(
    hook: str, function: Callable[..., Any], options: dict[str, bool], sentence: str
) -> None:
    """A hook that would not be called as its author meant is refused at start, by a sentence naming the plugin."""
    with pytest.raises(ConfigError) as caught:
        resolved(with_hook(hook, function, **options))
    [mistake] = caught.value.mistakes
    assert mistake.startswith("The plugin 'p0' ")
    assert sentence in mistake


def test_a_hook_without_its_mark_is_found_at_load() -> None:
    """A guard whose author forgot @hookimpl would never run, so it is refused at start."""

    class Guard:
        def pre_request(self, exchange: Exchange) -> None:
            raise Refused("Never.")

    with pytest.raises(ConfigError, match="a method pre_request that is not marked with @hookimpl"):
        resolved(Guard())


def test_all_mistakes_are_reported_at_once() -> None:
    """Every mistake of every plugin stands in one ConfigError, once."""
    with pytest.raises(ConfigError) as caught:
        resolved(with_hook("on_eror", lambda: None), with_hook("pre_request", lambda a, b: None))
    assert len(caught.value.mistakes) == 3


def test_an_optional_hook_may_be_unknown() -> None:
    """A plugin can implement a hook that only other versions have, if it says so."""
    assert resolved(with_hook("on_moonrise", lambda: None, optionalhook=True)) == Hooks()


# Tracing


async def test_tracing_reports_plugin_hook_and_duration() -> None:
    """With a trace, every call of every plugin is reported, failing ones too."""
    reported: list[tuple[str, str, float]] = []

    def fail() -> None:
        raise Refused("No.")

    hooks = resolved(
        with_hook("pre_request", async_function),
        with_hook("pre_request", fail),
        with_hook("on_stream_chunk", lambda: None),
        trace=lambda *report: reported.append(report),
    )
    assert hooks.pre_request
    assert hooks.on_stream_chunk
    with pytest.raises(Refused):
        await hooks.pre_request(make_exchange())
    hooks.on_stream_chunk(make_exchange(), Chunk(b"x"))
    assert [report[:2] for report in reported] == [
        *(("p0", "pre_request"), ("p1", "pre_request"), ("p2", "on_stream_chunk")),
    ]
    assert all(0 <= seconds < 60 for _, _, seconds in reported)
