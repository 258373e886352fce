"""Answers of the plugin redaction, whole and streamed: whatever the chunks are, nothing leaks and all comes back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmproxy.api import Answer, Chunk, Document, Exchange, Refused
from llmproxy.testing import call_hook, make_exchange
from llmproxy_plugins.redaction import Redaction
from tests.redaction_samples import ONE_OF_EACH, redaction

TIMES = "\N{MULTIPLICATION SIGN}"
PLACES = ("content", "reasoning_content", "refusal", "arguments")


PLUGIN = redaction()
GUARD = redaction(detectors={}, answers={name: "mask" for name in ONE_OF_EACH if name != "note"})


async def sent(plugin: Redaction, text: str, **fields: Any) -> tuple[Exchange, str]:
    """An exchange whose user says `text`, and what the provider gets to read."""
    exchange = make_exchange(text, **fields)
    await plugin.pre_request(exchange)
    return exchange, orjson.loads(exchange.request.encode())["messages"][0]["content"]


def event(place: str, text: str, finish_reason: str | None = None, index: int = 0) -> Document:
    """One event of a provider, with a piece of text at one place."""
    call = {"index": 1, "function": {"arguments": text}}
    delta: Document = {"tool_calls": [call]} if place == "arguments" else {place: text}
    choice = {"index": index, "delta": delta if text else {}, "logprobs": None, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def said(documents: Iterable[Document], place: str, index: int = 0) -> str:
    """What a client reads at one place."""
    text = ""
    for document in documents:
        for choice in document["choices"]:
            delta = choice["delta"]
            if choice["index"] == index and place == "arguments":
                text += "".join(call["function"]["arguments"] for call in delta.get("tool_calls", []))
            elif choice["index"] == index:
                text += delta.get(place) or ""
    return text


def stream(
    plugin: Redaction, exchange: Exchange, events: Sequence[Document], *, is_cut: bool = False
) -> list[Document]:
    """The events that the client gets; of a stream that is cut, or goes on, those so far."""
    result: list[Document] = []
    for document in events:
        chunk = Chunk(b"data: " + orjson.dumps(document) + b"\n\n", document)
        chunks = plugin.on_stream_chunk(exchange, chunk)
        result += [each.document for each in ([chunk] if chunks is None else chunks) if each.document]
    last = () if is_cut else plugin.on_stream_chunk(exchange, Chunk(last=True)) or ()
    return result + [each.document for each in last if each.document]


def at(place: str, text: str) -> str:
    """The text as it is written at a place."""
    return orjson.dumps({"to": text, "n": 1}).decode() if place == "arguments" else text


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("detector", ONE_OF_EACH)
async def test_placeholders_come_back_however_a_stream_is_cut(detector: str, place: str) -> None:
    """Every detector, every place, every split into two: the provider saw no value, and the client gets it exactly."""
    value = ONE_OF_EACH[detector]
    text = f"é so {value}, and {value} <b>\n"
    _, seen = await sent(PLUGIN, text)
    assert value not in seen
    answer, wanted = at(place, seen), at(place, text)
    for cut in range(len(answer) + 1):
        exchange, _ = await sent(PLUGIN, text)
        events = [event(place, answer[:cut]), event(place, answer[cut:]), event(place, "", "stop")]
        assert said(stream(PLUGIN, exchange, events), place) == wanted, cut


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("detector", [name for name in ONE_OF_EACH if name != "note"])
async def test_what_the_model_makes_up_is_hidden_however_a_stream_is_cut(detector: str, place: str) -> None:
    """Every detector, every place, every split into two: no part of a made-up value is let out."""
    value = ONE_OF_EACH[detector]
    answer = at(place, f"é so {value}, and\n{value} \\ too")
    wanted = at(place, f"é so [{detector.upper()}], and\n[{detector.upper()}] \\ too")
    for cut in range(len(answer) + 1):
        exchange, _ = await sent(GUARD, "hello")
        events = [event(place, answer[:cut]), event(place, answer[cut:]), event(place, "", "stop")]
        assert said(stream(GUARD, exchange, events), place) == wanted, cut


@pytest.mark.parametrize("place", PLACES)
async def test_single_characters_make_no_difference(place: str) -> None:
    """A stream of one character per event ends up as the answer that is there as a whole."""
    text = " | ".join(ONE_OF_EACH.values())
    exchange, seen = await sent(PLUGIN, text)
    whole = await whole_answer(PLUGIN, place, seen, exchange)
    assert said(stream(PLUGIN, exchange, [event(place, each) for each in at(place, seen)]), place) == whole
    assert whole == at(place, text)
    exchange, _ = await sent(GUARD, "hello")
    whole = await whole_answer(GUARD, place, text, exchange)
    assert said(stream(GUARD, exchange, [event(place, each) for each in at(place, text)]), place) == whole
    assert not any(value in whole for name, value in ONE_OF_EACH.items() if name != "note")


async def whole_answer(plugin: Redaction, place: str, text: str, exchange: Exchange) -> str:
    """What a client reads at a place of an answer that was not streamed."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": at(place, text)}}
    message: Document = {"tool_calls": [call]} if place == "arguments" else {place: text}
    body = {"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    exchange.answer = Answer(body=orjson.dumps(body))
    await call_hook(plugin, "post_response", exchange)
    message = orjson.loads(exchange.answer.body)["choices"][0]["message"]
    return str(message["tool_calls"][0]["function"]["arguments"] if place == "arguments" else message[place])


TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.sampled_from(
            [*ONE_OF_EACH.values(), "<EMAIL_1>", "<TEXT_2>", "<EM", "EMAIL_1", "<PHONE_1", '"', "\\", "\\u003c"]
        ),
    ),
    max_size=8,
).map(" ".join)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, place=st.sampled_from(PLACES), cuts=st.lists(st.integers(0, 400), max_size=6))
async def test_restoring_undoes_redacting(text: str, place: str, cuts: list[int]) -> None:
    """For any text with values in it, a model that repeats it gives the client its own text."""
    exchange, seen = await sent(PLUGIN, text)
    answer = at(place, seen)
    bounds = sorted({0, *(min(cut, len(answer)) for cut in cuts), len(answer)})
    pieces = [answer[start:end] for start, end in zip(bounds, [*bounds[1:], len(answer)], strict=True)]
    result = said(stream(PLUGIN, exchange, [event(place, each) for each in pieces]), place)
    assert result == at(place, text)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=6))
