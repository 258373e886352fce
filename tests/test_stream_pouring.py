"""Events that pass as they are received: the client gets what it would get of reads, and waits end as they would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain, repeat
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import LLMProxyError, UpstreamCut, UpstreamError, UpstreamTimeout
from llmproxy.http1.response import Response
from llmproxy.http1.transport import HTTP1Transport
from llmproxy.stream import Sink, UpstreamEvents, relay
from llmproxy.testing import wait_until
from llmproxy.testing.exchanges import make_exchange
from llmproxy.upstream import send
from tests.http1 import HEAD, asking, connections, serving, timers
from tests.test_stream import (
    ANSWER,
    DONE,
    ERROR,
    HELLO,
    ROLE,
    STOP,
    USAGE,
    WORLD,
    RecordingClient,
    ScriptedResponse,
)

NEVER, ALWAYS = (repeat(each) for each in (False, True))
CUT = UpstreamCut("The provider's answer broke off before its end.")
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


class PouringResponse(ScriptedResponse):
    """The same, that gives its pieces on by itself while somebody lets it pour."""

    async def pour(self, sink: Sink) -> None:
        """Up to what is no piece, and comes when it is read."""
        while self._pieces and isinstance(piece := self._pieces[0], bytes):
            del self._pieces[0]
            if not sink(piece):
                return


class HastyClient(RecordingClient):
    """A client that takes some of what comes at once, by turns as told, and the rest when it is waited for."""

    def __init__(self, takes: Iterator[bool]) -> None:
        super().__init__()
        self.at_once: list[bytes] = []
        self._takes = takes

    def write_at_once(self, data: bytes) -> bool:
        """Whether it was its turn."""
        if not next(self._takes):
            return False
        self.at_once.append(data)
        self.writes.append(data)
        return True


class Outcome(NamedTuple):
    """What can be seen of a relayed stream."""

    received: bytes
    has_ended: bool
    error: str | None
    usage: object
    events: int
    reasons: Sequence[str]


async def outcome(response: ScriptedResponse, takes: Iterator[bool], *, hide_usage: bool) -> Outcome:
    """What a client got, and what the record knows."""
    facts = StreamFacts(hide_usage=hide_usage)
    client, error = HastyClient(takes), None
    try:
        await relay(make_exchange(), UpstreamEvents(response, None, facts), client, None, None)
    except LLMProxyError as raised:
        error = repr(raised)
    received = b"".join(client.writes)
    return Outcome(received, client.has_ended, error, facts.usage, facts.event_count, facts.finish_reasons)


STREAMS = st.sampled_from(
    [
        ANSWER,
        (ROLE, HELLO, STOP, USAGE, DONE),
        (ROLE, HELLO, b": a comment\n\n", WORLD, STOP),
        (ROLE, HELLO, WORLD, ERROR, HELLO),
        (HELLO, WORLD, HELLO),
        (HELLO, DONE, WORLD),
        (HELLO, WORLD.rstrip(b"\n")),
        (HELLO, b"data: no JSON\n\n", STOP, DONE),
    ]
)


@given(
    events=STREAMS,
    sizes=st.lists(st.integers(1, 90), max_size=40),
    takes=st.lists(st.booleans(), max_size=12),
    ends=st.sampled_from([[], [CUT]]),
    hide_usage=st.booleans(),
)
async def test_what_passes_at_once_is_what_would_be_read(
    events: Sequence[bytes], sizes: list[int], takes: list[bool], ends: list[UpstreamError], *, hide_usage: bool
) -> None:
    """Wherever the bytes are cut, whenever the client has to be waited for, and however the stream ends."""
    pieces, rest = [], b"".join(events)
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    script: list[bytes | UpstreamError] = [*(piece for piece in (*pieces, rest) if piece), *ends]
    read = await outcome(ScriptedResponse(*script), NEVER, hide_usage=hide_usage)
    poured = await outcome(PouringResponse(*script), chain(takes, ALWAYS), hide_usage=hide_usage)
    assert poured == read


async def test_events_are_not_read_while_they_pass() -> None:
    """Between the first event and the end behind `[DONE]` nobody has to be woken."""
    response = PouringResponse(ROLE, HELLO, *[WORLD] * 50, STOP, DONE)
    found = await outcome(response, ALWAYS, hide_usage=True)
    assert (found.received.count(WORLD), found.has_ended) == (50, True)
    assert response.reads == 2


async def test_several_events_in_a_piece_are_read() -> None:
    """A gateway that is behind gathers what comes, and writes it together."""
    response = PouringResponse(ROLE, HELLO + WORLD, HELLO, STOP + DONE)
    client = HastyClient(ALWAYS)
    await relay(make_exchange(), UpstreamEvents(response, None, StreamFacts(hide_usage=True)), client, None, None)
    assert client.writes == [ROLE, HELLO + WORLD, HELLO, STOP + DONE]
    assert client.at_once == [HELLO, STOP + DONE]


async def test_what_somebody_listens_to_is_read() -> None:
    """Whoever listens hears every event."""
    response = PouringResponse(*ANSWER)
    events = UpstreamEvents(response, None, StreamFacts(hide_usage=True))
    client = HastyClient(ALWAYS)
    await relay(make_exchange(), events, client, lambda _, chunk: [chunk], None)
    assert (b"".join(client.writes), response.reads > len(ANSWER)) == (b"".join(ANSWER), True)


# On sockets


class Bucket:
    """What is poured into it, and whether it says that there may be more."""

    def __init__(self, response: Response, *, has_room: bool = True) -> None:
        self.content = b""
        self._has_room = has_room
        self.poured = asyncio.get_running_loop().create_task(response.pour(self._take))

    def _take(self, piece: bytes) -> bool:
        self.content += piece
        return self._has_room


class Provider:
    """Has sent the head of a chunked answer, and sends what it is told to."""

    def __init__(self, writer: asyncio.StreamWriter, response: Response) -> None:
        self._writer = writer
        self.response = response

    def send(self, piece: bytes) -> None:
        """A piece of the body; an empty one ends it."""
        self._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def hang_up(self) -> None:
        """Break off."""
        self._writer.transport.abort()


@asynccontextmanager
async def providing(transport: HTTP1Transport, **seconds: float) -> AsyncIterator[Provider]:
    """A provider whose answer has begun."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(CHUNKED)
        writers.append(writer)
        await reader.read()

    async with serving(serve) as origin:
        response = await send(transport, asking(origin), timers(**seconds))
        assert isinstance(response, Response)
        yield Provider(writers[0], response)
        response.close()


