"""Images by address: fetched for vendors that need bytes, and never from where only the gateway can reach."""

from __future__ import annotations

import base64
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.attempt import Attempts
from llmproxy.config import Timeouts
from llmproxy.dialects.media import image_addresses, with_images
from llmproxy.errors import BadRequest, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers.bedrock import Bedrock
from llmproxy.providers.bedrock.config import BedrockConfig
from llmproxy.public_addresses import is_public
from llmproxy.remote_images import MAX_IMAGES, RemoteImages
from llmproxy.services import SystemClock
from llmproxy.testing import (
    Reply,
    ScriptedUpstream,
    StartProxy,
    cut_after,
    document,
    events,
    fail,
    hang,
    make_exchange,
    with_headers,
)
from llmproxy.upstream import HTTPTransport
from tests.gemini import chat, gemini
from tests.providers import services

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
PNG_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
PATH = "messages[0].content[0].image_url"
# Written so that no tool takes it for a server's.
UNSPECIFIED = ".".join("0000")
# However a private network can be spelt.
PRIVATE = (
    *("127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "168.63.129.16", "192.0.0.192"),
    *(
        "::1",
        "::",
        UNSPECIFIED,
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "fec0::1",
        "2001:db8::1",
    ),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:7f00:1", "::127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b:1::1"),
    *("2002:7f00:1::", "2001:0:7f00:1::", "2130706433", "0177.0.0.1", "0x7f.1", "127.1", "localhost", "", "8.8.8.8 "),
)
PUBLIC = ("8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8")


def may_reach_the_test(address: str) -> bool:
    """The rule, and beside it the one address where tests serve."""
    return address == "127.0.0.1" or is_public(address)


@pytest.fixture
async def transport() -> AsyncIterator[HTTPTransport]:
    """An engine for addresses that strangers choose."""
    made = HTTPTransport(may_reach_the_test)
    yield made
    await made.close()


def image(data: bytes = PNG, content_type: str = "text/plain") -> Reply:
    """A server's image, whatever it calls it."""
    return events(data, content_type=content_type)


def redirect(location: str, status: int = 302) -> Reply:
    """A server that leads on."""
    return with_headers(document({}, status=status), ("Location", location))


async def fetched(transport: HTTPTransport, address: str, **limits: Any) -> str:
    """The image at an address."""
    images = await RemoteImages(transport, **limits).fetch({address: PATH}, None)
    return images[address]


# Which addresses are public


@pytest.mark.parametrize("address", PRIVATE)
def test_no_spelling_of_a_private_address_is_public(address: str) -> None:
    """Private, loopback, link-local, multicast, reserved, mapped, tunnelled; and what is not spelt as usual."""
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are(address: str) -> None:
    """The internet can be reached, through a translator too."""
    assert is_public(address)


@given(st.ip_addresses(v=4, network="0.0.0.0/0"))
def test_an_address_inside_another_is_judged_as_itself(address: Any) -> None:
    """An IPv4 address that an IPv6 one stands for is as public as it is."""
    assert is_public(f"::ffff:{address}") == is_public(str(address)) == is_public(f"64:ff9b::{address}")


@given(st.ip_addresses(v=6))
def test_only_global_unicast_is_public(address: Any) -> None:
    """Of the whole space, nothing else but what stands for an IPv4 address."""
    if is_public(str(address)):
        networks = ("2000::/3", "::ffff:0:0/96", "64:ff9b::/96")
        assert any(ip_address(str(address)) in ip_network(network) for network in networks)


# What the engine connects to


@contextmanager
def listening(family: socket.AddressFamily, address: str) -> Iterator[tuple[int, socket.socket]]:
    """A port on which somebody would notice a visit."""
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        listener.settimeout(0)
        yield listener.getsockname()[1], listener


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost.", "LOCALHOST", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1"),
        *("127.1", "0", UNSPECIFIED, "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "%6c%6fcalhost", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ"),
        *("user@127.0.0.1", "example.com@127.0.0.1", "127\u30020\u30020\u30021", "\uff11\uff12\uff17.0.0.1"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_nothing_private_is_ever_connected_to(host: str, scheme: str) -> None:
    """However the address is spelt or resolved, the server behind it sees no connection."""
    guarded = HTTPTransport(is_public)
    with listening(socket.AF_INET, "127.0.0.1") as (port, listener):
        with pytest.raises(BadRequest) as caught:
            await fetched(guarded, f"{scheme}://{host}:{port}/cat.png")
        assert caught.value.param == PATH
        with pytest.raises(BlockingIOError):
            listener.accept()
    await guarded.close()


async def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    """The rule is asked at the moment of connecting, so that a name cannot point elsewhere between the two."""
    asked: list[str] = []

    def only_once(address: str) -> bool:
        asked.append(address)
        return len(asked) == 1

    guarded = HTTPTransport(only_once)
    async with ScriptedUpstream(default=with_headers(image(), ("Connection", "close"))) as upstream:
        address = f"http://127.0.0.1:{upstream.port}/"
        assert await fetched(guarded, address) == PNG_URL
        with pytest.raises(BadRequest, match="no server at a public address"):
            await fetched(guarded, address)
        assert upstream.connections_opened == 1
    assert asked == ["127.0.0.1", "127.0.0.1"]
    await guarded.close()


async def test_the_gateways_own_engine_reaches_everything() -> None:
    """Providers may stand in a private network: only addresses that clients choose are held to the rule."""
    engine = HTTPTransport()
    async with ScriptedUpstream([image()]) as upstream:
        assert await fetched(engine, upstream.origin) == PNG_URL
    await engine.close()


# Fetching


async def test_an_image_is_what_its_bytes_show(transport: HTTPTransport) -> None:
    """The type that a server declares says nothing; no credentials or cookies go out."""
    async with ScriptedUpstream([image(content_type="application/pdf")]) as upstream:
        assert await fetched(transport, f"{upstream.origin}/a%2Fb.png?x=1#part") == PNG_URL
        [asked] = upstream.requests
        assert (asked.method, asked.target) == ("GET", "/a%2Fb.png?x=1")
        assert sorted(name.lower() for name, _ in asked.headers.items()) == [
            *("accept", "accept-encoding", "host", "user-agent")
        ]


async def test_redirects_are_followed_a_few_times(transport: HTTPTransport) -> None:
    """Relative or not; a circle comes to an end."""
    async with ScriptedUpstream([redirect("/b"), redirect("//127.0.0.1:1/../c", 301)]) as upstream:
        upstream.replies[1] = redirect(f"http://127.0.0.1:{upstream.port}/c", 307)
        upstream.default = image()
        assert await fetched(transport, f"{upstream.origin}/a") == PNG_URL
        assert [asked.path for asked in upstream.requests] == ["/a", "/b", "/c"]
        upstream.default = redirect("/again")
        with pytest.raises(BadRequest, match="more than 3 times"):
            await fetched(transport, f"{upstream.origin}/a")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.2:{port}/", "no server at a public address"),
        ("http://169.254.169.254/latest/meta-data", "no server at a public address"),
        ("http://[::1]:{port}/", "no server at a public address"),
        ("http://localhost.:{port}/x", None),
        ("file:///etc/passwd", "only http and https"),
        ("gopher://127.0.0.1:{port}/", "only http and https"),
        ("http://[", "leads on to no URL"),
    ],
)
async def test_each_step_of_a_redirect_is_checked(transport: HTTPTransport, location: str, reason: str | None) -> None:
    """A public server cannot send the gateway into its own network."""
    with listening(socket.AF_INET, "127.0.0.2") as (port, listener):
        async with ScriptedUpstream([redirect(location.format(port=port))]) as upstream:
            with pytest.raises(BadRequest, match=reason or "could not be fetched"):
                await fetched(transport, upstream.origin)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (fail(404), "status 404"),
        (redirect("/x", 300), "status 300"),
        (with_headers(document({}, status=302)), "leads on to nowhere"),
        (image(b"<svg onload=alert(1)>", "image/png"), "no image of a known format"),
        (image(b"%PDF-1.7"), "no image of a known format"),
        (image(b""), "no image of a known format"),
        (image(PNG * 100), "too large together"),
        (cut_after(0, image()), "broke off"),
        (cut_after(1, image()), "broke off"),
    ],
)
async def test_what_cannot_be_had_is_said(transport: HTTPTransport, script: Reply, reason: str) -> None:
    """The error names the part and the reason, as a mistake of the request."""
    async with ScriptedUpstream([script]) as upstream:
        with pytest.raises(BadRequest, match=reason) as caught:
            await fetched(transport, upstream.origin, max_total_bytes=1000)
    assert (caught.value.param, caught.value.error_code) == (PATH, "invalid_image_url")


