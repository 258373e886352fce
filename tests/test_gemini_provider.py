"""The gemini kind: its addresses, its key, embeddings, and whole exchanges over real sockets."""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from llmproxy.attempt import Attempts
from llmproxy.config import Timeouts
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import BadRequest, Failure, UpstreamBroken, UpstreamCut, UpstreamError
from llmproxy.exchange import Answer, Attempt, Target
from llmproxy.providers.builtin import every_kind
from llmproxy.providers.gemini import GeminiConfig
from llmproxy.request import Operation, Request
from llmproxy.services import SystemClock
from llmproxy.testing import ScriptedUpstream, events, make_exchange
from llmproxy.testing import document as json_reply
from llmproxy.upstream import HTTPTransport
from llmproxy.usage import Usage
from tests.gemini import USER, candidate, chat, gemini, prepare, response, sse
from tests.providers import header

BASE = "https://generativelanguage.googleapis.com/v1beta"


def ask(model: str = "gemini-2.5-flash", **members: Any) -> Request:
    """A chat request."""
    return chat({"model": model, "messages": [USER], **members})


def embed(given: Any, model: str = "gemini-embedding-001", **members: Any) -> Request:
    """An embeddings request."""
    document = {"model": model, "input": given, **members}
    return Request(Operation.EMBEDDINGS, orjson.dumps(document), document)


def test_each_operation_has_its_method() -> None:
    """Whole answers, streams and embeddings are methods of the model."""
    provider = gemini()
    assert prepare(provider, ask()).url == f"{BASE}/models/gemini-2.5-flash:generateContent"
    streamed = prepare(provider, ask(stream=True))
    assert streamed.url == f"{BASE}/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert header(streamed, "accept") == "text/event-stream"
    assert prepare(provider, embed("a")).url == f"{BASE}/models/gemini-embedding-001:batchEmbedContents"
    at_home = gemini(base_url="http://127.0.0.1:1/v1/")
    assert prepare(at_home, ask()).url == "http://127.0.0.1:1/v1/models/gemini-2.5-flash:generateContent"


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("models/gemini-2.5-pro", "models/gemini-2.5-pro"),
        ("tunedModels/mine-1", "tunedModels/mine-1"),
        ("a/b:c@d e%2f?x#y", "models/a%2Fb%3Ac%40d%20e%252f%3Fx%23y"),
        ("models/../../x", "models/..%2F..%2Fx"),
    ],
)
def test_trap_40_a_models_name_is_encoded_once(model: str, path: str) -> None:
    """No name leads to another path, and Google's own full names are taken as such."""
    assert prepare(gemini(), ask(model)).url == f"{BASE}/{path}:generateContent"


def test_the_headers_are_the_gateways_own() -> None:
    """The configured key goes in its header, never in the address, and of the client's headers only the harmless."""
    client = {
        "authorization": "Bearer client",
        "x-goog-api-key": "client",
        "cookie": "a=b",
        "user-agent": "sdk",
        "x-mine": "1",
    }
    prepared = prepare(gemini(headers={"x-fixed": "2"}, forward_headers=["x-mine"]), ask(), client)
    assert dict(prepared.headers) == {
        "accept": "application/json",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "x-goog-api-key": "AIza-key",
        "x-fixed": "2",
        "user-agent": "sdk",
        "x-mine": "1",
    }
    assert "AIza-key" not in prepared.url


def test_a_missing_key_is_said_plainly() -> None:
    """Without a key the vendor is not asked; a server of one's own may need none."""
    with pytest.raises(UpstreamError, match=r"set GOOGLE_API_KEY or providers\.gemini\.api_key") as caught:
        prepare(gemini(api_key=None), ask())
    assert caught.value.failure is Failure.AUTH
    assert header(prepare(gemini(api_key=None, base_url="http://127.0.0.1:1"), ask()), "x-goog-api-key") is None


def test_text_completions_are_not_offered() -> None:
    """What the vendor does not have is refused in so many words."""
    document = {"model": "gemini-2.5-flash", "prompt": "Once"}
    asked = Request(Operation.TEXT_COMPLETION, orjson.dumps(document), document)
    with pytest.raises(BadRequest, match="does not offer text completion"):
        prepare(gemini(), asked)


def test_what_is_left_out_is_told() -> None:
    """The upstream request names the parameters that the provider does not have."""
    assert prepare(gemini(), ask(user="u", logit_bias={"1": 1})).dropped == ("user", "logit_bias")


