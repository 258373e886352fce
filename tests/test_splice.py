"""Editing JSON objects as bytes."""

from __future__ import annotations

import json
import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import BadRequest
from llmproxy.splice import REMOVED, decode_object, has_repeated_members, splice

NAMES = st.one_of(st.sampled_from(["model", "mode", "stream_options", "user", "a b", "é", ""]), st.text(max_size=4))
NUMBERS = st.sampled_from(["0", "-0.0", "1e5", "1.10", "123456789012345678901234567890", "true", "null"])
SPACES = st.text("  \t\r\n", max_size=2)


@st.composite
def strings(draw: st.DrawFn, text: str | None = None) -> str:
    """A JSON string, some of its characters spelled as escapes."""
    text = draw(st.one_of(NAMES, st.sampled_from(['"model":"x"', '\\"model\\', "{[", "]},"]))) if text is None else text
    spelled = [
        "".join(f"\\u{unit:04x}" for unit in _units(character)) if draw(st.integers(0, 4)) == 0 else _quoted(character)
        for character in text
    ]
    return f'"{"".join(spelled)}"'


def _units(character: str) -> list[int]:
    encoded = character.encode("utf-16-be")
    return [int.from_bytes(encoded[i : i + 2]) for i in range(0, len(encoded), 2)]


def _quoted(character: str) -> str:
    return orjson.dumps(character).decode()[1:-1]


VALUES = st.recursive(
    st.one_of(NUMBERS, strings()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.lists(st.tuples(NAMES.flatmap(strings), inner), max_size=3).map(
            lambda items: "{" + ", ".join(f"{name} : {value}" for name, value in items) + "}"
        ),
    ),
    max_leaves=5,
)


