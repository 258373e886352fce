"""What benchmarks ask for and how they check it: a wrong answer must never count as a right one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from functools import partial

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.hangups import Hangups
from benchmarks.load import Load, WholeAnswers, WrongAnswerError
from benchmarks.prompts import SIZES, conversation
from benchmarks.soak import Moment, slopes
from benchmarks.traffic import Order, chunk, order_in, unchunked, unchunked_so_far
from benchmarks.upstream import Upstream


class Right(Upstream):
    """Counts its connections."""

    def __init__(self, connections: set[Upstream]) -> None:
        super().__init__()
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._connections.discard(self)


class Wrong(Right):
    """Answers each request as if it were another."""

    def _answer(self, order: Order) -> None:
        super()._answer(Order(order.number + 1, order.events, order.gap_ms))


@pytest.fixture
async def ports() -> AsyncIterator[dict[str, int]]:
    """An upstream that is right, and one that is not."""
    loop, connections = asyncio.get_running_loop(), set[Upstream]()
    servers = {
        kind.__name__: await loop.create_server(partial(kind, connections), "127.0.0.1", 0) for kind in (Right, Wrong)
    }
    yield {name: server.sockets[0].getsockname()[1] for name, server in servers.items()}
    for server in servers.values():
        server.close()
    async with asyncio.timeout(5):
        while connections:  # noqa: ASYNC110 - the other side's connections are waited for
            await asyncio.sleep(0)


_LOADS: tuple[Load, ...] = (WholeAnswers(2, 0), Hangups(4, events=20, gap_ms=1, most=3, key="sk-hasty"))


@pytest.mark.parametrize("load", _LOADS)
async def test_a_right_answer_counts_and_a_wrong_one_ends_the_run(load: Load, ports: dict[str, int]) -> None:
    """Each load counts what was answered to it, and raises when it was the answer to something else."""
    seen = await load.run(ports["Right"], itertools.count(1))
    assert seen.requests in (2, 3)
    with pytest.raises(WrongAnswerError):
        await load.run(ports["Wrong"], itertools.count(1))


async def test_a_field_that_is_missed_makes_an_answer_wrong(ports: dict[str, int]) -> None:
    """An answer whose head does not say what it has to is a wrong one."""
    with pytest.raises(WrongAnswerError):
        await WholeAnswers(1, 0, field=b"\r\nx-llmproxy-attempts: 2\r\n").run(ports["Right"], itertools.count(1))


@pytest.mark.parametrize("size_bytes", SIZES.values())
def test_a_conversation_is_as_long_as_it_should_be(size_bytes: int) -> None:
    """Its messages are JSON and fill the size but for one message, in a request that the upstream can read."""
    messages = conversation(size_bytes)
    body = Order(7, messages=messages).request().partition(b"\r\n\r\n")[2]
    assert size_bytes - 1_000 < len(messages) <= size_bytes
    assert len(orjson.loads(body)["messages"]) == messages.count(b'"role"')
    assert order_in(body).number == 7


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.data())
def test_what_has_come_of_chunks_is_the_beginning_of_all(pieces: list[bytes], data: st.DataObject) -> None:
    """Wherever a stream is cut, what its whole chunks carry is the beginning of its body."""
    wire = b"".join(map(chunk, pieces)) + b"0\r\n\r\n"
    cut = data.draw(st.integers(0, len(wire)))
    assert unchunked(wire).startswith(unchunked_so_far(wire[:cut]))
    assert unchunked_so_far(wire) == unchunked(wire)


def test_a_slope_is_the_growth_in_an_hour() -> None:
    """Ten megabytes a second are 36,000 an hour, whatever the rest does."""
    moments = [Moment(second, 5_000_000, second * 10_000_000, 40, 0, 100.0) for second in range(1, 9)]
    rows = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]]
        for row in slopes(moments).splitlines()
    }
    assert rows["of it its own, MB"][-2:] == ["36,000.0", "36,000.0"]
    assert rows["open files"] == ["40", "40", "40", "0", "0"]