async def test_images_of_a_request_are_limited_together(transport: HTTPTransport) -> None:
    """A small request must not make the gateway fetch without end; the others are given up at once."""
    async with ScriptedUpstream(default=image(PNG + bytes(600))) as upstream:
        images = RemoteImages(transport, max_total_bytes=1000)
        with pytest.raises(BadRequest, match="too large together"):
            await images.fetch({f"{upstream.origin}/{number}": PATH for number in range(2)}, None)
        with pytest.raises(BadRequest, match=f"{MAX_IMAGES} images by address at most"):
            await images.fetch({f"{upstream.origin}/{number}": PATH for number in range(MAX_IMAGES + 1)}, None)


async def test_a_server_that_dawdles_is_not_waited_for(transport: HTTPTransport) -> None:
    """The time left to the attempt is the most there is."""
    async with ScriptedUpstream([hang()]) as upstream:
        with pytest.raises(BadRequest, match="took too long"):
            await RemoteImages(transport).fetch({upstream.origin: PATH}, 0.1)


# In requests


def user(*urls: object) -> dict[str, Any]:
    """A user message with images."""
    return {"role": "user", "content": [{"type": "image_url", "image_url": url} for url in urls]}


def test_addresses_are_found_and_replaced_in_every_form() -> None:
    """As an object or as text, each address once; all other content stays what it was."""
    one, two = {"url": "https://a/1", "detail": "high"}, "HTTP://a/2"
    other: list[Any] = [{"role": "system", "content": "https://a/3"}, {"role": "user", "content": None}, "odd"]
    asked = {"messages": [*other, user(one, two, {"url": PNG_URL}, {"url": "gs://b/c"}), user(one, 3)]}
    before = orjson.dumps(asked)
    assert image_addresses(asked) == {
        "https://a/1": "messages[3].content[0].image_url",
        "HTTP://a/2": "messages[3].content[1].image_url",
    }
    replaced = with_images(asked, {"https://a/1": "data:1", "HTTP://a/2": "data:2"})
    assert replaced == [
        *other,
        user({"url": "data:1", "detail": "high"}, {"url": "data:2"}, {"url": PNG_URL}, {"url": "gs://b/c"}),
        user({"url": "data:1", "detail": "high"}, 3),
    ]
    assert orjson.dumps(asked) == before


