"""Budgets through the whole gateway: who is held to what, what is refused, and that the books agree to the digit."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llmproxy.api import ConfigError, Exchange, Retry, Section, Services, UpstreamError, hookimpl
from llmproxy.testing import (
    ProxyClient,
    RecordedRequest,
    Reply,
    ScriptedUpstream,
    StartProxy,
    configuration_table,
    cut_after,
    document,
    embeddings,
    fail,
    hang,
    reply,
    stream,
    tokens,
    wait_until,
)
from llmproxy_plugins.budgets import Budgets
from llmproxy_plugins.budgets.settings import BudgetsConfig, Limit

# Two dollars a million tokens out.
USAGE = tokens(0, 150_000)
COST = Decimal("0.3")


def usd(cap: object, **fields: object) -> dict[str, Any]:
    """A limit of the workspace."""
    return {"scope": "workspace", "usd": cap, "window": "month", **fields}


def limits(*each: dict[str, Any], **fields: object) -> dict[str, Any]:
    """The plugin's section."""
    return {"limits": list(each), **fields}


async def budget(client: ProxyClient, index: int = 0) -> dict[str, Any]:
    """A budget as operators see it, once everything is recorded."""
    await client.rows()
    response = await client.request("GET", "/admin/v1/budgets", key=client.admin_key)
    found: dict[str, Any] = response.document["data"][index]
    return found


async def test_refuses_when_there_is_no_room(proxy: StartProxy) -> None:
    """Past its cap a workspace gets 402, with what is exhausted and when it opens again; nothing is sent."""
    section = limits(usd("0.5"))
    async with proxy(Budgets, section, now="2026-03-31T23:00", upstream=[reply("hi", usage=USAGE)] * 2) as client:
        first = await client.chat(max_tokens=150_000)
        assert first.status == 200
        assert Decimal(first.headers["x-llmproxy-budget-remaining-usd"]) == Decimal("0.2")
        await client.rows()
        response = await client.chat(max_tokens=150_000)
        assert (response.status, response.headers["retry-after"]) == (402, "3600")
        error = response.document["error"]
        assert (error["code"], error["type"]) == ("budget_exceeded", "insufficient_quota")
        assert "workspace 'default'" in error["message"]
        assert "2026-04-01T00:00:00+00:00" in error["message"]
        assert len(client.upstream.requests) == 1
        (row,) = [row for row in (await client.rows()).requests if row["http_status"] == 402]
        (decision,) = row["decisions"]
        assert decision["why"] == "the budget of workspace 'default' for the current month has no room"
        client.clock.set("2026-04-01T00:00")
        assert (await client.chat(max_tokens=150_000)).status == 200


async def test_the_books_agree(proxy: StartProxy) -> None:
    """The window, the ledger and the spend report are the same number, to the digit, whatever became of requests."""
    script = [
        reply("hi", usage=tokens(123, 457)),
        stream("a ", "b", usage=tokens(7, 11)),
        fail(503),
        cut_after(2, stream("a ", "b ", "c ", "d ", usage=tokens(1000, 1))),
        embeddings(),
    ]
    section = limits(usd(5), usd(100_000, scope="gateway", window="lifetime"))
    async with proxy(Budgets, section, upstream=script) as client:
        await client.chat(max_tokens=1000)
        await client.chat(stream=True, max_tokens=1000)
        await client.chat(max_tokens=1000)
        await client.chat(stream=True, max_tokens=1000)
        await client.request("POST", "/v1/embeddings", {"model": "test", "input": "some text"})
        rows = await client.rows()
        spent = sum(row["amount_usd"] or 0 for row in rows.ledger)
        report = await client.request("GET", "/admin/v1/spend", key=client.admin_key)
        first, second = await budget(client, 0), await budget(client, 1)
        assert spent > 0
        assert {Decimal(each) for each in (first["settled"], second["settled"])} == {spent}
        assert Decimal(report.document["total"]["amount_usd"]) == spent


