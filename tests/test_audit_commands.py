"""The audit as operators meet it: commands, the admin API, exports, and what they themselves do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llmproxy.admin import AuditTrail
from llmproxy.audit_chain import AuditKeys
from llmproxy.audit_export import ExportReader, export
from llmproxy.audit_notary import ActionLog
from llmproxy.audit_reader import Span, database_reader
from llmproxy.audit_verify import Report, verify
from llmproxy.cli.audit import command
from llmproxy.config import AuditConfig
from llmproxy.db import Postgres
from llmproxy.errors import BadRequest
from llmproxy.request import Document
from llmproxy.services import Row
from llmproxy.state import StateDirectory
from llmproxy.testing import reply
from llmproxy.testing.clock import Clock
from llmproxy.testing.database import make_postgres
from llmproxy.testing.running_proxy import StartProxy
from tests.audit_rows import KEYS, QUERIES, make_chain, make_chained_writer, messages, verified
from tests.processes import ROOT
from tests.test_admin import admin, made
from tests.test_audit import record, with_body
from tests.test_cli import Run, configured, run
from tests.test_docs import command_lines

__all__ = ["configured", "run"]  # fixtures


async def exported(database: Postgres, span: Span | None = None) -> list[bytes]:
    """The lines of an export."""
    async with database_reader(database, QUERIES, span or Span()) as reader:
        return [line async for line in export(reader, KEYS)]


async def verified_lines(lines: list[bytes], keys: AuditKeys = KEYS) -> Report:
    """What verifying a file with these lines finds."""
    return await verify(ExportReader(lines, keys), keys)


def write_rows(url: str, state: Path, rows: Sequence[Document] | None = None) -> None:
    """Record requests as the gateway with this state directory would."""

    async def write() -> None:
        database = make_postgres(url)
        await database.open()
        chain = make_chain(keys=StateDirectory(state).audit_keys(AuditConfig()))
        await make_chained_writer(database, chain, state).write(rows or [record() for _ in range(3)])
        await chain.end(database)
        await database.close()

    asyncio.run(write())


def tamper(url: str, statement: str) -> None:
    """Do what somebody can who may switch triggers off."""

    async def change() -> None:
        database = make_postgres(url)
        await database.open()
        async with database.transaction() as connection:
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute(statement)
        await database.close()

    asyncio.run(change())


# The command


def test_verify_says_so_and_ends_with_0(run: Run, configured: Path, database_url: str) -> None:
    """What nobody touched verifies, for people and for machines, also from a time on."""
    write_rows(database_url, configured / ".llmproxy")
    ran = run("audit", "verify")
    assert (ran.status, ran.errors) == (0, "")
    assert ran.output.startswith("3 requests in 1 chains")
    assert run("audit", "verify", "--json").document["ok"] is True
    assert run("audit", "verify", "--since", "1h", "--json").document["requests"] == 3


def test_verify_names_what_was_changed_and_ends_with_1(run: Run, configured: Path, database_url: str) -> None:
    """A changed amount ends it with 1, and with a sentence that names the request."""
    write_rows(database_url, configured / ".llmproxy")
    tamper(
        database_url, "UPDATE ledger_entries SET amount_usd = 0 WHERE request_id = (SELECT id FROM requests LIMIT 1)"
    )
    ran = run("audit", "verify")
    assert ran.status == 1
    assert "its rows of ledger_entries are not what was recorded." in ran.errors
    assert run("audit", "verify", "--json").document["problems"][0]["request_id"] in ran.errors


def test_a_head_kept_elsewhere_shows_that_the_log_was_cut(run: Run, configured: Path, database_url: str) -> None:
    """Whoever removes everything, anchor and all, is found by a head that was kept elsewhere."""
    write_rows(database_url, configured / ".llmproxy")
    (configured / "head.json").write_text(run("audit", "head").output)
    assert run("audit", "verify", "--anchor", "head.json").status == 0
    for table in ("requests", "attempts", "ledger_entries", "audit_chain", "audit_log"):
        tamper(database_url, f"DELETE FROM {table}")  # noqa: S608 - ours
    (configured / ".llmproxy" / "audit-anchor.json").unlink(missing_ok=True)
    assert run("audit", "verify").status == 0
    ran = run("audit", "verify", "--anchor", "head.json")
    assert ran.status == 1
    assert "it is known to have had entry 2" in ran.errors
    (configured / "head.json").write_text("{}")
    assert "is not what 'llmproxy audit head' printed." in run("audit", "verify", "--anchor", "head.json").errors


def test_an_export_is_verified_without_the_database(run: Run, configured: Path, database_url: str) -> None:
    """The file proves itself with the key alone; a change of it is found; it never overwrites another."""
    write_rows(database_url, configured / ".llmproxy")
    assert run("audit", "export", "--file", "audit.jsonl").status == 0
    [row] = asyncio.run(actions(database_url))
    assert (row["actor"], row["action"]) == ("command line", "audit_exported")
    assert "is there already" in run("audit", "export", "--file", "audit.jsonl").errors
    (configured / "config.yaml").write_text('{"database": {"url": "postgresql://127.0.0.1:1/gone"}}')
    assert run("audit", "verify", "--file", "audit.jsonl").output.startswith("3 requests in 1 chains")
    file = configured / "audit.jsonl"
    file.write_bytes(file.read_bytes().replace(b"0.000012345678901234", b"0.000000000000000001", 1))
    assert run("audit", "verify", "--file", "audit.jsonl").status == 1
    assert run("audit", "verify", "--file", "audit.jsonl", "--since", "1h").status == 2


def test_what_is_done_at_the_command_line_is_recorded(run: Run, configured: Path, database_url: str) -> None:
    """Keys that are made and revoked are actions in the signed log, which verifies."""
    key = run("keys", "create", "--workspace", "acme", "--name", "ci", "--json").document
    run("keys", "revoke", key["id"])
    rows = asyncio.run(actions(database_url))
    assert [(row["actor"], row["action"], row["subject"]) for row in rows] == [
        ("command line", "key_created", key["id"]),
        ("command line", "key_revoked", key["id"]),
    ]
    assert rows[0]["details"]["workspace"] == "acme"
    assert run("audit", "verify").status == 0


def test_the_bodies_of_a_user_are_erased(run: Run, configured: Path, database_url: str) -> None:
    """What a user said is gone, what others said is not, it is recorded without their name, and all verifies."""
    requests = [("acme", "ann"), ("acme", "bob"), ("other", "ann"), ("acme", None)]
    rows = [with_body(record(workspace=workspace, user_id=user), "aGVsbG8=") for workspace, user in requests]
    write_rows(database_url, configured / ".llmproxy", rows)
    assert run("audit", "erase", "--workspace", "acme", "--user", "ann", "--json").document["requests"] == 1
    left = "SELECT workspace, user_id FROM requests WHERE id IN (SELECT request_id FROM request_bodies)"
    kept = {(row["workspace"], row["user_id"]) for row in asyncio.run(fetched(database_url, left))}
    assert kept == {("acme", "bob"), ("other", "ann"), ("acme", None)}
    assert run("audit", "erase", "--workspace", "acme").output == "The bodies of 2 requests are erased.\n"
    [first, _] = asyncio.run(actions(database_url))
    assert (first["action"], first["subject"], first["details"]["requests"]) == ("bodies_erased", "acme", 1)
    assert "ann" not in str(first)
    assert run("audit", "verify").status == 0


async def actions(url: str) -> list[Row]:
    """What operators did."""
    return await fetched(url, "SELECT * FROM admin_actions ORDER BY number")


async def fetched(url: str, query: str) -> list[Row]:
    """The rows of a query."""
    database = make_postgres(url)
    await database.open()
    rows = await database.fetch(query)
    await database.close()
    return list(rows)


# The gateway


async def test_a_gateway_chains_what_it_serves(proxy: StartProxy) -> None:
    """What a gateway recorded verifies over its admin API, and a change of it does not."""
    async with proxy(upstream=[reply("hi"), reply("hi"), reply("hi")]) as client:
        for _ in range(3):
            await client.chat()
        await client.rows()
        report = (await admin(client, "GET", "/audit/verify?since=1h")).document
        assert (report["ok"], report["requests"], report["problems"]) == (True, 3, [])
        database = client.app.services.database
        async with database.transaction() as connection:
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute("UPDATE attempts SET http_status = 500")
        report = (await admin(client, "GET", "/audit/verify")).document
        assert (report["ok"], report["problem_count"]) == (False, 3)
        assert (await admin(client, "GET", "/audit/verify?until=1h")).status == 400


async def test_a_worker_that_stops_ends_its_chain(proxy: StartProxy) -> None:
    """The last entry that a worker leaves says how long its chain is, once everything is shipped."""
    async with proxy(upstream=[reply("hi")]) as client:
        [name] = await client.app.services.database.fetch("SELECT current_database() AS name")
        await client.chat()
        await client.app.stop()
        url = urlsplit(client.app._database._url)._replace(path=f"/{name['name']}").geturl()
        database = make_postgres(url)
        await database.open()
        report = await verified(database, keys=client.app._audit_keys)
        rows = await database.fetch("SELECT document FROM audit_log ORDER BY number DESC LIMIT 1")
        await database.close()
    assert (messages(report), report.requests) == ([], 1)
    assert json.loads(rows[0]["document"])["kind"] == "chain_ended"


async def test_an_export_comes_over_http(proxy: StartProxy) -> None:
    """The admin API gives the file that the command writes, and the log says that it was taken; too much is refused."""
    async with proxy(upstream=[reply("hi"), reply("hi")]) as client:
        for _ in range(2):
            await client.chat()
        await client.rows()
        answer = await admin(client, "GET", "/audit/export?since=1h")
        keys, actions = client.app._audit_keys, ActionLog(client.app._notary, "test")
        report = await verified_lines(answer.body.splitlines(keepends=True), keys)
        rows = await client.app.services.database.fetch("SELECT * FROM admin_actions")
        trail = AuditTrail(client.app.services.database, QUERIES, keys, client.app._state.audit_anchor)
        with pytest.raises(BadRequest, match="shorter"):
            await trail.export(actions, Span(), max_bytes=1000)
        assert (await admin(client, "GET", "/audit/export?workspace=acme")).status == 400
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
    assert (messages(report), report.requests) == ([], 2)
    assert [(row["actor"], row["action"]) for row in rows] == [("admin API", "audit_exported")]
    assert rows[0]["details"].keys() == {"since", "until"}


async def test_bodies_are_erased_over_http(proxy: StartProxy) -> None:
    """What one user said is gone and what others said is not; the log has who did it, and not the user's name."""
    config = {"audit": {"bodies": "all"}}
    async with proxy(upstream=[reply("hi"), reply("hi")], config=config) as client:
        for user in ("ann", "bob"):
            await client.chat(headers={"x-llmproxy-user": user})
        await client.rows()
        asked = {"workspace": "default", "user": "ann"}
        erased = await admin(client, "POST", "/audit/erase", asked)
        database = client.app.services.database
        left = await database.fetch("SELECT user_id FROM requests JOIN request_bodies ON request_id = id")
        [row] = await database.fetch("SELECT * FROM admin_actions")
        report = (await admin(client, "GET", "/audit/verify")).document
        assert (await admin(client, "POST", "/audit/erase", {"user": "bob"})).status == 400
        assert (await admin(client, "POST", "/audit/erase", {"workspace": ""})).status == 400
    assert erased.document == {**asked, "requests": 1}
    assert [each["user_id"] for each in left] == ["bob"]
    assert (row["actor"], row["action"], row["subject"]) == ("admin API", "bodies_erased", "default")
    assert "ann" not in str(row)
    assert report["ok"] is True


