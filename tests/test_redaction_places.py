"""Where the plugin redaction looks: every place of a request that can hold text, and none that must not be touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from llmproxy.api import BadRequest, Document, Exchange, Operation, Refused
from llmproxy.testing import call_hook, make_exchange
from llmproxy_plugins.redaction import Redaction
from tests.redaction_samples import ONE_OF_EACH, redaction

TIMES = "\N{MULTIPLICATION SIGN}"
PLUGIN = redaction()


async def redacted(plugin: Redaction, exchange: Exchange) -> Document:
    """The request as a provider would get it."""
    await call_hook(plugin, "pre_request", exchange)
    document: Document = orjson.loads(exchange.request.encode())
    return document


def call(arguments: str, **function: object) -> Document:
    """A model's call of a function, as it stands in the conversation."""
    called = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments, **function}}
    return {"messages": [{"role": "assistant", "content": None, "tool_calls": [called]}]}


def tool(**function: object) -> Document:
    """A tool that the model may call."""
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, **function}}]}


def parameters(**schema: object) -> Document:
    """A tool with one parameter."""
    return tool(parameters={"type": "object", "properties": {"to": {"type": "string", **schema}}})


def message(role: str, content: object, **more: object) -> Document:
    """A conversation of one message."""
    return {"messages": [{"role": role, "content": content, **more}]}


# For each place, the members of a request that have a text there.
PLACES: dict[str, Callable[[str], Document]] = {
    "content": lambda text: message("user", text),
    "system": lambda text: message("system", text),
    "developer": lambda text: message("developer", text),
    "text part": lambda text: message("user", [{"type": "text", "text": text}]),
    "refusal": lambda text: message("assistant", None, refusal=text),
    "reasoning": lambda text: message("assistant", "ok", reasoning_content=text),
    "name": lambda text: message("user", "hi", name=text),
    "tool result": lambda text: message("tool", text, tool_call_id="call_1"),
    "json tool result": lambda text: message("tool", orjson.dumps([{"a": text}]).decode(), tool_call_id="call_1"),
    "arguments": lambda text: call(orjson.dumps({"to": [text]}).decode()),
    "argument key": lambda text: call(orjson.dumps({text: 1}).decode()),
    "broken arguments": lambda text: call(f'{{"to": {text}'),
    "legacy call": lambda text: message("assistant", None, function_call={"name": "f", "arguments": f"[{text}]"}),
    "custom tool": lambda text: message("assistant", None, tool_calls=[{"type": "custom", "custom": {"input": text}}]),
    "tool description": lambda text: tool(description=text),
    "property description": lambda text: parameters(description=text),
    "enum": lambda text: parameters(enum=["a", text]),
    "default": lambda text: parameters(default=text),
    "example after a number": lambda text: parameters(examples=[1, text]),
    "property": lambda text: tool(parameters={"type": "object", "properties": {text: {}}, "required": [text]}),
    "output schema": lambda text: {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"description": text}}}
    },
    "prediction": lambda text: {"prediction": {"type": "content", "content": text}},
    "prediction part": lambda text: {"prediction": {"type": "content", "content": [{"type": "text", "text": text}]}},
    "metadata": lambda text: {"metadata": {"type": text}},
    "metadata key": lambda text: {"metadata": {text: "x"}},
    "user": lambda text: {"user": text},
    "safety identifier": lambda text: {"safety_identifier": text},
    "stop": lambda text: {"stop": [text]},
    "file name": lambda text: message("user", [{"type": "file", "file": {"filename": text, "file_data": "data:,x"}}]),
    "unknown member": lambda text: {"x_vendor": {"deep": [{"deeper": text}]}},
    "instructions": lambda text: {"instructions": text},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("detector", ONE_OF_EACH)
async def test_no_value_leaves_from_any_place(detector: str, place: str) -> None:
    """Every detector in every place: the provider gets a placeholder, and a request that is still JSON inside JSON."""
    value = ONE_OF_EACH[detector]
    exchange = make_exchange("hi", **PLACES[place](value))
    document = await redacted(PLUGIN, exchange)
    sent = exchange.request.encode().decode()
    assert f"{detector.upper()}_1" in sent
    for spelled in (
        value,
        orjson.dumps(value).decode()[1:-1],
        orjson.dumps(orjson.dumps(value).decode()).decode()[3:-3],
    ):
        assert spelled not in sent
    if "arguments" in place and place != "broken arguments":
        orjson.loads(document["messages"][0]["tool_calls"][0]["function"]["arguments"])


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        (Operation.TEXT_COMPLETION, {"prompt": "to jo@example.com"}),
        (Operation.TEXT_COMPLETION, {"prompt": ["to jo@example.com", "b"], "suffix": "jo@example.com"}),
        (Operation.EMBEDDINGS, {"input": "to jo@example.com"}),
        (Operation.EMBEDDINGS, {"input": ["a", "to jo@example.com"]}),
        (Operation.EMBEDDINGS, {"input": [[1, 2], "to jo@example.com"]}),
    ],
)
async def test_other_operations_are_inspected(operation: Operation, fields: Document) -> None:
    """Prompts and inputs of the other endpoints are texts, alone or in lists."""
    exchange = make_exchange(operation=operation, **fields)
    await redacted(PLUGIN, exchange)
    assert b"example.com" not in exchange.request.encode()
    assert b"to <EMAIL_1>" in exchange.request.encode()


