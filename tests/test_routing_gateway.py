"""Routing in a whole gateway: what reaches which model, and what copies do, and do not do, to clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from llmproxy.testing import Reply, StartProxy, fail, hang, reply, stepped, stream
from llmproxy.testing.messages import RecordedRequest
from llmproxy_plugins.routing import Routing

TWO = {"targets": [{"model": "upstream/main", "weight": 3}, {"model": "upstream/canary", "weight": 1}]}
MIRROR = {"mirror": [{"model": "test", "to": "upstream/shadow", "share": 1}]}


def models(**aliases: object) -> Mapping[str, Any]:
    """A configuration with these aliases."""
    return {"models": aliases}


def played(**replies: Reply) -> Callable[[RecordedRequest], Reply]:
    """Each model's own reply."""
    return lambda request: replies.get(request.document["model"], reply("hi"))


async def test_sessions_stay_and_are_spread(proxy: StartProxy) -> None:
    """Each session meets one model whatever happens in between, and both models have sessions."""
    async with proxy(Routing, {"sticky": "session"}, config=models(test=TWO)) as client:
        client.upstream.default = reply("hi")
        for _ in range(2):
            for number in range(12):
                await client.chat("hello", headers={"x-llmproxy-session": f"conversation {number}"})
        asked = [request.document["model"] for request in client.upstream.requests]
        assert asked[:12] == asked[12:]
        assert set(asked) == {"main", "canary"}
        rows = await client.rows()
        assert rows.requests[0]["decisions"][0]["by"] == "routing"


async def test_after_a_reload_sessions_are_where_they_were(proxy: StartProxy) -> None:
    """Nothing is remembered, so nothing can be forgotten."""
    async with proxy(Routing, {"sticky": "session"}, config=models(test=TWO)) as client:
        client.upstream.default = reply("hi")
        for number in range(8):
            await client.chat("hello", headers={"x-llmproxy-session": str(number)})
        await client.app.reload()
        for number in range(8):
            await client.chat("hello", headers={"x-llmproxy-session": str(number)})
        asked = [request.document["model"] for request in client.upstream.requests]
        assert asked[:8] == asked[8:]


async def test_models_that_a_client_names_for_failures_get_no_share(proxy: StartProxy) -> None:
    """A request's own fallbacks are no canaries: as long as the first model answers, it has all requests."""
    async with proxy(Routing) as client:
        client.upstream.default = reply("hi")
        for _ in range(12):
            response = await client.chat("hello", model="upstream/main", fallbacks=["upstream/spare", "upstream/main"])
            assert response.headers["x-llmproxy-model"] == "upstream/main"


async def test_the_keys_of_a_provider_are_used_by_weight(proxy: StartProxy) -> None:
    """Each key is sent as often as its weight says."""
    keys = [{"key": "sk-old", "weight": 3}, {"key": "sk-new", "weight": 1}]
    config = {"providers": {"upstream": {"api_key": None, "api_keys": keys}}}
    async with proxy(Routing, config=config) as client:
        client.upstream.default = reply("hi")
        for _ in range(40):
            await client.chat("hello")
        used = Counter(request.headers["authorization"] for request in client.upstream.requests)
        assert 18 <= used["Bearer sk-old"] <= 39
        assert used.total() == 40


async def test_the_cheaper_model_is_taken_by_the_operators_prices(proxy: StartProxy) -> None:
    """Prices are those that are charged by."""
    prices = [
        {"match": "upstream/main", "input_usd_per_mtok": 5, "output_usd_per_mtok": 5},
        {"match": "upstream/canary", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1},
    ]
    config = {**models(test=TWO), "prices": prices}
    async with proxy(Routing, {"strategy": "least_cost"}, config=config) as client:
        client.upstream.default = reply("hi")
        for _ in range(5):
            await client.chat("hello")
        assert {request.document["model"] for request in client.upstream.requests} == {"canary"}


async def test_the_faster_model_has_the_requests(proxy: StartProxy) -> None:
    """What is learned from answers decides where the next requests go."""
    async with proxy(Routing, {"strategy": "least_latency"}, config=models(test=TWO)) as client:
        client.upstream.default = played(main=reply("slow", delay_seconds=0.15), canary=reply("fast"))
        for _ in range(8):
            await client.chat("hello")
        asked = Counter(request.document["model"] for request in client.upstream.requests)
        assert asked == {"canary": 7, "main": 1}