@pytest.mark.parametrize("messages", [None, 3, [], [None], [{"content": [None, {"type": "image_url"}]}]])
def test_odd_messages_hold_no_addresses(messages: object) -> None:
    """What is wrong with them is for the translation to say."""
    assert image_addresses({"messages": messages}) == {}


def test_each_vendor_says_what_it_must_be_given() -> None:
    """The Gemini API reads Google's own addresses; nothing is fetched where the section says so."""
    google = "https://generativelanguage.googleapis.com/v1beta/files/abc"
    asked = chat({"model": "gemini-2.5-flash", "messages": [user({"url": google}, {"url": "https://a/1"})]})
    assert list(gemini().remote_images(asked)) == ["https://a/1"]
    assert gemini(fetch_images=False).remote_images(asked) == {}


BEDROCK = {"output": {"message": {"role": "assistant", "content": [{"text": "A cat."}]}}, "stopReason": "end_turn"}


async def asked_of(
    vendor: Callable[[str], Any], upstream: ScriptedUpstream, images: RemoteImages, attempts_made: int = 1
) -> Mapping[str, Any]:
    """What a vendor is sent for a request with an image by address."""
    engine = HTTPTransport()
    provider = vendor(upstream.origin)
    attempts = Attempts({("v", None): provider}, engine, Timeouts(), SystemClock(), images=images)
    exchange = make_exchange(model="v/m", messages=[user({"url": f"{upstream.origin}/cat"})])
    try:
        for _ in range(attempts_made):
            attempt = attempts.begin(exchange, exchange.request, Target("v", "anthropic.claude-sonnet-4-5"))
            exchange.attempts.append(attempt)
            try:
                await attempts.answer(exchange, attempt)
            except UpstreamError as error:
                attempt.error = error
    finally:
        await engine.close()
    assert [decision.what for decision in exchange.decisions] == ["fetched 1 images"]
    return upstream.requests[-1].document


def bedrock(origin: str) -> Bedrock:
    """Bedrock at a test's address."""
    section = {"region": "us-east-1", "api_key": "key-1", "base_url": origin}
    return Bedrock("v", BedrockConfig.model_validate(section), services())


async def test_the_vendor_is_sent_the_bytes(transport: HTTPTransport) -> None:
    """Bedrock gets the image itself, of the type it is."""
    async with ScriptedUpstream([image(), document(BEDROCK)]) as upstream:
        sent = await asked_of(bedrock, upstream, RemoteImages(transport))
    [block] = sent["messages"][0]["content"]
    assert block == {"image": {"format": "png", "source": {"bytes": base64.b64encode(PNG).decode()}}}


async def test_an_image_is_fetched_once_for_all_attempts(transport: HTTPTransport) -> None:
    """A second attempt uses what the first has fetched."""
    async with ScriptedUpstream([image(), fail(503), document(BEDROCK)]) as upstream:
        await asked_of(bedrock, upstream, RemoteImages(transport), attempts_made=2)
        assert [asked.path for asked in upstream.requests].count("/cat") == 1


@pytest.mark.parametrize("kind", ["gemini", "bedrock"])
async def test_a_gateway_does_not_reach_into_its_own_network(proxy: StartProxy, kind: str) -> None:
    """As it is started by default: a private address is refused before anything is sent to anyone."""
    section = {"kind": kind, **({"region": "us-east-1"} if kind == "bedrock" else {})}
    async with proxy(config={"providers": {"upstream": section}}) as client:
        address = f"{client.upstream.origin}/secret"
        response = await client.chat(messages=[user({"url": address})])
        assert response.status == 400
        assert response.document["error"]["code"] == "invalid_image_url"
        assert "127.0.0.1" not in response.document["error"]["message"]
        assert client.upstream.connections_opened == 0


async def test_an_operator_can_turn_fetching_off(proxy: StartProxy) -> None:
    """Then the vendor's translation says what it takes instead."""
    section = {"kind": "gemini", "fetch_images": False}
    async with proxy(config={"providers": {"upstream": section}}) as client:
        response = await client.chat(messages=[user({"url": "https://example.com/cat.png"})])
        assert response.status == 400
        assert "data URL" in response.document["error"]["message"]
