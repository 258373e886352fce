"""How commands find the gateway that runs, and what they say when there is none."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from llmproxy.cli.running_gateway import ConfiguredGateway
from llmproxy.config import ServerConfig, TLSConfig
from llmproxy.errors import LLMProxyError
from llmproxy.testing import StartProxy
from tests.certificates import Authority

PATH = "/admin/v1/workspaces"
PAIRS = Path(__file__).parent / "data" / "tls"


def gateway(server: ServerConfig, state: Path = Path("nowhere"), **environ: str) -> ConfiguredGateway:
    """What a command is given."""
    return ConfiguredGateway(server, state, environ)


async def refusal(asked: ConfiguredGateway, url: str | None = None, path: str = PATH) -> str:
    """What a command that gets no answer ends with."""
    with pytest.raises(LLMProxyError) as refused:
        await asyncio.to_thread(asked.ask, "GET", path, url=url)
    return refused.value.message


@contextmanager
def free_port() -> Iterator[int]:
    """A port at which nobody listens, and nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@asynccontextmanager
async def answering(data: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that says the same to everybody."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]


def whole(body: bytes) -> bytes:
    """A response with this body."""
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


# Where it is


@pytest.mark.parametrize("host", ["127.0.0.1", "", "0.0.0.0"])  # noqa: S104 - nothing listens
async def test_the_gateway_is_where_the_configuration_says(proxy: StartProxy, host: str) -> None:
    """Host and port are those it listens on; one that listens everywhere is asked on this machine."""
    async with proxy() as client:
        port = int(client.origin.rpartition(":")[2])
        asked = gateway(ServerConfig(host=host, port=port), LLMPROXY_ADMIN_KEY=client.admin_key)
        answer = await asyncio.to_thread(asked.ask, "GET", PATH)
    assert [each["id"] for each in answer["data"]] == ["default"]


async def test_a_url_wins_over_the_configuration(proxy: StartProxy) -> None:
    """Whoever names a gateway means that one, with or without a slash at the end."""
    with free_port() as port:
        async with proxy() as client:
            asked = gateway(ServerConfig(port=port), LLMPROXY_ADMIN_KEY=client.admin_key)
            answer = await asyncio.to_thread(asked.ask, "GET", PATH, url=f"{client.origin}/")
    assert answer["data"]


async def test_nobody_there_is_told_with_the_way_out() -> None:
    """The sentence names the address that was tried, and both ways to have an answer."""
    with free_port() as port:
        told = await refusal(gateway(ServerConfig(port=port)))
    where = f"http://127.0.0.1:{port}"
    assert told == f"No gateway answers at {where}; start it with 'llmproxy serve' or name it with --url."


async def test_a_port_that_is_left_open_has_to_be_named() -> None:
    """Where any free port is taken, the configuration does not say which."""
    assert "name it with --url" in await refusal(gateway(ServerConfig(port=0)))


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://h", "http://", "http://h:none", "http://[::1"])
async def test_what_is_no_address_is_refused(url: str) -> None:
    """A mistake in --url is told as one."""
    assert "--url takes one like http://127.0.0.1:8080" in await refusal(gateway(ServerConfig()), url)


@pytest.mark.parametrize("data", [b"220 mail ready\r\n", whole(b"<html>"), whole(b"[]"), b""])
async def test_what_is_no_gateway_is_told_from_one(data: bytes) -> None:
    """Another server on the port answers, and not as a gateway does."""
    async with answering(data) as port:
        assert "is no gateway; name the gateway with --url" in await refusal(gateway(ServerConfig(port=port)))


async def test_no_proxy_stands_between(proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The admin key does not travel through whatever proxy the environment names for other traffic."""
    with free_port() as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        async with proxy() as client:
            assert (await asyncio.to_thread(client.gateway.ask, "GET", PATH))["data"]


# Its key


async def test_the_key_is_the_environments_or_the_kept_one(proxy: StartProxy, tmp_path: Path) -> None:
    """The variable wins over the file that the gateway has made."""
    async with proxy() as client:
        server = ServerConfig(port=int(client.origin.rpartition(":")[2]))
        none = await refusal(gateway(server, tmp_path))
        (tmp_path / "admin-key").write_text(f"{client.admin_key}\n")
        kept = await asyncio.to_thread(gateway(server, tmp_path).ask, "GET", PATH)
        other = await refusal(gateway(server, tmp_path, LLMPROXY_ADMIN_KEY="sk-another"))
    assert kept["data"]
    assert none.startswith("No admin key is at hand for http://127.0.0.1")
    assert other.startswith("The gateway at http://127.0.0.1")
    assert "LLMPROXY_ADMIN_KEY" in none
    assert "LLMPROXY_ADMIN_KEY" in other


async def test_a_refusal_is_in_the_gateways_own_words(proxy: StartProxy) -> None:
    """What it says of a request goes to whoever gave the command."""
    async with proxy() as client:
        assert await refusal(client.gateway, path="/admin/v1/nonesuch") == (
            "There is nothing at /admin/v1/nonesuch; the API is under /v1."
        )


# Over TLS


def served_with(tmp_path: Path, port: int, pair: str) -> ServerConfig:
    """A configuration with the certificate of this name in a file, behind its key."""
    file = tmp_path / "gateway.pem"
    file.write_bytes((PAIRS / f"{pair}.key").read_bytes() + (PAIRS / f"{pair}.crt").read_bytes())
    return ServerConfig(port=port, tls=TLSConfig(certificate_file=str(file), key_file=str(file)))


def context(pair: str) -> ssl.SSLContext:
    """What a server with this certificate serves with."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(PAIRS / f"{pair}.crt", PAIRS / f"{pair}.key")
    return made


async def test_its_own_certificate_is_enough(tmp_path: Path) -> None:
    """It need be neither made for this address nor signed by anybody; another one in its place is not trusted."""
    async with answering(whole(b'{"ok": true}'), context("first")) as port:
        asked = gateway(served_with(tmp_path, port, "first"))
        assert await asyncio.to_thread(asked.ask, "GET", PATH) == {"ok": True}
        told = await refusal(gateway(served_with(tmp_path, port, "second")))
    assert told.startswith(f"The certificate at https://127.0.0.1:{port} is not to be trusted: ")


async def test_a_signed_certificate_is_trusted_by_itself(tmp_path: Path) -> None:
    """The authority that signed it need not be at hand."""
    async with answering(whole(b'{"ok": true}'), Authority(tmp_path).server("gateway.example")) as port:
        file = str(tmp_path / "server.pem")
        asked = gateway(ServerConfig(port=port, tls=TLSConfig(certificate_file=file, key_file=file)))
        assert await asyncio.to_thread(asked.ask, "GET", PATH) == {"ok": True}


async def test_elsewhere_a_certificate_has_to_be_right(tmp_path: Path) -> None:
    """Under a name of --url, the usual rules hold."""
    async with answering(whole(b"{}"), context("first")) as port:
        told = await refusal(gateway(served_with(tmp_path, port, "first")), f"https://localhost:{port}")
    assert "is not to be trusted" in told


async def test_a_certificate_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """The command may run as another user than the gateway."""
    server = served_with(tmp_path, 1, "first")
    (tmp_path / "gateway.pem").write_text("")
    assert "there is no certificate to be read in" in await refusal(gateway(server))
