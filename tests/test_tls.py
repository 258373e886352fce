"""HTTPS towards clients: served from files, which may be renewed, or spoilt, while it runs."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from llmproxy.config import TLSConfig
from llmproxy.errors import ConfigError
from llmproxy.services import Log
from llmproxy.testing import StartProxy, reply
from llmproxy.tls import ServerTLS
from tests.wire import CHAT, head, request, responses

PAIRS = Path(__file__).parent / "data" / "tls"
TRUSTING = ssl.create_default_context()
for name in ("first", "second"):
    TRUSTING.load_verify_locations(PAIRS / f"{name}.crt")


class Files:
    """A certificate and a key in a directory of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.certificate = directory / "gateway.crt"
        self.key = directory / "gateway.key"
        self.use("first")

    @property
    def config(self) -> TLSConfig:
        """Where they are."""
        return TLSConfig(certificate_file=str(self.certificate), key_file=str(self.key))

    def use(self, certificate: str, key: str | None = None) -> None:
        """Put the pair of this name there, or a key that belongs to another."""
        shutil.copy(PAIRS / f"{certificate}.crt", self.certificate)
        shutil.copy(PAIRS / f"{key or certificate}.key", self.key)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """The pair `first`."""
    return Files(tmp_path)


@pytest.fixture
def log() -> Log:
    """A log."""
    made: Log = structlog.get_logger()
    return made


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, str]]:
    """A verified connection, and the name on the certificate that was shown."""
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("localhost", port, ssl=TRUSTING)
    try:
        certificate = writer.get_extra_info("peercert")
        yield reader, writer, dict(pair for (pair,) in certificate["subject"])["commonName"]
    finally:
        writer.transport.abort()


async def shown(port: int) -> str:
    """The name on the certificate that a new connection is shown."""
    async with connected(port) as (_, _, name):
        return name


async def serve(tls: ServerTLS) -> asyncio.Server:
    """A server of nothing with these files."""
    return await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=tls.context)


async def test_requests_are_served_over_tls(proxy: StartProxy, files: Files) -> None:
    """With `server.tls` the port speaks HTTPS and nothing else, and takes renewed files over by itself."""
    config = {"server": {"tls": files.config.model_dump()}}
    async with proxy(config=config) as client:
        client.upstream.default = reply("hi")
        port = int(client.origin.rpartition(":")[2])
        async with connected(port) as (reader, writer, name):
            writer.write(request())
            assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
            files.use("second")
            async with asyncio.timeout(10):
                while await shown(port) != "second.test":  # noqa: ASYNC110 the gateway looks once a second
                    await asyncio.sleep(0.05)
            writer.write(head(b"Content-Length: %d" % len(CHAT), b"Connection: close") + CHAT)
            assert b"HTTP/1.1 200 OK\r\n" in await reader.read()
        plain_reader, plain_writer = await asyncio.open_connection("127.0.0.1", port)
        plain_writer.write(request())
        assert await responses(await plain_reader.read()) == []
        plain_writer.close()
    assert name == "first.test"


async def test_renewed_files_are_for_new_connections(files: Files, log: Log) -> None:
    """After a refresh new connections see the new certificate; without a change nothing is read."""
    tls = ServerTLS(files.config, log)
    async with await serve(tls) as server:
        port = server.sockets[0].getsockname()[1]
        seen = [await shown(port)]
        tls.refresh()
        seen.append(await shown(port))
        files.use("second")
        seen.append(await shown(port))
        tls.refresh()
        seen.append(await shown(port))
    assert seen == ["first.test", "first.test", "first.test", "second.test"]


@pytest.mark.parametrize("damage", ["garbage", "empty", "missing", "other key", "no key"])
async def test_broken_files_keep_the_old_certificate(
    files: Files, log: Log, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pair that cannot be used is reported once and not served; a good one that follows is."""
    tls = ServerTLS(files.config, log)
    match damage:
        case "garbage":
            files.certificate.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
        case "empty":
            files.key.write_text("")
        case "missing":
            files.certificate.unlink()
        case "other key":
            files.use("second", key="first")
        case _:
            files.key.unlink()
    async with await serve(tls) as server:
        port = server.sockets[0].getsockname()[1]
        tls.refresh()
        tls.refresh()
        during = await shown(port)
        files.use("second")
        tls.refresh()
        after = await shown(port)
    assert (during, after) == ("first.test", "second.test")
    assert capsys.readouterr().out.count("certificate_not_renewed") == 1


@pytest.mark.parametrize("damage", ["missing", "other key"])
def test_a_start_without_usable_files_is_refused(files: Files, log: Log, damage: str) -> None:
    """At start there is no old pair to keep: the error names the section and both files."""
    if damage == "missing":
        files.key.unlink()
    else:
        files.use("second", key="first")
    with pytest.raises(ConfigError, match=r"server\.tls: .*gateway\.crt.*gateway\.key"):
        ServerTLS(files.config, log)


def test_old_versions_of_tls_are_not_spoken(files: Files, log: Log) -> None:
    """Nothing below TLS 1.2 is offered."""
    assert ServerTLS(files.config, log).context.minimum_version == ssl.TLSVersion.TLSv1_2
