"""Streams between a provider's bytes and a client's: what is held, what is passed on, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy import stream
from llmproxy.dialects.chat_events import WholeEvents
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import ClientDisconnected, UpstreamBroken, UpstreamCut, UpstreamError, UpstreamRefused
from llmproxy.exchange import Chunk, Exchange
from llmproxy.request import Headers
from llmproxy.stream import BodyCapture, ChunkLane, UpstreamEvents, encode_chunk, relay
from llmproxy.testing.exchanges import make_exchange

DONE = b"data: [DONE]\n\n"


def event(delta: Mapping[str, object], finish_reason: str | None = None, **more: object) -> bytes:
    """One chat event."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + orjson.dumps({"id": "1", "choices": [choice], **more}) + b"\n\n"


ROLE = event({"role": "assistant", "content": ""})
HELLO = event({"content": "hello"})
WORLD = event({"content": " world"})
STOP = event({}, "stop")
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
ERROR = b'data: {"error":{"message":"Too many.","type":"rate_limit_error","code":"rate_limit_exceeded"}}\n\n'
ANSWER = (ROLE, HELLO, WORLD, STOP, DONE)


class ScriptedResponse:
    """A response whose reads give these pieces; an error is raised in its turn, None never comes."""

    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self, *pieces: bytes | UpstreamError | None) -> None:
        self._pieces = list(pieces)
        self.reads = 0
        self.closed = False

    async def read(self) -> bytes:
        self.reads += 1
        piece = self._pieces.pop(0) if self._pieces else b""
        if isinstance(piece, UpstreamError):
            raise piece
        return await asyncio.get_running_loop().create_future() if piece is None else piece

    def abort(self, error: UpstreamError) -> None:
        self._pieces = [error]

    def close(self) -> None:
        self.closed = True


class RecordingClient:
    """A client that takes everything, until it hangs up after `max_writes`."""

    def __init__(self, max_writes: int = 1000) -> None:
        self.bytes_sent = 0
        self.status = 200
        self.is_open = False
        self.writes: list[bytes] = []
        self.has_ended = False
        self._max_writes = max_writes

    async def read_body(self) -> bytes:
        return b""

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        self.writes.append(body)

    def expect_stream(self, headers: Headers) -> None:
        self.is_open = False

    def open_stream(self, headers: Headers) -> None:
        self.is_open = False

    async def write(self, data: bytes) -> None:
        if len(self.writes) == self._max_writes:
            raise ClientDisconnected("The client hung up.")
        self.is_open = True
        self.writes.append(data)

    def write_at_once(self, data: bytes) -> bool:
        return False

    async def end_stream(self) -> None:
        self.has_ended = True

    def abort(self) -> None:
        self.has_ended = False


def opened(response: ScriptedResponse, *, hide_usage: bool = True, choices: int = 1) -> UpstreamEvents:
    """A provider's stream whose first byte is still to be read."""
    return UpstreamEvents(response, None, StreamFacts(hide_usage=hide_usage, choices=choices))


async def drained(events: UpstreamEvents) -> bytes:
    """All that a client would get of a stream."""
    await events.commit()
    relayed = b""
    while piece := await events.read():
        relayed += piece
    return relayed


async def relayed(
    *pieces: bytes | UpstreamError, listener: Callable[[Exchange, Chunk], Sequence[Chunk]] | None = None
) -> RecordingClient:
    """The client of a stream of these pieces."""
    client = RecordingClient()
    await relay(make_exchange(stream=True), opened(ScriptedResponse(*pieces)), client, listener, None)
    return client


# Until the first content another target may still answer


async def test_holds_back_what_comes_before_the_first_content() -> None:
    """Nothing reaches the client before content has come; then everything does, in order."""
    response = ScriptedResponse(b": ping\n\n", ROLE, HELLO, WORLD, STOP, DONE)
    events = opened(response)
    await events.commit()
    assert response.reads == 3
    assert await events.read() == b": ping\n\n" + ROLE + HELLO