async def test_what_operators_do_is_in_the_audit(proxy: StartProxy) -> None:
    """Keys, workspaces and reloads leave actions that say who, what and how, and never a secret."""
    async with proxy() as client:
        key = await made(client, name="ci", metadata={"note": "internal"})
        await admin(client, "PATCH", f"/keys/{key['id']}", {"name": "other"})
        await admin(client, "DELETE", f"/keys/{key['id']}")
        await admin(client, "PUT", "/workspaces/acme", {"region": "eu"})
        await admin(client, "DELETE", "/workspaces/acme")
        await admin(client, "POST", "/config/reload")
        rows = await client.app.services.database.fetch("SELECT * FROM admin_actions ORDER BY number")
        log = await client.app.services.database.fetch("SELECT document FROM audit_log")
        report = (await admin(client, "GET", "/audit/verify")).document
    assert [row["action"] for row in rows] == [
        *("key_created", "key_changed", "key_revoked", "workspace_changed", "workspace_deleted"),
        "configuration_reloaded",
    ]
    assert rows[1]["details"] == {"name": "other"}
    assert rows[3]["details"]["region"] == "eu"
    assert not any(key["key"] in row["document"] or "sk-" in row["document"] for row in log)
    assert report["ok"] is True


async def test_an_action_that_fails_leaves_no_trace(proxy: StartProxy) -> None:
    """What was refused was not done, and so is not recorded."""
    async with proxy() as client:
        assert (await admin(client, "DELETE", "/keys/key_0")).status == 404
        assert (await admin(client, "PATCH", "/keys/key_0", {"name": "x"})).status == 404
        imported = {"workspace": "default", "key_sha256": "0" * 64}
        assert (await admin(client, "POST", "/keys", imported)).status == 201
        assert (await admin(client, "POST", "/keys", imported)).status == 409
        rows = await client.app.services.database.fetch("SELECT action FROM admin_actions")
    assert [row["action"] for row in rows] == ["key_created"]


