"""What a model's types say about a section, and what its mistakes are called in plain sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Final, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic_core import ErrorDetails

from llmproxy.yaml_reader import KeyPath


def alternatives(annotation: object) -> Iterator[object]:
    """The types a value may have, unions and Annotated undone."""
    annotation = getattr(annotation, "__value__", annotation)  # a `type X = ...` alias
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for branch in get_args(annotation):
            yield from alternatives(branch)
    else:
        yield annotation


def fields(annotation: object) -> dict[str, object]:
    """The annotations of the keys a section may have."""
    models = (kind for kind in alternatives(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel))
    return {
        field.validation_alias if isinstance(field.validation_alias, str) else name: field.annotation
        for model in models
        for name, field in model.model_fields.items()
    }


def below(annotation: object) -> Callable[[str | int], object]:
    """Gives the annotations one step down, `object` where nothing is known."""
    if named := fields(annotation):
        return lambda step: named.get(str(step), object)
    arguments = [a for kind in alternatives(annotation) for a in get_args(kind) if a is not ...]
    return lambda _step: arguments[-1] if arguments else object


def secrets(annotation: object, value: object) -> Iterator[str]:
    """The texts under `value` that stand where a secret belongs."""
    if isinstance(value, dict | list):
        inner = below(annotation)
        for step, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from secrets(inner(step), each)
    elif SecretStr in alternatives(annotation):
        yield str(value)


# What mistakes say

_WANTED: Final[Mapping[str, str]] = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "model": "a section of keys",
    "dict": "a section of keys",
    "mapping": "a section of keys",
}
_FOUND: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
}


def sentence(error: ErrorDetails) -> str:
    """An error in plain words; values are never quoted, for they may be secret."""
    wanted, _, problem = error["type"].partition("_")
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        return "is not a key that may stand here"
    if error["type"] == "int_from_float":
        return "must be a whole number"
    if wanted in _WANTED and problem in ("type", "parsing"):
        found = _FOUND.get(type(error["input"]), "empty" if error["input"] is None else "a section")
        quotes = "; put it in quotes" if wanted == "string" and found in ("a number", "true or false") else ""
        return f"must be {_WANTED[wanted]}, not {found}{quotes}"
    message = re.sub(r"^(Value error|Assertion failed), ", "", error["msg"])
    if isinstance(error["input"], str):
        # A secret is a text too, whose length pydantic counts as that of a list.
        message = re.sub(r"\bitem(?=s?\b)", "character", message)
    return re.sub(r"^\w+ should ", "must ", message).partition(" after validation")[0]


def is_echo(error: ErrorDetails) -> bool:
    """Whether a list is called too short only because its items are wrong."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def error_suggestion(model: type[BaseModel], path: KeyPath, error: ErrorDetails) -> str:
    """What a misspelt key or choice may have been meant to be."""
    if error["type"] in ("literal_error", "enum"):
        return suggestion([str(error["input"])], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    if error["type"] != "extra_forbidden":
        return ""
    annotation: object = model
    for step in path[:-1]:
        annotation = below(annotation)(step)
    return suggestion([str(error["loc"][-1])], fields(annotation))


def suggestion(words: Sequence[str], near: Iterable[str]) -> str:
    """`(did you mean …?)` when one of `near` resembles a word, else nothing."""
    names = list(near)
    closest = [match for word in words for match in get_close_matches(word, names, n=1)]
    return f" (did you mean {closest[0]!r}?)" if closest else ""