async def test_a_budget_made_in_the_middle_of_its_window_counts_from_the_start(proxy: StartProxy) -> None:
    """What the ledger had before the budget was configured is in it."""
    section = limits(usd("0.5", scope=["user", "feature"], match=["ann", "*"]), usd(1, scope="tag", match="x"))
    script = [reply("hi", usage=USAGE)] * 4
    async with proxy(Budgets, section, upstream=script) as client:
        headers = {"x-llmproxy-user": "ann", "x-llmproxy-tags": "x, y"}
        assert (await client.chat(max_tokens=100, headers=headers)).status == 200
        await client.rows()
        # As if the budgets had not been there: what they know goes, the ledger stays.
        for table in ("quota_buckets", "quota_leases", "quota_allowances", "quota_holders"):
            await client.app.services.database.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
        client.app._quotas._leases._leases.clear()
        client.app._quotas._leases._calls = 0
        assert (await client.chat(max_tokens=150_000, headers=headers)).status == 402
        assert (await client.chat(max_tokens=100, headers={"x-llmproxy-user": "bob"})).status == 200
        found = [await budget(client, index) for index in (0, 1)]
        assert [Decimal(each["settled"]) for each in found] == [COST, COST]


async def test_free_may_starve_while_premium_runs_on(proxy: StartProxy) -> None:
    """Each subject that a pattern fits has a budget of its own, and of limits alike the first that fits counts."""
    section = limits(
        usd("0.4", scope="feature", match="free"),
        usd(50, scope="feature", match="*"),
        usd("0.4", scope=["workspace", "user"], match=["default", "trial-*"]),
    )
    async with proxy(Budgets, section, upstream=[reply("hi", usage=USAGE)] * 9) as client:

        async def ask(feature: str | None, user: str = "ann") -> int:
            headers = {"x-llmproxy-user": user, **({"x-llmproxy-feature": feature} if feature else {})}
            return (await client.chat(max_tokens=150_000, headers=headers)).status

        assert [await ask("free"), await ask("free"), await ask("premium"), await ask("premium")] == [
            200,
            402,
            200,
            200,
        ]
        assert [await ask("a", "trial-1"), await ask("a", "trial-1"), await ask("a", "trial-2")] == [200, 402, 200]
        assert await ask(None) == 200


class RetryOnce:
    name = "retry_once"

    def __init__(self, config: Section, services: Services) -> None: ...

    @hookimpl
    def on_error(self, exchange: Exchange, error: UpstreamError) -> Retry | None:
        return Retry() if len(exchange.attempts) == 1 else None


async def test_every_attempt_pays(proxy: StartProxy) -> None:
    """A retry reserves as well, also where the first attempt has used up the budget's room for it."""
    async with proxy(Budgets, limits(usd("0.4")), RetryOnce, upstream=[fail(503), reply("hi", usage=USAGE)]) as client:
        assert (await client.chat(max_tokens=150_000)).status == 200
        assert Decimal((await budget(client))["settled"]) == COST


async def test_models_without_a_price_are_refused(proxy: StartProxy) -> None:
    """Under a budget in dollars a model that nobody knows the price of is not free by accident."""
    config = {"providers": {"upstream": {"models": ["test-model", "odd"]}}}
    async with proxy(Budgets, limits(usd(5)), config=config, upstream=[]) as client:
        response = await client.chat(model="upstream/odd", max_tokens=5)
        assert (response.status, response.document["error"]["code"]) == (403, "model_unpriced")
    section = limits(usd(5), unpriced="allow")
    async with proxy(Budgets, section, config=config, upstream=[reply("hi")]) as client:
        assert (await client.chat(model="upstream/odd", max_tokens=5)).status == 200
    section = limits({"scope": "workspace", "tokens": 100_000, "window": "day"})
    async with proxy(Budgets, section, config=config, upstream=[reply("hi")]) as client:
        assert (await client.chat(model="upstream/odd", max_tokens=5)).status == 200