# Exports


async def test_an_export_of_a_span_verifies(database: Postgres, tmp_path: Path) -> None:
    """A span that begins and ends within a chain is a file of its own, with nothing missing and nothing more."""
    clock = Clock()
    chain = make_chain(clock=clock, rows=2)
    writer = make_chained_writer(database, chain, tmp_path)
    times = []
    for size in (2, 3, 4):
        await writer.write([record() for _ in range(size)])
        await clock.advance(3600)
        times.append(clock.now())
    await chain.end(database)
    for span, requests in ((Span(), 9), (Span(times[0], times[1]), 3), (Span(None, times[0]), 2), (Span(times[1]), 4)):
        report = await verified_lines(await exported(database, span))
        assert (messages(report), report.requests) == ([], requests)


async def test_whatever_is_done_to_the_lines_of_an_export_is_found(database: Postgres, tmp_path: Path) -> None:
    """A line that is removed, doubled or moved is found, wherever it stood."""
    for _ in range(2):
        chain = make_chain(rows=2)
        writer = make_chained_writer(database, chain, tmp_path)
        for _ in range(3):
            await writer.write([record(), record()])
        await chain.end(database)
    lines = await exported(database)
    assert messages(await verified_lines(lines)) == []
    for number in range(1, len(lines)):
        for changed in (
            [*lines[:number], *lines[number + 1 :]],
            [*lines[:number], lines[number], *lines[number:]],
            [lines[0], *lines[number:], *lines[1:number]] if number > 1 else lines[:1],
            lines[:number],
        ):
            assert messages(await verified_lines(changed)) != [], number


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"not JSON",
        b'{"format": "another"}',
        b'{"format": "llmproxy audit 1", "since": "yesterday", "until": null}',
        b'{"format": "llmproxy audit 1", "since": null, "until": null}\n{"entry": {}}',
        b'{"format": "llmproxy audit 1", "since": null, "until": null}\n{"entry": 7}',
    ],
)
async def test_a_file_that_is_no_export_is_refused(line: bytes) -> None:
    """What cannot be an export is refused with a sentence."""
    with pytest.raises(BadRequest, match="export"):
        await verified_lines(line.splitlines())


# The manual


def test_the_commands_of_the_manual_exist() -> None:
    """Every command line of the page on the audit names a command and options that there are."""
    lines = [words for words in command_lines(ROOT / "docs" / "audit.md") if words]
    for program, group, name, *words in lines:
        found = command.commands[name]
        options = {option for parameter in found.params for option in parameter.opts}
        assert (program, group) == ("llmproxy", "audit")
        assert {word for word in words if word.startswith("-")} <= options
    assert {name for _, _, name, *_ in lines} == set(command.commands)
