"""The semantic cache in a whole gateway: what is served, what is kept, what happens when it cannot look."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from llmproxy.cli.check import warnings
from llmproxy.errors import ConfigError, StorageError
from llmproxy.gateway import ConfigSource, Configuration, resolve_configuration
from llmproxy.request import Document
from llmproxy.testing import (
    RecordedRequest,
    Reply,
    StartProxy,
    ToolCall,
    configuration_table,
    cut_after,
    fail,
    hang,
    make_services,
    reply,
    stream,
    tools,
)
from llmproxy.testing.database import TestDatabases
from llmproxy_plugins.caching import Caching
from llmproxy_plugins.guard import Guard
from llmproxy_plugins.redaction import Redaction
from llmproxy_plugins.semantic_cache import SemanticCache, SemanticCacheConfig
from tests.semantic import answering, ask, embeddings_of, playing, prepared_databases, rows_where, table

README = Path(__file__).parent.parent / "plugins" / "semantic_cache" / "README.md"
FIRST, AGAIN = "How do I bake bread?", "Baking bread: how do I do it?"
TWO = {"workspaces": {"default": {"keys": ["sk-the-key-of-the-tests-client"]}, "other": {"keys": ["sk-of-another"]}}}


@pytest.fixture(scope="module")
def databases(llmproxy_server_url: str) -> Iterator[TestDatabases]:
    """Databases with the plugin's tables."""
    with prepared_databases(llmproxy_server_url) as prepared:
        yield prepared


@pytest.fixture
def proxy(databases: TestDatabases) -> StartProxy:
    """What starts a gateway on one of them."""
    return StartProxy(databases)


def chats(requests: Any) -> list[RecordedRequest]:
    """Those that are no embeddings."""
    return [request for request in requests if request.path.endswith("/chat/completions")]


@dataclass(frozen=True, slots=True)
class Handed:
    """A plugin as an installation has it."""

    manifest: type
    dist: None = None

    @property
    def name(self) -> str:
        return str(self.manifest.__dict__["name"])

    def load(self) -> type:
        return self.manifest


# Serving


async def test_what_means_the_same_is_answered_from_the_cache(proxy: StartProxy) -> None:
    """A paraphrase gets the kept answer, with who gave it and how old it is; the row says what it saved."""
    async with proxy(SemanticCache, answering(), now="2026-01-01 12:00") as client:
        client.upstream.default = playing({FIRST: "Knead."})
        first = await ask(client, FIRST, 1)
        assert (first.text, first.headers["x-llmproxy-cache"]) == ("Knead.", "miss")
        client.clock.set(client.clock.now() + timedelta(seconds=60))
        again = await client.chat(AGAIN)
        assert (again.text, again.headers["x-llmproxy-cache"]) == ("Knead.", "semantic")
        assert (again.headers["x-llmproxy-model"], again.headers["age"]) == ("upstream/test-model", "60")
        assert len(chats(client.upstream.requests)) == 1
        (decision,) = (each for row in (await client.rows()).requests for each in row["decisions"])
        assert decision["what"] == "hit"
        assert "saved 0.000020 USD and 15 tokens of upstream/test-model: similarity 1.0000" in decision["why"]


async def test_what_means_something_else_is_asked(proxy: StartProxy) -> None:
    """Below the threshold the provider answers."""
    async with proxy(SemanticCache, answering()) as client:
        client.upstream.default = playing()
        await ask(client, FIRST, 1)
        other = await ask(client, "How do I bake cake?", 2)
        assert (other.text, other.headers["x-llmproxy-cache"]) == ("How do I bake cake?", "miss")


async def test_models_have_thresholds_of_their_own(proxy: StartProxy) -> None:
    """The first pattern over the model asked for that matches says how near is near enough."""
    async with proxy(SemanticCache, answering(thresholds={"te*": 0.4, "*": 1})) as client:
        client.upstream.default = playing()
        await ask(client, FIRST, 1)
        assert (await client.chat("How do I bake cake?")).text == FIRST


@pytest.mark.parametrize("kept_as_stream", [False, True])
@pytest.mark.parametrize("asked_as_stream", [False, True])
async def test_streams_and_whole_answers_serve_each_other(
    proxy: StartProxy, *, kept_as_stream: bool, asked_as_stream: bool
) -> None:
    """What came as a stream is given whole, and the other way round; a stream is one with its end and usage."""
    async with proxy(SemanticCache, answering()) as client:
        client.upstream.default = playing(chat=stream("Kne", "ad."))
        await ask(client, FIRST, 1, stream=kept_as_stream)
        again = await client.chat(AGAIN, stream=asked_as_stream, stream_options={"include_usage": True})
        assert (again.text, again.headers["x-llmproxy-cache"]) == ("Knead.", "semantic")
        if asked_as_stream:
            assert again.is_done
            assert again.events[-1]["usage"]["completion_tokens"] == 5
        else:
            assert again.document["usage"]["completion_tokens"] == 5


