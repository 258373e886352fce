"""What tests of Bedrock share: providers to ask, frames as Bedrock sends them, and botocore as the judge of both."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Mapping
from functools import cache
from typing import Any, cast
from urllib.parse import quote
from zlib import crc32

import orjson
from botocore.model import ListShape, ServiceModel, Shape, StructureShape
from botocore.session import Session
from botocore.validate import ParamValidator
from multidict import CIMultiDict
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llmproxy.exchange import Target
from llmproxy.providers.bedrock import Bedrock
from llmproxy.providers.bedrock.config import BedrockConfig
from llmproxy.request import Document, Operation, Request
from llmproxy.services import UpstreamRequest
from llmproxy.sse import SSEDecoder, event_data
from llmproxy.testing import Clock
from tests.providers import request, services
from tests.vendor_streams import decoded

CLAUDE_3 = "anthropic.claude-3-5-sonnet-20241022-v2:0"
CLAUDE_4 = "us.anthropic.claude-sonnet-4-20250514-v1:0"
CLAUDE_4_5 = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
CLAUDE_4_6 = "global.anthropic.claude-opus-4-6-v1:0"
CLAUDE_5_5 = "global.anthropic.claude-opus-5-5"
NOVA = "amazon.nova-pro-v1:0"
LLAMA = "meta.llama3-3-70b-instruct-v1:0"
GPT_OSS = "openai.gpt-oss-120b-1:0"
QWEN = "qwen.qwen3-32b-v1:0"
TITAN = "amazon.titan-embed-text-v2:0"
COHERE = "cohere.embed-multilingual-v3"
ARN = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0"
KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@cache
def service_model() -> ServiceModel:
    """Bedrock as botocore describes it."""
    return Session().get_service_model("bedrock-runtime")


def judge(document: Document, shape: Shape) -> None:
    """Assert that a document, as JSON holds it, is of a shape."""
    report = ParamValidator().validate(_with_blobs(document, shape), shape)
    assert not report.has_errors(), report.generate_report()


# A document's values are whatever JSON can hold.
def _with_blobs(value: Any, shape: Shape) -> Any:
    """The same with bytes where JSON has base64."""
    if shape.type_name == "blob":
        return base64.b64decode(value, validate=True)
    if isinstance(value, dict) and isinstance(shape, StructureShape) and not shape.is_document_type:
        members = shape.members
        return {name: _with_blobs(each, members[name]) if name in members else each for name, each in value.items()}
    if isinstance(value, list) and isinstance(shape, ListShape):
        return [_with_blobs(each, shape.member) for each in value]
    return value


def bedrock(**section: Any) -> Bedrock:
    """A configured region."""
    settings = {"region": "eu-west-1", "api_key": "bedrock-key", **section}
    return Bedrock("bedrock", BedrockConfig.model_validate(settings), services(Clock()))


def asked(model: str, *messages: Document, operation: Operation = Operation.CHAT, **members: Any) -> Request:
    """A client's request, addressed to a model."""
    talk = list(messages) or [{"role": "user", "content": "Hi"}]
    chat = {} if operation is Operation.EMBEDDINGS else {"messages": talk}
    return request({"model": model, **chat, **members}, operation)


def prepare(model: str, *messages: Document, **members: Any) -> UpstreamRequest:
    """What Bedrock would be sent; `drop_params` goes to the section."""
    provider = bedrock(drop_params=members.pop("drop_params", False))
    return provider.prepare(asked(model, *messages, **members), Target("bedrock", model), CIMultiDict())


def converse(model: str, *messages: Document, **members: Any) -> Document:
    """The body of a chat request, which botocore has found right."""
    body: Document = orjson.loads(prepare(model, *messages, **members).body)
    shape = service_model().operation_model("Converse").input_shape
    assert shape is not None
    judge({"modelId": model, **body}, shape)
    return body