@pytest.mark.parametrize(
    ("limit", "settled"), [({"tokens": 1000}, "30"), ({"requests": 2}, "2"), ({"usd": 1}, "0.00004")]
)
async def test_units(proxy: StartProxy, limit: dict[str, object], settled: str) -> None:
    """Dollars, tokens and answers are counted; what a provider refused counts for nothing."""
    section = limits({"scope": "model", "match": "upstream/*", "window": "day", **limit})
    script = [reply("hi", usage=tokens(10, 5)), fail(500), reply("hi", usage=tokens(10, 5))]
    async with proxy(Budgets, section, upstream=script) as client:
        assert [(await client.chat(max_tokens=9)).status for _ in script] == [200, 502, 200]
        found = await budget(client)
        assert Decimal(found["settled"]) == Decimal(settled)
        if "requests" in limit:
            assert (await client.chat(max_tokens=9)).status == 402


async def test_a_hang_up_is_charged_what_the_provider_will_charge(proxy: StartProxy) -> None:
    """A client that leaves in the middle frees its reservation, and what had come is settled."""
    section = limits(usd(5))
    async with proxy(Budgets, section, upstream=[hang()]) as client:
        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(client.chat(stream=True, max_tokens=1_000_000))
            await client.upstream.wait_for(lambda: bool(client.upstream.requests))
            leaving.cancel()
        await client.rows()
        found = await budget(client)
        assert Decimal(found["settled"]) < Decimal("0.01")


async def test_soft_budgets_only_tell(proxy: StartProxy, known: Any) -> None:
    """Past a soft cap requests are served, with a header; each threshold is told once, to the log and the webhook."""
    alerts: list[dict[str, Any]] = []

    def hear(request: RecordedRequest) -> Reply:
        alerts.append(request.document)
        return document({})

    async with ScriptedUpstream(default=hear) as operator:
        section = limits(usd("0.5", mode="soft", alert_at=["0.5", "1.0"]), webhook=f"{operator.base_url}/hook")
        async with proxy(known, section, upstream=[reply("hi", usage=USAGE)] * 4) as client:
            plugin = known.made
            for _ in range(3):
                assert (await client.chat(max_tokens=150_000)).status == 200
                await client.rows()
                await plugin.watch.look()
            last = await client.chat(max_tokens=100)
            assert last.headers["x-llmproxy-budget-exceeded"] == "workspace 'default'"
            await wait_until(lambda: len(alerts) == 2)
            await client.rows()
            await plugin.watch.look()
    assert [(alert["threshold"], alert["used"]) for alert in alerts] == [("0.5", "0.3"), ("1.0", "0.6")]


@pytest.fixture
def known() -> type[Budgets]:
    """The plugin, with the one that was made last at hand as `made`."""

    class Known(Budgets):
        made: ClassVar[Budgets]

        def __init__(self, config: BudgetsConfig, services: Services) -> None:
            super().__init__(config, services)
            Known.made = self

    return Known


async def test_throttled_requests_wait(proxy: StartProxy, known: Any) -> None:
    """The nearer a budget is to its cap the longer requests wait, and never longer than they may."""
    section = limits(usd("0.3", mode="throttle"), throttle_from=0, throttle_seconds=0.3)
    async with proxy(known, section, upstream=[reply("hi", usage=USAGE)] * 2) as client:
        await client.chat(max_tokens=10)
        await client.rows()
        await known.made.watch.look()
        await client.chat(max_tokens=10)
        rows = (await client.rows()).requests
    assert rows[0]["duration_seconds"] < 0.3 <= rows[1]["duration_seconds"]
    assert rows[1]["decisions"][0]["what"] == "delayed by 0.3 s"


async def test_streams_can_be_cut_at_what_was_reserved(proxy: StartProxy) -> None:
    """A stream that grows past its reservation ends with an error in the stream, if the operator wants that."""
    section = limits(usd(5), cut_streams=True)
    async with proxy(Budgets, section, upstream=[stream(*["word "] * 200, delay_seconds=0.001)] * 2) as client:
        response = await client.chat(stream=True, max_tokens=10)
        assert response.status == 200
        assert b"budget_exceeded" in response.body
        assert not response.is_done
        assert (await client.chat(stream=True, max_tokens=1000)).is_done


