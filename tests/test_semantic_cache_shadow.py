"""Shadow mode: what it would have served, whether that would have been right, and the threshold that follows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.api import ModelName
from llmproxy.testing import RecordedRequest, Reply, StartProxy, fail, hang, reply
from llmproxy.testing.database import TestDatabases
from llmproxy_plugins.semantic_cache import SemanticCache, SemanticCacheConfig
from llmproxy_plugins.semantic_cache.operating import semantic_cache_commands
from llmproxy_plugins.semantic_cache.report import Judged, judged, proposal, report
from llmproxy_plugins.semantic_cache.store import Trial
from llmproxy_plugins.semantic_cache.vectors import similarity
from tests.semantic import PAIRS, embedded, embeddings_of, playing, prepared_databases, table

FIRST, AGAIN, OTHER = "How do I bake bread?", "Baking bread: how do I do it?", "How do I bake rye bread?"


@pytest.fixture(scope="module")
def databases(llmproxy_server_url: str) -> Iterator[TestDatabases]:
    """Databases with the plugin's tables."""
    with prepared_databases(llmproxy_server_url) as prepared:
        yield prepared


@pytest.fixture
def proxy(databases: TestDatabases) -> StartProxy:
    """What starts a gateway on one of them."""
    return StartProxy(databases)


def shadow(**settings: object) -> Mapping[str, Any]:
    """A configuration in shadow mode."""
    return {"embeddings": "upstream/embedder", "shadow": settings}


async def test_the_shadow_serves_nothing(proxy: StartProxy) -> None:
    """Every request is answered by its provider, as if the plugin were not there, and is a trial."""
    async with proxy(SemanticCache, shadow()) as client:
        client.upstream.default = playing(chat=reply("Knead."))
        for count in (1, 2):
            response = await client.chat(FIRST)
            assert response.text == "Knead."
            assert "x-llmproxy-cache" not in response.headers
            await table(client, "trials", count)
        first, again = await table(client, "trials", 2)
        assert (first["similarity"], first["answer_similarity"]) == (None, None)
        assert (again["similarity"], again["answer_similarity"]) == (pytest.approx(1), 1)


async def test_the_shadow_keeps_nobody_waiting(proxy: StartProxy) -> None:
    """An embeddings model that hangs costs a client in the shadow no time at all."""

    def play(request: RecordedRequest) -> Reply:
        return hang() if request.path.endswith("/embeddings") else reply("Knead.")

    async with proxy(SemanticCache, {**shadow(), "timeout_seconds": 20}) as client:
        client.upstream.default = play
        assert (await client.chat(FIRST, headers={"x-llmproxy-timeout": "5"})).text == "Knead."


async def test_a_judge_says_what_answers_are_worth(proxy: StartProxy) -> None:
    """The judge is asked about two answers that differ, and its word is kept beside their similarity."""
    answers = {FIRST: "Knead.", AGAIN: "KNEAD.", OTHER: "Wait."}
    async with proxy(SemanticCache, shadow(judge="upstream/judge")) as client:
        client.upstream.default = playing(answers)
        for count, text in enumerate((FIRST, AGAIN, OTHER), 1):
            await client.chat(text)
            await table(client, "trials", count)
        trials = await table(client, "trials", 3)
        assert [trial["is_same"] for trial in trials] == [None, True, False]
        assert [trial["answer_similarity"] for trial in trials] == [None, pytest.approx(1), pytest.approx(0)]


async def test_distant_questions_are_not_compared(proxy: StartProxy) -> None:
    """Below from_similarity nothing is paid for a comparison."""
    async with proxy(SemanticCache, shadow(judge="upstream/judge", from_similarity=0.9)) as client:
        client.upstream.default = playing()
        for count, text in enumerate((FIRST, OTHER), 1):
            await client.chat(text)
            await table(client, "trials", count)
        trials = await table(client, "trials", 2)
        assert trials[1]["similarity"] == pytest.approx(similarity(embedded(FIRST), embedded(OTHER)))
        assert trials[1]["answer_similarity"] is None


async def test_a_judge_that_fails_leaves_a_trial_without_a_word(proxy: StartProxy) -> None:
    """What could not be compared counts as a request, and neither as right nor as wrong."""

    def play(request: RecordedRequest) -> Reply:
        return fail(400) if request.document["model"] == "judge" else answered(request)

    def answered(request: RecordedRequest) -> Reply:
        is_chat = request.path.endswith("/chat/completions")
        return reply(f"Number {request.number}.") if is_chat else embeddings_of(request)

    async with proxy(SemanticCache, shadow(judge="upstream/judge")) as client:
        client.upstream.default = play
        for count, text in enumerate((FIRST, AGAIN), 1):
            await client.chat(text)
            await table(client, "trials", count)
        trials = await table(client, "trials", 2)
        assert (trials[1]["similarity"], trials[1]["answer_similarity"]) == (pytest.approx(1), None)


