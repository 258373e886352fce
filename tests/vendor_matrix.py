"""The generated parts of `docs/providers.md`: `python -m tests.vendor_matrix` writes them anew.

What a vendor makes of a feature is not claimed but tried: one request with the feature and one without go through
the vendor's translation, and what comes out is compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from multidict import CIMultiDict
from pydantic.fields import FieldInfo

from llmproxy.config import ProviderConfig
from llmproxy.errors import BadRequest
from llmproxy.exchange import Target
from llmproxy.providers import Provider
from llmproxy.providers.builtin import every_kind
from llmproxy.providers.vendors import load_vendors
from llmproxy.request import Document, Operation, Request
from llmproxy.services import UpstreamRequest
from tests.providers import services

PAGE: Final = Path(__file__).parent.parent / "docs" / "providers.md"
WORKS, DROPPED, REFUSED, PASSED_ON, FETCHED = "works", "dropped", "refused", "passed on", "fetched"
IGNORED: Final = "ignored"
# These get the client's own bytes; what their models make of them is not the gateway's to say.
_PASSING: Final = {"openai", "azure"}

_KINDS: Final = {kind.kind: kind for kind in every_kind()}
_BLOCK: Final = re.compile(r"(<!-- made: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_USER: Final = {"role": "user", "content": "Hi"}
_SCHEMA: Final = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Final = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather somewhere.", "parameters": _SCHEMA},
}
_PNG: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
_PDF: Final = "data:application/pdf;base64,JVBERi0xLjQKJSVFT0YK"
_WAV: Final = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="
_CALLS: Final = [
    {"id": f"call_{city}0000", "type": "function", "function": {"name": "weather", "arguments": f'{{"city":"{city}"}}'}}
    for city in ("Oslo", "Rome")
]
_RESULTS: Final = [{"role": "tool", "tool_call_id": call["id"], "content": "rain"} for call in _CALLS]


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that a client may ask for.

    Attributes:
        members: What a request has for it.
        without: What a request has that differs in nothing else; both also have a model and a message.
    """

    name: str
    members: Document
    without: Document = field(default_factory=dict)
    operation: Operation = Operation.CHAT


@dataclass(frozen=True, slots=True)
class Column:
    """A vendor, and the model that is asked."""

    kind: str
    model: str
    section: Document = field(default_factory=dict)
    embedding_model: str | None = None
    note: str = ""

    @property
    def heading(self) -> str:
        """What stands above the outcomes."""
        return "<br>".join(filter(None, (self.kind, _code(self.model), self.note)))

    def provider(self) -> Provider:
        """The vendor, configured."""
        kind = _KINDS[self.kind]
        return kind(self.kind, kind.Config.model_validate({"api_key": "key", **self.section}), services())

    def request(self, operation: Operation, members: Document) -> Request:
        """The client's request."""
        model = (self.embedding_model if operation is Operation.EMBEDDINGS else None) or self.model
        document = orjson.loads(orjson.dumps({"model": model, **members}))
        return Request(operation, orjson.dumps(document), document)

    def prepare(self, request: Request) -> UpstreamRequest:
        """What the vendor is sent. Raises BadRequest."""
        return self.provider().prepare(request, Target(self.kind, request.model), CIMultiDict())


def _says(*parts: Document) -> Document:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look."}, *parts]}]}


def _chat(name: str, **members: Any) -> Feature:
    return Feature(name, {"messages": [_USER], **members}, {"messages": [_USER]})


def _tools(name: str, **members: Any) -> Feature:
    offered = {"messages": [_USER], "tools": [TOOL]}
    return Feature(name, {**offered, **members}, offered)


def _part(name: str, **part: Any) -> Feature:
    return Feature(name, _says(part), _says())


_JSON_SCHEMA: Final = {"type": "json_schema", "json_schema": {"name": "place", "schema": _SCHEMA, "strict": True}}
_TURN: Final = {"tools": [TOOL], "messages": [_USER, {"role": "assistant", "tool_calls": _CALLS}, *_RESULTS]}
_MARKED: Final = {"type": "text", "text": "Look.", "cache_control": {"type": "ephemeral"}}

