"""Requests to a running gateway as bytes, for tests of what no HTTP library would send."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmproxy.request import Document
from llmproxy.testing import ProxyClient, RawClient, ScriptedUpstream
from llmproxy.testing.http1 import Fields, MessageReader
from llmproxy.testing.proxy_client import KEY

CHAT_LINE = b"POST /v1/chat/completions HTTP/1.1"
CHAT = b'{"model":"test","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"test","messages":[{"role":"user","content":"hi"}],"stream":true}'


@dataclass(frozen=True, slots=True)
class Response:
    """One response as it came."""

    status: int
    headers: Fields
    body: bytes

    @property
    def document(self) -> Document:
        """The body as JSON."""
        document: Document = json.loads(self.body)
        return document

    @property
    def error(self) -> Document:
        """The error that it states."""
        error: Document = self.document["error"]
        return error


def head(*fields: bytes, line: bytes = CHAT_LINE, key: str | None = KEY) -> bytes:
    """A request's head: what every request needs, then these fields."""
    credential = [] if key is None else [b"Authorization: Bearer " + key.encode()]
    return b"\r\n".join([line, b"Host: gateway", *credential, b"Content-Type: application/json", *fields, b"", b""])


def request(body: bytes = CHAT, *fields: bytes, line: bytes = CHAT_LINE, key: str | None = KEY) -> bytes:
    """A whole request with a length."""
    return head(*fields, b"Content-Length: %d" % len(body), line=line, key=key) + body


def dial(client: ProxyClient, *, deadline_seconds: float = 5) -> RawClient:
    """A connection to the gateway, to be used as `async with`."""
    port = urlsplit(client.origin).port
    assert port is not None
    return RawClient("127.0.0.1", port, deadline_seconds=deadline_seconds)


def process_config(database_url: str, upstream: ScriptedUpstream, **sections: object) -> str:
    """The configuration of a gateway that runs as a process: what the kit's `proxy` has, and these sections."""
    settings = {
        "database": {"url": database_url},
        "providers": {"upstream": {"kind": "openai", "base_url": upstream.base_url}},
        "models": {"test": "upstream/test-model"},
        "workspaces": {"default": {"keys": [KEY]}},
        "logging": {"format": "json"},
    }
    return json.dumps({**settings, **sections})


async def ask(client: ProxyClient, data: bytes, *, deadline_seconds: float = 5) -> Response:
    """The first response on a connection of its own, which is then given up."""
    async with dial(client, deadline_seconds=deadline_seconds) as connection:
        await connection.send(data)
        return await answer(connection)


async def answer(connection: RawClient) -> Response:
    """The next response on a connection."""
    received = await connection.read_head()
    return Response(received.status, received.fields, await connection.read_body())


async def conversation(client: ProxyClient, data: bytes) -> list[Response]:
    """Every response until the gateway closes the connection. Raises TimeoutError when it does not."""
    async with dial(client) as connection:
        await connection.send(data)
        return await responses(await connection.read_until_close())


async def responses(data: bytes) -> list[Response]:
    """The responses in what was received on one connection."""
    stream = asyncio.StreamReader()
    stream.feed_data(data)
    stream.feed_eof()
    reader = MessageReader(stream)
    found = []
    while received := await reader.read_head():
        status = int(received.start_line.split()[1])
        found.append(Response(status, received.fields, await reader.read_body(received)))
    return found
