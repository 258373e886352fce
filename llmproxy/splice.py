"""JSON objects as bytes: decode once, then edit top-level members without touching the bytes of any other.

A gateway that re-encoded a body would change what it was not asked to: the spelling of numbers, escapes, the order of
keys, members given twice. What nobody edits reaches the provider exactly as the client wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import orjson

from llmproxy.errors import BadRequest

if TYPE_CHECKING:
    from llmproxy.request import Document


class _Removed:
    def __repr__(self) -> str:
        return "REMOVED"


REMOVED: Final = _Removed()

_KEY_OR_BRACKET = re.compile(rb'("[^"]*+")[ \t\r\n]*(:)?|[\[\]{}]')
_SCALAR_VALUE = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("[^"\\]*+(?:\\.[^"\\]*+)*+"|[-+.0-9A-Za-z]++)')
_OPENING = tuple(b"[{")
_EMPTY_OBJECT = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*\}[ \t\r\n]*")


def decode_object(body: bytes) -> Document:
    """The JSON object in a request's `body`. Raises BadRequest, with what is wrong and where."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(_reason(body, error)) from error
    if not isinstance(document, dict):
        raise BadRequest('The request body is not a JSON object; send one, with a "model".')
    return document


def _reason(body: bytes, error: orjson.JSONDecodeError) -> str:
    if not body.strip():
        return "The request body is empty; send a JSON object."
    if error.msg.startswith("depth limit exceeded"):
        return "The request body is nested too deep; JSON may be at most 1024 levels deep."
    try:
        body.decode()
    except UnicodeDecodeError as undecodable:
        return f"The request body is not UTF-8: the byte at offset {undecodable.start} cannot be decoded."
    return f"The request body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."


def has_repeated_members(body: bytes) -> bool:
    """Whether an object in some JSON names a member twice, of which one reader takes the first and another the last.

    Also when it is nested too deep to tell.
    """
    try:
        json.loads(body, object_pairs_hook=_require_single)
    except (_RepeatedMemberError, RecursionError):
        return True
    return False


class _RepeatedMemberError(Exception):
    """An object names a member twice."""


def _require_single(members: list[tuple[str, object]]) -> None:
    if len(dict(members)) != len(members):
        raise _RepeatedMemberError


def splice(body: bytes, edits: Mapping[str, object]) -> bytes:
    """`body` with its top-level members replaced, added, or taken out where the edit is REMOVED.

    Every other member keeps its bytes. A member that stood there more than once is left once, so that no reader can
    find another value than the new one. `body` must be a JSON object that `decode_object` has accepted.
    Raises BadRequest when a new value, made from the request, is nested too deep to be written.
    """
    return _patch(body, edits) or _rewrite(body, edits)


# The everyday case, a model replaced and a member added: found by searching for the keys' bytes, without a scan


def _patch(body: bytes, edits: Mapping[str, object]) -> bytes | None:
    """The edited body, in one copy; None when it takes a scan to say for certain where the members are."""
    if not _are_written_plainly(body, edits):
        return None
    replaced: list[tuple[int, int, bytes]] = []
    added: list[bytes] = []
    for name, value in edits.items():
        if value is REMOVED:
            return None
        span = _only_scalar(body, name)
        if span:
            replaced.append((*span, _encode(value)))
        elif b'"%b"' % name.encode() in body:
            return None
        else:
            added.append(_member(name, value))
    if added:
        comma = [] if _EMPTY_OBJECT.fullmatch(body) else [b""]
        end = body.rindex(b"}")
        replaced.append((end, end, b",".join(comma + added)))
    return _replace(body, sorted(replaced))


def _are_written_plainly(body: bytes, names: Iterable[str]) -> bool:
    """Whether these keys, where they stand in `body`, can only stand there without escapes."""
    text = "".join(names)
    if not (text.isascii() and text.isidentifier()):
        return False
    if b"\\u00" not in body:
        return True
    return all(b"\\u00%x" % high_digit not in body for high_digit in {ord(character) >> 4 for character in text})


def _only_scalar(body: bytes, name: str) -> tuple[int, int] | None:
    """Where the value of the top-level member stands; None when that takes a full scan to say for certain."""
    key = b'"%b"' % name.encode()
    start = body.find(key)
    if start == -1 or body.rfind(key) != start:
        return None
    value = _SCALAR_VALUE.match(body, start + len(key))
    # After a backslash the quote is part of a longer string; without a colon behind it, it is not a key.
    if value is None or body[start - 1 : start] == b"\\" or not _is_top_level(body, start):
        return None
    return value.span(1)


def _is_top_level(body: bytes, start: int) -> bool:
    """Whether the string that starts at `start` is directly inside the outermost object; looks at the shorter side."""
    if start * 2 < len(body):
        return _depth_change(body[:start]) == 1
    return _depth_change(body[start:]) == -1


def _depth_change(text: bytes) -> int:
    outside_strings = b"".join(_without_escapes(text).split(b'"')[::2])
    opened = outside_strings.count(b"{") + outside_strings.count(b"[")
    return opened - outside_strings.count(b"}") - outside_strings.count(b"]")


def _without_escapes(text: bytes) -> bytes:
    """`text`, byte for byte as long, with every quote in it at the end of a string."""
    return text.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in text else text


def _replace(body: bytes, replaced: Iterable[tuple[int, int, bytes]]) -> bytes:
    view = memoryview(body)
    pieces: list[bytes | memoryview] = []
    position = 0
    for start, end, new in replaced:
        pieces += (view[position:start], new)
        position = end
    return b"".join((*pieces, view[position:]))


# Everything else: one scan for the members


def _rewrite(body: bytes, edits: Mapping[str, object]) -> bytes:
    remaining = {name: value for name, value in edits.items() if value is not REMOVED}
    kept: list[bytes] = []
    for name, member, value_offset in _members(body):
        if name not in edits:
            kept.append(member)
        elif name in remaining:
            kept.append(member[:value_offset] + _encode(remaining.pop(name)))
    kept += [_member(name, value) for name, value in remaining.items()]
    return body[: body.index(b"{") + 1] + b",".join(kept) + body[body.rindex(b"}") :]


def _members(body: bytes) -> Iterator[tuple[str, bytes, int]]:
    """Each top-level member: its name, its bytes up to the next comma or brace, and where in them its value starts."""
    keys = list(_top_level_keys(body))
    if not keys:
        return
    starts = [body.index(b"{") + 1]
    # Between two keys the last comma is the one that parts the members: nothing but whitespace follows it.
    starts += [body.rindex(b",", before.end(), key.start()) + 1 for before, key in pairwise(keys)]
    ends = [start - 1 for start in starts[1:]] + [body.rindex(b"}")]
    for key, start, end in zip(keys, starts, ends, strict=True):
        yield orjson.loads(body[key.start(1) : key.end(1)]), body[start:end], key.end() - start


def _top_level_keys(body: bytes) -> Iterator[re.Match[bytes]]:
    depth = 0
    for token in _KEY_OR_BRACKET.finditer(_without_escapes(body)):
        if token[2]:
            if depth == 1:
                yield token
        elif not token[1]:
            depth += 1 if body[token.start()] in _OPENING else -1


def _member(name: str, value: object) -> bytes:
    return orjson.dumps(name) + b":" + _encode(value)


def _encode(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        if "Recursion limit" not in str(error):
            raise
        raise BadRequest("The request is nested too deep; keep it within 250 levels.") from error
