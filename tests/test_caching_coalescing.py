"""Requests in flight that are the same: one call, whatever becomes of whoever made it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp
import pytest

from llmproxy.api import UpstreamCut
from llmproxy.testing import (
    ProxyClient,
    ProxyResponse,
    StartProxy,
    cut_after,
    fail,
    hang,
    reply,
    stepped,
    stream,
    wait_until,
)
from llmproxy_plugins.caching import Caching
from llmproxy_plugins.caching.tape import ListeningStream, Tape
from tests.caching import ANSWERED, COLD, decision

MANY = 1_000


class Crowd:
    """Clients that ask the same at the same time, each on a connection of its own."""

    def __init__(self, client: ProxyClient, session: aiohttp.ClientSession) -> None:
        self._client = client
        self._session = session

    @classmethod
    @asynccontextmanager
    async def of(cls, client: ProxyClient) -> AsyncIterator[Crowd]:
        """Those of one gateway; who has no answer at the end of the block hangs up."""
        headers = {"authorization": f"Bearer {client.key}"}
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            yield cls(client, session)

    def ask(self, **fields: object) -> asyncio.Task[ProxyResponse]:
        """One more of them, which reads to the end."""
        return asyncio.get_running_loop().create_task(self._answer(fields))

    async def lead(self, **fields: object) -> asyncio.Task[ProxyResponse]:
        """The first of them, once it has reached the provider."""
        upstream = self._client.upstream
        before = len(upstream.requests)
        leader = self.ask(**fields)
        await upstream.wait_for(lambda: len(upstream.requests) > before)
        return leader

    async def all_in(self, count: int) -> None:
        """Wait until so many are being served."""
        await wait_until(lambda: self._client.app.server.live_requests >= count, 20)

    def post(self, **fields: object) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """One that is still to be read."""
        body = {"model": "test", "messages": [{"role": "user", "content": "hello"}], **COLD, **fields}
        return self._session.post(f"{self._client.base_url}/chat/completions", json=body)

    async def _answer(self, fields: Mapping[str, object]) -> ProxyResponse:
        async with self.post(**fields) as response:
            return ProxyResponse(response.status, response.headers, await response.read())


def grant(permits: asyncio.Semaphore) -> None:
    """Let a stepped reply go on to its end."""
    for _ in range(20):
        permits.release()


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_thousand_equal_requests_make_one_call(proxy: StartProxy, *, is_streamed: bool) -> None:
    """All of them get the whole right answer, and one row in the database has a cost."""
    permits = asyncio.Semaphore(0)
    replies = [stepped(stream("one ", "two ", "three"), permits)]
    async with proxy(Caching, upstream=replies) as client, Crowd.of(client) as crowd:
        running = [await crowd.lead(stream=is_streamed)]
        running += [crowd.ask(stream=is_streamed) for _ in range(MANY - 1)]
        await crowd.all_in(MANY)
        grant(permits)
        answers = await asyncio.gather(*running)
        assert {answer.text for answer in answers} == {"one two three"}
        assert sorted(answer.headers[ANSWERED] for answer in answers) == ["coalesced"] * (MANY - 1) + ["miss"]
        assert len(client.upstream.requests) == 1
        assert all(answer.is_done for answer in answers) or not is_streamed
        rows = (await client.rows()).requests
        assert len(rows) == MANY
        assert sum(row["cost_usd"] is not None for row in rows) == 1
        assert sum(decision(row, "coalesced") is not None for row in rows) == MANY - 1


async def test_followers_get_events_as_they_come(proxy: StartProxy) -> None:
    """A follower has the first event while the provider still holds the second back."""
    permits = asyncio.Semaphore(2)
    replies = [stepped(stream("one ", "two"), permits)]
    async with proxy(Caching, upstream=replies) as client, Crowd.of(client) as crowd:
        leader = await crowd.lead(stream=True)
        async with crowd.post(stream=True) as follower:
            assert follower.headers[ANSWERED] == "coalesced"
            assert b"one " in await follower.content.readuntil(b"one ")
            assert not leader.done()
            grant(permits)
            assert (await follower.read()).endswith(b"data: [DONE]\n\n")
        assert (await leader).text == "one two"


async def test_whole_and_streamed_requests_share_a_call(proxy: StartProxy) -> None:
    """Whoever cannot take the stream as it is has the answer when it is whole."""
    permits = asyncio.Semaphore(0)
    replies = [stepped(stream("one ", "two"), permits)]
    async with proxy(Caching, upstream=replies) as client, Crowd.of(client) as crowd:
        running = [await crowd.lead(stream=True)]
        running += [crowd.ask(), crowd.ask(stream=True, stream_options={"include_usage": True})]
        await crowd.all_in(3)
        grant(permits)
        answers = await asyncio.gather(*running)
        assert [answer.text for answer in answers] == ["one two"] * 3
        assert [answer.headers[ANSWERED] for answer in answers] == ["miss", "coalesced", "coalesced"]
        assert answers[2].events[-1]["usage"]["total_tokens"] == 15
        assert len(client.upstream.requests) == 1


async def test_followers_of_a_client_that_hangs_up_elect_another(proxy: StartProxy) -> None:
    """The leader's call ends with its client; one of the others makes it anew, for all of them."""
    async with proxy(Caching, upstream=[hang(), reply("hi")]) as client, Crowd.of(client) as crowd:
        async with Crowd.of(client) as leaving:
            leader = await leaving.lead()
            running = [crowd.ask() for _ in range(20)]
            await crowd.all_in(21)
            leader.cancel()
        answers = await asyncio.gather(*running)
        assert {answer.text for answer in answers} == {"hi"}
        assert sorted(answer.headers[ANSWERED] for answer in answers) == ["coalesced"] * 19 + ["miss"]
        assert len(client.upstream.requests) == 2


