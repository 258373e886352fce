"""Repricing: what is recorded stays, what differs is added, once, and budgets and the audit hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.admin.spend import Spend
from llmproxy.audit_chain import AuditKeys
from llmproxy.db import Postgres
from llmproxy.exchange import Target
from llmproxy.ledger import Repriced, pages, reprice, requests
from llmproxy.request import Document
from llmproxy.services import Database
from llmproxy.testing import ProxyClient, StartProxy, cut_after, document, fail, reply, stream, tokens
from llmproxy.usage import USAGE_CLASSES, Cost, Usage
from llmproxy_plugins.budgets import Budgets
from llmproxy_plugins.fallback import Fallback
from tests.audit_rows import KEYS, messages, verified
from tests.ledger_rows import DAY, QUERIES, CommandLine, Entry, amounts, entry, make_repricing, on, prices_of, write

NEXT_DAY = DAY + timedelta(days=1)
# What the kit charges, and twice that.
USUAL = {"match": "upstream/*", "input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
DOUBLED = {"match": "upstream/*", "input_usd_per_mtok": 2, "output_usd_per_mtok": 4}


def stored(amount: str | None = "0.00002", **columns: Any) -> Entry:
    """An entry as Postgres gives it back; columns are of whatever type."""
    row = {"service_tier": None, "service_region": None, "price_source": "config", "started_at": DAY}
    row |= dict.fromkeys(USAGE_CLASSES) | entry(amount, **columns)
    return {**row, "amount_usd": amount and Decimal(amount)}


def repriced(*entries: Entry, price: Any = None) -> Sequence[Repriced]:
    """What repricing makes of a request's entries."""
    return list(reprice(entries, price or prices_of(DOUBLED), lambda model: True))


# What is decided


@given(
    amount=st.decimals(0, 1000, places=30, allow_nan=False),
    earlier=st.lists(st.decimals(-1000, 1000, places=30, allow_nan=False), max_size=3),
    usd_per_mtok=st.decimals(0, 1000, places=12, allow_nan=False),
)
def test_an_adjustment_is_the_exact_difference(amount: Decimal, earlier: list[Decimal], usd_per_mtok: Decimal) -> None:
    """Whatever the ledger has by now, all its amounts and the adjustment together are the price, to the last digit."""
    base = stored(amount=f"{amount:f}")
    others = [
        {**base, "kind": "adjustment", "entry": number, "amount_usd": each} for number, each in enumerate(earlier, 1)
    ]
    section = {"match": "*", "input_usd_per_mtok": usd_per_mtok, "output_usd_per_mtok": usd_per_mtok}
    (found,) = repriced(base, *others, price=prices_of(section))
    added = found.adjustment.amount_usd if found.adjustment else Decimal(0)
    total = sum((Fraction(each) for each in (amount, *earlier, added)), Fraction(0))
    assert total == Fraction(usd_per_mtok) * 15 / 10**6
    assert found.adjustment is None or found.adjustment.entry == len(earlier) + 1


def test_what_was_reserved_for_nobody_knows_what_stays() -> None:
    """An assumed amount is what was reserved, and repricing it by its tokens would be a guess about a guess."""
    (found,) = repriced(stored(usage_provenance="assumed"))
    assert (found.adjustment, found.repriced_usd) == (None, Decimal("0.00002"))


def test_what_has_no_price_now_stays() -> None:
    """A price that is not known is no reason to forget the one that was."""
    (found,) = repriced(stored(provider_name="elsewhere"))
    assert (found.adjustment, found.recorded_usd, found.repriced_usd) == (None, Decimal("0.00002"), None)


@pytest.mark.parametrize(("price", "amount"), [(DOUBLED, "0.00004"), ({"match": "*", "free": True}, "0")])
def test_what_had_no_price_gets_one(price: dict[str, Any], amount: str) -> None:
    """An unpriced request is adjusted by its whole price, also when that is nothing: it is then known to be free."""
    (found,) = repriced(stored(amount=None), price=prices_of(price))
    assert found.adjustment is not None
    assert (found.recorded_usd, found.adjustment.amount_usd) == (None, Decimal(amount))


