"""The plugin redaction in a whole gateway: what the provider, a cache, rows, logs and the client get to see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
import pytest

from llmproxy.api import Answer, Chunk, ConfigError, Exchange, Section, Services, StateKey, hookimpl
from llmproxy.gateway import read_configuration
from llmproxy.testing import (
    ProxyClient,
    RecordedRequest,
    Reply,
    ScriptedUpstream,
    StartProxy,
    ToolCall,
    configuration_table,
    document,
    fail,
    make_services,
    reply,
    stream,
    tools,
)
from llmproxy_plugins.redaction import Redaction, RedactionConfig
from llmproxy_plugins.redaction.scanner import Found, Scanner

README = Path(__file__).parent.parent / "plugins" / "redaction" / "README.md"
TIMES = "\N{MULTIPLICATION SIGN}"
EMAIL = "jo.public@example.com"
PLACEHOLDERS = {"detectors": {"email": "placeholder", "phone": "placeholder", "card": "mask", "secret": "block"}}


async def everything_kept(client: ProxyClient) -> str:
    """All that the gateway has written down: rows, bodies, and the files of its journal."""
    rows = await client.rows()
    bodies = await client.app.services.database.fetch("SELECT * FROM request_bodies")
    files = [
        file.read_bytes().decode(errors="replace") for file in client.app._state.journal.rglob("*") if file.is_file()
    ]
    texts = [bytes(value).decode() for row in bodies for value in row.values() if isinstance(value, bytes | memoryview)]
    return repr([[dict(row) for row in part] for part in (rows.requests, rows.attempts, rows.ledger)] + files + texts)


async def test_the_provider_reads_placeholders_and_the_client_values(proxy: StartProxy) -> None:
    """A whole answer: nothing of the value is sent or kept, and the client reads it in the answer."""
    config = {"audit": {"bodies": "requests"}}
    async with proxy(Redaction, PLACEHOLDERS, config=config, upstream=[reply("Hello <EMAIL_1>!")]) as client:
        response = await client.chat(f"I am {EMAIL}")
        assert response.text == f"Hello {EMAIL}!"
        [request] = client.upstream.requests
        assert request.document["messages"][0]["content"] == "I am <EMAIL_1>"
        assert EMAIL not in repr(request)
        kept = await everything_kept(client)
        assert EMAIL not in kept
        assert "I am <EMAIL_1>" in kept
        decisions = (await client.rows()).requests[0]["decisions"]
        assert decisions == [{"by": "redaction", "what": f"found email {TIMES}1: placeholder", "why": "in the request"}]


async def test_streams_are_restored(proxy: StartProxy) -> None:
    """A stream with placeholders in pieces is what the client would have read without the gateway."""
    pieces = ("Hello <", "EMA", "IL_1", "> and <PHONE_1>", ", so <EM")
    async with proxy(Redaction, PLACEHOLDERS, upstream=[stream(*pieces)]) as client:
        response = await client.chat(f"I am {EMAIL}, +47 22 33 44 55", stream=True)
        assert response.text == f"Hello {EMAIL} and +47 22 33 44 55, so <EM"
        assert response.is_done
        assert EMAIL not in await everything_kept(client)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_tools_are_called_with_values(proxy: StartProxy, *, is_stream: bool) -> None:
    """Arguments the model makes of placeholders reach the client's tools as values, in valid JSON."""
    settings = {**PLACEHOLDERS, "patterns": {"quote": {"pattern": '"[^"]+"', "action": "placeholder"}}}
    called = tools(ToolCall("send", {"to": ["<EMAIL_1>"], "text": "<QUOTE_1>"}))
    async with proxy(Redaction, settings, upstream=[called]) as client:
        response = await client.chat(f'Send "so\\it" to {EMAIL}', stream=is_stream)
        parts = [
            call["function"].get("arguments", "")
            for each in (response.events if is_stream else [response.document])
            for choice in each["choices"]
            for call in choice.get("delta", choice.get("message", {})).get("tool_calls", [])
        ]
        assert json.loads("".join(parts)) == {"to": [EMAIL], "text": '"so\\it"'}