def test_an_operator_may_allow_meaning_to_be_left_out() -> None:
    """With `drop_params` a request that could not be served is served without the part that could not."""
    asked = ask(modalities=["audio"])
    with pytest.raises(BadRequest):
        prepare(gemini(), asked)
    assert prepare(gemini(drop_params=True), asked).dropped == ("modalities",)


def test_a_section_with_an_unknown_key_is_refused() -> None:
    """Mistakes are found when the configuration is read."""
    with pytest.raises(ValidationError):
        GeminiConfig.model_validate({"api_kye": "x"})


def test_the_kinds_come_with_the_gateway() -> None:
    """Nothing has to be installed or enabled for the Gemini API."""
    kinds = {kind.kind for kind in every_kind()}
    assert {"gemini", "vertex"} <= kinds


# Embeddings


def embedded(request: Request, document: dict[str, Any]) -> CreateEmbeddingResponse:
    """The translated answer, as OpenAI's own type reads it."""
    answer = gemini().answer(request, orjson.dumps(document), document)
    return CreateEmbeddingResponse.model_validate_json(answer)


def test_texts_become_one_batch() -> None:
    """Each text is a request of the batch, in order, with its size."""
    body = orjson.loads(prepare(gemini(), embed(["a", "b"], dimensions=8)).body)
    assert body == {
        "requests": [
            {
                "model": "models/gemini-embedding-001",
                "content": {"parts": [{"text": text}]},
                "outputDimensionality": 8,
            }
            for text in ("a", "b")
        ]
    }


def test_trap_45_a_text_and_a_list_of_one_are_alike() -> None:
    """Both give the same request and an answer with one embedding."""
    one, many = embed("a"), embed(["a"])
    assert prepare(gemini(), one).body == prepare(gemini(), many).body
    document = {"embeddings": [{"values": [0.5, -1]}], "usageMetadata": {"promptTokenCount": 3}}
    for request in (one, many):
        answer = embedded(request, document)
        assert [item.embedding for item in answer.data] == [[0.5, -1.0]]
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)
        assert answer.model == "gemini-embedding-001"


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=3), min_size=1, max_size=5)
)
def test_trap_45_base64_is_given_where_it_was_asked(vectors: list[list[float]]) -> None:
    """Little-endian 32-bit floats, in the order of the texts."""
    document = {"embeddings": [{"values": vector} for vector in vectors]}
    request = embed(["a"] * len(vectors), encoding_format="base64")
    answer = orjson.loads(gemini().answer(request, orjson.dumps(document), document))
    assert [item["index"] for item in answer["data"]] == list(range(len(vectors)))
    packed = [base64.b64decode(item["embedding"]) for item in answer["data"]]
    assert [list(struct.unpack(f"<{len(data) // 4}f", data)) for data in packed] == vectors


@pytest.mark.parametrize("given", [None, 3, "", [], [1, 2], [[1, 2]], ["a", 1]])
def test_input_that_cannot_be_embedded_is_refused(given: Any) -> None:
    """Token numbers and nothing at all; an empty text is Google's to judge."""
    if given == "":
        assert prepare(gemini(), embed(given)).body
        return
    with pytest.raises(BadRequest) as caught:
        prepare(gemini(), embed(given))
    assert caught.value.param == "input"


def test_a_large_batch_goes_in_parts() -> None:
    """Google takes a hundred texts in a call."""
    parts = gemini().split(embed([str(number) for number in range(201)]))
    assert [len(part.document["input"]) for part in parts] == [100, 100, 1]


@pytest.mark.parametrize("dimensions", [0, "8", 1.5, True])
def test_dimensions_that_are_none_are_refused(dimensions: Any) -> None:
    """A length is a positive integer."""
    with pytest.raises(BadRequest) as caught:
        prepare(gemini(), embed("a", dimensions=dimensions))
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"embeddings": None},
        {"embeddings": []},
        {"embeddings": [{}]},
        {"embeddings": [{"values": ["a"]}]},
        {"embeddings": [{"values": [1]}, {"values": [2]}]},
        {"predictions": [None]},
    ],
)
def test_an_answer_without_an_embedding_for_each_text_is_broken(document: dict[str, Any]) -> None:
    """Never fewer or more than were asked for."""
    with pytest.raises(UpstreamBroken):
        embedded(embed("a"), document)


