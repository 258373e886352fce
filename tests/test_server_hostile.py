"""Requests that no honest client sends: each refused or understood in one way only, and never at another's expense."""

from __future__ import annotations

import gzip
import re
import zlib
from typing import ClassVar

import orjson

from llmproxy.api import Document, Exchange, Section, Services, hookimpl
from llmproxy.testing import ProxyClient, StartProxy, hang, reply, wait_until
from tests.wire import CHAT, Response, answer, ask, conversation, dial, head, request, responses

LENGTH = b"Content-Length: %d" % len(CHAT)
CHUNKED = b"Transfer-Encoding: chunked"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(CHAT), CHAT)
EMBEDDINGS = b"POST /v1/embeddings HTTP/1.1"
SMUGGLED = request(b'{"model":"test","input":"smuggled"}', line=EMBEDDINGS)

# Framing that two parsers might read in two ways; a second request follows each.
AMBIGUOUS = {
    "two lengths": head(LENGTH, b"Content-Length: 5") + CHAT,
    "one length twice": head(LENGTH, LENGTH) + CHAT,
    "a list of lengths": head(b"Content-Length: %d, %d" % (len(CHAT), len(CHAT))) + CHAT,
    "length, then chunked": head(LENGTH, CHUNKED) + IN_CHUNKS,
    "chunked, then length": head(CHUNKED, b"Content-Length: 4") + IN_CHUNKS,
    "negative length": head(b"Content-Length: -1") + CHAT,
    "signed length": head(b"Content-Length: +60") + CHAT,
    "hexadecimal length": head(b"Content-Length: 0x3c") + CHAT,
    "length beyond 64 bits": head(b"Content-Length: 99999999999999999999999") + CHAT,
    "space before the colon": head(b"Content-Length : 60") + CHAT,
    "space before the colon, chunked": head(b"Transfer-Encoding : chunked", LENGTH) + IN_CHUNKS,
    "chunk size that is no number": head(CHUNKED) + b"zz\r\n" + CHAT + b"\r\n0\r\n\r\n",
    "negative chunk": head(CHUNKED) + b"-5\r\n" + CHAT + b"\r\n0\r\n\r\n",
    "prefixed chunk size": head(CHUNKED) + b"0x3c\r\n" + CHAT + b"\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": head(CHUNKED) + b"1000000000000003c\r\n" + CHAT + b"\r\n0\r\n\r\n",
    "chunk longer than it said": head(CHUNKED) + b"%x\r\n%bX\r\n0\r\n\r\n" % (len(CHAT), CHAT),
    "chunk size, space": head(CHUNKED) + b"%x \r\n%b\r\n0\r\n\r\n" % (len(CHAT), CHAT),
    "chunk lines without CR": head(CHUNKED) + b"%x\n%b\n0\n\n" % (len(CHAT), CHAT),
    "chunk extension ended by LF": head(CHUNKED) + b"%x;a\n%b\r\n0\r\n\r\n" % (len(CHAT), CHAT),
    "length in the trailers": head(CHUNKED) + b"%x\r\n%b\r\n0\r\nContent-Length: 3\r\n\r\n" % (len(CHAT), CHAT),
    "identity, chunked": head(b"Transfer-Encoding: identity, chunked") + IN_CHUNKS,
    "gzip, chunked": head(b"Transfer-Encoding: gzip, chunked") + IN_CHUNKS,
    "chunked, identity": head(b"Transfer-Encoding: chunked, identity") + IN_CHUNKS,
    "identity and a length": head(b"Transfer-Encoding: identity", LENGTH) + CHAT,
    "not quite chunked": head(b"Transfer-Encoding: xchunked") + IN_CHUNKS,
    "chunked twice": head(CHUNKED, CHUNKED) + IN_CHUNKS,
    "chunked behind a vertical tab": head(b"Transfer-Encoding: \x0bchunked") + IN_CHUNKS,
    "folded line": head(b"X-A: b\r\n c", LENGTH) + CHAT,
    "folded transfer encoding": head(b"Transfer-Encoding:\r\n chunked") + IN_CHUNKS,
    "lines without CR": request().replace(b"\r\n", b"\n"),
    "one line without CR": head(b"X-A: b\nX-B: c", LENGTH) + CHAT,
    "CR without LF": head(b"X-A: b\rX-B: c", LENGTH) + CHAT,
    "NUL in a value": head(b"X-A: b\0c", LENGTH) + CHAT,
    "NUL in a name": head(b"X\0A: b", LENGTH) + CHAT,
    "no colon": head(b"X-A", LENGTH) + CHAT,
    "no name": head(b": x", LENGTH) + CHAT,
    "two hosts": head(b"Host: other", LENGTH) + CHAT,
    "no host": request().replace(b"Host: gateway\r\n", b""),
    "chunked in HTTP/1.0": head(CHUNKED, line=b"POST /v1/chat/completions HTTP/1.0") + IN_CHUNKS,
    "HTTP/1.2": request(line=b"POST /v1/chat/completions HTTP/1.2"),
    "HTTP/3.0": request(line=b"POST /v1/chat/completions HTTP/3.0"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS on a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "space before the method": request(line=b" POST /v1/chat/completions HTTP/1.1"),
    "space in the target": request(line=b"POST /v1/chat/comple tions HTTP/1.1"),
    "target without a slash": request(line=b"POST v1/chat/completions HTTP/1.1"),
    "unknown method": request(line=b"FOO /v1/chat/completions HTTP/1.1"),
    "lower-case method": request(line=b"post /v1/chat/completions HTTP/1.1"),
}


async def test_ambiguous_requests_are_refused_and_end_the_connection(proxy: StartProxy) -> None:
    """A request that others could frame differently gets one 400 in JSON; nothing after it is taken for a request."""
    async with proxy() as client:
        client.upstream.default = reply("hi")
        seen = {name: await conversation(client, shape + SMUGGLED) for name, shape in AMBIGUOUS.items()}
        reached = [sent.body for sent in client.upstream.requests]
    assert {name: [each.status for each in got] for name, got in seen.items()} == {name: [400] for name in AMBIGUOUS}
    assert {got[0].headers["content-type"] for got in seen.values()} == {"application/json"}
    assert {got[0].error["type"] for got in seen.values()} == {"invalid_request_error"}
    assert reached == []


async def test_unusual_requests_are_understood_in_one_way(proxy: StartProxy) -> None:
    """What HTTP/1.1 allows, however odd, is served, and the request after it begins where it should."""
    shapes = {
        "chunk extension": head(CHUNKED) + b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(CHAT), CHAT),
        "trailer": head(CHUNKED) + b"%x\r\n%b\r\n0\r\nX-Checksum: 1\r\n\r\n" % (len(CHAT), CHAT),
        "leading zeros": head(CHUNKED) + b"000%x\r\n%b\r\n000\r\n\r\n" % (len(CHAT), CHAT),
        "capitals": head(b"TRANSFER-ENCODING: CHUNKED") + IN_CHUNKS,
        "one byte per chunk": head(CHUNKED) + b"".join(b"1\r\n%c\r\n" % byte for byte in CHAT) + b"0\r\n\r\n",
        "absolute form": request(line=b"POST http://other/v1/chat/completions HTTP/1.1"),
        "empty lines first": b"\r\n\r\n" + request(),
        "spaces around the length": head(b"Content-Length: \t %d \t" % len(CHAT)) + CHAT,
    }
    second = request(b'{"model":"test","input":"second"}', line=EMBEDDINGS)
    async with proxy() as client:
        client.upstream.default = reply("hi")
        for shape in shapes.values():
            async with dial(client) as connection:
                await connection.send(shape + second)
                assert [(await answer(connection)).status for _ in range(2)] == [200, 200]
        bodies = [sent.document.get("input", "first") for sent in client.upstream.requests]
    assert bodies == ["first", "second"] * len(shapes)


