"""Two requests share a scope when they differ in nothing but the words of their last turn."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.exchange import Principal, Target
from llmproxy.testing import make_exchange
from llmproxy_plugins.semantic_cache.questions import Question, question_of

words = st.text(min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
turns = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), words), max_size=4)
functions = st.lists(words, max_size=2)
parameters = st.dictionaries(st.sampled_from(["temperature", "top_p", "seed", "max_tokens", "stop", "new"]), values)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """All of a request but its question."""
    return {
        "workspace": draw(st.sampled_from(["acme", "other"])),
        "model": draw(st.sampled_from(["a/one", "a/two", "b/one"])),
        "namespace": draw(st.sampled_from(["", "blue"])),
        "region": draw(st.sampled_from(["", "eu"])),
        "targets": draw(st.sets(st.sampled_from(["one", "two"]), min_size=1)),
        "turns": draw(turns),
        "tools": draw(functions),
        "parameters": draw(parameters),
        "parts": draw(st.integers(0, 2)),
    }


def question(request: dict[str, Any], text: str, embeddings: str = "e") -> Question:
    """The question of a request that ends with some words."""
    content: Any = [{"type": "text", "text": text}] * request["parts"] or text
    messages = [{"role": role, "content": said} for role, said in request["turns"]]
    tools = [{"type": "function", "function": {"name": name}} for name in request["tools"]]
    named = {"x-llmproxy-cache-namespace": request["namespace"], "x-llmproxy-region": request["region"]}
    exchange = make_exchange(
        headers={name: value for name, value in named.items() if value},
        principal=Principal(workspace=request["workspace"], key_id="key"),
        **{
            **request["parameters"],
            "model": request["model"],
            "messages": [*messages, {"role": "user", "content": content}],
            **({"tools": tools} if tools else {}),
        },
    )
    exchange.candidates = tuple(Target("p", name) for name in sorted(request["targets"]))
    found = question_of(exchange, embeddings, ("openai-beta",))
    assert found is not None
    return found


@given(one=requests(), other=requests(), first=words, second=words)
def test_a_scope_is_never_crossed(one: dict[str, Any], other: dict[str, Any], first: str, second: str) -> None:
    """Requests that differ in workspace, model, turns, tools, parameters, targets or shape never share a scope."""
    is_same = repr(one) == repr(other)
    assert (question(one, first).scope == question(other, second).scope) == is_same


@given(
    request=requests(),
    first=words,
    second=words,
    member=st.sampled_from(("model", "workspace", "tools", "turns", "parameters", "parts")),
)
def test_one_difference_is_enough(request: dict[str, Any], first: str, second: str, member: str) -> None:
    """However alike two requests are, each single thing that differs keeps them apart; the question does not."""
    changed = copy.deepcopy(request)
    match member:
        case "model" | "workspace":
            changed[member] = "a/three"
        case "tools":
            changed[member].append("another")
        case "turns":
            changed[member].append(("user", "another"))
        case "parameters":
            changed[member]["another"] = 1
        case _:
            changed[member] += 1
    assert question(request, first).scope == question(request, second).scope
    assert question(request, first).scope != question(changed, first).scope
    assert question(request, first).scope != question(request, first, embeddings="another").scope
