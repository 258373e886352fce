"""Behind `/metrics`: sheets that outlive their writers, bounded labels, a scrape that lets requests past."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmproxy.api import (
    Attempt,
    Config,
    Cost,
    Exchange,
    Outcome,
    Principal,
    RouteRequest,
    Services,
    Unauthenticated,
    Usage,
    Vitals,
)
from llmproxy.routes import Routes
from llmproxy.testing import WallClock, configuration_table, make_exchange, make_services
from llmproxy_plugins.metrics import Metrics
from llmproxy_plugins.metrics.config import MetricsConfig
from llmproxy_plugins.metrics.exposition import exposition
from llmproxy_plugins.metrics.families import ATTEMPTS, DURATION, FLIGHTS
from llmproxy_plugins.metrics.instruments import Instrument
from llmproxy_plugins.metrics.labels import Roll
from llmproxy_plugins.metrics.sheets import Sheet, open_sheet, read_index, read_sheets
from tests.metrics import Scrape
from tests.processes import ROOT, spawn

TOKEN: Final = "the-scrapers-own-token"
LABELS: Final = st.sampled_from([("a", "none"), ("b", "timeout"), ('"\\\n', "ü")])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2), LABELS | st.none())))
def test_numbers_outlive_whoever_wrote_them(
    tmp_path_factory: pytest.TempPathFactory, steps: Iterable[tuple[int, tuple[str, str] | None]]
) -> None:
    """Whatever workers add and whenever they die: the sum is what was added, on a sheet for each."""
    root, expected = tmp_path_factory.mktemp("metrics"), dict[tuple[str, str], float]()
    sheets = {number: _opened(root) for number in range(3)}
    for number, labels in steps:
        if labels is None:
            sheets[number].close()
            sheets[number] = _opened(root)
            continue
        Instrument(ATTEMPTS, sheets[number]).add(labels)
        expected[labels] = expected.get(labels, 0) + 1
    scrape = _read(root)
    for sheet in sheets.values():
        sheet.close()
    found = {(each.labels["provider"], each.labels["failure"]): each.value for each in scrape.samples}
    assert found == expected
    assert len(read_sheets(root / "group")) == 3


def test_requests_of_a_dead_worker_are_interrupted_once(tmp_path: Path) -> None:
    """They are, from when it has died, and no more than once when others take its sheet over, one after the other."""
    labels = ("chat", "test", "client", "")
    for began in (1, 2):
        sheet = _opened(tmp_path)
        flights = Instrument(FLIGHTS, sheet)
        flights.add(labels, 3)
        flights.add(labels, 2, number=1)
        alive = _read(tmp_path)
        sheet.close()
        dead = _read(tmp_path)
        counts = [(each.sum("llmproxy_requests_in_flight"), _interrupted(each)) for each in (alive, dead)]
        assert counts == [(1, began - 1), (0, began)]


def test_a_torn_index_line_is_forgotten(tmp_path: Path) -> None:
    """A worker that died while it wrote down what a series is leaves the rest readable, and room for more."""
    sheet = _opened(tmp_path)
    Instrument(ATTEMPTS, sheet).add(("a", "none"))
    sheet.close()
    with next((tmp_path / "group").glob("*.index")).open("ab") as index:
        index.write(b'[1,"llmproxy_att')
    sheet = _opened(tmp_path)
    Instrument(ATTEMPTS, sheet).add(("b", "none"))
    scrape = _read(tmp_path)
    sheet.close()
    assert (scrape.sum("llmproxy_attempts_total"), scrape.values_of("provider")) == (2, {"a", "b"})


def test_an_earlier_start_is_forgotten_and_another_gateway_is_not(tmp_path: Path) -> None:
    """Only groups without a living worker are deleted."""
    dead, living = (open_sheet(tmp_path, group, make_services().log) for group in ("dead", "living"))
    dead.close()
    open_sheet(tmp_path, "new", make_services().log).close()
    living.close()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"living", "new"}


FULL_DISK: Final = """
import resource, sys
from pathlib import Path
from llmproxy.testing import make_services
from llmproxy_plugins.metrics.families import ATTEMPTS, DURATION
from llmproxy_plugins.metrics.instruments import Instrument
from llmproxy_plugins.metrics.sheets import open_sheet