async def test_framing_that_breaks_in_the_middle_is_answered_at_once(proxy: StartProxy) -> None:
    """A body whose second part is no chunk is a 400 as soon as that is seen, not when the wait for it runs out."""
    async with proxy() as client, dial(client) as connection:
        await connection.send(head(CHUNKED) + b'5\r\n{"mod\r\n')
        await wait_until(lambda: client.app.server.live_requests == 1)
        await connection.send(b"ZZ\r\n" + SMUGGLED)
        (refused,) = await responses(await connection.read_until_close())
        assert client.upstream.requests == []
    assert (refused.status, refused.headers["connection"]) == (400, "close")


async def test_too_large_heads_are_431(proxy: StartProxy) -> None:
    """A target, a field, or all fields together beyond `max_header_bytes` are refused, in JSON."""
    large = {
        "target": request(line=b"POST /" + b"a" * 5000 + b" HTTP/1.1"),
        "field": head(b"X: " + b"a" * 5000, LENGTH) + CHAT,
        "name": head(b"a" * 5000 + b": x", LENGTH) + CHAT,
        "sum": head(*[b"X-%d: %b" % (number, b"a" * 200) for number in range(40)], LENGTH) + CHAT,
    }
    async with proxy(config={"server": {"max_header_bytes": 4096}}) as client:
        seen = {name: await conversation(client, data) for name, data in large.items()}
        many = head(*[b"X-%d: a" % number for number in range(200)], LENGTH) + CHAT
        assert (await conversation(client, many))[0].status == 400
        assert client.upstream.requests == []
    assert {name: [each.status for each in got] for name, got in seen.items()} == {name: [431] for name in large}
    assert {got[0].error["message"] for got in seen.values()} == {"The request's head is too large."}


