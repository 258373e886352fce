"""The vertex kind: addresses by project and location, and the formats of two makers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from llmproxy.errors import BadRequest, Failure, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers.vertex import Vertex, VertexConfig
from llmproxy.request import Operation, Request
from llmproxy.services import UpstreamRequest
from tests.anthropic_messages import judge as judge_claude
from tests.gemini import USER, candidate, chat, judge, response
from tests.providers import header, services

SONNET = "claude-sonnet-4-5@20250929"
OPUS = "claude-opus-4-8"


def vertex(**section: Any) -> Vertex:
    """A provider with a key, which needs no token."""
    return Vertex("vertex", VertexConfig.model_validate({"api_key": "key-1", **section}), services())


def prepare(model: str, headers: dict[str, str] | None = None, **section: Any) -> UpstreamRequest:
    """What a chat with a model sends."""
    asked = chat({"model": model, "messages": [USER], "max_tokens": 100})
    return vertex(**{"project": "acme", **section}).prepare(asked, Target("vertex", model), CIMultiDict(headers or {}))


def embed(model: str, *texts: str) -> Request:
    """An embeddings request."""
    document = {"model": model, "input": list(texts), "dimensions": 4}
    return Request(Operation.EMBEDDINGS, orjson.dumps(document), document)


@pytest.mark.parametrize(
    ("section", "host", "location"),
    [
        ({"region": "europe-west4"}, "europe-west4-aiplatform.googleapis.com", "europe-west4"),
        ({"region": "eu", "location": "europe-west1"}, "europe-west1-aiplatform.googleapis.com", "europe-west1"),
        ({}, "aiplatform.googleapis.com", "global"),
        ({"region": "global"}, "aiplatform.googleapis.com", "global"),
        ({"region": "eu"}, "aiplatform.eu.rep.googleapis.com", "eu"),
        ({"region": "us"}, "aiplatform.us.rep.googleapis.com", "us"),
    ],
)
def test_each_location_has_its_host(section: dict[str, Any], host: str, location: str) -> None:
    """Regions, multi-regions and the global endpoint; `location` names one where `region` is wider."""
    assert prepare("gemini-2.5-pro", **section).url == (
        f"https://{host}/v1/projects/acme/locations/{location}/publishers/google/models/gemini-2.5-pro:generateContent"
    )


def test_a_private_address_keeps_the_path() -> None:
    """`base_url` stands in place of the host and version."""
    url = prepare("gemini-2.5-pro", base_url="https://vertex.acme.internal/v1/", region="us").url
    assert url.startswith("https://vertex.acme.internal/v1/projects/acme/locations/us/publishers/google/")


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-pro", "google/models/gemini-2.5-pro:generateContent"),
        ("google/gemini-2.5-pro", "google/models/gemini-2.5-pro:generateContent"),
        (SONNET, f"anthropic/models/{SONNET}:rawPredict"),
        (f"anthropic/{SONNET}", f"anthropic/models/{SONNET}:rawPredict"),
        ("gemini a:b%2f?", "google/models/gemini%20a%3Ab%252f%3F:generateContent"),
        ("../x/gemini", "..%2Fx/models/gemini:generateContent"),
    ],
)
def test_trap_40_models_are_addressed_below_their_publisher(model: str, path: str) -> None:
    """The publisher is the one before the slash, or the one that the name tells; names are encoded once."""
    assert prepare(model).url.partition("/publishers/")[2] == path


def test_the_express_mode_has_no_project() -> None:
    """With a key alone the address names neither project nor location, and the key has its header."""
    prepared = prepare("gemini-2.5-pro", project=None)
    assert (
        prepared.url == "https://aiplatform.googleapis.com/v1/publishers/google/models/gemini-2.5-pro:generateContent"
    )
    assert header(prepared, "x-goog-api-key") == "key-1"
    assert header(prepared, "authorization") is None


def test_the_quota_may_be_another_projects() -> None:
    """`quota_project` travels as Google's header."""
    assert header(prepare("gemini-2.5-pro", quota_project="billing-1"), "x-goog-user-project") == "billing-1"