async def test_a_blocked_request_goes_nowhere(proxy: StartProxy) -> None:
    """A secret under `block` gets 403, reaches no provider, and is kept nowhere."""
    secret = "sk-proj-AAAAAAAAAAbbbbbbbbbbCCCC"
    config = {"audit": {"bodies": "requests"}}
    async with proxy(Redaction, PLACEHOLDERS, config=config, upstream=[reply("hi")]) as client:
        response = await client.chat(f"my key is {secret}")
        assert (response.status, response.document["error"]["code"]) == (403, "redaction_blocked")
        assert client.upstream.requests == []
        assert secret not in response.body.decode() + await everything_kept(client)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_blocked_answer_is_not_delivered(proxy: StartProxy, *, is_stream: bool) -> None:
    """A secret that the model makes up ends the answer with an error, as an event once a stream is open."""
    secret = "sk-proj-AAAAAAAAAAbbbbbbbbbbCCCC"
    settings = {"answers": {"secret": "block", "email": "mask"}}
    script = [stream("use ", secret[:12], secret[12:], " now")]
    async with proxy(Redaction, settings, upstream=script) as client:
        response = await client.chat("hello", stream=is_stream)
        assert "sk-" not in response.body.decode()
        error = response.events[-1]["error"] if is_stream else response.document["error"]
        assert error["code"] == "redaction_blocked"
        assert not is_stream or not response.is_done


async def test_an_error_that_quotes_the_prompt_holds_no_value(proxy: StartProxy) -> None:
    """The vendor saw placeholders, so its error can quote nothing else; they are not put back there."""

    def refuse(request: RecordedRequest) -> Reply:
        return fail(400, message=f"Cannot read {request.document['messages'][0]['content']!r}")

    async with proxy(Redaction, PLACEHOLDERS, upstream=[refuse]) as client:
        response = await client.chat(f"I am {EMAIL}")
        assert response.status == 400
        assert response.document["error"]["message"] == "Cannot read 'I am <EMAIL_1>'"
        assert EMAIL not in await everything_kept(client)


# Behind a cache


class Shelf:
    """A cache as simple as can be: what was sent decides, and what came back is kept as it came."""

    name = "shelf"
    kept: dict[bytes, bytes]
    _key = StateKey[bytes]("shelf.key")

    def __init__(self, config: Section, services: Services) -> None:
        Shelf.kept = {}
        self._streams: dict[bytes, list[bytes]] = {}

    @hookimpl
    def pre_request(self, exchange: Exchange) -> Answer | None:
        key = exchange.state[self._key] = exchange.request.encode()
        if key not in self.kept:
            return None
        if exchange.request.is_stream:
            return Answer(stream=_Kept([self.kept[key]]), cache="hit")
        return Answer(headers=[("content-type", "application/json")], body=self.kept[key], cache="hit")

    @hookimpl
    def on_stream_chunk(self, exchange: Exchange, chunk: Chunk) -> Sequence[Chunk] | None:
        pieces = self._streams.setdefault(exchange.state[self._key], [])
        pieces.append(chunk.raw)
        if chunk.last:
            self.kept.setdefault(exchange.state[self._key], b"".join(pieces))
        return None

    @hookimpl
    def post_response(self, exchange: Exchange) -> None:
        if exchange.answer is not None and exchange.answer.stream is None:
            self.kept.setdefault(exchange.state[self._key], exchange.answer.body)


class _Kept:
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = [*pieces, b"data: [DONE]\n\n"]

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def close(self) -> None:
        self._pieces = []


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_cache_serves_everybody_their_own_values(proxy: StartProxy, *, is_stream: bool) -> None:
    """Behind redaction a cache holds placeholders alone, and a hit is restored with the values of who asks."""
    script = [stream("Hello <EMA", "IL_1>", "!")]
    async with proxy(Redaction, PLACEHOLDERS, Shelf, upstream=script) as client:
        first = await client.chat("I am ann@example.com", stream=is_stream)
        second = await client.chat("I am bob@example.org", stream=is_stream)
        assert (first.text, second.text) == ("Hello ann@example.com!", "Hello bob@example.org!")
        assert second.headers["x-llmproxy-cache"] == "hit"
        assert len(client.upstream.requests) == 1
        [(key, kept)] = Shelf.kept.items()
        assert b"example" not in key + kept


