"""The configuration file: every mistake in it is found at once and told with its place.

What a mistake says never holds a value of an environment variable or of a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmproxy.config import Config
from llmproxy.config_mistakes import error_suggestion, is_echo, secrets, sentence, suggestion
from llmproxy.errors import ConfigError
from llmproxy.yaml_reader import KeyPath, Notes, Reader, compose

Model = TypeVar("Model", bound=BaseModel)


class ConfigDocument:
    """A configuration file whose values know where they stand, and the mistakes found in it so far.

    Mistakes are collected, over any number of calls, until `raise_if_mistaken` reports them all.
    """

    def __init__(self, value: object, notes: Notes) -> None:
        self._value = value
        self._notes = notes

    @classmethod
    def read(cls, path: Path, environ: Mapping[str, str]) -> ConfigDocument:
        """Read a file. Raises ConfigError when it cannot be read or is not YAML."""
        return cls.parse(read_file(path), str(path), environ)

    @classmethod
    def parse(cls, text: str | bytes, name: str, environ: Mapping[str, str]) -> ConfigDocument:
        """Read a text; mistakes call it `name`. Raises ConfigError when it is not YAML."""
        notes = Notes(name)
        root = compose(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text, notes)
        return cls(None if root is None else Reader(notes, environ).value(root), notes)

    @property
    def value(self) -> object:
        """The file as plain values, variables filled in and nothing validated."""
        return self._value

    @property
    def mistakes(self) -> tuple[str, ...]:
        """One line for each mistake so far, in the order of the file."""
        return self._notes.lines()

    def names(self, *path: str | int) -> tuple[str, ...]:
        """The names of the sections at `path`, in order; they may also stand as a plain list."""
        value = self._at(path)
        return tuple(name for name in value if isinstance(name, str)) if isinstance(value, dict | list) else ()

    def validate(self, model: type[Model], *path: str | int) -> Model | None:
        """The section at `path` as a model, None if mistakes were found; an absent section is an empty one.

        Use the model only after `raise_if_mistaken`: values that could not be read stand in it as empty text.
        """
        section = self._at(path)
        section = {} if section is None else section
        self._notes.hide(secrets(model, section))
        try:
            return model.model_validate(section)
        except ValidationError as error:
            self._add_errors(model, path, error.errors(include_url=False))
            return None

    def mistake(self, sentence: str, *path: str | int, near: Iterable[str] = ()) -> None:
        """Note a mistake at `path`; of `near`, what resembles the text there, or else its key, is suggested."""
        value = self._at(path)
        words = [word for word in (value, *path[-1:]) if isinstance(word, str)]
        self._notes.add(self._notes.blanked(sentence) + suggestion(words, near), path)

    def raise_if_mistaken(self) -> None:
        """Raise one ConfigError that holds all mistakes, if there are any."""
        if self.mistakes:
            raise ConfigError(*self.mistakes)

    def _at(self, path: KeyPath) -> object:
        value = self._value
        for step in path:
            entries: Mapping[Any, object] = dict(enumerate(value)) if isinstance(value, list) else {}
            value = (value if isinstance(value, dict) else entries).get(step)
        return value

    def _add_errors(self, model: type[BaseModel], base: KeyPath, errors: Iterable[ErrorDetails]) -> None:
        sentences: dict[KeyPath, list[str]] = {}
        for error in errors:
            path = self._path(base, error)
            if path not in self._notes.unreadable and not is_echo(error):
                told = self._notes.blanked(sentence(error)) + error_suggestion(model, path[len(base) :], error)
                sentences.setdefault(path, []).append(told)
        # Several errors of one value are the branches of a union.
        for path, alternatives in sentences.items():
            self._notes.add(", or ".join(dict.fromkeys(alternatives)), path)

    def _path(self, base: KeyPath, error: ErrorDetails) -> KeyPath:
        """Where an error stands in the file: without the steps that name a union's branch or come from a short form."""
        path = base
        for step in error["loc"]:
            path = (*path, step) if (*path, step) in self._notes.positions else path
        return (*path, error["loc"][-1]) if error["type"] == "missing" else path


def read_file(path: Path) -> bytes:
    """What a configuration file holds. Raises ConfigError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the file cannot be read: {error.strerror}") from error


def load_config(path: Path | None, environ: Mapping[str, str]) -> tuple[Config, ConfigDocument]:
    """The core of the configuration, all defaults without a path, and the document for the sections of others.

    Raises ConfigError when the core is wrong. Validate the sections, then call the document's `raise_if_mistaken`.
    """
    document = ConfigDocument.parse("", "defaults", environ) if path is None else ConfigDocument.read(path, environ)
    config = document.validate(Config)
    if config is None:
        raise ConfigError(*document.mistakes)
    return config, document