async def test_names_have_no_brackets() -> None:
    """Vendors refuse angle brackets in names: there a placeholder goes without, and comes back all the same."""
    exchange = make_exchange("hi", **tool(name="call-E-123456"))
    document = await redacted(PLUGIN, exchange)
    assert document["tools"][0]["function"]["name"] == "call-STAFF_1"


async def test_the_protocol_is_left_alone() -> None:
    """What names models, roles, types and calls is not text, not even if a dictionary has the word."""
    words = {"words": ["user", "text", "function", "call_1", "auto", "object", "role", "properties"], "action": "mask"}
    guard = redaction(dictionaries={"words": words})
    fields = {**call('{"a": 1}'), **tool(description="x"), "tool_choice": "auto", "model": "upstream/text"}
    exchange = make_exchange("x", **fields)
    before = exchange.request.encode()
    await call_hook(guard, "pre_request", exchange)
    assert exchange.request.encode() == before


async def test_a_request_without_values_keeps_its_bytes() -> None:
    """A body in which nothing is found is not even re-encoded."""
    exchange = make_exchange("order 4711 of 2026-11-22")
    before = exchange.request.encode()
    await call_hook(PLUGIN, "pre_request", exchange)
    assert exchange.request.encode() is before


async def test_members_without_values_keep_their_bytes() -> None:
    """Only the members that held something are written anew."""
    exchange = make_exchange("jo@example.com", temperature=0.70, tools=[])
    await call_hook(PLUGIN, "pre_request", exchange)
    assert set(exchange.request._edits) == {"messages"}


async def test_escapes_hide_nothing() -> None:
    """Escapes inside of arguments are undone before they are searched, and line feeds are no part of an address."""
    arguments = r'{"a": "jo\u0040example.com", "b": "x\njo@example.com\ty", "n": 4111111111111111, "f": 1.0}'
    exchange = make_exchange("hi", **call(arguments))
    document = await redacted(PLUGIN, exchange)
    sent = document["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert sent == r'{"a": "<EMAIL_1>", "b": "x\n<EMAIL_1>\ty", "n": "<CARD_1>", "f": 1.0}'


async def test_the_same_value_has_the_same_placeholder() -> None:
    """Within an exchange a value keeps its number, whichever place it stands in."""
    exchange = make_exchange(messages=[{"role": "user", "content": "a@x.org b@x.org a@x.org"}], user="b@x.org")
    document = await redacted(PLUGIN, exchange)
    assert document["messages"][0]["content"] == "<EMAIL_1> <EMAIL_2> <EMAIL_1>"
    assert document["user"] == "<EMAIL_2>"


async def test_a_conversation_keeps_its_numbers_as_it_grows() -> None:
    """Earlier turns and tools read the same in the next request, so what a vendor has cached of them still counts."""
    turns: list[Document] = [{"role": "user", "content": "I am a@x.org"}]
    shared: Any = {"user": "z@x.org", **tool(description="ask t@x.org")}
    first = await redacted(PLUGIN, make_exchange(messages=turns, **shared))
    more = [*turns, {"role": "assistant", "content": "Hello a@x.org"}, {"role": "user", "content": "and b@x.org"}]
    second = await redacted(PLUGIN, make_exchange(messages=more, **shared))
    assert second["tools"] == first["tools"]
    assert second["messages"][:1] == first["messages"]
    assert second["messages"][1]["content"] == "Hello <EMAIL_2>"


@pytest.mark.parametrize(
    ("action", "sent"), [("mask", "[EMAIL]"), ("placeholder", "<EMAIL_1>"), ("report", "jo@example.com")]
)
async def test_actions(action: str, sent: str) -> None:
    """Each action does what it is called, and the decision record has the count, never the value."""
    exchange = make_exchange("jo@example.com, jo@example.com")
    document = await redacted(redaction(detectors={"email": action}), exchange)
    assert document["messages"][0]["content"] == f"{sent}, {sent}"
    assert [(each.by, each.what) for each in exchange.decisions] == [("redaction", f"found email {TIMES}2: {action}")]


async def test_hashes_are_stable_and_keyed() -> None:
    """The same value has the same hash in every exchange; with another key, another one."""

    async def content(key: str, text: str) -> object:
        guard = redaction(detectors={"email": "hash"}, hash_key=key)
        return (await redacted(guard, make_exchange(text)))["messages"][0]["content"]

    first = await content("0123456789abcdef", "jo@example.com")
    assert first == await content("0123456789abcdef", "jo@example.com")
    assert first != await content("0123456789abcdef", "li@example.com")
    assert first != await content("another key of yours", "jo@example.com")


async def test_block_names_the_detector_and_never_the_value() -> None:
    """A blocked request is refused with what was found in it by name, and keeps nothing of it to send."""
    exchange = make_exchange(ONE_OF_EACH["secret"])
    with pytest.raises(Refused) as raised:
        await call_hook(redaction(detectors={"secret": "block"}), "pre_request", exchange)
    assert "(secret)" in raised.value.message
    assert raised.value.error_code == "redaction_blocked"
    assert "MII" not in raised.value.message + repr(exchange.decisions)


PICTURE: Document = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SOUND: Document = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
PAPER: Document = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}}