async def test_a_call_that_fails_does_not_fail_the_followers(proxy: StartProxy) -> None:
    """They try once more together; when that fails too, each goes on alone instead of waiting in line."""
    permits = asyncio.Semaphore(0)
    replies = [stepped(fail(500), permits), fail(500)]
    async with proxy(Caching, upstream=replies) as client, Crowd.of(client) as crowd:
        client.upstream.default = reply("hi")
        running = [await crowd.lead(), *(crowd.ask() for _ in range(19))]
        await crowd.all_in(20)
        grant(permits)
        answers = await asyncio.gather(*running)
        assert sorted(answer.status for answer in answers) == [200] * 18 + [502] * 2
        assert {answer.text for answer in answers if answer.status == 200} == {"hi"}


async def test_listeners_of_a_stream_that_is_cut_have_the_rest(proxy: StartProxy) -> None:
    """The leader gets an error event, with nothing to follow; the others ask again, as one, and lack nothing."""
    permits = asyncio.Semaphore(2)
    cut = stepped(cut_after(3, stream("one ", "two ", "three")), permits)
    replies = [cut, reply("one two three")]
    async with proxy(Caching, upstream=replies) as client, Crowd.of(client) as crowd:
        leader = await crowd.lead(stream=True)
        listening = [crowd.ask(stream=True) for _ in range(20)]
        await crowd.all_in(21)
        grant(permits)
        answers = await asyncio.gather(*listening)
        assert (await leader).events[-1]["error"]["code"]
        assert {(answer.text, answer.is_done) for answer in answers} == {("one two three", True)}
        assert all(len({event["id"] for event in answer.events}) == 1 for answer in answers)
        assert len(client.upstream.requests) == 2
        paid = [row for row in (await client.rows()).requests if row["cost_usd"] is not None]
        assert [row["origin"] for row in paid] == [None, "caching"]


