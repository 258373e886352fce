"""What the test kit offers beside a running gateway: made exchanges, single hooks, services, README tables."""

from __future__ import annotations

from datetime import time

import pytest

from llmproxy.api import (
    Answer,
    Chunk,
    Exchange,
    Operation,
    PluginError,
    Principal,
    Section,
    Services,
    Target,
    hookimpl,
)
from llmproxy.config import ModelConfig
from llmproxy.testing import ProxyResponse, call_hook, configuration_table, make_exchange, make_services


class Hooks:
    """A part in every kind of hook that `call_hook` can call."""

    name = "hooks"

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer = answer
        self.started: list[Services] = []

    @hookimpl
    async def startup(self, services: Services) -> None:
        self.started.append(services)

    @hookimpl
    def pre_request(self, exchange: Exchange) -> Answer | None:
        return self.answer

    @hookimpl
    def on_stream_chunk(self, chunk: Chunk) -> list[Chunk]:
        return [chunk, chunk]

    @hookimpl
    def on_error(self) -> Target:
        """Not what this hook may return."""
        return Target("demo", "echo")

    @hookimpl
    def on_complete(self) -> None:
        raise ZeroDivisionError


# Responses


def test_a_refusal_has_no_text() -> None:
    """`text` is what the model said, and an error is not the model's."""
    assert ProxyResponse(403, {}, b'{"error": {"message": "closed"}}').text == ""


# Single hooks


def test_an_exchange_is_as_far_as_pre_request_finds_it() -> None:
    """What the walk has filled by then is filled; nothing else is."""
    exchange = make_exchange("hi", headers={"X-LLMProxy-User": "ann"}, temperature=0)
    assert exchange.request.document["messages"] == [{"role": "user", "content": "hi"}]
    assert exchange.request.document["temperature"] == 0
    assert exchange.headers["x-llmproxy-user"] == exchange.attribution.user == "ann"
    assert [target.name for target in exchange.candidates] == ["upstream/test-model"]
    assert (exchange.attempts, exchange.answer, exchange.outcome) == ([], None, None)


@pytest.mark.parametrize(
    ("operation", "member"), [(Operation.TEXT_COMPLETION, "prompt"), (Operation.EMBEDDINGS, "input")]
)
def test_an_exchange_can_be_of_any_operation(operation: Operation, member: str) -> None:
    """The text stands where the operation has it."""
    exchange = make_exchange("hi", operation=operation, model="demo/echo", principal=Principal("acme", "key_1"))
    assert exchange.request.document == {"model": "demo/echo", member: "hi"}
    assert exchange.targets[0].provider == "demo"
    assert exchange.principal.workspace == "acme"


async def test_a_hook_is_called_as_core_calls_it() -> None:
    """Async or not, with the arguments it wants, its result checked."""
    answer, chunk, services = Answer(), Chunk(), make_services()
    plugin = Hooks(answer)
    assert await call_hook(plugin, "pre_request", make_exchange()) is answer
    assert await call_hook(plugin, "on_stream_chunk", make_exchange(), chunk) == [chunk, chunk]
    await call_hook(plugin, "startup", services)
    assert plugin.started == [services]


async def test_a_hook_that_fails_fails_the_test() -> None:
    """Also where core would go on: a wrong result, a failure that is only logged, a hook that is not there."""
    with pytest.raises(PluginError, match="'hooks' failed in on_error"):
        await call_hook(Hooks(), "on_error", make_exchange(), None, None)
    with pytest.raises(ZeroDivisionError):
        await call_hook(Hooks(), "on_complete", make_exchange())
    with pytest.raises(LookupError, match="has no part in authenticate"):
        await call_hook(Hooks(), "authenticate", make_exchange())


def test_services_that_were_not_handed_in_say_so() -> None:
    """A plugin that uses what the test forgot is told which service it was."""
    services = make_services()
    assert services.clock.now().time() == time(12)
    with pytest.raises(AssertionError, match=r"uses services\.database\.listen; hand one to make_services"):
        services.database.listen("keys", print, print)


# READMEs


def test_a_table_has_every_key_with_its_default_and_meaning() -> None:
    """Keys of sections inside a section, or in a list of them, have rows of their own."""
    lines = configuration_table(ModelConfig).splitlines()
    assert lines[:2] == ["| Key | Default | Meaning |", "|---|---|---|"]
    assert [line.split("|")[1:3] for line in lines[2:]] == [
        [" `targets` ", " required "],
        [" `targets[].model` ", " required "],
        [" `targets[].weight` ", " `1` "],
        [" `targets[].region` ", " `null` "],
        [" `targets[].zero_retention` ", " `null` "],
        [" `fallbacks` ", " `[]` "],
    ]
    assert lines[-1].endswith("| Models to try, in order, when the targets fail. |")


def test_a_plugin_without_keys_has_an_empty_table() -> None:
    """Nothing to configure is a table without rows."""
    assert len(configuration_table(Section).splitlines()) == 2