async def test_no_split_shows_what_a_whole_answer_hides(text: str, cuts: list[int]) -> None:
    """A streamed answer ends up as it would have as a whole."""
    bounds = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    pieces = [text[start:end] for start, end in zip(bounds, [*bounds[1:], len(text)], strict=True)]
    exchange, _ = await sent(GUARD, "hello")
    result = said(stream(GUARD, exchange, [event("refusal", each) for each in pieces]), "refusal")
    assert result == await whole_answer(GUARD, "refusal", text, exchange)


WORDS = st.one_of(st.sampled_from([*ONE_OF_EACH.values(), "<EMAIL_1>", "a\\", "\\u003c", '"']), st.text(max_size=5))
JSON = st.recursive(
    st.lists(WORDS, max_size=4).map(" ".join) | st.integers(-999, 999) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arguments=st.dictionaries(WORDS, JSON, max_size=3), is_ascii=st.booleans(), size=st.integers(1, 30))
async def test_arguments_go_there_and_back(arguments: Document, *, is_ascii: bool, size: int) -> None:
    """Arguments of any shape reach the provider as JSON without values, and come back as they were, in any pieces."""
    written = json.dumps(arguments, ensure_ascii=is_ascii)
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": written}}]
    exchange = make_exchange(messages=[{"role": "assistant", "tool_calls": calls}])
    await PLUGIN.pre_request(exchange)
    sent = orjson.loads(exchange.request.encode())["messages"][0]["tool_calls"][0]["function"]["arguments"]
    read = json.dumps(json.loads(sent), ensure_ascii=False)
    assert not any(json.dumps(value, ensure_ascii=False)[1:-1] in read for value in ONE_OF_EACH.values())
    pieces = [sent[start : start + size] for start in range(0, len(sent), size)]
    result = said(stream(PLUGIN, exchange, [event("arguments", each) for each in pieces]), "arguments")
    assert json.loads(result) == arguments


# What an event keeps


async def test_events_with_nothing_to_change_keep_their_bytes() -> None:
    """An event that holds no part of a placeholder is not re-encoded, and neither are comments and usage."""
    exchange, _ = await sent(PLUGIN, "I am jo@example.com")
    document = event("content", "Good day, a < b")
    assert PLUGIN.on_stream_chunk(exchange, Chunk(b"data: {...}\n\n", document)) is None
    assert PLUGIN.on_stream_chunk(exchange, Chunk(b": ping\n\n")) is None
    assert PLUGIN.on_stream_chunk(exchange, Chunk(b"data: {}\n\n", {"choices": [], "usage": {}})) is None
    plain, _ = await sent(PLUGIN, "nothing in here")
    assert PLUGIN.on_stream_chunk(plain, Chunk(b"data: {...}\n\n", event("content", "<EMAIL_1>"))) is None


async def test_what_was_held_back_comes_in_an_event_like_the_others() -> None:
    """A held tail is let out before the finish reason, with the stream's id, model and index, as a delta."""
    exchange, _ = await sent(PLUGIN, "I am jo@example.com")
    finish = {**event("content", "", "stop", index=2), "usage": {"total_tokens": 1}}
    first, held, last = stream(PLUGIN, exchange, [event("content", "so <EMAIL", index=2), finish])
    assert first["choices"][0]["delta"] == {"content": "so "}
    assert held == {**event("content", "<EMAIL", index=2), "choices": held["choices"]}
    assert held["choices"] == [{"index": 2, "finish_reason": None, "delta": {"content": "<EMAIL"}}]
    assert last == finish


async def test_what_was_held_back_comes_at_the_end_of_a_stream_without_a_finish_reason() -> None:
    """The last call lets out what no finish reason did."""
    exchange, _ = await sent(PLUGIN, "I am jo@example.com")
    call = '{"to": "<EMAIL_1'
    assert said(stream(PLUGIN, exchange, [event("arguments", call)]), "arguments") == call


