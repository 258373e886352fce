"""A value that fits a JSON schema, always the same for the same schema; for the demo provider."""

from __future__ import annotations

from typing import Any, Final

# A JSON schema as a client wrote it, true or false included; nothing about it can be relied on.
Schema = Any

_MAX_DEPTH: Final = 20
_MAX_VALUES: Final = 1000
_MAX_ITEMS: Final = 10
_MAX_LENGTH: Final = 1000
_MAX_INTEGER: Final = 2**64 - 1
_FORMATS: Final = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def example_of(schema: Schema) -> object:
    """A value that fits `schema`, as far as types, required members, choices and bounds go.

    A schema that refers to itself without end gets null where it becomes too deep or too large.
    """
    return _Example(schema).value(schema, 0)


class _Example:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._values_left = _MAX_VALUES

    def value(self, schema: Schema, depth: int) -> object:
        self._values_left -= 1
        if depth > _MAX_DEPTH or self._values_left < 0:
            return None
        if not isinstance(schema, dict):
            return "text"
        for given in ("const", "default"):
            if given in schema:
                return schema[given]
        for choices in ("enum", "examples"):
            if _is_filled(schema.get(choices)):
                return schema[choices][0]
        inner = self._inner(schema)
        return self._typed(schema, depth) if inner is None else self.value(inner, depth + 1)

    def _inner(self, schema: dict[str, Any]) -> Schema:
        """The schema that this one only points to, None when it stands for itself."""
        if isinstance(schema.get("$ref"), str):
            return self._referred(schema["$ref"])
        for alternatives in ("anyOf", "oneOf", "allOf"):
            if _is_filled(schema.get(alternatives)):
                return schema[alternatives][0]
        return None

    def _referred(self, reference: str) -> Schema:
        found = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            found = found.get(step) if isinstance(found, dict) else None
        return True if found is None else found

    def _typed(self, schema: dict[str, Any], depth: int) -> object:
        kind = schema.get("type")
        match kind[0] if _is_filled(kind) and isinstance(kind, list) else kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "integer" | "number":
                return _number(schema)
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return self._object(schema, depth) if "properties" in schema else _text(schema)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, object]:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return {}
        required = schema.get("required")
        names = required if isinstance(required, list) and required else list(properties)
        return {name: self.value(properties.get(name), depth + 1) for name in names if isinstance(name, str)}

    def _array(self, schema: dict[str, Any], depth: int) -> list[object]:
        at_most = _integer(schema, "maxItems", _MAX_ITEMS)
        count = min(max(1, _integer(schema, "minItems", 1)), at_most, _MAX_ITEMS)
        return [self.value(schema.get("items"), depth + 1) for _ in range(count)]


def _is_filled(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _integer(schema: dict[str, Any], name: str, default: int) -> int:
    value = schema.get(name)
    return value if isinstance(value, int) and value >= 0 else default


def _number(schema: dict[str, Any]) -> int | float:
    value: int | float = 1
    if isinstance(least := schema.get("minimum"), int | float):
        value = max(value, least)
    if isinstance(under := schema.get("exclusiveMinimum"), int | float):
        # JSON as it is written has no integer beyond 64 bits.
        value = max(value, under + 1 if under < _MAX_INTEGER else float(under + 1))
    if isinstance(most := schema.get("maximum"), int | float):
        value = min(value, most)
    return value


def _text(schema: dict[str, Any]) -> str:
    text = _FORMATS.get(str(schema.get("format")), "text")
    length = min(_integer(schema, "minLength", 0), _MAX_LENGTH)
    return text.ljust(length, "-")[: _integer(schema, "maxLength", _MAX_LENGTH)]