@pytest.mark.parametrize(("part", "kind"), [(PICTURE, "image"), (SOUND, "audio"), (PAPER, "file")])
async def test_what_cannot_be_inspected_follows_the_setting(part: Document, kind: str) -> None:
    """Images, audio and files pass as they are, are replaced by a note, or refuse the request."""
    content = [{"type": "text", "text": "see jo@example.com"}, part]

    async def sent(setting: str) -> Document:
        document = await redacted(redaction(uninspectable=setting), make_exchange(**message("user", content)))
        parts: list[Document] = document["messages"][0]["content"]
        assert parts[0]["text"] == "see <EMAIL_1>"
        return parts[1]

    assert await sent("pass") == part
    assert await sent("strip") == {"type": "text", "text": f"[{kind} removed]"}
    with pytest.raises(Refused, match=f"the {kind} in this request"):
        await sent("refuse")


async def test_token_ids_cannot_be_inspected() -> None:
    """A prompt or an input of token ids passes, or is refused: nothing would be left of it to strip."""
    for setting in ("strip", "refuse"):
        for given in ([1, 2, 3], [[1, 2], [3]]):
            exchange = make_exchange(operation=Operation.EMBEDDINGS, input=given)
            with pytest.raises(Refused, match="token ids"):
                await call_hook(redaction(uninspectable=setting), "pre_request", exchange)
    exchange = make_exchange(operation=Operation.EMBEDDINGS, input=[1, 2, 3])
    await call_hook(PLUGIN, "pre_request", exchange)
    assert exchange.decisions[0].what == "token ids: pass"


async def test_text_in_the_place_of_a_payload_is_inspected() -> None:
    """What stands where an image's bytes or address would, and is neither, is a text."""
    part = {"type": "document", "source": {"type": "text", "data": "mail jo@example.com, please"}}
    document = await redacted(PLUGIN, make_exchange(**message("user", [part])))
    assert document["messages"][0]["content"][0]["source"]["data"] == "mail <EMAIL_1>, please"


@pytest.mark.parametrize(
    "messages",
    [
        b'[{"role":"user","content":"jo@example.com","content":"hi"}]',
        rb'[{"role":"user","\u0063ontent":"jo@example.com","content":"hi \" : {"}]',
    ],
)
async def test_members_given_twice_are_refused(messages: bytes) -> None:
    """Of a member that stands in an object twice only one could be inspected, and the other might be read."""
    exchange = make_exchange("hi")
    body = b'{"model":"upstream/test-model","messages":' + messages + b"}"
    exchange.request = type(exchange.request)(Operation.CHAT, body, orjson.loads(body))
    with pytest.raises(BadRequest, match="twice"):
        await call_hook(PLUGIN, "pre_request", exchange)


async def test_colons_and_quotes_are_no_members() -> None:
    """A request may be full of what looks like JSON in its strings."""
    exchange = make_exchange('{"a": "b", \\": "c:d"} :: \\\\')
    await call_hook(PLUGIN, "pre_request", exchange)


async def test_members_called_like_a_value_are_refused() -> None:
    """The name of a top-level member cannot be rewritten, so one that holds a value ends the request."""
    named: Any = {"jo@example.com": 1}
    exchange = make_exchange("hi", **named)
    with pytest.raises(BadRequest, match="name of a member"):
        await call_hook(PLUGIN, "pre_request", exchange)


async def test_nesting_has_an_end() -> None:
    """A request nested deeper than any that is meant seriously is refused, not failed on."""
    deep: object = "x"
    for _ in range(240):
        deep = [deep]
    with pytest.raises(BadRequest, match="nested too deep"):
        await call_hook(PLUGIN, "pre_request", make_exchange(x_deep=deep))