ACCOUNT = json.dumps({"type": "service_account", "project_id": "p"})


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"region": "Europe"}, "set location: 'Europe' is none"),
        ({"location": "a/b"}, "set location"),
        ({"project": "a/b"}, "match pattern"),
        ({"credentials_json": ACCOUNT}, "set one of api_key"),
        ({"api_key": None, "credentials_json": "{}"}, "credentials_json is not a service account's key"),
        ({"api_key": None, "credentials_json": "{secret"}, "credentials_json is not a service account's key"),
        ({"api_key": None, "credentials_file": "/nowhere/key.json"}, "cannot be read: No such file"),
        ({"quota_project": "a\r\nb"}, "match pattern"),
    ],
)
def test_a_section_that_cannot_work_is_refused(section: dict[str, Any], said: str) -> None:
    """A mistake is found when the configuration is read, and the error shows no secret."""
    with pytest.raises(ValidationError, match=said) as caught:
        VertexConfig.model_validate({"api_key": "key-1", **section})
    assert "{secret" not in caught.value.errors(include_input=False).__repr__()


def test_a_key_file_is_read_when_the_configuration_is(tmp_path: Path) -> None:
    """What is in the file is checked as what stands in the section."""
    file = tmp_path / "key.json"
    file.write_text("[]")
    with pytest.raises(ValidationError, match="credentials_file is not a service account's key"):
        VertexConfig.model_validate({"credentials_file": str(file)})


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without google-auth a section says what to install, unless it has an api_key."""
    monkeypatch.setattr("llmproxy.providers.vertex.is_installed", lambda: False)
    with pytest.raises(ValidationError, match=r"install llmproxy\[vertex\], or set api_key"):
        VertexConfig.model_validate({"project": "acme"})
    assert prepare("gemini-2.5-pro").url


# Gemini


def test_gemini_bodies_are_googles() -> None:
    """The body is that of the Gemini API, without a model in it."""
    body = orjson.loads(prepare("gemini-2.5-pro").body)
    judge(body)
    assert body.keys() == {"contents", "generationConfig"}


def test_trap_8_signatures_say_that_they_are_vertexs() -> None:
    """After a fallback to the Gemini API they can be told from its own."""
    document = response(candidates=[candidate({"function_call": {"name": "f"}, "thought_signature": b"s"})])
    asked = chat({"model": "gemini-3-pro-preview", "messages": [USER]})
    answer = orjson.loads(vertex().answer(asked, orjson.dumps(document), document))
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["extra_content"]["google"]["issuer"] == "vertex"


def test_embeddings_of_gemini_models_are_a_batch() -> None:
    """Vertex AI's batch names no model and has its settings in a config."""
    prepared = vertex(project="acme").prepare(
        embed("gemini-embedding-2", "a", "b"), Target("vertex", "gemini-embedding-2"), CIMultiDict()
    )
    assert prepared.url.endswith("/models/gemini-embedding-2:batchEmbedContents")
    config = {"outputDimensionality": 4}
    assert orjson.loads(prepared.body) == {
        "requests": [{"content": {"parts": [{"text": text}]}, "embedContentConfig": config} for text in ("a", "b")]
    }


def test_embeddings_of_older_models_are_predictions() -> None:
    """Older models have `predict`, whose answer counts the tokens of each text."""
    asked = embed("text-embedding-005", "a", "b")
    prepared = vertex(project="acme").prepare(asked, Target("vertex", "text-embedding-005"), CIMultiDict())
    assert prepared.url.endswith("/models/text-embedding-005:predict")
    assert orjson.loads(prepared.body) == {
        "instances": [{"content": "a"}, {"content": "b"}],
        "parameters": {"outputDimensionality": 4},
    }
    predictions = [{"embeddings": {"values": [n], "statistics": {"token_count": 2.0}}} for n in (1.0, 2.0)]
    document: dict[str, Any] = {"predictions": predictions}
    answer = CreateEmbeddingResponse.model_validate_json(vertex().answer(asked, b"", document))
    assert [item.embedding for item in answer.data] == [[1.0], [2.0]]
    assert answer.usage.prompt_tokens == 4


# Claude


