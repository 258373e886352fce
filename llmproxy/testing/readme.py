"""What a plugin's README says about its configuration, made from its declaration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from llmproxy.config import Section


def configuration_table(model: type[Section]) -> str:
    """A Markdown table of every key with its default and meaning; keys of sections in a list are `limits[].scope`."""
    return "\n".join(("| Key | Default | Meaning |", "|---|---|---|", *_rows(model, "")))


def _rows(model: type[Section], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = prefix + name
        yield f"| `{key}` | {_default(field)} | {field.description or ''} |"
        for section, is_item in _sections(field.annotation):
            yield from _rows(section, f"{key}[]." if is_item else f"{key}.")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"`{json.dumps(to_jsonable_python(field.get_default(call_default_factory=True)), ensure_ascii=False)}`"


# An annotation can be anything that Python takes for one.
def _sections(annotation: Any, *, is_item: bool = False) -> Iterator[tuple[type[Section], bool]]:
    """The sections that a field may hold, and whether they are items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, is_item
    origin_is_list = getattr(annotation, "__origin__", None) in (tuple, list)
    for inner in get_args(annotation):
        yield from _sections(inner, is_item=is_item or origin_is_list)