async def test_the_report_proposes_a_threshold_for_the_labelled_pairs(proxy: StartProxy) -> None:
    """On pairs of questions that are labelled as asking the same or not, the proposal serves most, and none wrongly."""
    async with proxy(SemanticCache, shadow(judge="upstream/judge", from_similarity=0.3)) as client:
        answers = {pair.first: "One answer." for pair in PAIRS}
        answers |= {pair.second: "One answer." if pair.is_same else "Another answer." for pair in PAIRS}
        client.upstream.default = playing(answers)
        # A tool of its own keeps each pair to itself.
        tools = [{"type": "function", "function": {"name": f"pair_{number}"}} for number in range(len(PAIRS))]
        for turn, name in enumerate(("first", "second"), 1):
            asked = [getattr(pair, name) for pair in PAIRS]
            await asyncio.gather(*(client.chat(text, tools=[tool]) for text, tool in zip(asked, tools, strict=True)))
            await table(client, "trials", turn * len(PAIRS))
        response = await client.request(
            "GET", "/admin/v1/semantic-cache/report?max_wrong_share=0", key=client.admin_key
        )
        (line,) = response.document["data"]
        wrong = [similarity(embedded(pair.first), embedded(pair.second)) for pair in PAIRS if not pair.is_same]
        right = [similarity(embedded(pair.first), embedded(pair.second)) for pair in PAIRS if pair.is_same]
        served = sum(value > max(wrong) for value in right)
        assert (line["model"], line["requests"], line["judged"]) == ("test", 120, 60)
        assert (line["proposed_hits"], line["proposed_wrong"]) == (served, 0)
        assert max(wrong) < line["proposed_threshold"] <= min(value for value in right if value > max(wrong))
        assert line["hits"] == sum(value >= 0.95 for value in right + wrong)


# The command


async def test_the_command_prints_the_report(proxy: StartProxy) -> None:
    """`llmproxy semantic-cache report` asks the gateway that runs, and prints a line for each model."""
    async with proxy(SemanticCache, shadow()) as client:
        client.upstream.default = playing()
        for count in (1, 2):
            await client.chat(FIRST)
            await table(client, "trials", count)
        command = semantic_cache_commands(client.gateway)
        printed, purged = [
            (await asyncio.to_thread(CliRunner().invoke, command, arguments)).output
            for arguments in (["report"], ["purge", "--workspace", "nobody"])
        ]
        head, line = printed.splitlines()
        assert head.split()[:4] == ["MODEL", "REQUESTS", "JUDGED", "THRESHOLD"]
        assert line.split() == ["test", "2", "1", "0.95", "1", "0", "1.0", "1", "0"]
        assert purged == "Nothing matched.\n"


# The report by itself


def test_trials_count_as_wrong_by_the_judges_word_first() -> None:
    """Where there is a word it counts; else the answers' similarity does; what was not compared counts for nothing."""
    trials = [
        Trial("m", 0.9, 0.1, is_same=True),
        Trial("m", 0.9, 1.0, is_same=False),
        Trial("m", 0.9, 0.95),
        Trial("m", 0.9, 0.5),
        Trial("m", 0.9),
        Trial("m"),
    ]
    assert [each.is_wrong for each in judged(trials, 0.9)] == [False, True, False, True]


def test_each_model_has_a_line_and_its_own_threshold() -> None:
    """Trials of different models are not thrown together."""
    config = SemanticCacheConfig(embeddings=ModelName("e"), thresholds={"b*": 0.5})
    lines = report([Trial("b", 0.6, 1.0), Trial("a", 0.6, 1.0), Trial("b")], config, 0.0)
    assert [(line["model"], line["requests"], line["hits"]) for line in lines] == [("a", 1, 0), ("b", 2, 1)]


@given(
    trials=st.lists(st.builds(Judged, st.floats(0, 1).map(lambda value: round(value, 2)), st.booleans()), max_size=60),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
)
def test_a_proposal_keeps_its_word_and_is_the_lowest_that_does(trials: list[Judged], share: float) -> None:
    """At the proposed threshold no more than the share is wrong, and at no lower one of those that were seen."""
    found = proposal(trials, share)

    def is_good(threshold: float) -> bool:
        hits = [each for each in trials if int(each.similarity * 10_000) / 10_000 >= threshold]
        return sum(each.is_wrong for each in hits) <= share * len(hits)

    seen = sorted({int(each.similarity * 10_000) / 10_000 for each in trials})
    assert (found.threshold if found else None) == next(filter(is_good, seen), None)