@pytest.mark.parametrize(("model", "version"), [(SONNET, "vertex-2023-10-16"), (OPUS, None)])
def test_claudes_body_has_a_version_and_no_model(model: str, version: str | None) -> None:
    """The Messages format, with the version in the body: Vertex AI's own word for the older one."""
    body = orjson.loads(prepare(model).body)
    stated = body.pop("anthropic_version")
    assert stated in ({version} if version else {"vertex-2023-10-16", "2026-10-21"})
    assert "model" not in body
    judge_claude({**body, "model": model})
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


def test_trap_12_claudes_betas_are_merged() -> None:
    """What the client and the section ask for travels in one header, each once."""
    prepared = prepare(SONNET, {"anthropic-beta": "a, b"}, betas=["b", "c"])
    assert header(prepared, "anthropic-beta") == "a,b,c"
    assert header(prepare("gemini-2.5-pro", {"anthropic-beta": "a"}), "anthropic-beta") is None


def test_claudes_stream_has_a_method_of_its_own() -> None:
    """A streamed request says so in its address and in its body."""
    asked = chat({"model": SONNET, "messages": [USER], "stream": True})
    prepared = vertex(project="acme").prepare(asked, Target("vertex", SONNET), CIMultiDict())
    assert prepared.url.endswith(f"{SONNET}:streamRawPredict")
    assert orjson.loads(prepared.body)["stream"] is True
    assert header(prepared, "accept") == "text/event-stream"


def test_a_long_answer_of_claude_is_asked_for_as_a_stream() -> None:
    """Also when the client did not: nothing else would keep the connection open for so long."""
    asked = chat({"model": SONNET, "messages": [USER], "max_tokens": 60000})
    prepared = vertex(project="acme").prepare(asked, Target("vertex", SONNET), CIMultiDict())
    assert prepared.url.endswith(":streamRawPredict")
    assert header(prepared, "accept") == "text/event-stream"


def message_events(text: str) -> bytes:
    """Claude's stream of one text."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg_1", "model": SONNET, "usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    return b"".join(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events)


def test_claudes_answers_are_translated() -> None:
    """Whole and streamed, by the same code as at Anthropic."""
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": SONNET,
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    asked = chat({"model": f"anthropic/{SONNET}", "messages": [USER]})
    answer = ChatCompletion.model_validate_json(vertex().answer(asked, orjson.dumps(message), message))
    assert answer.choices[0].message.content == "Hello"
    decoder = vertex().stream_decoder(asked)
    streamed = b"".join([*decoder.feed(message_events("Hello")), *decoder.finish()])
    assert b'"content":"Hello"' in streamed
    assert streamed.endswith(b"data: [DONE]\n\n")


def test_claude_makes_no_embeddings() -> None:
    """What the model cannot do is refused before anything is sent."""
    with pytest.raises(BadRequest, match="does not offer embeddings"):
        vertex(project="acme").prepare(embed(SONNET, "a"), Target("vertex", SONNET), CIMultiDict())


@pytest.mark.parametrize(
    ("status", "document", "failure"),
    [
        (429, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Slow."}}, Failure.RATE_LIMIT),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Busy."}}, Failure.OVERLOADED),
        (404, [{"error": {"code": 404, "status": "NOT_FOUND", "message": "No."}}], Failure.MODEL),
    ],
)
def test_errors_of_both_makers_are_classified(status: int, document: Any, failure: Failure) -> None:
    """Google's and Anthropic's shapes, each with its own word for the error."""
    error = vertex().error(status, {}, orjson.dumps(document))
    assert error.failure is failure
    words = {Failure.RATE_LIMIT: "RESOURCE_EXHAUSTED", Failure.OVERLOADED: "overloaded_error"}
    assert getattr(error, "native_type", None) == words.get(failure, "NOT_FOUND")


def test_without_a_token_nothing_is_sent() -> None:
    """Before the first token is there, requests fail with an error that another target can make good."""
    provider = Vertex("vertex", VertexConfig.model_validate({"project": "acme"}), services())
    with pytest.raises(UpstreamError) as caught:
        provider.prepare(chat({"model": SONNET, "messages": [USER]}), Target("vertex", SONNET), CIMultiDict())
    assert (caught.value.failure, caught.value.error_code) == (Failure.AUTH, "upstream_auth_error")