async def test_a_question_is_paid_for_and_recorded(proxy: StartProxy) -> None:
    """Each embedding is an exchange of the gateway's own: whose it is, for which request, and what it cost."""
    prices = [{"match": "upstream/*", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}]
    async with proxy(SemanticCache, answering(), config={"prices": prices}) as client:
        client.upstream.default = playing()
        await ask(client, FIRST, 1)
        asked, own = sorted((await client.rows()).requests, key=lambda row: row["origin"] or "")
        assert (own["origin"], own["parent_id"]) == ("semantic_cache", asked["id"])
        assert (own["workspace"], own["cost_usd"] > 0) == ("default", True)


# What is kept apart


async def test_nothing_crosses_what_must_be_the_same(proxy: StartProxy) -> None:
    """Another model, system prompt, tool, parameter or shape of the turn is another question."""
    others: list[dict[str, Any]] = [
        {"temperature": 0.5},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": AGAIN}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": AGAIN}]}]},
        {"tools": [{"type": "function", "function": {"name": "oven"}}]},
        {"model": "upstream/test-model"},
        {"an_unknown_parameter": 1},
        {"headers": {"x-llmproxy-cache-namespace": "blue"}},
    ]
    async with proxy(SemanticCache, answering()) as client:
        client.upstream.default = playing(chat=reply("Knead."))
        await ask(client, FIRST, 1)
        for fields in others:
            assert (await client.chat(AGAIN, **fields)).headers["x-llmproxy-cache"] == "miss"


async def test_workspaces_have_nothing_in_common(proxy: StartProxy) -> None:
    """No workspace is answered with what another was told."""
    async with proxy(SemanticCache, answering(), config=TWO) as client:
        client.upstream.default = playing()
        await ask(client, FIRST, 1)
        body = {"model": "test", "messages": [{"role": "user", "content": AGAIN}]}
        response = await client.request("POST", "/v1/chat/completions", body, key="sk-of-another")
        assert (response.text, response.headers["x-llmproxy-cache"]) == (AGAIN, "miss")


async def test_what_is_kept_is_what_redaction_left(proxy: StartProxy) -> None:
    """Behind redaction there is no value in what is embedded or kept, and each client is given its own back."""
    redaction = {"detectors": {"email": "placeholder"}}
    async with proxy(Redaction, redaction, SemanticCache, answering()) as client:
        client.upstream.default = playing()
        await ask(client, "Write to ann@example.com please", 1)
        again = await client.chat("Please write to bob@example.com")
        assert (again.text, again.headers["x-llmproxy-cache"]) == ("Write to bob@example.com please", "semantic")
        (entry,) = await table(client, "entries", 1)
        assert b"ann@" not in entry["body"]
        assert all(b"@example" not in request.body for request in client.upstream.requests)


# What is kept