async def test_an_error_before_content_is_an_error_of_the_attempt() -> None:
    """An error event that comes first is raised with the provider's own code and never seen by the client."""
    with pytest.raises(UpstreamRefused) as caught:
        await opened(ScriptedResponse(ROLE, ERROR)).commit()
    assert (caught.value.http_status, caught.value.error_code) == (429, "rate_limit_exceeded")


@pytest.mark.parametrize(
    "pieces", [(), (ROLE,), (b": ping\n\n",), (ROLE, HELLO[:-9])], ids=["nothing", "role", "comment", "half-event"]
)
async def test_an_end_before_content_is_a_cut(pieces: tuple[bytes, ...]) -> None:
    """A stream that ends before any content is a failed attempt, not an empty answer."""
    with pytest.raises(UpstreamCut):
        await opened(ScriptedResponse(*pieces)).commit()


async def test_a_stream_without_an_answer_is_broken() -> None:
    """`[DONE]` alone is no answer: another target may give one."""
    with pytest.raises(UpstreamBroken, match="without an answer"):
        await opened(ScriptedResponse(DONE)).commit()


async def test_an_empty_answer_is_an_answer() -> None:
    """A model that stops without a word has answered."""
    assert await drained(opened(ScriptedResponse(ROLE, STOP, DONE))) == ROLE + STOP + DONE


async def test_content_and_error_in_one_piece() -> None:
    """Content that came in the same read as an error is passed on first, then the error is raised."""
    events = opened(ScriptedResponse(ROLE + HELLO + ERROR))
    await events.commit()
    assert await events.read() == ROLE + HELLO
    with pytest.raises(UpstreamRefused):
        await events.read()


async def test_what_is_held_back_is_limited() -> None:
    """A provider that sends comments without end fills no memory: the stream is let through."""
    response = ScriptedResponse(*[b": " + b"x" * 100_000 + b"\n\n"] * 100)
    await opened(response).commit()
    assert response.reads < 15


async def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that never ends is given up at a limit."""
    monkeypatch.setattr(stream, "MAX_EVENT_BYTES", 10_000)
    with pytest.raises(UpstreamBroken, match="more than 10000 bytes"):
        await opened(ScriptedResponse(*[b"data: " + b"x" * 1000] * 100)).commit()


# The raw lane


@given(st.lists(st.integers(1, 40), max_size=60), st.sampled_from([b"\n", b"\r\n", b"\r"]))
async def test_raw_lane_keeps_every_event_however_it_was_split(sizes: list[int], line_end: bytes) -> None:
    """Wherever the network cuts the bytes, the same events come out, always whole, and nothing is lost or doubled."""
    whole = b"".join(ANSWER).replace(b"\n", line_end)
    pieces, rest = [], whole
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    events = opened(ScriptedResponse(*[piece for piece in (*pieces, rest) if piece]))
    await events.commit()
    out = []
    while piece := await events.read():
        out.append(piece)
    assert b"".join(out).replace(b"\r\n", b"\n").replace(b"\r", b"\n") == b"".join(ANSWER)
    assert all(piece.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")) for piece in out)


async def test_raw_lane_passes_content_exactly_as_it_came() -> None:
    """What nobody edits is not re-encoded: spelling, spaces and unknown members stay."""
    odd = b'data:{"choices":[{"index":0,"delta":{"content":"\\u00e9"},"x":1.0}] , "y":10000000000000000000001}\n\n'
    assert odd in await drained(opened(ScriptedResponse(ROLE, HELLO, odd, STOP, DONE)))


async def test_usage_event_is_hidden_and_remembered() -> None:
    """The usage event that the client did not ask for is read, not relayed."""
    events = opened(ScriptedResponse(ROLE, HELLO, STOP, USAGE, DONE))
    assert await drained(events) == ROLE + HELLO + STOP + DONE
    assert events.facts.usage == {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}


async def test_usage_event_is_shown_to_who_asked() -> None:
    """A client that asked for usage gets the event as it came."""
    events = opened(ScriptedResponse(ROLE, HELLO, STOP, USAGE, DONE), hide_usage=False)
    assert await drained(events) == ROLE + HELLO + STOP + USAGE + DONE


# How a stream ends


async def test_an_end_mark_that_was_left_out_is_added() -> None:
    """A complete answer without `[DONE]` gets one, for SDKs wait for it."""
    assert await drained(opened(ScriptedResponse(ROLE, HELLO, STOP))) == ROLE + HELLO + STOP + DONE


async def test_a_last_event_without_its_blank_line_counts_when_it_is_whole() -> None:
    """A provider that forgets the last line break has still finished."""
    assert await drained(opened(ScriptedResponse(ROLE, HELLO, STOP[:-2]))) == ROLE + HELLO + STOP + DONE


@pytest.mark.parametrize(
    "pieces",
    [(ROLE, HELLO), (ROLE, HELLO, WORLD[:-9]), (ROLE, HELLO, STOP[:-9])],
    ids=["no-finish", "half-event", "half-finish"],
)
async def test_an_end_without_a_finish_is_a_cut(pieces: tuple[bytes, ...]) -> None:
    """An end that HTTP takes for complete is a cut when neither finish reason nor `[DONE]` came before it."""
    with pytest.raises(UpstreamCut):
        await drained(opened(ScriptedResponse(*pieces)))


async def test_every_choice_must_finish() -> None:
    """With two choices asked for, one finish reason is not the end."""
    with pytest.raises(UpstreamCut):
        await drained(opened(ScriptedResponse(HELLO, STOP), choices=2))


async def test_a_cut_after_the_finish_loses_nothing() -> None:
    """When every choice has finished, a connection that breaks takes nothing away from the answer."""
    assert await drained(opened(ScriptedResponse(ROLE, HELLO, STOP, UpstreamCut("Cut.")))) == ROLE + HELLO + STOP + DONE


async def test_a_provider_that_lingers_after_done_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `[DONE]` the stream ends for the client, even if the provider never closes its side."""
    monkeypatch.setattr(stream, "_END_SECONDS", 0.05)
    async with asyncio.timeout(5):
        assert await drained(opened(ScriptedResponse(*ANSWER, None))) == b"".join(ANSWER)


