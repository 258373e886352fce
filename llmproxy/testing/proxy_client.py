"""The client that a test has of a running gateway, and all that the test may want to look at around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from llmproxy.app import App
from llmproxy.cli.running_gateway import ConfiguredGateway
from llmproxy.config import ServerConfig
from llmproxy.services import Row
from llmproxy.testing.connections import wait_until
from llmproxy.testing.responses import ProxyResponse
from llmproxy.testing.upstream import HOST, ScriptedUpstream
from llmproxy.testing.wall_clock import WallClock

KEY: Final = "sk-the-key-of-the-tests-client"
ADMIN_KEY: Final = "sk-the-key-of-the-tests-operator"
DEADLINE_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Rows:
    """What the database holds of the requests so far, in the order in which they were let in."""

    requests: Sequence[Row]
    attempts: Sequence[Row]
    ledger: Sequence[Row]


class ProxyClient:
    """A client of a running gateway.

    Attributes:
        app: The gateway.
        upstream: The provider behind it, and what that has been sent.
        clock: The gateway's; set it to move on.
        origin: Scheme, host and port.
        base_url: What an OpenAI SDK takes as its base URL.
        key: A key of the workspace `default`, which may use every model.
        admin_key: The operator's.
        gateway: For commands under test; as it blocks, run them in a thread, such as with `asyncio.to_thread`.
    """

    def __init__(
        self, app: App, upstream: ScriptedUpstream, clock: WallClock, http: aiohttp.ClientSession, port: int
    ) -> None:
        self.app: Final = app
        self.upstream: Final = upstream
        self.clock: Final = clock
        self.origin: Final = f"http://{HOST}:{port}"
        self.base_url: Final = f"{self.origin}/v1"
        self.key: Final = KEY
        self.admin_key: Final = ADMIN_KEY
        own = ServerConfig(host=HOST, port=port)
        self.gateway: Final = ConfiguredGateway(own, app.services.state_directory, {"LLMPROXY_ADMIN_KEY": ADMIN_KEY})
        self._http = http

    async def chat(
        self, text: str = "hello", *, stream: bool = False, headers: Mapping[str, str] | None = None, **fields: object
    ) -> ProxyResponse:
        """The answer of the model `test` to one message, streamed or not.

        `fields` are further members of the request's body, such as `model="demo/echo"`. Raises as `request`.
        """
        asked = {"model": "test", "messages": [{"role": "user", "content": text}]}
        streamed = {"stream": True} if stream else {}
        return await self.request("POST", "/v1/chat/completions", {**asked, **streamed, **fields}, headers=headers)

    async def request(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        key: str = KEY,
    ) -> ProxyResponse:
        """The response to any request, read to its end. Raises ConnectionError when it breaks off before that.

        Args:
            document: Sent as JSON.
            body: Sent as it is, in place of a document.
            key: Another than the client's own; `client.admin_key` for the operator's paths.
        """
        sent = json.dumps(document).encode() if body is None and document is not None else body
        fields = {"authorization": f"Bearer {key}", "content-type": "application/json", **(headers or {})}
        try:
            async with self._http.request(method, self.origin + path, data=sent, headers=fields) as response:
                return ProxyResponse(response.status, response.headers, await response.read())
        except aiohttp.ClientError as error:
            raise ConnectionError("The gateway broke off the connection.") from error

    async def rows(self) -> Rows:
        """What was recorded, once no request is on its way. Raises TimeoutError when one stays for too long."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.app.server.idle()
            await self.app.gateway.pipeline.idle()
        await wait_until(lambda: not self.app.recorder.pending)
        fetch = self.app.services.database.fetch
        return Rows(
            requests=await fetch("SELECT * FROM requests ORDER BY id"),
            attempts=await fetch("SELECT * FROM attempts ORDER BY request_id, number"),
            ledger=await fetch("SELECT * FROM ledger_entries ORDER BY request_id, entry"),
        )