def test_the_way_of_serving_is_priced_as_it_was() -> None:
    """The service tier, the region and the beginning of the attempt are what the new price is asked for."""
    asked: list[tuple[Target, Usage, datetime]] = []

    def price(target: Target, usage: Usage, at: datetime) -> Cost:
        asked.append((target, usage, at))
        return Cost(Decimal(1), "measured", "x")

    began = DAY + timedelta(seconds=3)
    repriced(stored(service_tier="flex", service_region="us", started_at=began), price=price)
    ((target, usage, at),) = asked
    assert (target.name, usage.service_tier, usage.region, at) == ("upstream/test-model", "flex", "us", began)
    assert (usage.uncached_input_tokens, usage.text_output_tokens, usage.characters) == (10, 5, 0)


def test_each_model_of_a_request_is_adjusted_on_its_own() -> None:
    """A failed attempt elsewhere keeps its price, and attempts at the same model are taken together."""
    elsewhere = stored(entry=1, kind="attempt", provider_name="elsewhere")
    again = stored(entry=2, kind="attempt")
    found = {each.model: each for each in repriced(stored(), elsewhere, again)}
    ours = found["upstream/test-model"]
    assert (ours.entries, ours.adjustment and ours.adjustment.amount_usd) == (2, Decimal("0.00004"))
    assert ours.adjustment is not None
    assert (ours.adjustment.entry, found["elsewhere/test-model"].adjustment) == (3, None)


# What is stored


async def test_real_requests_cost_what_they_cost(proxy: StartProxy) -> None:
    """Retries, fallbacks, cut streams and refusals: by the same prices nothing is added, by others the difference."""
    upstream = [reply("a"), fail(503), reply("b"), stream("c", "d"), cut_after(1), fail(400)]
    async with proxy(Fallback, {"attempts": 2, "stream_failure": "error"}, upstream=upstream) as client:
        for is_stream in (False, False, True, True, False):
            await client.chat(stream=is_stream)
        before = (await client.rows()).ledger
        database = client.app.services.database
        keys = client.app._audit_keys
        same = await run(database, USUAL, keys=keys)
        assert (same["adjustments"], same["recorded_usd"]) == (0, same["repriced_usd"])
        doubled = await run(database, DOUBLED, keys=keys)
        assert Decimal(doubled["difference_usd"]) == Decimal(doubled["recorded_usd"]) > 0
        after = (await client.rows()).ledger
        assert [row for row in after if row["kind"] != "adjustment"] == list(before)
        assert sum_of(after) == 2 * sum_of(before)
        assert (await run(database, DOUBLED, keys=keys))["adjustments"] == 0
        assert len((await client.rows()).ledger) == len(after)
        audit = await client.request("GET", "/admin/v1/audit/verify", key=client.admin_key)
        assert (audit.document["problems"], audit.document["requests"]) == ([], 5)


def sum_of(rows: Sequence[Any]) -> Decimal:
    """The sum of some entries' amounts."""
    return sum((row["amount_usd"] for row in rows if row["amount_usd"] is not None), Decimal(0))


async def run(database: Database, *sections: dict[str, Any], dry_run: bool = False, keys: AuditKeys = KEYS) -> Document:
    """The totals of repricing all there is."""
    since, until = datetime(2020, 1, 1, tzinfo=DAY.tzinfo), datetime(2040, 1, 1, tzinfo=DAY.tzinfo)
    report = await make_repricing(database, *sections, keys=keys).run(since, until, dry_run=dry_run)
    total: Document = report.document()["total"]
    return total


async def test_a_service_tier_is_known_later(proxy: StartProxy) -> None:
    """What was served in a tier of its own price costs that price still, and the ledger says which tier it was."""
    flex = {"match": "upstream/*", "service_tier": "flex", "input_usd_per_mtok": 0.5, "output_usd_per_mtok": 1}
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    answer = {"object": "chat.completion", "service_tier": "flex", "choices": [choice], "usage": tokens(8, 5)}
    async with proxy(upstream=[document(answer), reply("b")], config={"prices": [flex, USUAL]}) as client:
        await client.chat(service_tier="flex")
        await client.chat()
        ledger = (await client.rows()).ledger
        assert [row["service_tier"] for row in ledger] == ["flex", None]
        database = client.app.services.database
        assert (await run(database, flex, USUAL))["adjustments"] == 0
        assert (await run(database, USUAL))["adjustments"] == 1


