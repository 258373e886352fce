"""The guard on streams: windows, what is held back, and how denials and replacements look to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.sse import encode_event
from llmproxy.testing import RecordedRequest, Reply, StartProxy, ToolCall, cut_after, document, stepped, stream, tools
from llmproxy_plugins.caching import Caching
from llmproxy_plugins.guard import Guard
from llmproxy_plugins.guard.streams import GuardedStream
from llmproxy_plugins.guard.texts import Path
from tests.guard import BAD, asking, judge, questions

SMALL = {"requests": None, "answers": {"stream_window_characters": 20}}
# Between two events, so that they are not read as one piece.
PAUSE = 0.02


async def test_an_allowed_stream_keeps_its_bytes(proxy: StartProxy) -> None:
    """What is let out is what came, to the byte."""
    async with judge() as server, proxy(Guard, asking(server, **SMALL)) as client:
        client.upstream.default = stream("one ", "two ", "three")
        guarded = await client.chat("hello", stream=True)
        assert (guarded.text, guarded.is_done) == ("one two three", True)
    async with proxy() as client:
        client.upstream.default = stream("one ", "two ", "three")
        assert guarded.body == (await client.chat("hello", stream=True)).body


async def test_windows_are_judged_with_what_went_before(proxy: StartProxy) -> None:
    """Each window is one question, which brings the end of the window before it along."""
    async with judge() as server, proxy(Guard, asking(server, **SMALL)) as client:
        client.upstream.default = stream("a" * 20, "b" * 20, "c", delay_seconds=PAUSE)
        await client.chat("hello", stream=True)
        asked = [(question["texts"], question["before"]) for question in questions(server, "stream")]
        assert asked == [(["a" * 20], [""]), (["b" * 20], ["a" * 20]), (["c"], ["b" * 20])]


async def test_a_denial_in_the_first_window_is_a_status(proxy: StartProxy) -> None:
    """As long as nothing has gone out, a denied stream is a 403 like any other."""
    async with judge() as server, proxy(Guard, asking(server, **SMALL)) as client:
        client.upstream.default = stream(BAD)
        response = await client.chat("hello", stream=True)
        assert (response.status, response.document["error"]["code"]) == (403, "guard_denied")


async def test_a_later_denial_ends_the_stream_with_an_error(proxy: StartProxy) -> None:
    """Nothing of the denied window goes out, also where it was cut in the middle of the word; a cache keeps none."""
    async with judge() as server, proxy(Guard, asking(server, **SMALL), Caching, {"when": "always"}) as client:
        client.upstream.default = stream(
            "This is all quite right.", BAD[:4], BAD[4:] + " and the rest", delay_seconds=PAUSE
        )
        response = await client.chat("hello", stream=True)
        assert response.events[-1]["error"]["code"] == "guard_denied"
        assert response.text == "This is all quite right."
        assert b"rest" not in response.body
        assert not response.is_done
        again = await client.chat("hello", stream=True)
        assert again.headers["x-llmproxy-cache"] == "miss"


async def test_nothing_goes_out_before_its_verdict(proxy: StartProxy) -> None:
    """When the judge is asked about a window, the client has none of it."""
    asked: list[Sequence[str]] = []

    def judging(request: RecordedRequest) -> Reply:
        asked.append(request.document["texts"])
        return document({"verdict": "deny" if len(asked) == 2 else "allow"})

    async with judge(judging) as server, proxy(Guard, asking(server, **SMALL)) as client:
        client.upstream.default = stream("x" * 10, "x" * 10, "y" * 10, "y" * 10, "z", delay_seconds=PAUSE)
        response = await client.chat("hello", stream=True)
        assert response.text == "x" * 20
        assert asked == [["x" * 20], ["y" * 20]]


async def test_a_window_is_held_back_no_longer_than_it_has_to_be(proxy: StartProxy) -> None:
    """A window that is full is judged while the provider still writes."""
    async with judge() as server, proxy(Guard, asking(server, **SMALL)) as client:
        permits = asyncio.Semaphore(2)
        client.upstream.default = stepped(stream("a" * 20, "b"), permits)
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(client.chat("hello", stream=True))
            await server.wait_for(lambda: len(server.requests) == 1)
            assert not client.upstream.exchanges[0].is_sent
            for _ in range(10):
                permits.release()
        assert answer.result().text == "a" * 20 + "b"


async def test_a_replaced_window_is_replaced_in_its_events(proxy: StartProxy) -> None:
    """The new text stands where the old one began, in a stream that is whole otherwise."""
    async with judge() as server, proxy(Guard, asking(server, **SMALL)) as client:
        client.upstream.default = stream("you are r", "ud", "e to me")
        response = await client.chat("hello", stream=True, stream_options={"include_usage": True})
        assert (response.text, response.is_done) == ("you are kind to me", True)
        assert response.events[-1]["usage"]


async def test_arguments_are_judged_apart_from_texts(proxy: StartProxy) -> None:
    """Each text of a stream is one of its own: the pieces of one call's arguments are put together."""
    async with judge() as server, proxy(Guard, asking(server, requests=None)) as client:
        client.upstream.default = tools(ToolCall("one", {"text": "rude"}), ToolCall("two", {"text": "fine"}))
        response = await client.chat("hello", stream=True)
        assert questions(server, "stream")[0]["texts"] == ["one", '{"text": "rude"}', "two", '{"text": "fine"}']
        pieces = [
            call["function"].get("arguments", "")
            for event in response.events
            for choice in event["choices"]
            for call in choice["delta"].get("tool_calls", [])
            if call["index"] == 0
        ]
        assert "".join(pieces) == '{"text": "kind"}'