# Bodies

BODIES = {
    "nothing": (b"", "empty"),
    "blanks": (b" \r\n", "empty"),
    "no JSON": (b"hello", "not valid JSON"),
    "half of it": (CHAT[:-5], "not valid JSON"),
    "more than one": (CHAT + CHAT, "not valid JSON"),
    "a list": (b"[" + CHAT + b"]", "not a JSON object"),
    "a string": (b'"hello"', "not a JSON object"),
    "a number": (b"1e999", "not"),
    "not a number": (b'{"model":"test","temperature":NaN}', "not valid JSON"),
    "Latin-1": (b'{"model":"t\xe9st"}', "not UTF-8"),
    "UTF-16": ('{"model":"test"}'.encode("utf-16"), "not"),
    "half a character": (b'{"model":"\\ud800"}', "not valid JSON"),
    "NUL": (b'{"model":"test"}\0', "not valid JSON"),
    "nested lists": (b'{"model":"test","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
    "nested objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
    "unended nesting": (b"[" * 900_000, "nested too deep"),
    "no model": (b'{"messages":[]}', "names no model"),
    "empty model": (b'{"model":""}', "names no model"),
    "model that is a list": (b'{"model":["test"]}', "names no model"),
    "model that is null": (b'{"model":null}', "names no model"),
    "model with a header in it": (b'{"model":"upstream/x\\r\\nset-cookie: a=b"}', "must be printable"),
    "model with NUL": (b'{"model":"upstream/x\\u0000"}', "must be printable"),
    "endless model": (b'{"model":"upstream/' + b"x" * 100_000 + b'"}', "no longer than"),
    "endless fallback": (b'{"model":"test","fallbacks":["upstream/' + b"x" * 100_000 + b'"]}', "no longer than"),
    "fallback with a header": (b'{"model":"test","fallbacks":["upstream/x\\r\\n"]}', "must be printable"),
    "fallbacks that are none": (b'{"model":"test","fallbacks":"upstream/x"}', "must be a list"),
}


async def test_bodies_that_are_no_request_get_one_sentence(proxy: StartProxy) -> None:
    """Whatever is sent as JSON and is none, or names no model, is a 400 that says so in one sentence to the client."""
    async with proxy() as client, dial(client) as connection:
        for name, (body, words) in BODIES.items():
            await connection.send(request(body))
            refused = await answer(connection)
            assert (name, refused.status, refused.error["type"]) == (name, 400, "invalid_request_error")
            assert words in refused.error["message"], name
            assert re.fullmatch(r"[^\r\n]{10,600}[.?]", refused.error["message"]), name
            assert refused.error["llmproxy"]["request_id"] == refused.headers["x-llmproxy-request-id"]
        assert client.upstream.requests == []


async def test_only_json_is_read(proxy: StartProxy) -> None:
    """Another content type is a 415 before the body is read; JSON may have a charset, a suffix, or go unsaid."""
    kinds = {
        b"text/plain": 415,
        b"application/x-www-form-urlencoded": 415,
        b"multipart/form-data; boundary=x": 415,
        b"application/jsonp": 415,
        b"\xff": 415,
        b"application/json; charset=utf-8": 200,
        b"Application/JSON": 200,
        b"application/vnd.api+json": 200,
    }
    async with proxy() as client:
        client.upstream.default = reply("hi")
        seen = {}
        for kind in kinds:
            data = request().replace(b"Content-Type: application/json", b"Content-Type: " + kind)
            seen[kind] = (await ask(client, data)).status
        unsaid = await ask(client, request().replace(b"Content-Type: application/json\r\n", b""))
    assert seen == kinds
    assert unsaid.status == 200


async def test_compressed_bodies_are_read(proxy: StartProxy) -> None:
    """gzip and deflate are decoded; the provider gets the plain bytes."""
    packed = {b"gzip": gzip.compress(CHAT), b"GZIP": gzip.compress(CHAT), b"deflate": zlib.compress(CHAT)}
    async with proxy() as client:
        client.upstream.default = reply("hi")
        for coding, body in packed.items():
            assert (await ask(client, request(body, b"Content-Encoding: " + coding))).status == 200
        assert {sent.body for sent in client.upstream.requests} == {CHAT.replace(b'"test"', b'"test-model"')}
        assert not any(b"content-encoding" in sent.raw_head.lower() for sent in client.upstream.requests)


async def test_other_encodings_are_415(proxy: StartProxy) -> None:
    """What cannot be decoded is refused as such, whatever the parser thinks of it."""
    async with proxy() as client:
        for coding in (b"br", b"zstd", b"compress", b"gzip, gzip", b"gzip, br", b"x-gzip", b"\xff"):
            refused = await last(client, request(CHAT, b"Content-Encoding: " + coding))
            assert (coding, refused.status, refused.error["code"]) == (coding, 415, "unsupported_media_type")
        assert client.upstream.requests == []


async def test_broken_compression_is_400(proxy: StartProxy) -> None:
    """A body that is not what its encoding says is refused at once."""
    packed = gzip.compress(CHAT)
    async with proxy() as client:
        for body in (CHAT, packed[:-20], packed[:10] + b"\xff" * 40):
            refused = await last(client, request(body, b"Content-Encoding: gzip"))
            assert (body, refused.status) == (body, 400)


async def test_a_decompression_bomb_is_413(proxy: StartProxy) -> None:
    """A few kilobytes that would become gigabytes are given up at `max_body_bytes`."""
    bomb = gzip.compress(b'{"model":"' + b"\0" * 200_000_000, 1)
    async with proxy(config={"server": {"max_body_bytes": 1_000_000}}) as client:
        refused = await last(client, request(bomb, b"Content-Encoding: gzip"))
    assert (refused.status, refused.error["code"]) == (413, "request_too_large")


async def test_a_large_body_is_refused_before_it_comes(proxy: StartProxy) -> None:
    """A length over `max_body_bytes` is a 413 from the head alone, and the connection is closed."""
    async with proxy(config={"server": {"max_body_bytes": 10_000}}) as client, dial(client) as connection:
        await connection.send(head(b"Content-Length: 10001"))
        refused = await answer(connection)
    assert (refused.status, refused.headers["connection"]) == (413, "close")
    assert refused.error["message"] == "The request body is larger than 10000 bytes."


async def test_a_large_body_in_chunks_is_counted(proxy: StartProxy) -> None:
    """Without a length the limit holds all the same, and one byte below it everything is read."""
    body = CHAT + b" " * (10_000 - len(CHAT))
    async with proxy(config={"server": {"max_body_bytes": 10_000}}) as client:
        client.upstream.default = reply("hi")
        exact = await ask(client, head(CHUNKED) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        over = await ask(client, head(CHUNKED) + b"%x\r\n%b\r\n" % (len(body), body) + b"1\r\n \r\n")
    assert (exact.status, over.status, len(client.upstream.requests)) == (200, 413, 1)


async def test_a_client_that_asks_first_is_told_to_go_on(proxy: StartProxy) -> None:
    """`Expect: 100-continue` gets its 100 once key and head are accepted, and none when they are not."""
    expecting = (LENGTH, b"Expect: 100-continue")
    async with proxy(upstream=[reply("hi")], config={"server": {"max_body_bytes": 10_000}}) as client:
        async with dial(client) as connection:
            await connection.send(head(*expecting))
            assert await connection.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await connection.send(CHAT)
            assert (await answer(connection)).status == 200
        assert (await ask(client, head(*expecting, key="sk-wrong"))).status == 401
        assert (await ask(client, head(b"Content-Length: 99999", b"Expect: 100-continue"))).status == 413


# Those who are slow, or leave


async def test_a_slow_head_is_ended(proxy: StartProxy) -> None:
    """A head that has not ended within `head_seconds` gets a 408 and a closed connection, however it trickles in."""
    async with proxy(config={"server": {"head_seconds": 0.1}}) as client, dial(client) as connection:
        await connection.send(head()[:40])
        (refused,) = await responses(await connection.read_until_close())
    assert (refused.status, refused.error["code"]) == (408, "request_timeout")


async def test_a_slow_body_is_ended(proxy: StartProxy) -> None:
    """A body that has not come within `body_seconds` gets a 408, and the provider never hears of it."""
    async with proxy(config={"server": {"body_seconds": 0.1}}) as client, dial(client) as connection:
        await connection.send(request()[:-5])
        refused = await answer(connection)
        assert (await client.rows()).requests == []
        assert client.upstream.requests == []
    assert (refused.status, refused.headers["connection"]) == (408, "close")


async def test_a_request_that_takes_long_is_not_taken_for_a_slow_head(proxy: StartProxy) -> None:
    """While a request is served, `head_seconds` does not count, whether its body came with the head or after it."""
    slow = reply("late", delay_seconds=2.5)
    config = {"server": {"head_seconds": 0.1}}
    async with proxy(upstream=[slow, slow], config=config) as client, dial(client) as whole, dial(client) as halved:
        await whole.send(request())
        await halved.send(request()[:-20])
        await halved.send(request()[-20:])
        assert [(await answer(whole)).status, (await answer(halved)).status] == [200, 200]


async def test_an_idle_connection_is_closed(proxy: StartProxy) -> None:
    """A connection without a request is closed after `keep_alive_seconds`, before the first and after the last."""
    config = {"server": {"keep_alive_seconds": 0.1}}
    async with proxy(upstream=[reply("hi")], config=config) as client, dial(client) as silent, dial(client) as used:
        await used.send(request())
        assert (await answer(used)).status == 200
        assert await silent.read_until_close() == b""
        assert await used.read_until_close() == b""


async def test_a_client_that_resets_in_its_body_leaves_nothing(proxy: StartProxy) -> None:
    """A request that was never whole is not let in: no row, no attempt, no task."""
    async with proxy() as client:
        for leave in ("reset", "half_close"):
            async with dial(client) as connection:
                await connection.send(request()[:-5])
                await wait_until(lambda: client.app.server.live_requests == 1)
                getattr(connection, leave)()
                await wait_until(lambda: client.app.server.live_requests == 0)
        assert (await client.rows()).requests == []
        assert client.upstream.requests == []


async def test_ending_ones_side_is_hanging_up(proxy: StartProxy) -> None:
    """A client that shuts its sending side while it waits has hung up: the provider is stopped, the row says so."""
    async with proxy(upstream=[hang()]) as client, dial(client) as connection:
        await connection.send(request())
        await client.upstream.wait_for(lambda: len(client.upstream.requests) == 1)
        connection.half_close()
        await client.upstream.wait_for(lambda: len(client.upstream.cancelled) == 1)
        (row,) = (await client.rows()).requests
    assert (row["outcome"], row["http_status"], row["error_code"]) == ("disconnected", 499, "client_disconnected")


# Keys

PLACES = (b"Authorization: Bearer %b", b"x-api-key: %b", b"api-key: %b", b"x-goog-api-key: %b")


def stored_keys(client: ProxyClient) -> list[Document]:
    """The keys as the worker has read them."""
    return [orjson.loads(row) for row in client.app.keys._tables.rows.keys.values()]


async def test_keys_are_found_wherever_sdks_put_them(proxy: StartProxy) -> None:
    """A good key opens from each of the four header fields; a wrong, revoked or expired one from none."""
    async with proxy() as client:
        client.upstream.default = reply("hi")
        made = [await new_key(client) for _ in range(2)]
        revoked, expired = (document["key"].encode() for document in made)
        await client.request("DELETE", f"/admin/v1/keys/{made[0]['id']}", key=client.admin_key)
        past = {"expires_at": "2020-01-01T00:00:00Z"}
        await client.request("PATCH", f"/admin/v1/keys/{made[1]['id']}", past, key=client.admin_key)
        await wait_until(
            lambda: (
                {(True, False), (False, True)}
                <= {(row["revoked_at"] is not None, row["expires_at"] is not None) for row in stored_keys(client)}
            )
        )
        expected = {
            client.key.encode(): (200, None),
            b"sk-wrong": (401, "invalid_api_key"),
            b"": (401, "missing_api_key"),
            b"\xff\xfe": (401, "invalid_api_key"),
            client.key.encode() + b"x" * 5000: (401, "invalid_api_key"),
            revoked: (401, "revoked_api_key"),
            expired: (401, "expired_api_key"),
        }
        for place in PLACES:
            for key, outcome in expected.items():
                got = await ask(client, head(place % key, LENGTH, key=None) + CHAT)
                assert (place, key, got.status, got.error["code"] if got.status != 200 else None) == (
                    place,
                    key,
                    *outcome,
                )
        nowhere = await ask(client, request(key=None))
    assert (nowhere.status, nowhere.error["code"]) == (401, "missing_api_key")
    assert len(client.upstream.requests) == len(PLACES)


async def test_a_stranger_sends_no_body(proxy: StartProxy) -> None:
    """Without a good key a large body is refused from the head alone, without waiting for any of it."""
    async with proxy() as client, dial(client) as connection:
        await connection.send(head(b"Content-Length: 30000000", key="sk-wrong"))
        refused = await answer(connection)
        assert (await client.rows()).requests == []
    assert (refused.status, refused.headers["connection"]) == (401, "close")


async def test_no_key_is_ever_repeated(proxy: StartProxy) -> None:
    """A refusal does not quote the key that it refuses."""
    async with proxy() as client:
        refused = await ask(client, request(key="sk-this-is-a-typo"))
    assert b"typo" not in refused.body
    assert "typo" not in str(refused.headers)


# What cannot be written


class Deepening:
    """Makes of every request one that JSON can read and not write."""

    name: ClassVar[str] = "deepening"
    Config: ClassVar[type[Section]] = Section

    def __init__(self, config: Section, services: Services) -> None: ...

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        nested: list[object] = []
        for _ in range(300):
            nested = [nested]
        exchange.request.set("messages", nested)


async def test_a_request_too_deep_to_be_written_has_its_row(proxy: StartProxy) -> None:
    """A request that can neither be sent on nor kept is refused, recorded once, and holds nobody up."""
    async with proxy(Deepening, config={"audit": {"bodies": "all"}}) as client:
        refused = await client.chat()
        rows = await client.rows()
    assert (refused.status, "nested too deep" in refused.document["error"]["message"]) == (400, True)
    assert [row["outcome"] for row in rows.requests] == ["refused"]
    assert len(rows.ledger) == 1


# Values that travel on


async def test_attribution_cannot_break_out_of_its_header(proxy: StartProxy) -> None:
    """Control characters and bytes that are not UTF-8 in `x-llmproxy-*` are a 400; nothing of them is sent on."""
    fields = ("feature", "user", "session", "prompt-version", "tags", "metadata")
    values = {b"\x01": 400, b"a\x7fb": 400, b"\xff\xfe": 400, b"a\xc2\x85b": 400, b"a" * 9000: 400}
    async with proxy() as client:
        for field in fields:
            for value, status in values.items():
                refused = await last(client, head(b"x-llmproxy-%b: %b" % (field.encode(), value), LENGTH) + CHAT)
                assert (field, value[:20], refused.status) == (field, value[:20], status)
        for field, value in (
            ("timeout", b"nan"),
            ("timeout", b"-1"),
            ("fallback", b"upstream/\xff"),
            ("metadata", b"[]"),
        ):
            refused = await last(client, head(b"x-llmproxy-%b: %b" % (field.encode(), value), LENGTH) + CHAT)
            assert (field, refused.status) == (field, 400)
        assert client.upstream.requests == []


async def last(client: ProxyClient, data: bytes) -> Response:
    """The one response to a request after which the connection is closed."""
    (response,) = await conversation(client, data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
    return response


async def new_key(client: ProxyClient) -> dict[str, str]:
    """A key made through the admin API."""
    made = await client.request("POST", "/admin/v1/keys", {"workspace": "default"}, key=client.admin_key)
    assert made.status == 201
    document: dict[str, str] = made.document
    return document
