"""Clients of the load test: each takes the next request, has a connection for it, and says what it saw."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from llmproxy.testing import RawClient, wait_until
from llmproxy.testing.http1 import MalformedMessageError
from tests.load_mix import Case, HangUp

CLIENTS: Final = 48
# A worker that is down leaves its connections waiting until it is back.
DEADLINE_SECONDS: Final = 30
_LOST: Final = (ConnectionError, asyncio.IncompleteReadError, MalformedMessageError)


@dataclass(slots=True)
class Seen:
    """What a client saw of its request: nothing at all, a response head, or the whole of it."""

    case: Case
    status: int | None = None
    request_id: str | None = None
    is_whole: bool = False
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        """Whether it is an answer to its end, and no error event either."""
        is_ended = not self.body.startswith(b"data:") or self.body.endswith(b"data: [DONE]\n\n")
        return self.is_whole and self.status == 200 and is_ended


class Load:
    """Some clients at once, until every case has been tried; `seen` grows by one for each.

    Args:
        at_upstream: The sessions whose requests the upstream has.
    """

    def __init__(self, port: int, key: str, cases: Sequence[Case], at_upstream: Container[str] = ()) -> None:
        self.seen: list[Seen] = []
        self._port = port
        self._key = key
        self._cases = iter(cases)
        self._at_upstream = at_upstream

    async def run(self) -> None:
        """Try every case once."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._client(self._cases))

    async def _client(self, cases: Iterator[Case]) -> None:
        for case in cases:
            seen = Seen(case)
            with suppress(*_LOST):
                await self._try(case, seen)
            self.seen.append(seen)

    async def _try(self, case: Case, seen: Seen) -> None:
        async with RawClient("127.0.0.1", self._port, deadline_seconds=DEADLINE_SECONDS) as connection:
            await connection.send(self._request(case))
            if case.hang_up is HangUp.SENT:
                return
            if case.hang_up is HangUp.UPSTREAM:
                await self._reach_upstream(case)
                return
            head = await connection.read_head()
            seen.status, seen.request_id = head.status, head.fields.get("x-llmproxy-request-id")
            # A busy machine may take longer than the upstream is given: then there is an error, and no event.
            if case.hang_up is HangUp.EVENT and head.status == 200:
                await connection.read_until(b"data: ")
                return
            seen.body = await connection.read_body()
            seen.is_whole = True

    async def _reach_upstream(self, case: Case) -> None:
        # A worker killed at this moment keeps it from ever getting there.
        with suppress(TimeoutError):
            await wait_until(lambda: case.session in self._at_upstream, seconds=2)

    def _request(self, case: Case) -> bytes:
        key = self._key if case.has_key else "sk-nobody-has-this-key"
        head = (
            f"POST {case.path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(case.body)}\r\n"
            f"x-llmproxy-session: {case.session}\r\n\r\n"
        )
        return head.encode() + case.body
