"""How the lean client gets its connections: names, addresses of both families, TLS, and proxies of the environment."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from llmproxy.config import Timeouts
from llmproxy.errors import UpstreamTimeout, UpstreamUnreachable
from llmproxy.http1.transport import HTTP1Transport
from llmproxy.providers import Transport
from llmproxy.services import UpstreamRequest
from llmproxy.testing import ScriptedUpstream, reply
from llmproxy.upstream import ProviderTransport, read_all, send
from tests.certificates import Authority

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CLOSING = ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
NOT_VERIFIED = "The provider's TLS certificate could not be verified."


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Somebody who signs certificates."""
    return Authority(tmp_path)


async def ask(transport: Transport, url: str, **seconds: float) -> bytes:
    """The body of the answer of whoever is there."""
    timeouts = Timeouts.model_validate({"connect_seconds": 10, **seconds})
    response = await send(transport, UpstreamRequest("POST", url, (), b"{}"), timeouts)
    try:
        return await read_all(response, 1000)
    finally:
        response.close()


class Server:
    """Answers every request with the same bytes.

    Attributes:
        names: What clients called it when they shook hands.
        heads: What they sent.
    """

    def __init__(self, answer: bytes = CLOSING) -> None:
        self.names: list[str | None] = []
        self.heads: list[bytes] = []
        self._answer = answer

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[int]:
        """Its port."""
        if tls is not None:
            tls.sni_callback = self._note_name
        async with await asyncio.start_server(self._serve, host, 0, ssl=tls) as server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self._answer)
        writer.transport.abort()

    def _note_name(self, _: object, name: str | None, __: object) -> None:
        self.names.append(name)


class Names:
    """The resolver of a test, in place of the loop's: the sockets' own addresses for every name."""

    def __init__(self, *addresses: tuple[str, int]) -> None:
        self.asked: list[str] = []
        self.addresses = list(addresses)

    async def __call__(self, host: str, port: int, **_: Any) -> Sequence[tuple[Any, ...]]:  # as the loop's is declared
        self.asked.append(host)
        if not self.addresses:
            raise socket.gaierror
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, at))
            for address, at in self.addresses
        ]


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Names resolve to what a test says."""
    names = Names()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names)
    return names


# Names and addresses


async def test_a_name_is_not_resolved_for_each_connection(transport: HTTP1Transport, names: Names) -> None:
    """What a name stands for is remembered for a while, also among those who ask at the same time."""
    async with Server().listening() as port:
        names.addresses = [("127.0.0.1", port)]
        assert await asyncio.gather(*(ask(transport, "http://provider.test/") for _ in range(8))) == [b"hi"] * 8
        assert await ask(transport, "http://provider.test/") == b"hi"
    assert names.asked == ["provider.test"]


async def test_a_name_is_resolved_anew_when_nobody_is_there(transport: HTTP1Transport, names: Names) -> None:
    """A provider that has moved is found at the next attempt."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()
    names.addresses = [closed]
    with pytest.raises(UpstreamUnreachable, match="No connection"):
        await ask(transport, "http://provider.test/")
    async with Server().listening() as port:
        names.addresses = [("127.0.0.1", port)]
        assert await ask(transport, "http://provider.test/") == b"hi"


async def test_an_outage_does_not_resolve_a_name_for_each_request(transport: HTTP1Transport, names: Names) -> None:
    """Whoever is not there does not move with each request; after a second it is looked for again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        names.addresses = [listener.getsockname()]
    started = asyncio.get_running_loop().time()
    asked = 0
    while len(names.asked) < 3:
        asked += 1
        with pytest.raises(UpstreamUnreachable, match="No connection"):
            await ask(transport, "http://provider.test/")
    # At first, then for the first that found nobody, then a second later.
    assert asked > 3
    assert asyncio.get_running_loop().time() - started >= 1


async def test_connections_are_spread_over_the_addresses(transport: HTTP1Transport, names: Names) -> None:
    """Of several servers behind one name each gets its share."""
    servers = [Server(), Server()]
    async with servers[0].listening() as first, servers[1].listening() as second:
        names.addresses = [("127.0.0.1", first), ("127.0.0.1", second)]
        for _ in range(4):
            await ask(transport, "http://provider.test/")
    assert [len(server.heads) for server in servers] == [2, 2]


@pytest.fixture
def unresponsive() -> Iterator[tuple[str, int]]:
    """An address where connecting never ends: its queue is full, so the kernel drops what comes."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)  # noqa: FBT003 - as the standard library has it
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()