sheet = open_sheet(Path(sys.argv[1]), "group", make_services().log)
attempts, duration = Instrument(ATTEMPTS, sheet), Instrument(DURATION, sheet)
attempts.add(("before", "none"))
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
for number in range(1000):
    duration.observe(("chat", f"provider-{number}", "test", "succeeded"), 0.1)
    attempts.add(("before", "none"))
print("survived", flush=True)
"""


def test_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    """New series go uncounted when there is no room for them; those that have their place are counted on."""
    with spawn(FULL_DISK, str(tmp_path)) as process:
        output, _ = process.communicate()
    assert "metrics_not_written" in output
    assert output.endswith("survived\n")
    scrape = _read(tmp_path)
    assert scrape.sum("llmproxy_attempts_total", provider="before") == 1001
    assert 0 < scrape.sum("gen_ai_server_request_duration_seconds_count") < 1000


def _opened(root: Path) -> Sheet:
    return open_sheet(root, "group", make_services().log)


def _read(root: Path) -> Scrape:
    return Scrape("".join(exposition(read_sheets(root / "group"), is_open_metrics=True)))


def _interrupted(scrape: Scrape) -> float:
    return scrape.sum("llmproxy_requests_total", outcome="interrupted")


# Labels


@asynccontextmanager
async def counting(directory: Path, **section: object) -> AsyncIterator[tuple[Metrics, Services]]:
    """The plugin at work, with a gateway's configuration and no gateway."""
    services = replace(make_services(clock=WallClock()), state_directory=directory, vitals=Vitals("group", lambda: 7))
    plugin = Metrics(MetricsConfig.model_validate(section), services)
    providers, models = {"upstream": {"models": ["test-model"]}}, {"test": "upstream/test-model"}
    plugin.register_providers(Config.model_validate({"providers": providers, "models": models}))
    await plugin.startup(services)
    try:
        yield plugin, services
    finally:
        plugin.shutdown(services)


def _carried(plugin: Metrics, exchange: Exchange) -> None:
    """An exchange with one attempt, from its beginning to its end."""
    plugin.pre_request(exchange)
    target = exchange.candidates[0]
    attempt = Attempt(1, target, exchange.request, exchange.admitted_at, 0.0)
    attempt.usage, attempt.cost = Usage(5, text_output_tokens=2), Cost(Decimal("0.5"), "measured")
    exchange.attempts.append(attempt)
    plugin.post_attempt(exchange, attempt)
    exchange.outcome = Outcome.SUCCEEDED
    plugin.on_complete(exchange)


async def test_a_journal_counts_once(tmp_path: Path) -> None:
    """While a configuration is replaced, two of the plugin watch over one journal, and a dead worker has none."""
    async with counting(tmp_path) as (_, services), counting(tmp_path):
        assert _read(tmp_path / "metrics").sum("llmproxy_journal_pending") == services.vitals.journal_pending() == 7
    assert _read(tmp_path / "metrics").sum("llmproxy_journal_pending") == 0


async def test_labels_are_bounded_whatever_clients_ask_for(tmp_path: Path) -> None:
    """Ten thousand names of models, providers included, end in `other`; no user, key or text is in a scrape."""
    async with counting(tmp_path) as (plugin, _):
        for number in range(10_000):
            name = f"model-{number}" if number % 2 else f"provider-{number}/model-{number}"
            _carried(plugin, make_exchange("a secret", model=name))
        _carried(plugin, make_exchange(model="test"))
        _carried(plugin, make_exchange())
        copies = read_sheets(tmp_path / "metrics" / "group")
        text = "".join(exposition(copies, is_open_metrics=False))
    scrape = Scrape(text)
    assert scrape.sum("llmproxy_requests_total") == 10_002
    assert scrape.sum("llmproxy_requests_total", model="other") == 10_000
    assert scrape.values_of("model") == {"test", "upstream/test-model", "test-model", "other"}
    assert scrape.values_of("gen_ai_provider_name") <= {"upstream", "other"}
    assert len(list(read_index(copies[0].index))) < 40
    assert [word for word in ("secret", "key_test", "default") if word in text] == []