async def test_an_adjustment_is_of_its_request(database: Postgres) -> None:
    """It has the request's day, who asked and what for, no tokens, and where the new price is from."""
    row = entry("0.00002", feature="chat", user_id="ann", key_id="k", tags=["x"], service_tier="flex")
    await write(database, [row])
    await run(database, DOUBLED)
    base, added = await database.fetch("SELECT * FROM ledger_entries ORDER BY entry")
    same = ("request_id", "occurred_at", "workspace", "key_id", "feature", "user_id", "provider_name", "response_model")
    assert {name: added[name] for name in (*same, "tags")} == {name: base[name] for name in (*same, "tags")}
    assert (added["entry"], added["kind"], added["amount_usd"]) == (1, "adjustment", Decimal("0.00002"))
    assert (added["uncached_input_tokens"], added["text_output_tokens"], added["price_source"]) == (0, 0, "config")


async def test_only_the_span_and_the_models_asked_for_are_adjusted(database: Postgres) -> None:
    """The first day is in, the last is not; other models stay."""
    inside, after = entry("0.00002"), entry("0.00002", at=NEXT_DAY)
    other = entry("0.00002", response_model="other")
    await write(database, [inside, after, other])
    await make_repricing(database, DOUBLED, model="upstream/test-model").run(DAY, NEXT_DAY)
    added = await database.fetch("SELECT request_id::text FROM ledger_entries WHERE kind = 'adjustment'")
    assert [row["request_id"] for row in added] == [inside["request_id"]]


async def test_a_dry_run_changes_nothing_and_says_all(database: Postgres) -> None:
    """It has the sums of a real run, and the ledger and the log stay as they are."""
    await write(database, [entry("0.00002") for _ in range(3)])
    before = await amounts(database)
    said = await run(database, DOUBLED, dry_run=True)
    assert await amounts(database) == before
    assert await database.fetch("SELECT * FROM audit_log") == []
    assert said == await run(database, DOUBLED)


async def test_two_at_once_adjust_once(database: Postgres) -> None:
    """Whoever comes second reads what the first has added."""
    await write(database, [entry("0.00002") for _ in range(20)])
    totals = await asyncio.gather(*(run(database, DOUBLED) for _ in range(3)))
    assert sorted(total["adjustments"] for total in totals) == [0, 0, 20]
    assert sum((amount or 0 for amount in (await amounts(database)).values()), Decimal(0)) == Decimal("0.0008")


async def test_what_was_unpriced_is_so_no_more(database: Postgres) -> None:
    """Once it has a price, spend counts a request as unpriced no longer."""
    await write(database, [entry(None, cost_provenance=None), entry(None, cost_provenance=None, provider_name="x")])
    await run(database, DOUBLED)
    total = (await Spend(database, QUERIES).report(["workspace"], None, None))["total"]
    found = total["unpriced_requests"], Decimal(total["amount_usd"]), Decimal(total["adjusted_usd"])
    assert found == (1, Decimal("0.00004"), Decimal("0.00004"))


async def test_pages_cut_no_request(database: Postgres) -> None:
    """Requests with several entries come whole and once, however small a page is."""
    rows = [
        {**first, "entry": number, "kind": "attempt" if number else "exchange"}
        for first in (entry() for _ in range(9))
        for number in range(3)
    ]
    await write(database, rows)
    query = QUERIES["ledger_page"].format(columns="request_id::text AS request_id, occurred_at, entry")
    for size in (4, 5, 27, 28, 100):
        found = [
            [(row["request_id"], row["entry"]) for row in one]
            async for page in pages(database, query, DAY, NEXT_DAY, size)
            for one in requests(page)
        ]
        expected = sorted({row["request_id"] for row in rows})
        assert found == [[(request_id, number) for number in range(3)] for request_id in expected], size