async def test_a_hit_for_another_request_is_not_restored_wrongly(proxy: StartProxy) -> None:
    """A placeholder that this exchange has not made stays one, whoever's answer a cache has served."""

    class Stale(Shelf):
        name = "stale"

        @hookimpl
        def pre_request(self, exchange: Exchange) -> Answer | None:
            exchange.state[self._key] = b""
            body = {
                "choices": [{"index": 0, "message": {"content": "<EMAIL_1> or <EMAIL_2>"}, "finish_reason": "stop"}]
            }
            return Answer(headers=[("content-type", "application/json")], body=orjson.dumps(body), cache="semantic")

    async with proxy(Redaction, PLACEHOLDERS, Stale) as client:
        assert (await client.chat("I am ann@example.com")).text == "ann@example.com or <EMAIL_2>"
        assert (await client.chat("I am nobody")).text == "<EMAIL_1> or <EMAIL_2>"


class Chatty:
    """Adds a text to every request, behind redaction's back."""

    name = "chatty"

    def __init__(self, config: Section, services: Services) -> None:
        pass

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        exchange.request.set("messages", [{"role": "system", "content": EMAIL}, *exchange.request.document["messages"]])


async def test_what_is_added_later_is_inspected_as_well(proxy: StartProxy) -> None:
    """A text that a plugin behind redaction adds is redacted before an attempt, with the same placeholders."""
    async with proxy(Redaction, PLACEHOLDERS, Chatty, upstream=[reply("<EMAIL_1> <EMAIL_2> <TEXT_1>")]) as client:
        response = await client.chat(f"<EMAIL_1> is {EMAIL}, not li@example.com")
        [request] = client.upstream.requests
        said = [message["content"] for message in request.document["messages"]]
        assert said == ["<EMAIL_1>", "<TEXT_1> is <EMAIL_1>, not <EMAIL_2>"]
        assert response.text == f"{EMAIL} li@example.com <EMAIL_1>"


# A detector of the operator's own


def spans_of(word: str, detector: str = "person") -> Reply:
    """A webhook that finds one word."""

    def spans(text: str) -> list[Mapping[str, object]]:
        start = text.find(word)
        return [] if start < 0 else [{"start": start, "end": start + len(word), "detector": detector}]

    return Reply(
        lambda request: document({"spans": [spans(text) for text in request.document["texts"]]}).message(request)
    )


def hooked(url: str, **more: object) -> Mapping[str, object]:
    """Settings with a webhook that knows persons."""
    return {**PLACEHOLDERS, "webhook": {"url": url, "detectors": {"person": "placeholder"}, **more}}


async def test_a_webhook_is_a_detector(proxy: StartProxy) -> None:
    """What it finds is replaced and put back like what the built-in detectors find, arguments included."""
    arguments = '{"to": "Zo\\u00eb", "from": "Zoë"}'
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": f"😀 I am Zoë, {EMAIL}"}, {"role": "assistant", "tool_calls": [call]}]
    async with ScriptedUpstream([spans_of("Zoë")]) as detector:
        settings = hooked(f"{detector.origin}/detect")
        async with proxy(Redaction, settings, upstream=[reply("Hello <PERSON_1> of <EMAIL_1>")]) as client:
            response = await client.chat(messages=messages)
            assert response.text == f"Hello Zoë of {EMAIL}"
            [request] = client.upstream.requests
            assert request.document["messages"][0]["content"] == "😀 I am <PERSON_1>, <EMAIL_1>"
            sent = request.document["messages"][1]["tool_calls"][0]["function"]["arguments"]
            assert sent == '{"to": "<PERSON_1>", "from": "<PERSON_1>"}'
        assert detector.requests[0].path == "/detect"


NO_SPANS = (
    fail(500),
    document({"spans": []}),
    document({"spans": [[{"start": 0, "end": 900, "detector": "person"}]]}),
    document({"spans": [[{"start": 0, "end": 1, "detector": "unheard_of"}]]}),
    document("nonsense"),
)