async def test_nothing_follows_done() -> None:
    """What a provider sends after `[DONE]` is not part of the answer."""
    assert await drained(opened(ScriptedResponse(*ANSWER, WORLD, DONE))) == b"".join(ANSWER)


async def test_a_provider_of_another_format_goes_through_its_decoder() -> None:
    """A vendor's decoder turns pieces into events, and may bring more at the end."""

    class Shouting:
        def feed(self, data: bytes) -> Sequence[bytes]:
            return [event({"content": data.decode().upper()})]

        def finish(self) -> Sequence[bytes]:
            return [STOP]

    facts = StreamFacts(hide_usage=True)
    relayed = await drained(UpstreamEvents(ScriptedResponse(b"a", b"b"), Shouting(), facts))
    assert relayed == event({"content": "A"}) + event({"content": "B"}) + STOP + DONE


async def test_closing_gives_the_response_up() -> None:
    """Who closes the stream closes what it reads from."""
    response = ScriptedResponse(ROLE, HELLO)
    opened(response).close()
    assert response.closed


# The chunk lane


async def test_an_unchanged_chunk_keeps_its_bytes() -> None:
    """A listener that only looks leaves every byte as it came."""
    heard: list[Chunk] = []

    def look(_: Exchange, chunk: Chunk) -> Sequence[Chunk]:
        heard.append(chunk)
        return [chunk]

    client = await relayed(ROLE + HELLO, b": ping\n\n", STOP + DONE, listener=look)
    assert b"".join(client.writes) == ROLE + HELLO + b": ping\n\n" + STOP + DONE
    assert [(chunk.raw, chunk.last) for chunk in heard] == [
        (ROLE, False),
        (HELLO, False),
        (b": ping\n\n", False),
        (STOP, False),
        (b"", True),
    ]
    assert heard[1].document is not None
    assert heard[1].document["choices"][0]["delta"] == {"content": "hello"}