# The audit


async def test_adjustments_are_vouched_for(database: Postgres) -> None:
    """The log knows all adjustments of a day; one that is put in, or is gone, is found."""
    first = entry("0.00002")
    await write(database, [first, entry("0.00002")])
    await run(database, DOUBLED)
    await run(database, {**DOUBLED, "output_usd_per_mtok": 5})
    assert messages(await verified(database)) == []
    await write(database, [{**first, "entry": 9, "kind": "adjustment", "amount_usd": "-1"}])
    assert messages(await verified(database)) == [
        "The adjustments of 2026-03-14 in ledger_entries are not those that the log knows of."
    ]
    (action,) = await database.fetch("SELECT * FROM admin_actions ORDER BY number DESC LIMIT 1")
    assert (action["action"], action["subject"], action["details"]["adjustments"]) == (
        "ledger_adjusted",
        "2026-03-14",
        4,
    )


# Budgets


def budgets(*limits: dict[str, Any]) -> dict[str, Any]:
    """The plugin's section."""
    return {"limits": [{"scope": "workspace", **limit} for limit in limits]}


@pytest.mark.parametrize("window", [{"window": "day"}, {"window": "hour", "rolling": True}])
async def test_budgets_are_counted_anew(proxy: StartProxy, window: dict[str, Any]) -> None:
    """A budget in dollars has the adjustment once it is asked again, and what passes its cap by it is refused."""
    usage = tokens(0, 150_000)
    section = budgets({"usd": 1, **window}, {"requests": 100, **window})
    async with proxy(Budgets, section, now="2026-03-14T12:30", upstream=[reply("a", usage=usage)] * 9) as client:
        assert (await client.chat(max_tokens=150_000)).status == 200
        assert await held(client) == [Decimal("0.3"), Decimal(1)]
        # Of a rolling window that is another bucket.
        client.clock.set("2026-03-14T13:00")
        await run(client.app.services.database, {**USUAL, "output_usd_per_mtok": 4})
        assert (await client.chat(max_tokens=150_000)).status == 200
        # 0.6 for the first, by its adjustment, and 0.3 for the second; the adjustment is no request.
        assert await held(client) == [Decimal("0.9"), Decimal(2)]
        assert (await client.chat(max_tokens=150_000)).status == 402


async def held(client: ProxyClient) -> list[Decimal]:
    """What is settled of each budget, those in dollars first."""
    await client.rows()
    rows = await client.app.services.database.fetch(
        "SELECT share ->> 'unit' AS unit, sum(settled) AS settled "
        "FROM quota_buckets JOIN quota_allowances ON name = allowance GROUP BY unit ORDER BY unit DESC"
    )
    return [row["settled"] for row in rows]


async def test_limits_that_are_no_budgets_go_on(database: Postgres) -> None:
    """What is used up once taken is in no ledger: it keeps its count, and so do budgets of other times and units."""
    shares = {"usd": {"unit": "usd"}, "requests": {"unit": "requests"}, "rate": None, "older": {"unit": "usd"}}
    for name, share in shares.items():
        start = DAY - timedelta(days=1) if name == "older" else DAY
        await open_bucket(database, name, share, start, until=start + timedelta(hours=23))
    await write(database, [entry("0.00002", at=DAY + timedelta(hours=1))])
    await run(database, DOUBLED)
    rows = await database.fetch("SELECT allowance, is_opened FROM quota_buckets ORDER BY allowance")
    assert {row["allowance"]: row["is_opened"] for row in rows} == {
        "older": True,
        "rate": True,
        "requests": True,
        "usd": False,
    }