@pytest.mark.parametrize(("setting", "status"), [("closed", 503), ("open", 200)])
async def test_a_webhook_that_fails_refuses_or_is_left_out(proxy: StartProxy, setting: str, status: int) -> None:
    """`fail: closed` refuses what could not be inspected, `open` goes on with the other detectors."""
    async with ScriptedUpstream(NO_SPANS) as detector:
        settings = hooked(f"{detector.origin}/detect", fail=setting)
        async with proxy(Redaction, settings, upstream=[reply("hi")] * len(NO_SPANS)) as client:
            for _ in NO_SPANS:
                assert (await client.chat(f"I am {EMAIL}")).status == status
            asked = [request.document["messages"][0]["content"] for request in client.upstream.requests]
            assert asked == (["I am <EMAIL_1>"] * len(NO_SPANS) if setting == "open" else [])


# When it fails, and where it must not run


class Broken(Redaction):
    """Fails on every request, with an error that quotes it."""

    def __init__(self, config: RedactionConfig, services: Services) -> None:
        super().__init__(config, services)
        self._scanner = _BrokenScanner([])


class _BrokenScanner(Scanner):
    def find(self, text: str) -> list[Found]:
        raise UnicodeEncodeError("utf-8", text, 0, 1, "surrogates not allowed")


async def test_a_failure_refuses_the_request_and_quotes_nothing(
    proxy: StartProxy, capfd: pytest.CaptureFixture[str]
) -> None:
    """It fails closed, and no log has the text on which it failed."""
    async with proxy(Broken, PLACEHOLDERS, upstream=[reply("hi")]) as client:
        response = await client.chat(f"I am {EMAIL}")
        assert (response.status, response.document["error"]["code"]) == (500, "plugin_error")
        assert client.upstream.requests == []
        assert EMAIL not in await everything_kept(client)
    logged = "".join(capfd.readouterr())
    assert "UnicodeEncodeError" in logged
    assert EMAIL not in logged


@pytest.mark.parametrize("config", [{"audit": {"bodies": "all"}}, {"workspaces": {"default": {"bodies": "responses"}}}])
async def test_restored_answers_must_not_be_kept(proxy: StartProxy, config: Mapping[str, object]) -> None:
    """A configuration that keeps answers in which values were put back is refused; without placeholders it is not."""
    with pytest.raises(ConfigError, match="kept bodies would hold them"):
        async with proxy(Redaction, PLACEHOLDERS, config=config):
            pass
    async with proxy(Redaction, {"detectors": {"email": "mask"}}, config=config, upstream=[reply("hi")]) as client:
        assert (await client.chat(EMAIL)).text == "hi"
        assert EMAIL not in await everything_kept(client)


async def test_embeddings_are_redacted(proxy: StartProxy) -> None:
    """The inputs of embeddings reach the provider redacted, and the vectors pass as they are."""
    async with proxy(
        Redaction, PLACEHOLDERS, upstream=[document({"object": "list", "data": [{"embedding": [1.5]}]})]
    ) as client:
        response = await client.request("POST", "/v1/embeddings", {"model": "test", "input": [EMAIL]})
        assert response.document["data"] == [{"embedding": [1.5]}]
        assert client.upstream.requests[0].document["input"] == ["<EMAIL_1>"]


def test_the_readme_has_every_key() -> None:
    """The table of the README is made from the declaration of the keys."""
    assert configuration_table(RedactionConfig) in README.read_text()


async def test_a_models_name_is_kept_as_it_came(proxy: StartProxy) -> None:
    """It is what the request is for: changed, it would name another model, so the row has it as the client wrote it."""
    async with proxy(Redaction, {"detectors": {"email": "mask"}}, upstream=[reply("hi")]) as client:
        await client.chat("mail ada@example.com", model="upstream/ada@example.com")
        rows = await client.rows()
        sent = client.upstream.requests[0].document
    assert (rows.requests[0]["request_model"], sent["model"]) == ("upstream/ada@example.com", "ada@example.com")
    assert sent["messages"][0]["content"] == "mail [EMAIL]"


def test_runaway_stands_before_it(tmp_path: Path) -> None:
    """Behind it, prompts that were masked alike would count as repeated, so that order is a mistake."""
    path = tmp_path / "config.yaml"
    path.write_text("plugins: [redaction, runaway]")
    with pytest.raises(ConfigError, match=r"plugins\.redaction: must stand after the plugin 'runaway'"):
        read_configuration(path, make_services())
    path.write_text("plugins: [runaway, redaction]")
    assert [each.name for each in read_configuration(path, make_services()).plugins.enabled] == ["runaway", "redaction"]