async def test_workspaces_are_told_apart_when_asked_for_and_up_to_a_number(tmp_path: Path) -> None:
    """All workers know the same few, so that together they do not show more; the rest is `other`."""
    async with (
        counting(tmp_path, workspaces=True, max_label_values=3) as (one, _),
        counting(tmp_path, workspaces=True, max_label_values=3) as (two, _),
    ):
        for number in range(20):
            principal = Principal(workspace=f"tenant-{number % 10}", key_id="key_test")
            _carried(two if number % 2 else one, make_exchange(model="test", principal=principal))
        scrape = _read(tmp_path / "metrics")
    assert scrape.values_of("workspace") == {"tenant-0", "tenant-1", "tenant-2", "other"}
    assert scrape.sum("llmproxy_requests_total", workspace="tenant-1") == 2
    assert scrape.sum("llmproxy_requests_total") == 20


def test_a_roll_that_is_full_asks_nobody(tmp_path: Path) -> None:
    """What came too late is `other` without a look at the file."""
    roll = Roll(tmp_path / "roll", 1)
    assert [roll.label(name) for name in ("a", "b", "a")] == ["a", "other", "a"]
    roll.close()
    assert roll.label("c") == "other"


# Being asked


async def test_both_formats_say_the_same(tmp_path: Path) -> None:
    """Prometheus' text format, and OpenMetrics for those who ask for it, as their own parsers read them."""
    async with counting(tmp_path, public=True) as (plugin, _):
        _carried(plugin, make_exchange(model="test"))
        kinds = ("*/*", "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3")
        text, open_metrics = [await plugin.scrape(_asked(accept=accept)) for accept in kinds]
    assert [dict(each.headers)["content-type"].partition(";")[0] for each in (text, open_metrics)] == [
        "text/plain",
        "application/openmetrics-text",
    ]
    said, again = [Scrape(each.body.decode()).samples for each in (text, open_metrics)]
    assert {(each.name, *each.labels.items()): each.value for each in said} == {
        (each.name, *each.labels.items()): each.value for each in again
    }


@pytest.mark.parametrize(("section", "is_admin"), [({}, True), ({"public": True}, False), ({"token": TOKEN}, False)])
async def test_who_may_read_it(tmp_path: Path, section: Mapping[str, object], *, is_admin: bool) -> None:
    """Core asks for the admin key unless the configuration says anybody, or whoever has the token."""
    async with counting(tmp_path, **section) as (plugin, _):
        routes = Routes()
        plugin.register_routes(routes)
        route, _parameters = routes.find("GET", "/metrics")
        assert route.admin == is_admin
        assert (await route.handler(_asked(authorization=f"Bearer {TOKEN}"))).status == 200
        for wrong in ("", TOKEN, "Bearer sk-of-a-client", "Bearer \udcff"):
            with pytest.raises(Unauthenticated) if "token" in section else nullcontext():
                assert (await route.handler(_asked(authorization=wrong))).status == 200


def test_one_way_in_is_enough() -> None:
    """A token for a path that is public would be a mistake."""
    with pytest.raises(ValidationError, match="keep one"):
        MetricsConfig.model_validate({"public": True, "token": TOKEN})


async def test_a_scrape_lets_requests_past(tmp_path: Path) -> None:
    """While a large one is put together, the event loop goes round again every few series."""
    rounds = 0

    async def go_round() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    async with counting(tmp_path) as (plugin, services):
        sheet = open_sheet(tmp_path / "metrics", "group", services.log)
        duration = Instrument(DURATION, sheet)
        for number in range(1000):
            duration.observe(("chat", "upstream", f"model-{number}", "succeeded"), 0.1)
        going = asyncio.get_running_loop().create_task(go_round())
        answer = await plugin.scrape(_asked())
        going.cancel()
        sheet.close()
    assert answer.body.count(b"_bucket") == 15_000
    assert rounds >= 2000 // 32


def test_the_readme_has_the_table_that_the_configuration_declares() -> None:
    """Whoever changes a key changes the page."""
    assert configuration_table(MetricsConfig) in (ROOT / "plugins" / "metrics" / "README.md").read_text()


def _asked(**headers: str) -> RouteRequest:
    return RouteRequest("GET", "/metrics", {}, {}, headers, b"")