async def test_only_whole_texts_are_kept(proxy: StartProxy) -> None:
    """No cut, filtered, empty, large or failed answer, no tool call, and nothing that a client wants fresh."""
    fine = reply("Fine.")
    cases: list[tuple[Reply, dict[str, Any]]] = [
        (reply("Kne", finish_reason="length"), {}),
        (reply("Knead.", finish_reason="content_filter"), {}),
        (tools(ToolCall("bake", {"what": "bread"})), {}),
        (reply(""), {}),
        (fail(500), {}),
        (cut_after(2, stream("Kne", "ad.")), {"stream": True}),
        (reply("x" * 2000), {}),
        (stream("x" * 2000), {"stream": True}),
        (fine, {"headers": {"cache-control": "no-store"}}),
        (fine, {"n": 2}),
        (fine, {"store": True}),
        (fine, {"web_search_options": {}}),
        (fine, {"tools": [{"type": "web_search"}]}),
        (fine, {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
        (fine, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}),
    ]
    async with proxy(SemanticCache, answering(max_entry_bytes=1500)) as client:
        for number, (answer, fields) in enumerate(cases):
            client.upstream.default = playing(chat=answer)
            await client.chat(f"question{number}", **fields)
        client.upstream.default = playing(chat=reply("Good."))
        # What was asked before would be kept before this is.
        await ask(client, "Another thing entirely", 1)
        (entry,) = await table(client, "entries", 1)
        assert b"Good." in entry["body"]


async def test_a_fresh_answer_replaces_the_kept_one(proxy: StartProxy) -> None:
    """With no-cache the provider is asked, and its answer is kept from then on."""
    async with proxy(SemanticCache, answering()) as client:
        client.upstream.default = playing(chat=reply("Old."))
        await ask(client, FIRST, 1)
        client.upstream.default = playing(chat=reply("New."))
        fresh = await client.chat(FIRST, headers={"cache-control": "no-cache"})
        assert fresh.text == "New."
        await rows_where(client, "entries", lambda rows: b"New." in rows[0]["body"])
        assert (await client.chat(AGAIN)).text == "New."


async def test_entries_end(proxy: StartProxy) -> None:
    """After its time an answer is not served, and with the next that is kept it is gone."""
    async with proxy(SemanticCache, answering(ttl_seconds=60), now="2026-01-01 12:00") as client:
        client.upstream.default = playing()
        await ask(client, FIRST, 1)
        client.clock.set(client.clock.now() + timedelta(seconds=61))
        assert (await client.chat("Something else")).headers["x-llmproxy-cache"] == "miss"
        entries = await rows_where(client, "entries", lambda rows: b"Something else" in rows[-1]["body"])
        assert len(entries) == 1


async def test_a_workspace_has_so_many_entries_and_no_more(proxy: StartProxy) -> None:
    """The oldest of a workspace make room, and nobody else's do."""
    async with proxy(SemanticCache, answering(max_entries=2), config=TWO) as client:
        client.upstream.default = playing()
        body = {"model": "test", "messages": [{"role": "user", "content": FIRST}]}
        await client.request("POST", "/v1/chat/completions", body, key="sk-of-another")
        await table(client, "entries", 1)
        for number, text in enumerate(("one", "two")):
            await ask(client, f"question {text}", number + 2)
        await client.chat("question three")
        entries = await rows_where(client, "entries", lambda rows: b"three" in rows[-1]["body"])
        assert [entry["workspace"] for entry in entries] == ["other", "default", "default"]


# When it cannot look


@pytest.mark.parametrize("failing", [fail(500), hang(), reply("no vectors")])
async def test_without_an_embedding_it_is_a_miss(proxy: StartProxy, failing: Reply) -> None:
    """An embeddings model that fails, is slow or answers something else makes no request fail, or wait for long."""

    def play(request: RecordedRequest) -> Reply:
        return failing if request.path.endswith("/embeddings") else reply("Knead.")

    async with proxy(SemanticCache, answering(timeout_seconds=0.1)) as client:
        client.upstream.default = play
        response = await client.chat(FIRST)
        assert (response.status, response.text, response.headers["x-llmproxy-cache"]) == (200, "Knead.", "miss")
        rows = await client.rows()
        (asked,) = (row for row in rows.requests if row["origin"] is None)
        assert asked["decisions"][0]["by"] == "semantic_cache"


async def test_a_model_that_the_key_may_not_use_is_a_miss(proxy: StartProxy) -> None:
    """A key's models hold for the embeddings that are asked for on its behalf."""
    async with proxy(SemanticCache, answering(), config={"workspaces": {"default": {"models": ["test"]}}}) as client:
        client.upstream.default = playing()
        assert (await client.chat(FIRST)).status == 200
        assert len(client.upstream.requests) == 1


async def test_a_database_that_is_gone_is_a_miss(proxy: StartProxy) -> None:
    """When the table cannot be read or written, requests are answered all the same."""
    async with proxy(SemanticCache, answering()) as client:
        client.upstream.default = playing()
        await client.app.services.database.execute("DROP TABLE semantic_cache_entries")
        assert [(await client.chat(FIRST)).status for _ in range(2)] == [200, 200]


async def test_a_server_without_pgvector_is_told_so(llmproxy_databases: Any, tmp_path: Path) -> None:
    """The migration says which extension is missing, and what to do."""
    from llmproxy.migrate import Component, migrate  # noqa: PLC0415 - for this test alone

    migration = next(SemanticCache.migrations.glob("*.sql")).read_text()
    # A server without it differs in the name of an extension that it has not.
    (tmp_path / "0001_semantic_cache.sql").write_text(migration.replace("'vector'", "'no_such_extension'"))
    url = await llmproxy_databases.create_empty()
    try:
        with pytest.raises(StorageError, match="needs the extension pgvector"):
            await migrate(url, [Component("semantic_cache", tmp_path)])
    finally:
        await llmproxy_databases.drop(url)


# Purging


async def test_purges_forget_what_they_say(proxy: StartProxy) -> None:
    """What was kept for a workspace, a model, both, or at all is gone at once, and nothing else is."""
    purges: list[tuple[dict[str, object], int]] = [
        ({"workspace": "other"}, 1),
        ({"model": "other"}, 1),
        ({"workspace": "default"}, 0),
        ({"model": "test"}, 0),
        ({"workspace": "default", "model": "test"}, 0),
        ({"all": True}, 0),
    ]
    async with proxy(SemanticCache, answering()) as client:
        client.upstream.default = playing()
        for wanted, left in purges:
            await ask(client, FIRST, 1)
            path = "/admin/v1/semantic-cache/purge"
            response = await client.request("POST", path, wanted, key=client.admin_key)
            assert (response.status, response.document["object"]) == (200, "semantic_cache.purge")
            assert response.document["dropped"] == 1 - left
            assert len(await table(client, "entries", left)) == left


async def test_what_was_asked_before_a_purge_is_not_kept_after_it(proxy: StartProxy) -> None:
    """An answer that is on its way during a purge stays out, also with another worker."""
    async with proxy(SemanticCache, answering()) as client:
        purge = ("POST", "/admin/v1/semantic-cache/purge", {"workspace": "default"})

        def play(request: RecordedRequest) -> Reply:
            return embeddings_of(request) if request.path.endswith("/embeddings") else reply("Old.", delay_seconds=0.2)

        client.upstream.default = play

        async with asyncio.TaskGroup() as group:
            asked = group.create_task(client.chat(FIRST))
            await client.upstream.wait_for(lambda: len(chats(client.upstream.requests)) == 1)
            await client.request(*purge, key=client.admin_key)
        assert asked.result().text == "Old."
        client.upstream.default = playing(chat=reply("New."))
        await ask(client, "Another thing entirely", 1)
        assert (await client.chat(AGAIN)).text == "New."


async def test_a_purge_says_what(proxy: StartProxy) -> None:
    """A purge of nothing, of everything and something, or of what does not exist is refused; so is a client's."""
    wrong: list[dict[str, object]] = [{}, {"all": False}, {"all": True, "model": "m"}, {"modle": "m"}]
    async with proxy(SemanticCache, answering()) as client:
        path = "/admin/v1/semantic-cache/purge"
        for wanted in wrong:
            assert (await client.request("POST", path, wanted, key=client.admin_key)).status == 400
        assert (await client.request("POST", path, {"all": True})).status == 401


# Beside the exact cache


async def test_behind_the_exact_cache_only_misses_are_looked_up(proxy: StartProxy) -> None:
    """An exact hit needs no embedding."""
    async with proxy(Caching, {"when": "always"}, SemanticCache, answering()) as client:
        client.upstream.default = playing()
        await ask(client, FIRST, 1)
        caches = [(await client.chat(text)).headers["x-llmproxy-cache"] for text in (FIRST, AGAIN)]
        assert caches == ["hit", "semantic"]
        assert len(client.upstream.requests) == 3


def test_check_warns_of_it(tmp_path: Path) -> None:
    """Whoever enables it is told that it can be wrong; a guard behind a cache, whose hits would skip it, is refused."""
    judge = {"webhook": {"url": "http://127.0.0.1:9"}}
    right = {"guard": judge, "caching": {}, "semantic_cache": {"embeddings": "demo/embed"}}
    said = list(warnings(configured(tmp_path, right)))
    assert any(each.startswith("plugins.semantic_cache: it may answer") for each in said)
    with pytest.raises(ConfigError, match=r"plugins\.caching: must stand after the plugin 'guard'"):
        configured(tmp_path, {"caching": {}, "guard": judge})


def configured(directory: Path, plugins: Document) -> Configuration:
    """A configuration with these plugins. Raises ConfigError."""
    file = directory / "config.json"
    file.write_text(json.dumps({"providers": {"demo": {}}, "plugins": plugins}))
    available = {each.name: Handed(each) for each in (Caching, Guard, SemanticCache)}
    return resolve_configuration(ConfigSource.read(file), make_services(), available)


def test_the_readme_has_every_key() -> None:
    """The table of the README is made from the declaration of the keys."""
    assert configuration_table(SemanticCacheConfig) in README.read_text()
