"""Which requests are the same: the canonical form and the key, on their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.api import Operation, Principal, Target
from llmproxy.testing import make_exchange
from llmproxy_plugins.caching.keys import IGNORED, Key, canonical_form, key_of

JSON = Any  # whatever a client may send

numbers = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False))
words = st.text(st.characters(codec="utf-8"), max_size=6)
scalars = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)
names = words.filter(lambda name: name not in IGNORED)
awkward = st.text(st.sampled_from('":\\ u0223a'), max_size=12)
requests = st.dictionaries(names, values, max_size=5)


def form(body: bytes) -> bytes | None:
    """The canonical form of a body."""
    return canonical_form(json.loads(body), body)


def same(one: JSON, other: JSON) -> bool:
    """Whether two values are the same JSON: numbers by value, and true is no 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def shuffled(value: JSON, draw: Any) -> JSON:  # draw is hypothesis's own
    """The same value, written otherwise: members in another order, whole numbers as floats."""
    if isinstance(value, dict):
        return {name: shuffled(value[name], draw) for name in draw(st.permutations(list(value)))}
    if isinstance(value, list):
        return [shuffled(each, draw) for each in value]
    if isinstance(value, int) and not isinstance(value, bool) and draw(st.booleans()):
        return float(value)
    return value


@given(requests, st.data())
def test_how_a_request_is_written_does_not_matter(request: Mapping[str, JSON], data: st.DataObject) -> None:
    """Order of members, white space, escapes and the spelling of numbers make no other request."""
    plain = json.dumps(request).encode()
    otherwise = shuffled(dict(request), data.draw)
    spaced = json.dumps(otherwise, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 2])))
    assert form(plain) == form(spaced.encode()) is not None


@given(requests, st.data())
def test_any_member_given_twice_is_noticed(request: Mapping[str, JSON], data: st.DataObject) -> None:
    """However it is written: with white space around its colon, and with quotes and colons in the strings beside it."""
    name = json.dumps(data.draw(names))
    spaces = data.draw(st.lists(st.sampled_from(["", " ", "\n"]), min_size=2, max_size=2))
    twice = ",".join(f"{name}{space}:{json.dumps(data.draw(awkward))}" for space in spaces)
    rest = json.dumps({**request, "beside": data.draw(awkward)}, ensure_ascii=data.draw(st.booleans()))
    assert form(f"{{{twice},{rest[1:]}".encode()) is None


@given(requests, requests)
def test_equal_forms_are_equal_requests(one: Mapping[str, JSON], other: Mapping[str, JSON]) -> None:
    """Two requests have the same form if, and only if, they say the same."""
    forms = [form(json.dumps(request).encode()) for request in (one, other)]
    assert (forms[0] == forms[1]) == same(dict(one), dict(other))


@given(requests, st.dictionaries(st.sampled_from(sorted(IGNORED)), values))
def test_what_does_not_change_the_answer_does_not_count(
    request: Mapping[str, JSON], ignored: Mapping[str, JSON]
) -> None:
    """How an answer travels, whose it is and where the vendor keeps it make no other request."""
    assert form(json.dumps(request).encode()) == form(json.dumps({**ignored, **request}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"temperature":0,"temperature":1}',
        b'{"messages":[{"role":"user","content":"a","content":"b"}]}',
        b'{"metadata":{"a":"1","a":"2"},"temperature":0}',
        b'{"temperature":0,"\\u0074emperature":0}',
        b'{"temperature" :0,"temperature":1}',
        b'{"temperature":0, "temperature"\n:1, "a":"b\\":c"}',
        b'{"temperature":0,"temperature":1,"a":"\\u0022:"}',
        b'{"temperature":0,"temperature":1,"a":"\\"\\u003a"}',
    ],
)
def test_a_member_given_twice_makes_a_request_ambiguous(body: bytes) -> None:
    """One reader takes the first, another the last: whose answer it is nobody can say, so there is no key."""
    assert form(body) is None


def test_what_is_nested_too_deep_has_no_key() -> None:
    """It is left to the provider, instead of failing in the cache."""
    body = b'{"a":' + b"[" * 600 + b"1.0" + b"]" * 600 + b"}"
    assert form(body) is None


QUESTION = "Is 7 a prime?"
# Each differs from the first, and from every other, in something that may change the answer.
CORPUS: Sequence[Mapping[str, JSON]] = (
    {},
    {"temperature": 0},
    {"temperature": None},
    {"temperature": 0.1},
    {"temperature": "0"},
    {"seed": 0},
    {"seed": False},
    {"n": 2},
    {"max_tokens": 1},
    {"max_completion_tokens": 1},
    {"stop": "a"},
    {"stop": ["a"]},
    {"stop": ["a", "b"]},
    {"stop": ["b", "a"]},
    {"tools": []},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "text"}},
    {"reasoning_effort": "low"},
    {"logprobs": True},
    {"top_logprobs": 1},
    {"service_tier": "flex"},
    {"a_member_of_next_year": 1},
    {"messages": [{"role": "user", "content": "Is 8 a prime?"}]},
    {"messages": [{"role": "user", "content": "Is 7 a prime? "}]},
    {"messages": [{"role": "user", "content": "is 7 a prime?"}]},
    {"messages": [{"role": "system", "content": QUESTION}]},
    {"messages": [{"role": "system", "content": "Lie."}, {"role": "user", "content": QUESTION}]},
    {"messages": [{"role": "user", "content": QUESTION}, {"role": "system", "content": "Lie."}]},
    {"messages": [{"role": "user", "content": QUESTION, "name": "ann"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]},
    {"messages": [{"role": "user", "content": "caf\u00e9"}]},
    {"messages": [{"role": "user", "content": "cafe\u0301"}]},
    {"model": "upstream/test-model-2"},
)


def key(tenant: str = "default", namespace: str = "", **options: Any) -> Key | None:  # options are make_exchange's
    """The key of a request, as the plugin makes it."""
    exchange = make_exchange(QUESTION, principal=Principal(tenant, "key_a"), **options)
    return key_of(exchange, (tenant,), (namespace,), ("openai-beta",))


def test_no_request_of_the_corpus_is_mistaken_for_another() -> None:
    """Whatever may change an answer makes another key."""
    keys = [key(**fields) for fields in CORPUS]
    assert None not in keys
    assert [pair for pair in combinations(range(len(keys)), 2) if keys[pair[0]] == keys[pair[1]]] == []


def test_what_stands_around_a_request_is_part_of_its_key() -> None:
    """Tenant, namespace, endpoint, headers that travel on, the region asked for, and who may answer."""
    keys = [
        key(),
        key("other"),
        key(namespace="a"),
        key(headers={"openai-beta": "a"}),
        key(headers={"x-llmproxy-region": "eu"}),
        key(operation=Operation.TEXT_COMPLETION, prompt=QUESTION),
    ]
    assert len({each.digest for each in keys if each}) == len(keys)
    exchange = make_exchange(QUESTION)
    exchange.candidates = (Target("upstream", "test-model", region="eu"),)
    moved = key_of(exchange, ("default",), ("",), ("openai-beta",))
    assert moved is not None
    assert moved not in keys


def test_neither_the_key_used_nor_its_order_of_targets_makes_a_difference() -> None:
    """A provider's several credentials are one place, and targets are a set."""
    one, other = make_exchange(QUESTION), make_exchange(QUESTION)
    one.candidates = (Target("a", "m", credential="1"), Target("b", "m"))
    other.candidates = (Target("b", "m"), Target("a", "m", credential="2"))
    assert key_of(one, ("t",), (), ()) == key_of(other, ("t",), (), ())