# Mirrors


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_copy_leaves_a_row_of_its_own(proxy: StartProxy, *, is_stream: bool) -> None:
    """The client's answer is its own; the copy is asked for whole, and its row names the plugin and the original."""
    async with proxy(Routing, MIRROR) as client:
        client.upstream.default = played(shadow=reply("never seen"), **{"test-model": stream("h", "i")})
        response = await client.chat("hello", stream=is_stream, temperature=0.5)
        assert response.text == "hi"
        rows = await client.rows()
    original, copy = sorted(rows.requests, key=lambda row: row["origin"] is not None)
    assert (copy["origin"], copy["parent_id"]) == ("routing", original["id"])
    assert (copy["outcome"], copy["workspace"]) == ("succeeded", original["workspace"])
    [mirrored] = [request.document for request in client.upstream.requests if request.document["model"] == "shadow"]
    assert mirrored == {"model": "shadow", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5}
    assert original["decisions"][0]["what"] == "sent a copy to upstream/shadow"
    assert len(rows.ledger) == 2


async def test_a_client_does_not_wait_for_the_copy(proxy: StartProxy) -> None:
    """The answer is there while the copy has not had a byte of its own."""
    permits = asyncio.Semaphore(0)
    async with proxy(Routing, MIRROR) as client:
        client.upstream.default = played(shadow=stepped(reply("late"), permits))
        assert (await client.chat("hello")).text == "hi"
        await client.upstream.wait_for(lambda: len(client.upstream.requests) == 2)
        permits.release()
        assert [row["outcome"] for row in (await client.rows()).requests] == ["succeeded"] * 2


@pytest.mark.parametrize("spoilt", [fail(503), fail(401)], ids=["down", "wrong key"])
async def test_a_client_does_not_fail_with_the_copy(proxy: StartProxy, spoilt: Reply) -> None:
    """What goes wrong with a copy stands in its own row."""
    async with proxy(Routing, MIRROR) as client:
        client.upstream.default = played(shadow=spoilt)
        assert (await client.chat("hello")).text == "hi"
        rows = await client.rows()
    assert {row["origin"]: row["outcome"] for row in rows.requests} == {None: "succeeded", "routing": "failed"}


async def test_a_copy_may_go_only_where_the_client_may(proxy: StartProxy) -> None:
    """The key's models hold for copies too."""
    mirrors = [{"model": "test", "to": to, "share": 1} for to in ("demo/echo", "demo/story")]
    workspaces = {"default": {"models": ["test", "upstream/*"]}}
    config = {"workspaces": workspaces, "providers": {"demo": {}}}
    async with proxy(Routing, {"mirror": mirrors}, config=config) as client:
        client.upstream.default = reply("hi")
        assert (await client.chat("hello")).text == "hi"
        rows = await client.rows()
    assert [row["outcome"] for row in rows.requests if row["origin"]] == ["refused", "refused"]
    assert len(client.upstream.requests) == 1


async def test_copies_are_not_copied(proxy: StartProxy) -> None:
    """A pattern that fits what a mirror asks for makes no endless chain."""
    async with proxy(Routing, {"mirror": [{"model": "*", "to": "upstream/shadow", "share": 1}]}) as client:
        client.upstream.default = reply("hi")
        await client.chat("hello")
        assert len((await client.rows()).requests) == 2


async def test_copies_are_dropped_when_too_many_are_under_way(proxy: StartProxy) -> None:
    """A slow mirror holds no more than its places; the requests themselves go on."""
    async with proxy(Routing, {**MIRROR, "mirrors_at_once": 2}) as client:
        client.upstream.default = played(shadow=hang())
        for _ in range(5):
            assert (await client.chat("hello")).text == "hi"
        asked = Counter(request.document["model"] for request in client.upstream.requests)
        assert asked["test-model"] == 5
        assert asked["shadow"] <= 2


async def test_only_a_share_is_copied_of_the_models_that_fit(proxy: StartProxy) -> None:
    """Other models are left alone, and of those that fit about the share is copied."""
    mirror = [{"model": "te*", "to": "upstream/shadow", "share": 0.5}]
    async with proxy(Routing, {"mirror": mirror}) as client:
        client.upstream.default = reply("hi")
        for _ in range(20):
            await client.chat("hello")
            await client.chat("hello", model="upstream/other")
        rows = await client.rows()
        copies = sum(row["origin"] == "routing" for row in rows.requests)
        assert 1 <= copies <= 19
