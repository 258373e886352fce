"""Kept bodies go when their workspace says: sooner than others', later than others', with the settings of the day."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from llmproxy.audit_notary import Notary
from llmproxy.body_retention import ROWS_AT_ONCE
from llmproxy.config import AuditConfig
from llmproxy.db import Postgres
from llmproxy.partitions import Partitions
from llmproxy.testing.clock import START, Clock
from llmproxy.testing.running_proxy import StartProxy
from tests.audit_rows import KEYS, QUERIES, make_chain, make_chained_writer, messages, verified
from tests.test_admin import admin
from tests.test_audit import ListLog, record, with_body

AGES_DAYS = (0, 5, 15, 25)


def make_partitions(database: Postgres, days: dict[str, int | None], clock: Clock | None = None) -> Partitions:
    """Bodies are kept for 10 days, rows for 20; the days of workspaces may be changed afterwards."""
    config = AuditConfig(bodies_retention_days=10, retention_days=20)
    clock, log = clock or Clock(), ListLog()
    notary = Notary(QUERIES, KEYS, clock, log)
    return Partitions(database, QUERIES, config, clock, log, notary=notary, body_days=lambda: days)


async def write_bodies(database: Postgres, directory: Path, *workspaces: str) -> None:
    """A request with a body, of each workspace and each age."""
    writer = make_chained_writer(database, make_chain(), directory)
    for days in AGES_DAYS:
        at = (START - timedelta(days=days)).isoformat()
        await writer.write([with_body(record(at, workspace=name), "aGVsbG8=") for name in workspaces])


async def ages(database: Postgres) -> Mapping[str, list[int]]:
    """How many days old the bodies of each workspace are."""
    rows = await database.fetch(
        "SELECT workspace, body.admitted_at AS at FROM request_bodies AS body JOIN requests ON id = request_id "
        "ORDER BY at DESC"
    )
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(row["workspace"], []).append((START - row["at"]).days)
    return found


async def test_bodies_are_kept_as_long_as_their_workspace_says(database: Postgres, tmp_path: Path) -> None:
    """Shorter, longer and default days stand beside each other; no body outlives its request; all verifies."""
    await write_bodies(database, tmp_path, "short", "default", "long", "for ever")
    await make_partitions(database, {"short": 4, "default": None, "long": 18, "for ever": 1000}).maintain()
    assert await ages(database) == {"short": [0], "default": [0, 5], "long": [0, 5, 15], "for ever": [0, 5, 15]}
    [left] = await database.fetch("SELECT count(*) AS bodies FROM request_bodies")
    assert left["bodies"] == 9
    report = await verified(database)
    assert (messages(report), report.requests, report.ledger_only) == ([], 12, 4)


async def test_what_the_admin_api_says_wins(database: Postgres, tmp_path: Path) -> None:
    """A stored workspace has its own days, or the general ones, whatever the configuration says of it."""
    await write_bodies(database, tmp_path, "shorter", "general")
    await database.execute(
        "INSERT INTO workspaces (id, bodies_retention_days) VALUES ('shorter', 3), ('general', NULL)"
    )
    await make_partitions(database, {"shorter": 15, "general": 2}).maintain()
    assert await ages(database) == {"shorter": [0], "general": [0, 5]}


async def test_changed_days_are_in_force_with_the_next_pass(database: Postgres, tmp_path: Path) -> None:
    """Days that were made shorter, or that passed, make bodies go without a restart."""
    await write_bodies(database, tmp_path, "acme")
    clock = Clock()
    partitions = make_partitions(database, {"acme": 18}, clock)
    await partitions.maintain()
    assert await ages(database) == {"acme": [0, 5, 15]}
    await clock.advance(4 * 86_400)
    await partitions.maintain()
    assert await ages(database) == {"acme": [0, 5]}
    await database.execute("INSERT INTO workspaces (id, bodies_retention_days) VALUES ('acme', 6)")
    await partitions.maintain()
    assert await ages(database) == {"acme": [0]}


async def test_however_many_bodies_a_day_has(database: Postgres, tmp_path: Path) -> None:
    """More than go at once go one lot after the other."""
    at = (START - timedelta(days=5)).isoformat()
    document = with_body(record(at, workspace="short"), "aGVsbG8=")
    await make_chained_writer(database, make_chain(), tmp_path).write([document])
    columns = "admitted_at, operation_name, path, workspace, outcome"
    await database.execute(
        f"INSERT INTO requests (id, {columns}) SELECT gen_random_uuid(), {columns} FROM requests, "  # noqa: S608 - ours
        f"generate_series(1, {ROWS_AT_ONCE + 10})"
    )
    await database.execute(
        "INSERT INTO request_bodies (request_id, admitted_at) "
        "SELECT id, admitted_at FROM requests ON CONFLICT DO NOTHING"
    )
    await make_partitions(database, {"short": 4}).maintain()
    assert await ages(database) == {}


@pytest.mark.parametrize("days", [0, -1, 36_501, "4"])
async def test_days_are_whole_and_not_none(proxy: StartProxy, days: object) -> None:
    """The admin API refuses what can be no number of days."""
    async with proxy() as client:
        answer = await admin(client, "PUT", "/workspaces/acme", {"bodies_retention_days": days})
        assert (answer.status, answer.document["error"]["param"]) == (400, "bodies_retention_days")


async def test_workspaces_show_their_days(proxy: StartProxy) -> None:
    """Those of the configuration and those of the admin API, and a worker's own maintenance knows both."""
    config = {"workspaces": {"file": {"bodies_retention_days": 7}}}
    async with proxy(config=config) as client:
        made = (await admin(client, "PUT", "/workspaces/stored", {"bodies_retention_days": 3})).document
        listed = (await admin(client, "GET", "/workspaces")).document["data"]
        assert made["bodies_retention_days"] == 3
        assert {each["id"]: each["bodies_retention_days"] for each in listed} == {
            "default": None,
            "file": 7,
            "stored": 3,
        }
        assert client.app.keys.configured_body_days()["file"] == 7