async def test_operators_raise_a_cap_for_a_time(proxy: StartProxy) -> None:
    """A raised cap holds at once and on every worker, until its time is over."""
    async with proxy(Budgets, limits(usd("0.4")), upstream=[reply("hi", usage=USAGE)] * 3) as client:
        assert [(await client.chat(max_tokens=150_000)).status for _ in range(2)] == [200, 402]
        found = await budget(client)
        assert (found["cap"], found["settled"]) == ("0.4", "0.3")
        assert Decimal(found["settled"]) + Decimal(found["leased"]) + Decimal(found["remaining"]) == Decimal("0.4")
        assert [holder["holder"] for holder in found["holders"]] == [client.app._journal.owner]
        body = {"allowance": found["allowance"], "to": "2", "until": "2100-01-01T00:00:00Z", "reason": "launch"}
        response = await client.request("POST", "/admin/v1/budgets/raise", body, key=client.admin_key)
        assert (response.status, response.document["cap"]) == (201, "2")
        assert (await client.chat(max_tokens=150_000)).status == 200
        wrong = await client.request(
            "POST", "/admin/v1/budgets/raise", {**body, "allowance": "x"}, key=client.admin_key
        )
        assert wrong.status == 404
        assert (await client.request("GET", "/admin/v1/budgets")).status == 401


async def test_raises_in_the_configuration(proxy: StartProxy) -> None:
    """A cap can be raised for a time in the file as well."""
    raises = [{"to": 2, "since": "2026-01-02T00:00:00Z", "until": "2026-01-03T00:00:00Z"}]
    section = limits(usd("0.1", window="day", raises=raises))
    async with proxy(Budgets, section, now="2026-01-01T12:00", upstream=[reply("hi", usage=USAGE)]) as client:
        statuses = []
        for day in (1, 2, 3):
            client.clock.set(f"2026-01-0{day}T12:00")
            statuses.append((await client.chat(max_tokens=150_000)).status)
        assert statuses == [402, 200, 402]


async def test_a_clock_that_is_moved_keeps_to_its_windows(proxy: StartProxy) -> None:
    """A clock set back charges the window it then is in; no window passes its cap."""
    section = limits(usd("0.4", window="day"))
    async with proxy(Budgets, section, now="2026-01-02T12:00", upstream=[reply("hi", usage=USAGE)] * 3) as client:
        statuses = []
        for moment in ("2026-01-02T12:00", "2026-01-01T12:00", "2026-01-02T13:00", "2026-01-03T00:00"):
            client.clock.set(moment)
            statuses.append((await client.chat(max_tokens=150_000)).status)
        assert statuses == [200, 200, 402, 200]


@pytest.mark.parametrize(
    ("limit", "mistake"),
    [
        ({"scope": "workspace", "window": "day"}, "exactly one of usd, tokens and requests"),
        ({"scope": "workspace", "usd": 1, "tokens": 1}, "exactly one of usd, tokens and requests"),
        ({"scope": ["workspace", "user"], "match": ["a"], "usd": 1}, "one pattern for each scope"),
        ({"scope": ["user", "user"], "usd": 1}, "name anything twice"),
        ({"scope": "gateway", "match": "x", "usd": 1}, "takes no match"),
        ({"scope": "user", "usd": 1, "window": "lifetime", "rolling": True}, "does not roll"),
        ({"scope": "user", "usd": 0}, "greater than 0"),
    ],
)
async def test_mistakes_are_told_at_start(proxy: StartProxy, limit: dict[str, object], mistake: str) -> None:
    """A budget that makes no sense is told with its place in the file."""
    with pytest.raises(ConfigError, match=mistake):
        async with proxy(Budgets, {"limits": [limit]}):
            pass


def test_the_readme_has_every_key() -> None:
    """The tables of the README are made from the declaration of the keys."""
    readme = (Path(__file__).parent.parent / "plugins/budgets/README.md").read_text()
    assert configuration_table(BudgetsConfig) in readme
    assert configuration_table(Limit) in readme