async def test_a_flagged_stream_says_so(proxy: StartProxy) -> None:
    """The first window's flag is in the head; however many are flagged, it is one decision."""
    async with judge() as server, proxy(Guard, asking(server, **SMALL)) as client:
        client.upstream.default = stream("odd" * 10, "odd" * 10, "odd" * 10)
        response = await client.chat("hello", stream=True)
        assert response.headers["x-llmproxy-guard"] == "flagged"
        assert [each["what"] for each in (await client.rows()).requests[0]["decisions"]] == ["flagged the stream"]


async def test_a_cut_stream_ends_as_one(proxy: StartProxy) -> None:
    """What was held back of a stream that is cut is never let out unseen."""
    async with judge() as server, proxy(Guard, asking(server, **SMALL)) as client:
        client.upstream.default = cut_after(3, stream("a" * 20, "b" * 5, "c", delay_seconds=PAUSE))
        response = await client.chat("hello", stream=True)
        assert response.text == "a" * 20
        assert response.events[-1]["error"]["code"] == "upstream_cut"


# The stream by itself


class Pieces:
    """A provider's stream that arrives in any pieces."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = iter(pieces)

    async def read(self) -> bytes:
        return next(self._pieces, b"")

    def close(self) -> None:
        pass


def events_of(texts: Sequence[str]) -> bytes:
    """A stream that says these texts."""
    return b"".join(
        encode_event(b'{"choices":[{"index":0,"delta":{"content":"%b"}}]}' % text.encode()) for text in texts
    )


@given(
    texts=st.lists(st.text("abc ", max_size=12), max_size=12),
    sizes=st.lists(st.integers(1, 90), max_size=30),
    window=st.integers(1, 30),
)
def test_all_that_is_let_out_was_judged_and_nothing_is_lost(texts: list[str], sizes: list[int], window: int) -> None:
    """However a stream is cut into pieces, the judge sees each character once, before it goes out, in order."""
    data = events_of(texts)
    pieces = []
    rest = data
    for size in sizes:
        piece, rest = rest[:size], rest[size:]
        pieces += [piece] if piece else []
    pieces += [rest] if rest else []
    seen: list[str] = []
    out: list[bytes] = []

    async def ask(new: Sequence[str], before: Sequence[str]) -> None:
        assert "".join(seen).endswith(before[0])
        seen.extend(new)

    async def read_all() -> None:
        stream = GuardedStream(Pieces(pieces), ask, window)
        await stream.begin()
        while piece := await stream.read():
            out.append(piece)
            said = b"".join(out).count(b'"content"')
            assert "".join(seen) == "".join(texts[:said])

    asyncio.run(read_all())
    assert b"".join(out) == data
    assert "".join(seen) == "".join(texts)


async def test_a_stream_that_goes_on_elsewhere_is_judged_as_one() -> None:
    """What the client has of the first is what stands before the second."""
    asked: list[tuple[str, str]] = []

    async def ask(new: Sequence[str], before: Sequence[str]) -> None:
        asked.append((before[0], new[0]))

    heard: dict[Path, str] = {}
    for said in ("forb", "idden"):
        stream = GuardedStream(Pieces([events_of([said])]), ask, 4, heard)
        await stream.begin()
        while await stream.read():
            pass
    assert asked == [("", "forb"), ("forb", "idden")]