async def test_a_listener_may_change_multiply_and_swallow() -> None:
    """Chunks that a listener makes are encoded; those it leaves out are gone."""

    def edit(_: Exchange, chunk: Chunk) -> Sequence[Chunk]:
        match chunk.raw:
            case raw if raw == ROLE:
                return []
            case raw if raw == HELLO:
                return [Chunk(document={"n": 1}), Chunk(document={"n": 2})]
            case _:
                return [chunk]

    client = await relayed(ROLE, HELLO, STOP, DONE, listener=edit)
    assert b"".join(client.writes) == b'data: {"n":1}\n\ndata: {"n":2}\n\n' + STOP + DONE


async def test_what_was_held_back_comes_before_the_end_mark() -> None:
    """What a listener flushes on the last call stands between the last event and `[DONE]`."""
    held: list[Chunk] = []

    def hold(_: Exchange, chunk: Chunk) -> Sequence[Chunk]:
        if chunk.last:
            return held
        held.append(chunk)
        return []

    client = await relayed(*ANSWER, listener=hold)
    assert client.writes == [ROLE + HELLO + WORLD + STOP + DONE]
    assert client.has_ended


async def test_last_call_comes_once() -> None:
    """`chunk.last` is set on exactly one call, after all events."""
    lane = ChunkLane(make_exchange(), lambda _, chunk: [Chunk(document={"last": chunk.last})])
    assert lane.feed(HELLO + STOP + DONE) == b'data: {"last":false}\n\n' * 2
    assert lane.finish() == b'data: {"last":true}\n\n' + DONE


async def test_a_cut_stream_makes_no_last_call() -> None:
    """Of a stream that broke off, what was held back is not let out as if it were complete."""
    calls: list[bool] = []

    def listen(_: Exchange, chunk: Chunk) -> Sequence[Chunk]:
        calls.append(chunk.last)
        return [chunk]

    with pytest.raises(UpstreamCut):
        await relayed(ROLE, HELLO, listener=listen)
    assert calls == [False, False]


def test_chunks_without_content_are_nothing() -> None:
    """A chunk that a plugin made empty leaves no bytes."""
    assert encode_chunk(Chunk()) == b""


# The relay


async def test_relay_ends_the_stream_only_when_it_is_complete() -> None:
    """The client's stream is ended after a whole answer, and left open for the error event after a cut."""
    assert (await relayed(*ANSWER)).has_ended
    client = RecordingClient()
    with pytest.raises(UpstreamCut):
        await relay(make_exchange(), opened(ScriptedResponse(ROLE, HELLO)), client, None, None)
    assert (b"".join(client.writes), client.has_ended) == (ROLE + HELLO, False)


async def test_relay_stops_when_the_client_is_gone() -> None:
    """Nothing more is read for a client that has hung up."""
    response = ScriptedResponse(*ANSWER)
    with pytest.raises(ClientDisconnected):
        await relay(make_exchange(), opened(response), RecordingClient(max_writes=2), None, None)
    assert response.reads == 3


async def test_relay_keeps_the_beginning_for_the_audit() -> None:
    """What the client got is captured up to the limit, and that there was more is known."""
    capture = BodyCapture(len(ROLE) + 10)
    await relay(make_exchange(), opened(ScriptedResponse(*ANSWER)), RecordingClient(), None, capture)
    assert (capture.kept, capture.is_truncated) == ((ROLE + HELLO)[: len(ROLE) + 10], True)
    assert capture.size_bytes == len(b"".join(ANSWER))


async def test_finished_events_can_be_served() -> None:
    """A stream that is already there, such as a cache's, goes the same way."""
    client = RecordingClient()
    await relay(make_exchange(), WholeEvents([HELLO, STOP, DONE]), client, None, None)
    assert client.writes == [HELLO, STOP, DONE]


@given(st.lists(st.binary(max_size=20)), st.integers(0, 100))
def test_capture_keeps_a_prefix(pieces: list[bytes], max_bytes: int) -> None:
    """What is kept is the beginning of what was added, and `is_truncated` says whether that is all."""
    capture = BodyCapture(max_bytes)
    for piece in pieces:
        capture.add(piece)
    whole = b"".join(pieces)
    assert capture.kept == whole[:max_bytes]
    assert capture.is_truncated == (len(whole) > max_bytes)
