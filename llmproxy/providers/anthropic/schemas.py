"""JSON schemas in the subset that Claude holds its answers to."""

from __future__ import annotations

from typing import Any, Final

import orjson

from llmproxy.request import Document

# A schema's values are whatever the client wrote.
Schema = dict[str, Any]

_KEPT: Final = frozenset(
    {
        *("type", "properties", "required", "additionalProperties", "items", "anyOf", "allOf", "enum", "const"),
        *("$ref", "$defs", "definitions", "description", "title", "default"),
    }
)
_IGNORED: Final = frozenset({"$schema", "$id", "$comment", "examples"})
_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)
_MAX_DEPTH: Final = 100


class _OpenSchema(Exception):
    """The schema allows what cannot be enforced."""


def closed_schema(schema: Document) -> Document | None:
    """The schema with every object closed; None when it refers to itself or has objects with free keys.

    Limits that cannot be enforced, such as `minimum`, are told to the model in the description.
    """
    try:
        _check_references(schema, schema, {}, 0)
        closed: Document = _closed(schema, 0)
    except _OpenSchema:
        return None
    return closed


def _closed(schema: Any, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        raise _OpenSchema
    schema = {("anyOf" if name == "oneOf" else name): value for name, value in schema.items() if name not in _IGNORED}
    told = {name: schema[name] for name in schema if not _is_enforced(name, schema[name])}
    closed: Schema = {name: _member(name, value, depth) for name, value in schema.items() if name not in told}
    if told:
        words = "{" + ", ".join(f"{name}: {orjson.dumps(value).decode()}" for name, value in told.items()) + "}"
        closed["description"] = "\n\n".join([*filter(None, [closed.get("description")]), words])
    return _with_closed_keys(closed)


def _is_enforced(name: str, value: object) -> bool:
    if name == "format":
        return isinstance(value, str) and value in _FORMATS
    return name in _KEPT or (name == "minItems" and value in (0, 1))


def _member(name: str, value: Any, depth: int) -> Any:
    if name in ("properties", "$defs", "definitions") and isinstance(value, dict):
        return {key: _closed(inner, depth + 1) for key, inner in value.items()}
    if name in ("anyOf", "allOf") and isinstance(value, list):
        return [_closed(inner, depth + 1) for inner in value]
    return _closed(value, depth + 1) if name == "items" else value


def _with_closed_keys(schema: Schema) -> Schema:
    kind = schema.get("type")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind) and "properties" not in schema:
        return schema
    others = schema.get("additionalProperties")
    if isinstance(others, dict) or (others is not False and not schema.get("properties")):
        raise _OpenSchema
    return {**schema, "additionalProperties": False}


def _check_references(node: Any, root: Schema, state: dict[str, bool], depth: int) -> None:
    """Follow every reference once; `state` is True for those that are being followed."""
    if depth > _MAX_DEPTH:
        raise _OpenSchema
    if isinstance(node, list):
        for inner in node:
            _check_references(inner, root, state, depth + 1)
    elif isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            _follow(node["$ref"], root, state, depth)
        for inner in node.values():
            _check_references(inner, root, state, depth + 1)


def _follow(reference: str, root: Schema, state: dict[str, bool], depth: int) -> None:
    if state.get(reference) or reference == "#":
        raise _OpenSchema
    if reference in state:
        return
    state[reference] = True
    _check_references(_resolved(reference, root), root, state, depth + 1)
    state[reference] = False


def _resolved(reference: str, root: Schema) -> Any:
    node: Any = root
    if not reference.startswith("#/"):
        raise _OpenSchema
    for step in reference[2:].split("/"):
        node = node.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise _OpenSchema
    return node