async def test_choices_and_places_do_not_mix() -> None:
    """Halves of placeholders of several choices and places find their own other halves."""
    exchange, _ = await sent(PLUGIN, "I am jo@example.com, call +47 22 33 44 55")
    halves = [
        event("content", "<EMA", index=0),
        event("content", "<PHO", index=1),
        event("refusal", "<EMAIL_", index=0),
        event("content", "NE_1>", index=1),
        event("content", "IL_1>", index=0),
        event("refusal", "1>", index=0),
    ]
    documents = stream(PLUGIN, exchange, halves)
    assert said(documents, "content", 0) == "jo@example.com" == said(documents, "refusal", 0)
    assert said(documents, "content", 1) == "+47 22 33 44 55"


async def test_text_completions_are_restored() -> None:
    """The older endpoint's streams, whose text is not in a delta, are no different."""
    exchange, _ = await sent(PLUGIN, "I am jo@example.com")
    events = [{"id": "c", "choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in ("<EMAI", "L_1>")]
    texts = [choice["text"] for each in stream(PLUGIN, exchange, events) for choice in each["choices"]]
    assert "".join(texts) == "jo@example.com"


async def test_values_are_escaped_where_the_answer_is_json() -> None:
    """A value with quotes and line feeds keeps structured output, and escaped placeholders, readable."""
    exchange, seen = await sent(PLUGIN, ONE_OF_EACH["note"], response_format={"type": "json_object"})
    assert seen == "<NOTE_1>"
    for written in ("<NOTE_1>", "\\u003cNOTE_1\\u003e", "\\u003CNOTE_1>"):
        events = [event("content", each) for each in f'{{"x": "{written}"}}']
        assert orjson.loads(said(stream(PLUGIN, exchange, events), "content")) == {"x": ONE_OF_EACH["note"]}


async def test_placeholders_nobody_made_stay_as_they_are() -> None:
    """Only this exchange's own placeholders are put back, whatever else a model writes."""
    exchange, _ = await sent(PLUGIN, "I am jo@example.com")
    text = "<EMAIL_2> <PHONE_1> <email_1> <EMAIL_01> EMAIL_1 <EMAIL_1"
    assert said(stream(PLUGIN, exchange, [event("content", text)]), "content") == text


async def test_what_the_client_wrote_like_a_placeholder_is_its_own() -> None:
    """A client's `<EMAIL_1>` never becomes somebody's address, and comes back as it was."""
    exchange, seen = await sent(PLUGIN, "<EMAIL_1> is not jo@example.com")
    assert seen == "<TEXT_1> is not <EMAIL_1>"
    assert said(stream(PLUGIN, exchange, [event("content", seen)]), "content") == "<EMAIL_1> is not jo@example.com"


async def test_numbers_keep_arguments_json() -> None:
    """A card number without quotes is hidden in a string, also when it arrives in halves."""
    cards = redaction(detectors={"card": "placeholder"}, answers={"card": "mask"})
    for cut in range(len('{"card":4111111111111111,"n":12}')):
        exchange, _ = await sent(cards, "hello")
        text = '{"card":4111111111111111,"n":12}'
        events = [event("arguments", text[:cut]), event("arguments", text[cut:])]
        assert said(stream(cards, exchange, events), "arguments") == '{"card":"[CARD]","n":12}', cut


async def test_a_blocked_value_ends_the_answer_before_it_is_seen() -> None:
    """`block` refuses a streamed answer with the detector's name, and no part of the value has gone out."""
    guard = redaction(detectors={}, answers={"secret": "block", "email": "report"})
    exchange, _ = await sent(guard, "hello")
    shown = stream(guard, exchange, [event("content", "your key: sk-proj-AAAAAAAAAA")], is_cut=True)
    shown += stream(guard, exchange, [event("content", "BBBBBBBBBBCCCCCCCCCC")], is_cut=True)
    assert said(shown, "content") == "your key: "
    with pytest.raises(Refused, match=r"\(secret\)"):
        stream(guard, exchange, [event("content", " ok")])
    assert exchange.decisions[-1].what == f"found secret {TIMES}1: block"


async def test_tokens_do_not_spell_out_what_is_hidden() -> None:
    """Where made-up values are masked, log probabilities, which repeat the text token by token, are left out."""
    exchange, _ = await sent(GUARD, "hello")
    document = event("content", "hi ")
    document["choices"][0]["logprobs"] = {"content": [{"token": "a@b.example"}]}
    result, *_ = stream(GUARD, exchange, [document])
    assert result["choices"][0]["logprobs"] is None


async def test_endless_text_is_let_go() -> None:
    """A run that could for ever become a value is held back up to a bound."""
    exchange, _ = await sent(GUARD, "hello")
    events = [event("content", "A" * 1000) for _ in range(40)]
    result = stream(GUARD, exchange, events)
    assert said(result, "content") == "A" * 40_000
    shown = 0
    for number, document in enumerate(result[:40], 1):
        shown += len(document["choices"][0]["delta"]["content"])
        assert number * 1000 - shown <= 17_000
