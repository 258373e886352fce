"""Where texts stand in requests and answers: everywhere, except in the members that say what is what.

Every string is a text, and so is every key that is not the protocol's. What is left alone is listed here.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Final

import orjson

from llmproxy.api import BadRequest, Document, Refused
from llmproxy_plugins.redaction.config import Uninspectable
from llmproxy_plugins.redaction.vault import Form

# Where a text stands: keys, and places in lists.
Path = tuple[str | int, ...]
Visit = Callable[[str, Form, Path], str]
# A decoded JSON value.
Value = Any

_MAX_DEPTH: Final = 200
# Ends the path of a text that is itself a key.
_KEY: Final = -1


class Within(Enum):
    """Whose words the keys of an object are."""

    PROTOCOL = 1
    MEDIUM = 2
    CLIENT = 3


# What they say is the gateway's, the vendor's or the protocol's, and another value would break the request.
STRUCTURAL: Final = frozenset(
    {
        *("model", "models", "fallbacks", "role", "type", "object", "id", "tool_call_id", "call_id", "file_id"),
        *("service_tier", "reasoning_effort", "verbosity", "encoding_format", "modalities", "tool_choice", "mode"),
        *("signature", "thought_signature", "encrypted_content", "finish_reason", "system_fingerprint", "logprobs"),
    }
)
# The client's own words throughout, whatever their keys are called.
_CLIENTS_OWN: Final = frozenset({"metadata"})
# Keys that can only be the protocol's; any other may be a client's, such as a property in a tool's schema.
_PROTOCOL_KEYS: Final = STRUCTURAL | {
    *("content", "text", "name", "function", "arguments", "tool_calls", "function_call", "description", "parameters"),
    *("properties", "required", "additionalProperties", "items", "enum", "const", "default", "anyOf", "strict"),
    *("schema", "json_schema", "refusal", "reasoning", "reasoning_content", "cache_control", "detail", "filename"),
    *("image_url", "input_audio", "audio", "file", "url", "data", "format", "file_data", "index", "delta", "message"),
}

# Constant from turn to turn, so numbered before the conversation, which the vendor puts behind them as well.
_BEFORE_THE_CONVERSATION: Final = ("tools", "functions", "response_format", "instructions", "system")
_CONVERSATION: Final = ("messages", "prompt", "input")
_TOKEN_INPUTS: Final = ("prompt", "input")

# Members that hold an image, a recording or a file, or say where it is.
_PAYLOADS: Final = frozenset({"url", "data", "file_data", "image_url", "video_url", "file_url", "b64_json"})
_MEDIA: Final = frozenset(
    {
        *("image", "image_url", "input_image", "video", "video_url", "input_video", "audio", "input_audio"),
        *("file", "input_file", "document"),
    }
)
_PAYLOAD: Final = re.compile(r"data:[^,]*,|https?://|gs://|s3://|[A-Za-z0-9+/=_\-\s]*\Z")


class Inspection:
    """One way through a document.

    Args:
        visit: Gets each text, and gives what to put there.
        uninspectable: What becomes of what has no texts in it.

    Attributes:
        uninspected: What was met of that kind.
    """

    def __init__(self, visit: Visit, uninspectable: Uninspectable = "pass") -> None:
        self._visit = visit
        self._uninspectable = uninspectable
        self.uninspected: dict[str, None] = {}

    def request(self, document: Document) -> Mapping[str, Value]:
        """The members of a request that change, by name.

        Raises Refused when something cannot be inspected and must be, BadRequest when it is nested too deep.
        """
        changed: dict[str, Value] = {}
        for name in _in_order(document):
            value = document[name]
            if not name.isidentifier() and self._visit(name, Form.TEXT, (name, _KEY)) != name:
                raise BadRequest("The name of a member of the request holds what may not pass; no vendor has such one.")
            if name in _TOKEN_INPUTS and _holds_tokens(value):
                self._meet_tokens(name)
            if (new := self.value(value, name)) is not value:
                changed[name] = new
        return changed

    def value(self, value: Value, key: str = "", path: Path = (), within: Within = Within.PROTOCOL) -> Value:
        """A value with its texts changed; the same object when none is."""
        if isinstance(value, str):
            if _is_left_alone(key, value, within):
                return value
            return self._visit(value, self._form_of(key, value, within), path)
        if not isinstance(value, dict | list):
            return value
        if len(path) > _MAX_DEPTH:
            raise BadRequest(f"The request is nested too deep to be inspected; keep it within {_MAX_DEPTH} levels.")
        return (
            self._list(value, key, path, within) if isinstance(value, list) else self._object(value, key, path, within)
        )

    def _list(self, items: list[Value], key: str, path: Path, within: Within) -> list[Value]:
        new = [
            # Of numbers there may be thousands.
            item if isinstance(item, float | int) else self.value(item, key, (*path, _place(item, place)), within)
            for place, item in enumerate(items)
        ]
        return items if all(map(operator.is_, items, new)) else new

    def _object(self, members: Document, key: str, path: Path, within: Within) -> Document:
        if within is not Within.CLIENT:
            if kind := _medium(members):
                if self._uninspectable != "pass":
                    return self._without(kind)
                self.uninspected[kind] = None
            within = Within.CLIENT if key in _CLIENTS_OWN else Within.MEDIUM if kind or key in _MEDIA else within
        new = {}
        is_changed = False
        for name, value in members.items():
            new_name = name if name in _PROTOCOL_KEYS else self._visit(name, Form.TEXT, (*path, name, _KEY))
            new[new_name] = self.value(value, name, (*path, name), within)
            is_changed = is_changed or new_name is not name or new[new_name] is not value
        return new if is_changed else members

    def _without(self, kind: str) -> Document:
        if self._uninspectable == "refuse":
            raise _refused(kind)
        self.uninspected[kind] = None
        return {"type": "text", "text": f"[{kind} removed]"}

    def _meet_tokens(self, name: str) -> None:
        # With its tokens removed nothing would be left of the request.
        if self._uninspectable != "pass":
            raise _refused(f"{name} of token ids")
        self.uninspected["token ids"] = None

    @staticmethod
    def _form_of(key: str, text: str, within: Within) -> Form:
        if key == "name" and within is Within.PROTOCOL:
            return Form.NAME
        # Escapes would hide what stands in JSON, and be torn by what is put there.
        return Form.JSON if (key == "arguments" or text[:1] in ("{", "[")) and _is_json(text) else Form.TEXT


def _is_left_alone(key: str, text: str, within: Within) -> bool:
    if within is Within.CLIENT:
        return False
    return key in STRUCTURAL or (within is Within.MEDIUM and key in _PAYLOADS and bool(_PAYLOAD.match(text)))


def _refused(kind: str) -> Refused:
    return Refused(
        f"This gateway lets nothing pass that it cannot inspect, such as the {kind} in this request; send text.",
        code="uninspectable",
    )


def _in_order(document: Document) -> Iterable[str]:
    first = [name for name in (*_BEFORE_THE_CONVERSATION, *_CONVERSATION) if name in document]
    return (*first, *(name for name in document if name not in first))


def _holds_tokens(value: Value) -> bool:
    return isinstance(value, list) and any(isinstance(item, int) or _holds_tokens(item) for item in value)


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _place(item: Value, place: int) -> int:
    """Parts of streamed lists say themselves where they belong."""
    index = item.get("index") if isinstance(item, dict) else None
    return index if isinstance(index, int) else place


def _medium(members: Document) -> str | None:
    """What kind of content it is that holds no text; None when it is text, or anything else."""
    kind = members.get("type")
    if not isinstance(kind, str) or kind not in _MEDIA:
        return None
    return kind.removeprefix("input_").removesuffix("_url")


# Reading members twice

_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def require_single_members(body: bytes, document: Document) -> None:
    """Raise BadRequest when an object in `body` names a member twice: only one of the two was inspected."""
    if _STRING.sub(b"", body).count(b":") != _member_count(document):
        raise BadRequest("The request names a member of an object twice, so it cannot be inspected; name each once.")


def _member_count(value: Value) -> int:
    waiting: list[Value] = [value]
    count = 0
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            count += len(each)
            waiting += [inner for inner in each.values() if isinstance(inner, dict | list)]
        elif isinstance(each, list):
            waiting += [inner for inner in each if isinstance(inner, dict | list)]
    return count