def answered(response: Document, model: str = CLAUDE_4_5, **members: Any) -> ChatCompletion:
    """An answer that botocore has found right, as the OpenAI SDK sees its translation."""
    full = {"usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}, "metrics": {"latencyMs": 1}, **response}
    shape = service_model().operation_model("Converse").output_shape
    assert shape is not None
    judge(full, shape)
    return ChatCompletion.model_validate_json(bedrock().answer(asked(model, **members), orjson.dumps(full), full))


# Messages


def user(content: Any = "Hi") -> Document:
    """What a user says."""
    return {"role": "user", "content": content}


def tool(name: str = "weather", **members: Any) -> Document:
    """A function to offer."""
    return {"type": "function", "function": {"name": name, "description": "Tells.", "parameters": SCHEMA, **members}}


def calls(*ids: str, content: str | None = None, arguments: str = '{"city":"Oslo"}', **members: Any) -> Document:
    """A turn of the assistant that calls a function once for each id."""
    made = [{"id": each, "type": "function", "function": {"name": "weather", "arguments": arguments}} for each in ids]
    return {"role": "assistant", "content": content, "tool_calls": made, **members}


def result(call_id: str, content: Any = "rain") -> Document:
    """What a call gave."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def contents(model: str, *messages: Document, **members: Any) -> list[tuple[str, list[Document]]]:
    """The turns as they would be sent: role and blocks."""
    return [(turn["role"], turn["content"]) for turn in converse(model, *messages, **members)["messages"]]


# Answers


def says(*blocks: Document, stop_reason: str = "end_turn", **members: Any) -> Document:
    """An answer with these blocks."""
    return {"output": {"message": {"role": "assistant", "content": list(blocks)}}, "stopReason": stop_reason, **members}


# Streams


def frame(payload: bytes, **headers: str) -> bytes:
    """A frame; underscores in the names of its headers stand for hyphens, and each begins with a colon."""
    block = b"".join(
        bytes([len(name) + 1])
        + b":"
        + name.replace("_", "-").encode()
        + b"\x07"
        + struct.pack("!H", len(value))
        + value
        for name, value in ((name, text.encode()) for name, text in headers.items())
    )
    prelude = struct.pack("!II", 16 + len(block) + len(payload), len(block))
    message = prelude + struct.pack("!I", crc32(prelude)) + block + payload
    return message + struct.pack("!I", crc32(message))


def event(kind: str, document: Document) -> bytes:
    """An event that botocore has found right."""
    operation = service_model().operation_model("ConverseStream")
    stream = cast("StructureShape", cast("StructureShape", operation.output_shape).members["stream"])
    judge(document, stream.members[kind])
    # Padding of a random length hides how long the text is.
    padded = {**document, "p": "abcdefghijklm"}
    return frame(orjson.dumps(padded), message_type="event", event_type=kind, content_type="application/json")


def exception(kind: str, message: str = "Something went wrong.") -> bytes:
    """An exception in the middle of a stream."""
    return frame(orjson.dumps({"message": message}), message_type="exception", exception_type=kind)


def delta(index: int, **members: Any) -> bytes:
    """A piece of a block."""
    return event("contentBlockDelta", {"contentBlockIndex": index, "delta": members})


def start(index: int, **members: Any) -> bytes:
    """The start of a block."""
    return event("contentBlockStart", {"contentBlockIndex": index, "start": members})


def stop(index: int) -> bytes:
    """The end of a block."""
    return event("contentBlockStop", {"contentBlockIndex": index})


def role() -> bytes:
    """The start of an answer."""
    return event("messageStart", {"role": "assistant"})


def ending(stop_reason: str = "end_turn", **usage: Any) -> bytes:
    """The end of an answer, and its usage."""
    counted = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15, **usage}
    metadata = event("metadata", {"usage": counted, "metrics": {"latencyMs": 7}})
    return event("messageStop", {"stopReason": stop_reason}) + metadata


def streamed(*pieces: bytes, model: str = CLAUDE_4_5, **members: Any) -> bytes:
    """The OpenAI events of a whole stream that comes in these pieces."""
    return decoded(bedrock().stream_decoder(asked(model, stream=True, **members)), pieces)


def deltas(events: bytes) -> list[Document]:
    """What each chunk adds, as the OpenAI SDK sees it: those that add nothing left out."""
    data = (event_data(each) or b"" for each in SSEDecoder(1 << 24).feed(events))
    chunks = [ChatCompletionChunk.model_validate_json(each) for each in data if not each.startswith(b"[DONE]")]
    found = (chunk.choices[0].delta.to_dict() for chunk in chunks if chunk.choices)
    return [delta for delta in found if delta]


# Signatures


def signature(fields: Mapping[str, str], body: bytes, path: str, host: str) -> str:
    """The signature of a request with these headers, as AWS's documentation has it computed."""
    authorization = fields["authorization"]
    scope = authorization.partition("Credential=")[2].partition(",")[0].split("/")[1:]
    names = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    values = {"host": host, **{name: fields[name] for name in names if name != "host"}}
    canonical = "\n".join(
        [
            *("POST", quote(path, safe="/~"), ""),
            *(f"{name}:{values[name]}" for name in names),
            *("", ";".join(names), hashlib.sha256(body).hexdigest()),
        ]
    )
    to_sign = "\n".join(
        [
            *("AWS4-HMAC-SHA256", fields["x-amz-date"], "/".join(scope)),
            hashlib.sha256(canonical.encode()).hexdigest(),
        ]
    )
    key = f"AWS4{KEYS['secret_access_key']}".encode()
    for each in scope:
        key = hmac.digest(key, each.encode(), "sha256")
    return hmac.new(key, to_sign.encode(), "sha256").hexdigest()