@st.composite
def members(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Names, each with its member as a client might write it."""
    found = []
    for name in draw(st.lists(NAMES, max_size=5)):
        before, after, left, right = (draw(SPACES) for _ in range(4))
        found.append((name, f"{before}{draw(strings(name))}{left}:{right}{draw(VALUES)}{after}"))
    return found


EDITS = st.dictionaries(NAMES, st.one_of(st.just(REMOVED), st.text(max_size=5), st.just({"model": [1, '"model"']})))


@given(members(), EDITS, SPACES)
def test_splice_is_decode_edit_encode(written: list[tuple[str, str]], edits: dict[str, object], space: str) -> None:
    """Splicing means what decoding, editing and encoding would."""
    body = f"{space}{{{','.join(member for _, member in written)}}}{space}".encode()
    expected = {**orjson.loads(body), **edits}
    spliced = splice(body, edits)
    assert orjson.loads(spliced) == {name: value for name, value in expected.items() if value is not REMOVED}


@given(members(), EDITS)
def test_splice_keeps_the_bytes_of_the_rest(written: list[tuple[str, str]], edits: dict[str, object]) -> None:
    """Members that were not edited come out in their order, byte for byte, with the space around their values."""
    body = f"{{{','.join(member for _, member in written)}}}".encode()
    spliced = splice(body, edits)
    position = 0
    for name, member in written:
        if name not in edits:
            position = spliced.index(member.strip().encode(), position) + 1


@given(members(), st.text(max_size=5))
def test_splice_leaves_an_edited_member_once(written: list[tuple[str, str]], value: str) -> None:
    """Of members given twice, however they are spelled, one is left: no reader finds another value than ours."""
    body = f"{{{','.join(member for _, member in written)}}}".encode()
    names = [name for name, _ in json.loads(splice(body, {"model": value}), object_pairs_hook=list)]
    assert names.count("model") == 1


@pytest.mark.parametrize(
    ("body", "edits", "expected"),
    [
        (b'{"model":"a","n":1.0}', {"model": "b"}, b'{"model":"b","n":1.0}'),
        (b'{ "n" : 1e2 ,\n"model" : "a" }', {"model": "b"}, b'{ "n" : 1e2 ,\n"model" : "b" }'),
        (b'{"m":[{"model":"x"}],"model":"a"}', {"model": "b"}, b'{"m":[{"model":"x"}],"model":"b"}'),
        (b'{"metadata":{"model":"x"}}', {"model": "b"}, b'{"metadata":{"model":"x"},"model":"b"}'),
        (b'{"x":"\\"model\\":\\"q\\"","model":"a"}', {"model": "b"}, b'{"x":"\\"model\\":\\"q\\"","model":"b"}'),
        (b'{"x":"a\\"model"}', {"model": "b"}, b'{"x":"a\\"model","model":"b"}'),
        (b'{"x":"model"}', {"model": "b"}, b'{"x":"model","model":"b"}'),
        (b'{"mod\\u0065l":"a"}', {"model": "b"}, b'{"mod\\u0065l":"b"}'),
        (b'{"model":"a","model":"c","n":1}', {"model": "b"}, b'{"model":"b","n":1}'),
        (b'{"model":"a","mod\\u0065l":"c"}', {"model": "b"}, b'{"model":"b"}'),
        (b'{"model":"model"}', {"model": "b"}, b'{"model":"b"}'),
        (b'{"model":{"id":1}}', {"model": "b"}, b'{"model":"b"}'),
        (b'{"model":"a"} \n', {"stream": True}, b'{"model":"a","stream":true} \n'),
        (b"{ }", {"stream": True}, b'{ "stream":true}'),
        (b'{"a":1,"b":2,"c":3}', {"b": REMOVED}, b'{"a":1,"c":3}'),
        (b'{"a":1}', {"a": REMOVED}, b"{}"),
        (b'{"a":1}', {}, b'{"a":1}'),
    ],
)
def test_splice_writes(body: bytes, edits: dict[str, object], expected: bytes) -> None:
    """Each way of writing a member is found, and nothing that only looks like one."""
    assert splice(body, edits) == expected


def test_splice_refuses_what_is_nested_too_deep() -> None:
    """A value from a hostile request that cannot be encoded is the client's fault, not ours."""
    body = b'{"messages":' + b"[" * 1000 + b"]" * 1000 + b"}"
    with pytest.raises(BadRequest, match="nested too deep"):
        splice(body, {"messages": decode_object(body)["messages"]})


def test_splice_raises_what_a_wrong_value_raises() -> None:
    """A value that JSON cannot hold is the caller's mistake and stays visible as one."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        splice(b"{}", {"a": object()})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"[" * 10_000_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b'{"a":"\xff"}', "not UTF-8: the byte at offset 6 "),
        ('{"a":1}'.encode("utf-16"), "not UTF-8: the byte at offset 0 "),
        (b'{\n"a":1,\n}', "not valid JSON: trailing comma is not allowed at line 2, column 6"),
        (b'\xef\xbb\xbf{"a":1}', "byte order mark"),
        (b'{"a":NaN}', "at line 1, column 6"),
        (b'{"a":%b}' % (b"9" * 5000), "at line 1, column 6"),
        (rb'{"a":"\ud800"}', "surrogate"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8: the byte at offset 6 "),
        (b'{"a":1} x', "at line 1, column 9"),
        (b'{"a":1', "at line 1, column 7"),
        (b"[1]", "not a JSON object"),
        (b'"model"', "not a JSON object"),
    ],
)
def test_decode_object_says_what_is_wrong(body: bytes, reason: str) -> None:
    """What is no JSON object is refused with one sentence that says what and where."""
    with pytest.raises(BadRequest) as caught:
        decode_object(body)
    assert reason in caught.value.message
    assert re.fullmatch(r"[^\n]{10,160}\.", caught.value.message)


def test_decode_object_keeps_the_last_of_repeated_members() -> None:
    """Of a member given twice the last counts, as for most readers."""
    assert decode_object(b'{"a":1,"a":18446744073709551615}') == {"a": 18446744073709551615}


@pytest.mark.parametrize(
    ("body", "is_repeated"),
    [
        (b'{"a": 1, "b": {"a": 1}}', False),
        (b'{"a": 1, "a": 1}', True),
        (b'{"a": [{"b": 1, "\\u0062": 2}]}', True),
        (b'{"a": "{\\"b\\": 1, \\"b\\": 2}"}', False),
        (b"[" * 100_000 + b"]" * 100_000, True),
    ],
)
def test_repeated_members_are_found(body: bytes, *, is_repeated: bool) -> None:
    """A member that an object has twice is found at any depth, however its name is written."""
    assert has_repeated_members(body) == is_repeated