async def test_an_address_that_does_not_answer_does_not_hold_up_the_next(
    transport: HTTP1Transport, names: Names, unresponsive: tuple[str, int]
) -> None:
    """After a quarter of a second the next address is tried beside it."""
    loop = asyncio.get_running_loop()
    async with Server().listening() as port:
        names.addresses = [unresponsive, ("127.0.0.1", port)]
        started = loop.time()
        assert await ask(transport, "http://provider.test/") == b"hi"
        assert 0.2 <= loop.time() - started < 2


async def test_addresses_of_one_family_may_be_dead(transport: HTTP1Transport, names: Names) -> None:
    """An IPv6 address that leads nowhere is passed over."""
    async with Server().listening() as port:
        names.addresses = [("::1", port), ("127.0.0.1", port)]
        assert await ask(transport, "http://provider.test/") == b"hi"


async def test_connecting_has_its_timer(transport: HTTP1Transport, names: Names, unresponsive: tuple[str, int]) -> None:
    """An address that never answers is a connect timeout, or the total's when that is shorter."""
    names.addresses = [unresponsive]
    for seconds, phase in (({"connect_seconds": 0.1}, "connect"), ({"total_seconds": 0.1}, "total")):
        with pytest.raises(UpstreamTimeout) as caught:
            await ask(transport, "http://provider.test/", **seconds)
        assert caught.value.phase == phase


# TLS


async def test_a_certificate_of_a_trusted_authority(authority: Authority) -> None:
    """The name that is verified is the one that is sent, so that a server of many names knows which is meant."""
    trusting = ssl.create_default_context(cafile=str(authority.file))
    transport = HTTP1Transport(tls=trusting)
    server = Server(ANSWER)
    async with server.listening(authority.server("localhost")) as port:
        for _ in range(3):
            assert await ask(transport, f"https://localhost:{port}/") == b"hi"
        await transport.close()
    assert server.names == ["localhost"]


async def test_an_ip_address_is_verified_as_one(authority: Authority) -> None:
    """A certificate may be for an address; no name is sent then."""
    transport = HTTP1Transport(tls=ssl.create_default_context(cafile=str(authority.file)))
    server = Server(ANSWER)
    async with server.listening(authority.server("127.0.0.1")) as port:
        assert await ask(transport, f"https://127.0.0.1:{port}/") == b"hi"
        await transport.close()
    assert server.names == [None]


async def test_ssl_cert_file_names_whom_to_trust(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's own authority is trusted through the usual variable."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    transport = HTTP1Transport()
    async with Server().listening(authority.server("localhost")) as port:
        assert await ask(transport, f"https://localhost:{port}/") == b"hi"
    await transport.close()


@pytest.mark.parametrize(
    ("name", "valid_days"),
    [("another.test", 1), ("localhost", -1)],
    ids=["another name", "expired"],
)
async def test_certificates_that_are_refused(authority: Authority, name: str, valid_days: int) -> None:
    """Of a trusted authority, but not for this server, or not any more: nothing is sent."""
    transport = HTTP1Transport(tls=ssl.create_default_context(cafile=str(authority.file)))
    server = Server()
    async with server.listening(authority.server(name, valid_days=valid_days)) as port:
        with pytest.raises(UpstreamUnreachable) as caught:
            await ask(transport, f"https://localhost:{port}/")
    assert (caught.value.message, server.heads) == (NOT_VERIFIED, [])
    await transport.close()


async def test_an_authority_nobody_knows_is_refused(authority: Authority, transport: HTTP1Transport) -> None:
    """Only those of the system's store, or of the file that was named, are trusted."""
    server = Server()
    async with server.listening(authority.server("localhost")) as port:
        with pytest.raises(UpstreamUnreachable) as caught:
            await ask(transport, f"https://localhost:{port}/")
    assert (caught.value.message, server.heads) == (NOT_VERIFIED, [])


async def test_a_server_that_speaks_no_tls_is_unreachable(transport: HTTP1Transport) -> None:
    """What does not shake hands gets no request."""
    received: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(1000))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UpstreamUnreachable):
            await ask(transport, f"https://127.0.0.1:{port}/")
    assert [b"POST" in data for data in received] == [False]


# Proxies of the environment


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only a proxy leads out, requests take it, except to where `NO_PROXY` says and to this machine."""
    proxy = Server()
    async with proxy.listening() as port, ScriptedUpstream([reply("hi")]) as upstream:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "inside.test")
        transport = ProviderTransport()
        assert await ask(transport, "http://provider.test/v1") == b"hi"
        assert b"chat.completion" in await ask(transport, f"{upstream.base_url}/chat/completions")
        with pytest.raises(UpstreamUnreachable, match="could not be resolved"):
            await ask(transport, "http://inside.test/v1")
        await transport.close()
    assert [head.split(b"\r\n")[0] for head in proxy.heads] == [b"POST http://provider.test/v1 HTTP/1.1"]