async def test_listeners_outlive_a_leader_that_hangs_up(proxy: StartProxy) -> None:
    """Its client leaves in the middle of the stream; the provider is told, and the others have the whole answer."""
    permits = asyncio.Semaphore(2)
    replies = [stepped(stream("one ", "two ", "three"), permits), reply("one two three")]
    async with proxy(Caching, upstream=replies) as client, Crowd.of(client) as crowd:
        async with Crowd.of(client) as leaving, leaving.post(stream=True) as leader:
            await leader.content.readuntil(b"one ")
            listening = [crowd.ask(stream=True) for _ in range(5)]
            await crowd.all_in(6)
        answers = await asyncio.gather(*listening)
        assert {(answer.text, answer.is_done) for answer in answers} == {("one two three", True)}
        assert len(client.upstream.cancelled) == 1


async def test_nothing_is_made_up_when_asking_again_gives_another_answer(proxy: StartProxy) -> None:
    """Listeners then end as honestly as the leader, with an error event."""
    permits = asyncio.Semaphore(2)
    cut = stepped(cut_after(3, stream("one ", "two ", "three")), permits)
    async with proxy(Caching, upstream=[cut, reply("eins zwei drei")]) as client, Crowd.of(client) as crowd:
        running = [await crowd.lead(stream=True), *(crowd.ask(stream=True) for _ in range(4))]
        await crowd.all_in(5)
        grant(permits)
        answers = await asyncio.gather(*running)
        assert all(not answer.is_done and answer.events[-1]["error"]["type"] for answer in answers)


async def test_a_follower_waits_no_longer_than_its_client(proxy: StartProxy) -> None:
    """Its own deadline ends its wait, while the leader goes on."""
    permits = asyncio.Semaphore(0)
    async with proxy(Caching, upstream=[stepped(reply("late"), permits)]) as client, Crowd.of(client) as crowd:
        leader = await crowd.lead()
        impatient = await client.chat("hello", headers={"x-llmproxy-timeout": "0.3"}, temperature=0)
        assert impatient.status == 504
        grant(permits)
        assert (await leader).text == "late"


async def test_equal_requests_do_not_wait_for_each_other_when_told_not_to(proxy: StartProxy) -> None:
    """With `coalesce: false` each makes its own call."""
    permits = asyncio.Semaphore(0)
    async with proxy(Caching, {"coalesce": False}) as client, Crowd.of(client) as crowd:
        client.upstream.default = stepped(reply("hi"), permits)
        running = [crowd.ask() for _ in range(3)]
        await client.upstream.wait_for(lambda: len(client.upstream.requests) == 3)
        grant(permits)
        assert {answer.headers[ANSWERED] for answer in await asyncio.gather(*running)} == {"miss"}


# The tape


async def nothing_more(heard: bytes) -> bytes:
    """What these tapes need not be asked for."""
    raise AssertionError("The tape was not cut.")


async def test_a_tape_is_bounded_and_says_so() -> None:
    """Whoever falls further behind than there is room loses the stream; who keeps up has every byte."""
    tape = Tape(100)
    slow, quick = ListeningStream(tape, nothing_more), ListeningStream(tape, nothing_more)
    heard: list[bytes] = []
    for number in range(50):
        tape.add(b"%02d" % number * 5)
        heard.append(await quick.read())
        assert len(tape.recorded) <= 100
    tape.end()
    assert b"".join(heard) == b"".join(b"%02d" % number * 5 for number in range(50))
    assert await quick.read() == b""
    assert not tape.is_whole
    with pytest.raises(UpstreamCut):
        await slow.read()


async def test_listeners_hear_all_from_the_beginning_at_their_own_pace() -> None:
    """However late a listener comes and however seldom it reads, the bytes are the same."""
    tape = Tape(1_000)
    pieces: Sequence[bytes] = [b"a", b"bc", b"def"]

    async def listen(pauses: int) -> bytes:
        listener, heard = ListeningStream(tape, nothing_more), b""
        while piece := await listener.read():
            heard += piece
            for _ in range(pauses):
                await asyncio.sleep(0)
        return heard

    listeners = [asyncio.get_running_loop().create_task(listen(pauses)) for pauses in range(5)]
    for piece in pieces:
        tape.add(piece)
        await asyncio.sleep(0)
    late = asyncio.get_running_loop().create_task(listen(1))
    tape.end()
    assert set(await asyncio.gather(*listeners, late)) == {b"abcdef"}
