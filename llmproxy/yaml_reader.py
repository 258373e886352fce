"""Strict YAML: plain values that know where they stand, with `${VAR}` filled in after parsing.

Plain scalars follow YAML 1.2's core rules, so that `on`, `yes` and `12:30` are text. Duplicate keys, cyclic or
exploding aliases and unset variables are mistakes with a place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from llmproxy.errors import ConfigError

Position = tuple[int, int]  # line and column, from 1
KeyPath = tuple[str | int, ...]

# Far beyond any real file; a cyclic alias reaches the first, a bomb of nested aliases the second.
_MAX_DEPTH: Final = 32
_MAX_VALUES: Final = 100_000


class Notes:
    """Where each value stands, what must not be shown, and the mistakes found so far."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.positions: dict[KeyPath, Position] = {}
        self.unreadable: set[KeyPath] = set()
        self._mistakes: set[tuple[Position, str, str]] = set()
        self._hidden: set[str] = set()

    def add(self, sentence: str, path: KeyPath = (), position: Position | None = None) -> None:
        """Note a mistake."""
        shown = ".".join(map(_shown, map(str, path)))
        self._mistakes.add((position or self.position(path), shown, sentence))

    def add_unreadable(self, sentence: str, path: KeyPath) -> None:
        """Note a mistake that leaves a value unknown, so that nothing more is said about that value."""
        self.unreadable.add(path)
        self.add(sentence, path)

    def position(self, path: KeyPath) -> Position:
        """Where the key or list item at `path` stands, or else the nearest section around it."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, (1, 1))

    def hide(self, texts: Iterable[str]) -> None:
        """Never show these texts in a mistake."""
        self._hidden.update(filter(None, texts))

    def blanked(self, sentence: str) -> str:
        """A sentence of somebody else's, without what must not be shown."""
        longest_first = sorted(self._hidden, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), "***", sentence) if longest_first else sentence

    def lines(self) -> tuple[str, ...]:
        """One line per mistake, in the order of the file."""
        return tuple(
            ": ".join(filter(None, (f"{self.name}:{line}:{column}", path, sentence)))
            for (line, column), path, sentence in sorted(self._mistakes)
        )


def _shown(step: str) -> str:
    """A key as a mistake names it: in quotes where it could not be seen otherwise."""
    return step if step and step.isprintable() and step == step.strip() else ascii(step)


_PLAIN: Final = "plain"
_TEXT: Final = "text"
_KNOWN_TAGS: Final = {_PLAIN, _TEXT, *(f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map"))}

_CONSTANTS: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Python refuses to read integers of more than 4,300 digits; those become floats.
_DECIMAL_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,4000}")
_PREFIXED_INTEGER: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
# The last branch finds what begins like a variable and is none.
_VARIABLE: Final = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{")


def _plain_value(text: str) -> object:
    """What a scalar without quotes means."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _DECIMAL_INTEGER.fullmatch(text):
        return int(text)
    if _PREFIXED_INTEGER.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


class _Loader(yaml.CSafeLoader):
    """Composes nodes that tell plain scalars from quoted ones; their meaning is `_plain_value`'s business."""

    _depth = 0

    def resolve(self, kind: type[yaml.Node], _value: object, implicit: Any) -> str:  # a pair for scalars, else a bool
        return _TEXT if kind is yaml.ScalarNode and not implicit[0] else _PLAIN

    # The parser recurses in C without a limit of its own: deep nesting would end the process.
    def descend_resolver(self, current_node: yaml.Node | None, _index: object) -> None:
        self._depth += 1
        if current_node is not None and self._depth > _MAX_DEPTH:
            raise ComposerError(None, None, "sections are nested too deeply", current_node.start_mark)

    def ascend_resolver(self) -> None:
        self._depth -= 1


def compose(data: bytes, notes: Notes) -> yaml.Node | None:
    """The document's root node, None when it is empty. Raises ConfigError when it is not YAML."""
    try:
        return yaml.compose(data, _Loader)
    except ReaderError as error:
        before = data[: error.position].decode("utf-8", "replace")
        position = before.count("\n") + 1, len(before) - before.rfind("\n")
        notes.add(f"the text cannot be read: {error.reason}", position=position)
        raise ConfigError(*notes.lines()) from error
    except yaml.MarkedYAMLError as error:
        lines = data.decode("utf-8", "replace").splitlines() or [""]
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        # What the end of a file lacks is missed on the line after its last.
        line, column = (line, column) if line < len(lines) else (len(lines) - 1, len(lines[-1]))
        is_tab = lines[line][column : column + 1] == "\t"
        hint = "; inside {} and [] a variable needs quotes" if "${" in lines[line] else ""
        sentence = (
            "a tab cannot indent; use spaces" if is_tab else f"this cannot be read as YAML: {error.problem}{hint}"
        )
        notes.add(sentence, position=(line + 1, column + 1))
        raise ConfigError(*notes.lines()) from error


class Reader:
    """Turns nodes into plain values, noting where each stands and what cannot be read."""

    def __init__(self, notes: Notes, environ: Mapping[str, str]) -> None:
        self._notes = notes
        self._environ = environ
        self._count = 0

    def value(self, node: yaml.Node, path: KeyPath = ()) -> object:
        """The plain value of a node; mistakes in it are noted. Raises ConfigError when it is too large or too deep."""
        self._count += 1
        if self._count > _MAX_VALUES or len(path) > _MAX_DEPTH:
            self._notes.add("aliases make this file endless or too large; write fewer", position=_position(node))
            raise ConfigError(*self._notes.lines())
        if node.tag not in _KNOWN_TAGS:
            self._notes.add_unreadable("must not have a YAML tag (!...); leave the tag out", path)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._placed(item, item, (*path, index)) for index, item in enumerate(node.value)]
        text = _VARIABLE.sub(lambda match: self._filled_in(match, path), node.value)
        return _plain_value(text) if node.tag == _PLAIN else text

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            complaint = _key_complaint(key_node)
            inner = (*path, key_node.value) if complaint is None else path
            if complaint is None and key_node.value in values:
                complaint = f"stands here twice; the first is on line {self._notes.position(inner)[0]}"
            if complaint is None:
                values[key_node.value] = self._placed(key_node, value_node, inner)
            else:
                self._notes.add(complaint, inner, _position(key_node))
        return values

    def _placed(self, place: yaml.Node, node: yaml.Node, path: KeyPath) -> object:
        self._notes.positions[path] = _position(place)
        return self.value(node, path)

    def _filled_in(self, match: re.Match[str], path: KeyPath) -> str:
        name, default = match["name"], match["default"]
        if match[0] == "$$":
            return "$"
        if name is None:
            self._notes.add_unreadable("a variable is ${NAME} or ${NAME:-default}, a dollar sign before { is $$", path)
            return ""
        value = self._environ.get(name)
        if value is None and default is None:
            self._notes.add_unreadable(f"{name} is not set; set it, or give a default: ${{{name}:-...}}", path)
        if value:
            self._notes.hide((value, str(_plain_value(value))))
        return value or default or ""


def _position(node: yaml.Node) -> Position:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _key_complaint(node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.ScalarNode):
        return "keys must be text, not lists or sections"
    if node.tag == _PLAIN and node.value == "<<":
        return "merging with << is not supported; write the keys out"
    is_text = node.tag != _PLAIN or isinstance(_plain_value(node.value), str)
    return None if is_text else "keys must be text; put this one in quotes"