def test_an_embedding_too_large_for_its_format_is_broken() -> None:
    """1e300 is no 32-bit float."""
    with pytest.raises(UpstreamBroken):
        embedded(embed("a", encoding_format="base64"), {"embeddings": [{"values": [1e300]}]})


# Over real sockets


async def exchanged(upstream: ScriptedUpstream, request: Request) -> tuple[Attempt, Answer, bytes]:
    """One attempt at the provider behind `upstream`: what became of it, its answer, and the whole answer's bytes."""
    transport = HTTPTransport()
    try:
        provider = gemini(base_url=f"{upstream.origin}/v1beta")
        exchange = make_exchange()
        exchange.request = request
        attempts = Attempts({("gemini", None): provider}, transport, Timeouts(), SystemClock())
        attempt = attempts.begin(exchange, exchange.request, Target("gemini", request.model))
        answer = await attempts.answer(exchange, attempt)
        pieces = [answer.body]
        while answer.stream is not None and (piece := await answer.stream.read()):
            pieces.append(piece)
        return attempt, answer, b"".join(pieces)
    finally:
        await transport.close()


WHOLE = response(
    candidates=[candidate({"text": "Hello"})], usage_metadata={"prompt_token_count": 3, "candidates_token_count": 2}
)


async def test_a_whole_answer_travels() -> None:
    """From an OpenAI request to Google's bytes and back."""
    async with ScriptedUpstream([json_reply(WHOLE)]) as upstream:
        attempt, _, body = await exchanged(upstream, ask(temperature=0.5))
    [sent] = upstream.requests
    assert sent.target == "/v1beta/models/gemini-2.5-flash:generateContent"
    assert sent.document == {
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        "generationConfig": {"temperature": 0.5},
    }
    assert ChatCompletion.model_validate_json(body).choices[0].message.content == "Hello"
    assert attempt.usage == Usage(uncached_input_tokens=3, text_output_tokens=2)
    assert attempt.finish_reasons == ("stop",)


async def test_a_stream_travels() -> None:
    """Google's events become OpenAI's, and the gateway has seen usage and finish reason."""
    pieces = [sse(response(candidates=[candidate({"text": "Hel"}, finish=None)])), sse(WHOLE)]
    async with ScriptedUpstream([events(*pieces)]) as upstream:
        attempt, _, body = await exchanged(upstream, ask(stream=True, stream_options={"include_usage": True}))
    assert upstream.requests[0].query == {"alt": "sse"}
    assert body.endswith(b"data: [DONE]\n\n")
    assert body.count(b'"usage"') == 1
    assert isinstance(attempt.progress, StreamFacts)
    assert attempt.progress.finish_reasons == ("stop",)


async def test_an_error_before_content_is_an_attempts_error() -> None:
    """An error event at the start of a stream lets another target try."""
    error = {"error": {"code": 429, "message": "Try again in 3s.", "status": "RESOURCE_EXHAUSTED"}}
    async with ScriptedUpstream([events(sse(error))]) as upstream:
        with pytest.raises(UpstreamError) as caught:
            await exchanged(upstream, ask(stream=True))
    assert (caught.value.failure, caught.value.retry_after_seconds) == (Failure.RATE_LIMIT, 3)


async def test_trap_24_a_stream_that_just_ends_is_a_cut() -> None:
    """The client gets an error after the content it has seen."""
    piece = sse(response(candidates=[candidate({"text": "Hel"}, finish=None)]))
    async with ScriptedUpstream([events(piece)]) as upstream:
        with pytest.raises(UpstreamCut):
            await exchanged(upstream, ask(stream=True))


async def test_embeddings_travel() -> None:
    """From an OpenAI request to a batch and back; without usage none is made up."""
    async with ScriptedUpstream([json_reply({"embeddings": [{"values": [1, 2]}]})]) as upstream:
        attempt, _, body = await exchanged(upstream, embed("a"))
    assert [item.embedding for item in CreateEmbeddingResponse.model_validate_json(body).data] == [[1, 2]]
    assert attempt.usage is None


def test_client_headers_are_looked_up_without_regard_to_case() -> None:
    """`User-Agent` is `user-agent`."""
    target = Target("gemini", "gemini-2.5-flash")
    prepared = gemini().prepare(ask(), target, CIMultiDict({"User-Agent": "sdk"}))
    assert header(prepared, "user-agent") == "sdk"