FEATURES: Final[Sequence[Feature]] = (
    Feature("text", {"messages": [_USER]}, {"messages": [{"role": "user", "content": "Bye"}]}),
    Feature(
        "streaming",
        {"messages": [_USER], "max_tokens": 100, "stream": True},
        # Long answers of some vendors are streamed to the gateway anyway.
        {"messages": [_USER], "max_tokens": 100},
    ),
    _chat("system message", messages=[{"role": "system", "content": "Be brief."}, _USER]),
    _chat("tools", tools=[TOOL]),
    Feature("parallel calls and results", _TURN, {"tools": [TOOL], "messages": [_USER]}),
    _tools("one call at a time", parallel_tool_calls=False),
    _tools("forced tool", tool_choice={"type": "function", "function": {"name": "weather"}}),
    _chat("JSON schema", response_format=_JSON_SCHEMA),
    _chat("JSON object", response_format={"type": "json_object"}),
    _part("image in the request", type="image_url", image_url={"url": _PNG}),
    _part("image by URL", type="image_url", image_url={"url": "https://example.com/cat.png"}),
    _part("PDF", type="file", file={"file_data": _PDF, "filename": "a.pdf"}),
    _part("audio", type="input_audio", input_audio={"data": _WAV, "format": "wav"}),
    _chat("spoken answer", modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}),
    _chat("thinking (`reasoning_effort`)", reasoning_effort="high"),
    _chat("token limit", max_completion_tokens=77),
    _chat("temperature", temperature=0.25),
    _chat("stop", stop=["END"]),
    _chat("seed", seed=4711),
    _chat("log probabilities", logprobs=True, top_logprobs=2),
    _chat("several answers (`n`)", n=2),
    _chat("penalties", presence_penalty=0.5, frequency_penalty=0.5),
    _chat("logit bias", logit_bias={"50256": -100}),
    Feature("cache marks", {"messages": [{"role": "user", "content": [_MARKED]}]}, _says()),
    _chat("user", user="ann"),
    _chat("metadata", metadata={"team": "a"}),
    _chat("web search", web_search_options={}),
    Feature("embeddings", {"input": ["Hi"]}, {"input": ["Bye"]}, Operation.EMBEDDINGS),
    Feature("legacy completions", {"prompt": "Hi"}, {"prompt": "Bye"}, Operation.TEXT_COMPLETION),
)
COLUMNS: Final = (
    Column("openai", "gpt-4o"),
    Column("openai", "gpt-5.6-sol", {"responses": "always"}, note="through `/responses`"),
    Column("azure", "my-deployment", {"endpoint": "https://acme.openai.azure.com"}),
    Column("anthropic", "claude-sonnet-4-5"),
    Column("anthropic", "claude-opus-5-5"),
    Column("gemini", "gemini-2.5-flash", embedding_model="gemini-embedding-001"),
    Column("vertex", "gemini-2.5-flash", {"project": "acme"}, "gemini-embedding-001"),
    Column(
        "bedrock",
        "anthropic.claude-sonnet-4-5-20250929-v1:0",
        {"region": "eu-west-1"},
        "amazon.titan-embed-text-v2:0",
    ),
    Column("bedrock", "amazon.nova-pro-v1:0", {"region": "eu-west-1"}, "amazon.titan-embed-text-v2:0"),
    Column("mistral", "magistral-medium-latest", embedding_model="mistral-embed"),
    Column("cohere", "command-a-reasoning-08-2025", embedding_model="embed-v4.0"),
)


def outcome(column: Column, feature: Feature) -> str:
    """What the vendor's translation makes of a feature; `ignored` when it leaves it out without a word."""
    asked = column.request(feature.operation, feature.members)
    if column.provider().remote_images(asked):
        return FETCHED
    sent = asked.encode()
    try:
        without = column.prepare(column.request(feature.operation, feature.without))
        prepared = column.prepare(asked)
    except BadRequest:
        return REFUSED
    if prepared.dropped:
        return DROPPED
    if column.kind in _PASSING and prepared.body == sent:
        return PASSED_ON
    # Some vendors are asked for a stream by the address alone.
    return IGNORED if (without.url, without.body) == (prepared.url, prepared.body) else WORKS


def _features() -> Iterator[str]:
    yield _line("", *(column.heading for column in COLUMNS))
    yield _line(*("---" for _ in range(len(COLUMNS) + 1)))
    for feature in FEATURES:
        yield _line(feature.name, *(outcome(column, feature) for column in COLUMNS))


def _common_keys() -> Iterator[str]:
    return _key_table(ProviderConfig.model_fields)


def _keys(kind: str) -> Iterator[str]:
    """The keys that a section has beside those that all have, and those that mean something else."""
    fields = _KINDS[kind].Config.model_fields
    common = {name: each.description for name, each in ProviderConfig.model_fields.items()}
    own = {name: each for name, each in fields.items() if common.get(name, name) != each.description}
    return _key_table(own)


def _key_table(fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    yield _line("Key", "Default", "Meaning")
    yield _line("---", "---", "---")
    for name, each in fields.items():
        yield _line(_code(name), _default(each), each.description or "")


def _default(each: FieldInfo) -> str:
    value = None if each.default_factory else each.default
    return "" if value in (None, ()) else _code(str(value).lower() if isinstance(value, bool) else value)


def _compatible() -> Iterator[str]:
    yield _line("Kind", "Address", "Key variable", "Leaves out", "Refuses")
    yield _line(*("---" for _ in range(5)))
    for kind, row in load_vendors().items():
        left_out = (*row.dropped, *(f"messages[].{name}" for name in row.dropped_message_fields))
        left_out += tuple(f"tools[].function.{name}" for name in row.dropped_tool_fields)
        refused = (*row.refused, *(["n"] if row.single_choice else []), *([] if row.json_schema else ["json_schema"]))
        yield _line(_code(kind), _code(row.base_url), *map(_codes, (row.key_variables[:1], left_out, refused)))


def _codes(names: Sequence[str]) -> str:
    return ", ".join(map(_code, names))


def _code(text: object) -> str:
    return f"`{text}`"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


_BLOCKS: Final[Mapping[str, Callable[[], Iterator[str]]]] = {
    "features": _features,
    "keys of every section": _common_keys,
    "compatible vendors": _compatible,
}


def _made(name: str) -> str:
    kind = name.removeprefix("keys of ")
    lines = _keys(kind) if kind in _KINDS else _BLOCKS[name]()
    return "\n".join(lines) + "\n"


def render(page: str) -> str:
    """The page with its generated parts made anew."""
    return _BLOCK.sub(lambda block: block[1] + _made(block[2]) + block[3], page)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