async def test_pieces_are_given_on_as_they_are_received(transport: HTTP1Transport) -> None:
    """Within the call that receives them, in order, to the end of the body; then there is nothing left to read."""
    async with providing(transport) as provider:
        bucket = Bucket(provider.response)
        await asyncio.sleep(0)
        connections(transport)[0].data_received(b"1\r\na\r\n")
        assert bucket.content == b"a"
        provider.send(b"b")
        provider.send(b"")
        await bucket.poured
        assert (bucket.content, await provider.response.read()) == (b"ab", b"")
        assert provider.response.is_over


async def test_what_comes_after_a_no_is_read(transport: HTTP1Transport) -> None:
    """The piece that was given is taken; those behind it wait for a reader, in order."""
    async with providing(transport) as provider:
        bucket = Bucket(provider.response, has_room=False)
        await asyncio.sleep(0)
        connection = connections(transport)[0]
        connection.data_received(b"1\r\na\r\n")
        connection.data_received(b"1\r\nb\r\n")
        await bucket.poured
        assert (bucket.content, await provider.response.read()) == (b"a", b"b")


async def test_what_waits_to_be_read_does_not_pour(transport: HTTP1Transport) -> None:
    """Order is kept: first what is there."""
    async with providing(transport) as provider:
        connections(transport)[0].data_received(b"1\r\na\r\n")
        await provider.response.pour(lambda _: pytest.fail("given although it waits"))
        assert await provider.response.read() == b"a"


async def test_what_goes_wrong_with_a_piece_is_raised_where_it_is_waited_for(transport: HTTP1Transport) -> None:
    """Not in the event loop, which would close the connection and tell nobody."""

    def refuse(_: bytes) -> bool:
        raise UpstreamCut("No more.")

    async with providing(transport) as provider:
        provider.send(b"a")
        with pytest.raises(UpstreamCut, match=r"No more\."):
            await provider.response.pour(refuse)


async def test_a_silent_provider_is_a_timeout_while_it_pours(transport: HTTP1Transport) -> None:
    """Each piece begins the wait for the next anew, and no later one than the last."""
    async with providing(transport, idle_seconds=0.8) as provider:
        bucket = Bucket(provider.response)
        began = asyncio.get_running_loop().time()
        for _ in range(4):
            await asyncio.sleep(0.25)
            provider.send(b"a")
        await bucket.poured
        with pytest.raises(UpstreamTimeout) as caught:
            await provider.response.read()
        assert (bucket.content, caught.value.phase) == (b"aaaa", "idle")
        assert asyncio.get_running_loop().time() - began >= 1.8


async def test_a_cut_ends_what_pours(transport: HTTP1Transport) -> None:
    """And is raised to who reads on."""
    async with providing(transport) as provider:
        bucket = Bucket(provider.response)
        provider.send(b"a")
        await wait_until(lambda: bucket.content == b"a")
        provider.hang_up()
        await bucket.poured
        with pytest.raises(UpstreamCut):
            await provider.response.read()


async def test_giving_up_leaves_nobody_pouring(transport: HTTP1Transport) -> None:
    """A client that hangs up cancels the wait; what comes then is given to nobody."""
    async with providing(transport) as provider:
        bucket = Bucket(provider.response)
        await asyncio.sleep(0)
        bucket.poured.cancel()
        await asyncio.wait([bucket.poured])
        connections(transport)[0].data_received(b"1\r\na\r\n")
        assert (bucket.content, await provider.response.read()) == (b"", b"a")
