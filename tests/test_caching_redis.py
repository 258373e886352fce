"""The cache in a real Redis: shared by gateways, and never in anybody's way when it is slow or gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from llmproxy.api import ConfigError
from llmproxy.testing import FaultProxy, ProxyClient, ProxyResponse, StartProxy, reply, stepped, stream, wait_until
from llmproxy_plugins.caching import Caching
from tests.caching import ANSWERED, HOST, RedisServer, redis_server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One server for all of these tests; each has a prefix of its own in it."""
    with redis_server() as running:
        yield running


def settings(url: str, prefix: str, **more: object) -> dict[str, object]:
    """A section of the configuration."""
    return {"backend": "redis", "url": url, "key_prefix": prefix, "timeout_seconds": 0.5, **more}


async def kept(client: ProxyClient) -> ProxyResponse:
    """The answer to the usual request, once it comes from the store, which is written to behind the first answer."""
    until = time.monotonic() + 10
    while (answer := await client.chat("hello", temperature=0)).headers[ANSWERED] != "hit":
        assert time.monotonic() < until, "The answer was never kept."
    return answer


async def test_gateways_share_answers(proxy: StartProxy, server: RedisServer) -> None:
    """What one gateway was answered, another serves, whole and as a stream."""
    section = settings(server.url, "shared")
    async with proxy(Caching, section, upstream=[reply("hi")]) as one, proxy(Caching, section) as other:
        key = (await kept(one)).headers["x-llmproxy-cache-key"]
        served = [await other.chat("hello", temperature=0), await other.chat("hello", stream=True, temperature=0)]
        assert [answer.text for answer in served] == ["hi", "hi"]
        assert [answer.headers[ANSWERED] for answer in served] == ["hit", "hit"]
        assert {answer.headers["x-llmproxy-cache-key"] for answer in served} == {key}


async def test_gateways_make_one_call_between_them(proxy: StartProxy, server: RedisServer) -> None:
    """Equal requests in flight at two gateways become one; both get the whole answer, streamed or not."""
    section = settings(server.url, "flights")
    permits = asyncio.Semaphore(0)
    replies = [stepped(stream("one ", "two"), permits)]
    loop = asyncio.get_running_loop()
    async with proxy(Caching, section, upstream=replies) as one, proxy(Caching, section) as other:
        leader = loop.create_task(one.chat("hello", stream=True, temperature=0))
        await one.upstream.wait_for(lambda: len(one.upstream.requests) == 1)
        followers = [
            loop.create_task(other.chat("hello", stream=number % 2 == 0, temperature=0)) for number in range(10)
        ]
        await wait_until(lambda: other.app.server.live_requests == 10)
        for _ in range(10):
            permits.release()
        answers = [await leader, *await asyncio.gather(*followers)]
        assert {answer.text for answer in answers} == {"one two"}
        # One that comes when it is over finds the answer in the store.
        assert {answer.headers[ANSWERED] for answer in answers[1:]} <= {"coalesced", "hit"}
        assert other.upstream.requests == []


async def test_another_gateway_takes_over_from_one_that_gave_up(proxy: StartProxy, server: RedisServer) -> None:
    """When the client of the leading gateway hangs up, a waiting one makes the call."""
    section = settings(server.url, "takeover")
    permits = asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()
    async with (
        proxy(Caching, section, upstream=[stepped(reply("never"), permits)]) as one,
        proxy(Caching, section, upstream=[reply("mine")]) as other,
    ):
        leader = loop.create_task(one.chat("hello", temperature=0))
        await one.upstream.wait_for(lambda: len(one.upstream.requests) == 1)
        follower = loop.create_task(other.chat("hello", temperature=0))
        await wait_until(lambda: other.app.server.live_requests == 1)
        leader.cancel()
        assert (await follower).text == "mine"


async def test_a_redis_that_is_gone_is_a_miss(proxy: StartProxy) -> None:
    """Requests go on as if there were no cache, and it is used again once it is back."""
    with redis_server() as server:
        port = server.port
        async with proxy(Caching, settings(server.url, "gone")) as client:
            client.upstream.default = reply("hi")
            await kept(client)
            server.process.kill()
            server.process.wait()
            began = time.monotonic()
            answers = [await client.chat("hello", temperature=0) for _ in range(20)]
            assert {(answer.status, answer.headers[ANSWERED]) for answer in answers} == {(200, "miss")}
            assert time.monotonic() - began < 5
            with redis_server(port):
                assert (await kept(client)).text == "hi"


async def test_a_redis_that_is_slow_stalls_nobody(proxy: StartProxy, server: RedisServer) -> None:
    """A server that takes connections and never answers costs the first request one timeout, and the next nothing."""
    async with FaultProxy(HOST, server.port) as relay:
        section = settings(f"redis://{HOST}:{relay.port}/0", "slow", timeout_seconds=0.2)
        async with proxy(Caching, section) as client:
            client.upstream.default = reply("hi")
            await client.chat("warm up", temperature=0)
            relay.pause()
            began = time.monotonic()
            answers = [await client.chat(f"hello {number}", temperature=0) for number in range(10)]
            assert {answer.status for answer in answers} == {200}
            # Ten timeouts and their claims would take four seconds.
            assert time.monotonic() - began < 2


async def test_more_requests_than_connections_wait_their_turn(proxy: StartProxy, server: RedisServer) -> None:
    """With two connections a hundred requests at once are all hits, none an error."""
    async with proxy(Caching, settings(server.url, "narrow", connections=2), upstream=[reply("hi")]) as client:
        await kept(client)
        answers = await asyncio.gather(*(client.chat("hello", temperature=0) for _ in range(100)))
        assert {(answer.status, answer.headers[ANSWERED]) for answer in answers} == {(200, "hit")}


async def test_what_is_no_entry_is_a_miss(proxy: StartProxy, server: RedisServer) -> None:
    """Whatever somebody else wrote under the key is neither served nor an error."""
    async with proxy(Caching, settings(server.url, "garbage"), upstream=[reply("one"), reply("two")]) as client:
        await kept(client)
        names = await commanded(server.port, b"KEYS garbage:*\r\n")
        name = next(line for line in names.split(b"\r\n") if line.startswith(b"garbage:") and line.endswith(b":"))
        await commanded(server.port, b'SET %b "{not an entry"\r\n' % name)
        answer = await client.chat("hello", temperature=0)
        assert (answer.text, answer.headers[ANSWERED]) == ("two", "miss")


async def commanded(port: int, command: bytes) -> bytes:
    """What the server answers to a command."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(command + b"QUIT\r\n")
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("section", "mistake"),
    [
        ({"backend": "redis"}, "needs a url"),
        ({"backend": "redis", "url": "http://localhost"}, "needs a url"),
        ({"backend": "redis", "url": "redis://localhost?colour=red"}, "does not know"),
        ({"max_bytes": 2048, "max_entry_bytes": 4096}, "max_entry_bytes is larger"),
        ({"ttl_seconds": 700_000}, "longer than max_ttl_seconds"),
        ({"share_between": [["a", "b"], ["b", "c"]]}, "two groups"),
    ],
)
async def test_mistakes_are_told_at_start(proxy: StartProxy, section: dict[str, object], mistake: str) -> None:
    """A gateway whose cache cannot be what its section says does not start."""
    with pytest.raises(ConfigError, match=mistake):
        async with proxy(Caching, section):
            pass