async def test_a_rolling_window_that_nobody_holds_is_counted_anew(database: Postgres) -> None:
    """Also the steps of the window that were over by then have the adjustment, in dollars and not as a request."""
    await write(database, [entry("0.00002")])
    for name in ("usd", "requests"):
        await open_bucket(database, name, {"unit": name}, DAY, step=timedelta(hours=1))
    await run(database, DOUBLED)
    for name in ("usd", "requests"):
        await open_bucket(database, name, {"unit": name}, DAY + timedelta(hours=2), step=timedelta(hours=1))
    rows = await database.fetch("SELECT allowance, sum(settled) AS settled FROM quota_buckets GROUP BY allowance")
    assert {row["allowance"]: row["settled"] for row in rows} == {"usd": Decimal("0.00004"), "requests": 1}
    sums = await database.fetch(
        "SELECT llmproxy_ledger_sum(json_build_object('unit', unit), $1, $2) AS used FROM unnest($3::text[]) AS unit",
        *(DAY, NEXT_DAY, ["usd", "requests", "tokens"]),
    )
    assert [row["used"] for row in sums] == [Decimal("0.00004"), 1, 15]


async def open_bucket(
    database: Database,
    name: str,
    share: dict[str, str] | None,
    bucket: datetime,
    *,
    until: datetime = NEXT_DAY,
    step: timedelta | None = None,
) -> None:
    """Do what the first lease of a bucket does."""
    want = {"allowance": name, "bucket": bucket, "since": DAY, "until": until, "expires_at": until, "share": share}
    if step is not None:
        want["step"] = f"{step.total_seconds()} seconds"
    await database.execute("INSERT INTO quota_allowances (name) VALUES ($1) ON CONFLICT DO NOTHING", name)
    await database.fetch("SELECT llmproxy_open_quota(json_populate_record(NULL::quota_want, $1))", want)


# The command


def test_the_command_adjusts_by_the_configuration(tmp_path: Path, database_url: str) -> None:
    """What `reprice` says it would do it does, once; the audit verifies, and spend has the new sum."""
    command_line = CommandLine(tmp_path, database_url)
    command_line.configure(prices=[DOUBLED])
    on(database_url, lambda database: write(database, [entry("0.00002"), entry("0.00002", response_model="other")]))
    span = ("reprice", "--from", "2026-03-14", "--to", "2026-03-15")
    planned = command_line.document(*span, "--model", "*/test-model", "--dry-run")
    assert (Decimal(planned["total"]["difference_usd"]), planned["dry_run"]) == (Decimal("0.00002"), True)
    first = command_line(*span, "--model", "*/test-model")
    assert (first.exit_code, first.stdout.splitlines()[-1]) == (0, "1 adjustments were added.")
    assert command_line.document(*span)["total"]["adjustments"] == 1
    assert command_line.document(*span)["total"]["adjustments"] == 0
    assert command_line("audit", "verify").exit_code == 0
    assert command_line.document("spend", "--by", "model")["total"]["amount_usd"] == "0.000080"


def test_a_price_is_found_whichever_key_was_used(tmp_path: Path, database_url: str) -> None:
    """The ledger does not tell a provider's keys apart: what the price data lists for its vendor holds for all."""
    command_line = CommandLine(tmp_path, database_url)
    command_line.configure(providers={"openai": {"api_keys": [{"name": "a", "key": "k"}, {"name": "b", "key": "l"}]}})
    unpriced = entry(None, cost_provenance=None, provider_name="openai", response_model="gpt-4o")
    on(database_url, lambda database: write(database, [unpriced]))
    (row,) = command_line.document("reprice", "--from", "2026-03-14", "--to", "2026-03-15")["data"]
    # Ten tokens in at 2.50 dollars a million, five out at ten.
    assert (row["unpriced_entries"], Decimal(row["repriced_usd"])) == (0, Decimal("0.000075"))


def test_the_command_takes_prices_of_a_file(tmp_path: Path, database_url: str) -> None:
    """What a contract that is being negotiated would make of last month is asked with a file of prices."""
    command_line = CommandLine(tmp_path, database_url)
    on(database_url, lambda database: write(database, [entry("0.00002")]))
    file = tmp_path / "prices.yaml"
    file.write_text("prices:\n  - {match: 'upstream/*', input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.2}\n")
    span = ("reprice", "--from", "2026-03-14", "--to", "2026-03-15", "--dry-run", "--prices", str(file))
    (row,) = command_line.document(*span)["data"]
    assert (row["model"], Decimal(row["repriced_usd"])) == ("upstream/test-model", Decimal("0.000002"))
