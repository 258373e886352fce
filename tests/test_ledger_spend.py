"""What was spent, and on whom: every grouping adds up to the rows, to the last digit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmproxy.admin.spend import GROUPS, SUMS, Spend, spend_query
from llmproxy.db import Postgres
from llmproxy.errors import BadRequest
from llmproxy.request import Document
from llmproxy.testing import StartProxy, fail, reply
from tests.ledger_rows import DAY, QUERIES, CommandLine, Entry, entry, on, write

AMOUNTS = st.one_of(st.none(), st.decimals(0, 10**6, places=30, allow_nan=False).map(lambda amount: f"{amount:f}"))
WORDS = st.sampled_from([None, "a", "b", ""])


@pytest.fixture
def command_line(tmp_path: Path, database_url: str) -> CommandLine:
    """`llmproxy` on a fresh database."""
    return CommandLine(tmp_path, database_url)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """An entry of anybody, for any amount, on one of three days."""
    amount = draw(AMOUNTS)
    certainty = draw(st.sampled_from(["measured", "estimated", "assumed"]))
    return entry(
        amount,
        at=DAY + timedelta(hours=draw(st.integers(0, 71))),
        kind=draw(st.sampled_from(["exchange", "attempt", "adjustment"])),
        feature=draw(WORDS),
        user_id=draw(WORDS),
        key_id=draw(WORDS),
        provider_name=draw(WORDS),
        response_model=draw(st.sampled_from(["m", "n"])),
        tags=draw(st.one_of(st.none(), st.lists(st.sampled_from(["x", "y", "z"]), max_size=4))),
        cost_provenance=certainty if amount else None,
        usage_provenance=certainty,
    )


@given(
    rows=st.lists(entries(), max_size=12),
    by=st.one_of(st.just(["tag"]), st.lists(st.sampled_from(GROUPS), min_size=1, max_size=3, unique=True)),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_grouping_adds_up_to_the_rows(database_url: str, rows: list[Entry], by: list[str]) -> None:
    """The total is the sum of the rows, and so are the groups together; by tag each group is that of its own rows."""
    workspace = str(uuid4())
    own = [{**row, "workspace": workspace} for row in rows]

    async def run(database: Postgres) -> Document:
        await write(database, own)
        return await Spend(database, QUERIES).report(by, None, None, workspace=workspace)

    report = on(database_url, run)
    assert Fraction(report["total"]["amount_usd"]) == spent(own)
    assert report["total"]["requests"] == sum(row["kind"] == "exchange" for row in own)
    if "tag" not in by:
        for name in SUMS:
            assert sum(Fraction(group[name]) for group in report["data"]) == Fraction(report["total"][name]), name
    elif by == ["tag"]:
        found = {group["group"]["tag"]: Fraction(group["amount_usd"]) for group in report["data"]}
        tags = {tag for row in own for tag in row["tags"] or [None]}
        assert found == {tag: spent([row for row in own if tag in (row["tags"] or [None])]) for tag in tags}


def spent(rows: Sequence[Entry]) -> Fraction:
    """The sum of the amounts there are."""
    return sum((Fraction(row["amount_usd"]) for row in rows if row["amount_usd"]), Fraction(0))


async def test_what_is_not_certain_is_shown_apart(database: Postgres) -> None:
    """Estimated and assumed amounts are shares of the sum; what has no price is counted, and never as nothing."""
    certain = entry("1")
    estimated = entry("0.5", cost_provenance="estimated", usage_provenance="estimated")
    assumed = entry("0.25", cost_provenance="assumed", usage_provenance="assumed")
    unpriced = entry(None, cost_provenance=None)
    beside = entry(None, kind="attempt", entry=1, cost_provenance=None)
    refused = entry(None, cost_provenance=None, usage_provenance=None)
    await write(database, [certain, estimated, assumed, unpriced, beside, refused])
    total = (await Spend(database, QUERIES).report(["workspace"], None, None))["total"]
    assert (total["amount_usd"], total["estimated_usd"], total["assumed_usd"]) == ("1.75", "0.5", "0.25")
    assert (total["requests"], total["unpriced_requests"], total["unpriced_attempts"]) == (5, 1, 1)


async def test_days_are_utc_days(database: Postgres) -> None:
    """A request belongs to the day it was made on in UTC, wherever the clocks of client and server are."""
    late = DAY.replace(hour=23, minute=59)
    await write(database, [entry("1", at=late), entry("2", at=late + timedelta(minutes=1))])
    await database.execute("SET TIME ZONE 'Asia/Tokyo'")
    report = await Spend(database, QUERIES).report(["day"], None, None)
    found = {group["group"]["day"]: group["amount_usd"] for group in report["data"]}
    assert (found, report["time_zone"]) == ({date(2026, 3, 14): "1", date(2026, 3, 15): "2"}, "UTC")


async def test_requests_are_grouped_by_what_they_were_sent_with(proxy: StartProxy) -> None:
    """Over the admin API, by prompt version and tag together; what was sent without any is a group of its own."""
    upstream = [reply("one"), reply("two"), fail(400)]
    async with proxy(upstream=upstream) as client:
        for version, tags in (("v1", "team-a,prod"), ("v2", "team-a")):
            sent = {"x-llmproxy-prompt-version": version, "x-llmproxy-tags": tags}
            assert (await client.chat(headers=sent)).status == 200
        await client.chat()
        ledger = (await client.rows()).ledger
        path = "/admin/v1/spend?by=prompt_version,tag&since=1h&workspace=default"
        report = (await client.request("GET", path, key=client.admin_key)).document
        groups = {(each["group"]["prompt_version"], each["group"]["tag"]): each["requests"] for each in report["data"]}
        assert groups == {("v1", "prod"): 1, ("v1", "team-a"): 1, ("v2", "team-a"): 1, (None, None): 1}
        recorded = sum(Fraction(row["amount_usd"]) for row in ledger if row["amount_usd"] is not None)
        assert Fraction(report["total"]["amount_usd"]) == recorded > 0
        assert report["by"] == ["prompt_version", "tag"]


async def test_spend_of_a_workspace_and_a_day_reads_nothing_else(database: Postgres) -> None:
    """Only the partitions of the time asked for are read, and of those only the workspace's rows, by the index."""
    for day in range(4):
        await database.fetch("SELECT llmproxy_create_partitions($1, $1)", (DAY + timedelta(days=day)).date())
    await database.execute(
        "INSERT INTO ledger_entries (request_id, occurred_at, kind, workspace, amount_usd) "
        "SELECT gen_random_uuid(), $1::timestamptz + n * interval '15 seconds', 'exchange', 'w' || n % 200, 1 "
        "FROM generate_series(0, 4 * 5760 - 1) AS n",
        DAY,
    )
    await database.execute("ANALYZE ledger_entries")
    query = spend_query(QUERIES, ["feature", "tag"], of_workspace=True)
    span = DAY + timedelta(days=1), DAY + timedelta(days=3)
    (row,) = await database.fetch(f"EXPLAIN (FORMAT JSON, ANALYZE) {query}", *span, None, "w7")
    scans = [node for node in nodes(row["QUERY PLAN"][0]["Plan"]) if node.get("Alias", "").startswith("entry")]
    assert {scan["Relation Name"] for scan in scans} == {"ledger_entries_20260315", "ledger_entries_20260316"}
    used = [node for node in nodes(row["QUERY PLAN"][0]["Plan"]) if "Index Name" in node]
    assert all("Seq Scan" not in scan["Node Type"] for scan in scans)
    assert {node["Index Name"] for node in used} >= {
        f"ledger_entries_202603{day}_workspace_occurred_at_idx" for day in (15, 16)
    }


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node of a plan, as Postgres tells it."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def test_the_command_answers_in_every_form(command_line: CommandLine, database_url: str) -> None:
    """A table with the total, JSON with the same amounts, and CSV with a line for each group and no total."""
    rows = [entry("0.1", feature="chat"), entry("0.2", feature="chat", user_id="ann"), entry("0.4")]
    on(database_url, lambda database: write(database, rows))
    arguments = ("spend", "--by", "feature,user", "--since", "2026-03-14", "--until", "2026-03-15")
    document = command_line.document(*arguments)
    assert [each["group"] for each in document["data"]] == [
        {"feature": None, "user": None},
        {"feature": "chat", "user": "ann"},
        {"feature": "chat", "user": None},
    ]
    lines = list(csv.DictReader(io.StringIO(command_line(*arguments, "--csv").stdout)))
    assert [(line["feature"], line["user"], line["amount_usd"]) for line in lines] == [
        ("", "", "0.4"),
        ("chat", "ann", "0.2"),
        ("chat", "", "0.1"),
    ]
    table = command_line(*arguments).stdout.splitlines()
    assert table[0].split()[:2] == ["FEATURE", "USER"]
    assert table[-1].split()[0] == "total"
    assert "0.7" in table[-1].split()


def test_a_group_that_there_is_not_is_refused(command_line: CommandLine) -> None:
    """A misspelt group names those that there are."""
    result = command_line("spend", "--by", "workspace,modle")
    assert isinstance(result.exception, BadRequest)
    assert "prompt_version" in result.exception.message
