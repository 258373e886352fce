"""`python -m benchmarks.clients`: what sending a request costs, with core's client and with aiohttp's, side by side."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import process_time
from typing import Final, cast

import psutil

from benchmarks.load import WrongAnswerError
from benchmarks.processes import cores, pin, running
from benchmarks.report import markdown
from benchmarks.traffic import Order, unchunked
from llmproxy.config import Timeouts
from llmproxy.http1.transport import HTTP1Transport
from llmproxy.services import UpstreamRequest
from llmproxy.upstream import HTTPTransport, read_all, send

ROUNDS: Final = 9
FLOOR, AIOHTTP, LEAN = "no client", "aiohttp's client", "core's client"
_AT_ONCE: Final = 8
_MAX_ANSWER_BYTES: Final = 1 << 26
_FIELDS: Final = (
    ("accept", "application/json"),
    ("content-type", "application/json"),
    ("accept-encoding", "identity"),
    ("authorization", "Bearer of-the-vendor"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and the one right answer to it."""

    wire: bytes
    body: bytes
    answer: bytes
    is_stream: bool


@dataclass(frozen=True, slots=True)
class Load:
    """Some requests, a few at a time."""

    title: str
    requests: int
    events: int = 0

    def questions(self, numbers: Iterator[int]) -> Sequence[Question]:
        """Made before the clock starts."""
        return [self._question(Order(number, self.events)) for number in itertools.islice(numbers, self.requests)]

    def _question(self, order: Order) -> Question:
        wire = order.request()
        answer = order.stream() if self.events else order.answer()
        return Question(wire, wire.partition(b"\r\n\r\n")[2], answer, bool(self.events))


Ask = Callable[[Question], Awaitable[bytes]]
LOADS: Final = (Load("whole answer, µs", 4000), Load("stream of 500 events at full speed, µs/event", 64, 500))


class _Floor(asyncio.Protocol):
    """A connection whose user knows what will come: what it costs is the event loop's and the kernel's doing."""

    _transport: asyncio.Transport
    _answered: asyncio.Future[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def ask(self, question: Question) -> bytes:
        """The body of the answer."""
        self._pieces: list[bytes] = []
        self._end = b"\r\n0\r\n\r\n" if question.is_stream else question.answer[-80:]
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(question.wire)
        received = (await self._answered).partition(b"\r\n\r\n")[2]
        return unchunked(received) if question.is_stream else received

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        if data.endswith(self._end):
            self._answered.set_result(b"".join(self._pieces))


@asynccontextmanager
async def floor(port: int) -> AsyncIterator[Ask]:
    """No client, only connections."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(_Floor, "127.0.0.1", port) for _ in range(_AT_ONCE)]
    idle = [protocol for _, protocol in made]

    async def ask(question: Question) -> bytes:
        connection = idle.pop()
        try:
            return await connection.ask(question)
        finally:
            idle.append(connection)

    yield ask
    for transport, _ in made:
        transport.close()


@asynccontextmanager
async def client(make: Callable[[], HTTPTransport | HTTP1Transport], port: int) -> AsyncIterator[Ask]:
    """A client, used as an attempt uses it."""
    transport, timeouts = make(), Timeouts()
    url = f"http://127.0.0.1:{port}/v1/chat/completions"

    async def ask(question: Question) -> bytes:
        response = await send(transport, UpstreamRequest("POST", url, _FIELDS, question.body), timeouts)
        try:
            return await read_all(response, _MAX_ANSWER_BYTES)
        finally:
            response.close()

    yield ask
    await transport.close()


SUBJECTS: Final[Mapping[str, Callable[[int], AbstractAsyncContextManager[Ask]]]] = {
    FLOOR: floor,
    AIOHTTP: partial(client, HTTPTransport),
    LEAN: partial(client, HTTP1Transport),
}


async def microseconds(ask: Ask, questions: Sequence[Question]) -> float:
    """CPU time of this process for each of them. Raises WrongAnswerError."""
    waiting = iter(questions)

    async def ask_on() -> None:
        for question in waiting:
            if await ask(question) != question.answer:
                raise WrongAnswerError("The client gave another answer than the upstream.")

    started = process_time()
    await asyncio.gather(*(ask_on() for _ in range(_AT_ONCE)))
    return (process_time() - started) / len(questions) * 1e6


async def measured(port: int) -> Mapping[tuple[str, str], Sequence[float]]:
    """Samples by subject and load, a sample a round."""
    samples: dict[tuple[str, str], list[float]] = {(name, load.title): [] for name in SUBJECTS for load in LOADS}
    numbers = itertools.count(1)
    for _, (name, subject), load in itertools.product(range(ROUNDS), SUBJECTS.items(), LOADS):
        async with subject(port) as ask:
            await microseconds(ask, load.questions(itertools.islice(numbers, 2 * _AT_ONCE)))
            spent = await microseconds(ask, load.questions(numbers))
        samples[name, load.title].append(spent / max(load.events, 1))
    return samples


def main() -> None:
    """Measure, and print a table."""
    with running("benchmarks.upstream") as (upstream, port):
        pin([upstream], cores().others)
        pin([psutil.Process(os.getpid())], cores().subject)
        samples = asyncio.run(measured(port))
    rows = [[name, *(cell for load in LOADS for cell in _cells(samples, name, load))] for name in SUBJECTS]
    print(markdown(["", *(title for load in LOADS for title in (load.title, "of aiohttp's (range)"))], rows))


def _cells(samples: Mapping[tuple[str, str], Sequence[float]], name: str, load: Load) -> list[str]:
    values = samples[name, load.title]
    ratios = [value / base for value, base in zip(values, samples[AIOHTTP, load.title], strict=True)]
    return [f"{median(values):.1f}", f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]


if __name__ == "__main__":
    main()
