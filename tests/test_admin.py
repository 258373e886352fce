"""The admin API: over HTTP against a whole gateway and a real database."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.admin.documents import moment
from llmproxy.admin.explain import explanation
from llmproxy.errors import BadRequest
from llmproxy.ids import new_id
from llmproxy.keys import key_hash, new_key
from llmproxy.request import Document
from llmproxy.testing import fail, reply
from llmproxy.testing.database import make_postgres
from llmproxy.testing.proxy_client import ProxyClient
from llmproxy.testing.responses import ProxyResponse
from llmproxy.testing.running_proxy import StartProxy

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ADMIN_PATHS = (
    ("POST", "/keys"),
    ("GET", "/keys"),
    ("PATCH", "/keys/key_1"),
    ("DELETE", "/keys/key_1"),
    ("PUT", "/workspaces/acme"),
    ("DELETE", "/workspaces/acme"),
    ("GET", "/requests"),
    ("GET", "/requests/1/explain"),
    ("GET", "/spend"),
    ("GET", "/audit/export"),
    ("POST", "/audit/erase"),
    ("POST", "/config/reload"),
)
WRONG_KEYS: tuple[tuple[object, str | None], ...] = (
    ({}, "workspace"),
    ({"workspace": "defalt"}, "workspace"),
    ({"workspace": "default", "modles": ["*"]}, "modles"),
    ({"workspace": "default", "models": []}, "models"),
    ({"workspace": "default", "models": ["*", 1]}, "models.1"),
    ({"workspace": "default", "name": 1}, "name"),
    ({"workspace": "default", "expires_at": "tomorrow"}, "expires_at"),
    ({"workspace": "default", "expires_at": "2030-01-01T00:00:00"}, "expires_at"),
    ({"workspace": "default", "expires_in_seconds": 0}, "expires_in_seconds"),
    ({"workspace": "default", "key_sha256": "abc"}, "key_sha256"),
    ({"workspace": "default", "expires_at": "2030-01-01T00:00:00Z", "expires_in_seconds": 1}, None),
    ({"workspace": "default", "name": "a\0b"}, None),
    ({"workspace": "default", "metadata": {"a": "\0"}}, None),
    ([], None),
)
WRONG_QUERIES = (
    ("since=yesterday", "since"),
    ("until=24", "until"),
    ("since=999999999w", "since"),
    ("outcome=ok", "outcome"),
    ("limit=0", "limit"),
    ("limit=1001", "limit"),
    ("limit=²", "limit"),
    ("after=nothing", None),
    ("after=01a20392-9aeb-75d6-8bcc-c2dfac331e76", "after"),
    ("workspaces=a", "workspaces"),
    ("workspace=%00", None),
)


async def admin(client: ProxyClient, method: str, path: str, document: object = None) -> ProxyResponse:
    """What the operator gets."""
    return await client.request(method, f"/admin/v1{path}", document, key=client.admin_key)


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 5) -> None:
    """Return once it holds, asking again and again."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "It did not happen in time."
        await asyncio.sleep(0.01)


async def made(client: ProxyClient, **fields: object) -> Document:
    """A new key, of the workspace `default` unless told otherwise."""
    response = await admin(client, "POST", "/keys", {"workspace": "default", **fields})
    assert response.status == 201, response.body
    return response.document


async def status_with(client: ProxyClient, key: str) -> int:
    """What a client with this key gets."""
    return (await client.request("GET", "/v1/models", key=key)).status


async def test_only_the_admin_key_opens_the_admin_api(proxy: StartProxy) -> None:
    """A client's key, however valid, gets 401 on every admin path."""
    async with proxy() as client:
        for method, path in ADMIN_PATHS:
            response = await client.request(method, f"/admin/v1{path}", {})
            assert (response.status, response.document["error"]["code"]) == (401, "invalid_api_key"), path


# Keys


async def test_a_new_key_works_within_a_second_and_is_shown_once(proxy: StartProxy) -> None:
    """A key opens the gateway soon after it was made, and no other answer ever holds it or its hash."""
    async with proxy() as client:
        key = await made(client, name="ci", feature="search", metadata={"owner": "platform"})
        await eventually(lambda: _is(client, key["key"], 200), 1)
        shown = await admin(client, "GET", f"/keys/{key['id']}")
        listed = await admin(client, "GET", "/keys")
        assert shown.document == {name: value for name, value in key.items() if name != "key"}
        assert listed.document["data"] == [shown.document]
        assert key_hash(key["key"]) not in (shown.body + listed.body).decode()


async def test_a_revoked_key_is_refused_within_a_second_and_for_good(proxy: StartProxy) -> None:
    """Revoking ends a key at once, and doing it again changes nothing."""
    async with proxy() as client:
        key = await made(client)
        await eventually(lambda: _is(client, key["key"], 200), 1)
        first = await admin(client, "DELETE", f"/keys/{key['id']}")
        await eventually(lambda: _is(client, key["key"], 401), 1)
        second = await admin(client, "DELETE", f"/keys/{key['id']}")
        assert first.document["revoked_at"] == second.document["revoked_at"] is not None


async def test_a_key_ends_when_it_said_it_would(proxy: StartProxy) -> None:
    """`expires_in_seconds` counts from now by the gateway's clock, and what comes after is refused."""
    async with proxy(now=NOW) as client:
        key = await made(client, expires_in_seconds=60)
        assert datetime.fromisoformat(key["expires_at"]) == NOW + timedelta(seconds=60)
        await eventually(lambda: _is(client, key["key"], 200))
        client.clock.set(NOW + timedelta(seconds=61))
        assert await status_with(client, key["key"]) == 401


async def test_a_key_made_elsewhere_is_taken_over_by_its_hash(proxy: StartProxy) -> None:
    """An imported key works as it is and is not shown; importing it twice is a conflict."""
    async with proxy() as client:
        key = new_key()
        imported = await made(client, key_sha256=key_hash(key))
        assert "key" not in imported
        await eventually(lambda: _is(client, key, 200))
        again = await admin(client, "POST", "/keys", {"workspace": "default", "key_sha256": key_hash(key)})
        assert (again.status, again.document["error"]["param"]) == (409, "key_sha256")


async def test_a_wrong_body_is_refused_and_the_field_is_named(proxy: StartProxy) -> None:
    """Whatever is wrong with a body is a 400 that names the field, and no key is made."""
    async with proxy() as client:
        for body, param in WRONG_KEYS:
            response = await admin(client, "POST", "/keys", body)
            assert (response.status, response.document["error"]["param"]) == (400, param), body
        assert (await admin(client, "GET", "/keys")).document["data"] == []


async def test_an_unknown_workspace_gets_the_nearest_name(proxy: StartProxy) -> None:
    """A misspelt workspace is answered with the one that was probably meant."""
    async with proxy() as client:
        response = await admin(client, "POST", "/keys", {"workspace": "defalt"})
        assert "did you mean 'default'?" in response.document["error"]["message"]


async def test_changing_a_key_leaves_what_was_not_sent(proxy: StartProxy) -> None:
    """PATCH changes the fields it names, null takes one away, and the rest stays."""
    async with proxy() as client:
        key = await made(client, name="old", feature="search", user="ann", expires_in_seconds=60)
        changed = await admin(client, "PATCH", f"/keys/{key['id']}", {"name": "new", "user": None})
        expected = {**key, "name": "new", "user": None}
        assert changed.document == {name: value for name, value in expected.items() if name != "key"}
        lasting = await admin(client, "PATCH", f"/keys/{key['id']}", {"expires_at": None})
        assert (lasting.document["expires_at"], lasting.document["feature"]) == (None, "search")


async def test_a_key_that_is_not_there_is_not_found(proxy: StartProxy) -> None:
    """An unknown id is a 404 whatever is asked of it."""
    async with proxy() as client:
        for method in ("GET", "PATCH", "DELETE"):
            assert (await admin(client, method, "/keys/key_0000000000000000", {})).status == 404, method


async def test_pages_of_keys_hold_each_key_once(proxy: StartProxy) -> None:
    """Following the cursor meets every key of the workspace once, in the order in which they were made."""
    async with proxy() as client:
        ids = [(await made(client))["id"] for _ in range(5)]
        seen: list[str] = []
        has_more = True
        while has_more:
            after = f"&after={seen[-1]}" if seen else ""
            page = (await admin(client, "GET", f"/keys?workspace=default&limit=2{after}")).document
            seen += [key["id"] for key in page["data"]]
            has_more = page["has_more"]
        assert seen == ids
        assert (await admin(client, "GET", "/keys?workspace=other")).document["data"] == []


# Workspaces


async def test_a_stored_workspace_takes_keys_and_limits_their_models(proxy: StartProxy) -> None:
    """A workspace made over the API holds keys, and its models are all that they may use."""
    async with proxy() as client:
        assert (await admin(client, "PUT", "/workspaces/acme", {"models": ["demo/*"]})).status == 200
        key = await made(client, workspace="acme")
        await eventually(lambda: _is(client, key["key"], 200))
        refused = await client.request(
            "POST", "/v1/chat/completions", {"model": "test", "messages": []}, key=key["key"]
        )
        assert (refused.status, refused.document["error"]["code"]) == (403, "model_not_allowed")


async def test_workspaces_say_where_they_are_defined(proxy: StartProxy) -> None:
    """The list holds those of the file and those of the database; a stored one hides the file's of the same name."""
    async with proxy(config={"workspaces": {"file": {"region": "eu"}}}) as client:
        await admin(client, "PUT", "/workspaces/stored", {"bodies": "none"})
        await admin(client, "PUT", "/workspaces/file", {})
        found = (await admin(client, "GET", "/workspaces")).document["data"]
        assert [(each["id"], each["source"], each["region"]) for each in found] == [
            ("default", "config", None),
            ("file", "database", None),
            ("stored", "database", None),
        ]


async def test_a_workspace_with_active_keys_is_not_deleted(proxy: StartProxy) -> None:
    """DELETE is a conflict while a key works, and succeeds once all are revoked."""
    async with proxy() as client:
        await admin(client, "PUT", "/workspaces/acme", {})
        key = await made(client, workspace="acme")
        assert (await admin(client, "DELETE", "/workspaces/acme")).status == 409
        await admin(client, "DELETE", f"/keys/{key['id']}")
        assert (await admin(client, "DELETE", "/workspaces/acme")).document == {"id": "acme", "deleted": True}
        assert (await admin(client, "DELETE", "/workspaces/acme")).status == 404


async def test_a_workspace_of_the_file_is_not_deleted(proxy: StartProxy) -> None:
    """What the configuration defines can only be removed there."""
    async with proxy() as client:
        response = await admin(client, "DELETE", "/workspaces/default")
        assert (response.status, "configuration file" in response.document["error"]["message"]) == (409, True)


async def test_a_wrong_workspace_is_refused(proxy: StartProxy) -> None:
    """Names are plain words, and settings are held to what they may be."""
    wrong: tuple[tuple[str, object, str], ...] = (
        ("a b", {}, "id"),
        ("a/b", {}, "id"),
        ("x" * 101, {}, "id"),
        ("a", {"bodies": "some"}, "bodies"),
    )
    async with proxy() as client:
        for name, body, param in wrong:
            response = await admin(client, "PUT", f"/workspaces/{quote(name)}", body)
            assert (response.status, response.document["error"]["param"]) == (400, param), name


# Requests


async def test_requests_are_listed_newest_first_and_by_what_is_asked(proxy: StartProxy) -> None:
    """Each filter leaves exactly the requests that fit it, and following the cursor meets each once."""
    async with proxy(upstream=[reply("hi"), fail(500)]) as client:
        await client.chat()
        await client.chat()
        await client.chat(model="demo/echo")
        rows = (await client.rows()).requests
        ids = [str(row["id"]) for row in reversed(rows)]
        for query, expected in {
            "": ids,
            "?model=demo/echo": ids[:1],
            "?model=test": ids[1:],
            "?model=upstream/test-model": ids[1:],
            "?outcome=failed": ids[1:2],
            "?workspace=default&limit=2": ids[:2],
            "?workspace=other": [],
            f"?after={ids[0]}": ids[1:],
            f"?after={ids[2]}": [],
            "?since=1h": ids,
            "?until=1h": [],
        }.items():
            found = (await admin(client, "GET", f"/requests{query}")).document["data"]
            assert [each["id"] for each in found] == expected, query


async def test_a_wrong_parameter_is_refused_and_named(proxy: StartProxy) -> None:
    """A parameter that cannot be read, or is not one, is a 400 that names it."""
    async with proxy() as client:
        for query, param in WRONG_QUERIES:
            response = await admin(client, "GET", f"/requests?{query}")
            assert (response.status, response.document["error"]["param"]) == (400, param), query


async def test_a_request_is_shown_with_its_attempts_and_its_bodies(proxy: StartProxy) -> None:
    """One request holds its row, every attempt, and the bodies as text where they are kept."""
    async with proxy(upstream=[reply("salut")], config={"audit": {"bodies": "all"}}) as client:
        await client.chat("grüezi")
        request_id = (await client.rows()).requests[0]["id"]
        shown = (await admin(client, "GET", f"/requests/{request_id}")).document
        assert [attempt["model"] for attempt in shown["attempts"]] == ["test-model"]
        assert "grüezi" in shown["bodies"]["request"] or "gr\\u00fcezi" in shown["bodies"]["request"]
        assert "salut" in shown["bodies"]["response"]
        assert Decimal(shown["cost_usd"]) > 0


async def test_a_request_that_is_not_there_is_not_found(proxy: StartProxy) -> None:
    """An id that was never given out is a 404, and what is no id at all a 400."""
    async with proxy() as client:
        assert (await admin(client, "GET", f"/requests/{new_id(NOW)}")).status == 404
        assert (await admin(client, "GET", f"/requests/{new_id(NOW)}/explain")).status == 404
        assert (await admin(client, "GET", "/requests/nothing")).status == 400


async def test_a_failed_request_is_explained_by_its_attempt(proxy: StartProxy) -> None:
    """The explanation names who was asked, why that failed, and what it cost."""
    async with proxy(upstream=[fail(503, message="Come back later.")]) as client:
        await client.chat()
        row = (await client.rows()).requests[0]
        told = (await admin(client, "GET", f"/requests/{row['id']}/explain")).document
        assert told["served_by"] is None
        assert told["summary"] == "Failed after 1 attempt: Come back later."
        assert told["skipped"] == [{"model": "upstream/test-model", "by": "attempt 1", "why": "Come back later."}]
        assert [attempt["http_status"] for attempt in told["attempts"]] == [503]


def request_row(**fields: object) -> Document:
    """A request as the audit shows it."""
    row: dict[str, Any] = {  # columns of every type
        "id": "1",
        "outcome": "succeeded",
        "http_status": 200,
        "request_model": "fast",
        "cache": None,
        "cost_usd": None,
        "cost_provenance": None,
        "price_source": None,
        "usage_provenance": None,
        "duration_seconds": 1.5,
        "error_message": None,
        "decisions": [],
    }
    return {**row, **fields}


def attempt_row(number: int, provider: str, **fields: object) -> Document:
    """An attempt as the audit shows it; an `error_code` makes it a failed one."""
    row: dict[str, Any] = {  # columns of every type
        "number": number,
        "provider_name": provider,
        "model": "m",
        "region": None,
        "http_status": 200,
        "failure": None,
        "error_code": None,
        "error_message": None,
        "duration_seconds": 1.0,
        "upstream_request_id": None,
        "cost_usd": "0.1",
        "cost_provenance": "measured",
    }
    return {**row, **fields}


def test_an_explanation_names_those_who_were_passed_over() -> None:
    """Who was never asked and who was asked and failed are both told, with the reason."""
    failed = attempt_row(1, "a", error_code="upstream_timeout", error_message="Too slow.", failure="timeout")
    decided = [{"by": "routing", "what": "skipped c/m", "why": "outside the region"}]
    told = explanation(
        request_row(cost_usd="0.1", cost_provenance="measured", decisions=decided), [failed, attempt_row(2, "b")]
    )
    assert told["summary"] == "b/m answered in 1.50 s after a/m had failed, for 0.1 USD (measured)."
    assert told["served_by"] == {"provider": "b", "model": "b/m", "attempt": 2}
    assert told["skipped"] == [
        {"model": "c/m", "by": "routing", "why": "outside the region"},
        {"model": "a/m", "by": "attempt 1", "why": "Too slow."},
    ]
    assert told["decisions"] == decided


@pytest.mark.parametrize(
    ("row", "attempts", "summary"),
    [
        (request_row(cache="hit"), [], "Answered by the cache without asking a provider."),
        (request_row(), [attempt_row(1, "a", error_code="x")], "Answered by a plugin when every attempt had failed."),
        (
            request_row(usage_provenance="measured"),
            [attempt_row(1, "a")],
            "a/m answered in 1.50 s, at a price that is not known.",
        ),
        (request_row(outcome="refused", error_message="No."), [], "Refused at once: No."),
        (request_row(outcome="disconnected"), [attempt_row(1, "a")], "The client hung up after 1.50 s and 1 attempt."),
        (
            request_row(outcome="disconnected"),
            [attempt_row(1, "a", http_status=None)],
            "The client hung up after 1.50 s and 0 attempts.",
        ),
        (
            request_row(outcome="failed", error_message="Nobody there."),
            [attempt_row(1, "a", http_status=None, failure="connect", error_code="x")],
            "Failed after 1 attempt: Nobody there.",
        ),
        (
            request_row(outcome="interrupted", cost_usd="0.3", cost_provenance="assumed"),
            [],
            "The worker stopped before this had ended; the most it may have used was charged, for 0.3 USD (assumed).",
        ),
    ],
)
def test_every_ending_has_its_sentence(row: Document, attempts: list[Document], summary: str) -> None:
    """However a request ended, one sentence says so."""
    assert explanation(row, attempts)["summary"] == summary


# Spend


ENTRY = """
INSERT INTO ledger_entries (
    request_id, occurred_at, kind, workspace, feature, uncached_input_tokens, text_output_tokens,
    usage_provenance, amount_usd, cost_provenance
) VALUES ($1, $2, 'exchange', $3, $4, 3, 2, $5, $6, $5)
"""


async def spent(client: ProxyClient, *entries: tuple[str, str | None, str | None, str]) -> None:
    """Write (workspace, feature, amount, provenance) to the ledger."""
    rows = [
        (uuid4(), datetime.now(UTC), workspace, feature, provenance, Decimal(amount) if amount else None)
        for workspace, feature, amount, provenance in entries
    ]
    await client.app.services.database.execute_many(ENTRY, rows)


async def test_spend_is_exact_and_adds_up(proxy: StartProxy) -> None:
    """Sums are exact decimals, groups add up to the total, and what has no price is counted apart."""
    amounts = [f"0.{number:030d}" for number in range(1, 40)]
    async with proxy() as client:
        await spent(client, *((f"w{number % 3}", "chat", amount, "measured") for number, amount in enumerate(amounts)))
        await spent(client, ("w0", None, None, "measured"), ("w1", None, "1", "estimated"))
        report = (await admin(client, "GET", "/spend?by=workspace&since=1h")).document
        total, groups = report["total"], report["data"]
        assert Fraction(total["amount_usd"]) == sum(map(Fraction, amounts), Fraction(1))
        assert sum(Fraction(group["amount_usd"]) for group in groups) == Fraction(total["amount_usd"])
        assert "E" not in total["amount_usd"]
        assert [group["group"]["workspace"] for group in groups] == ["w1", "w2", "w0"]
        counts = ("requests", "input_tokens", "output_tokens", "unpriced_requests", "estimated_requests")
        assert [total[name] for name in counts] == [41, 123, 82, 1, 1]


async def test_spend_without_a_group_is_a_group_of_its_own(proxy: StartProxy) -> None:
    """Requests that name no feature are summed under null, apart from the total."""
    async with proxy() as client:
        await spent(client, ("w", "chat", "1", "measured"), ("w", None, "2", "measured"))
        report = (await admin(client, "GET", "/spend?by=feature")).document
        found = [(group["group"]["feature"], group["amount_usd"]) for group in report["data"]]
        assert found == [(None, "2"), ("chat", "1")]


async def test_the_total_covers_groups_beyond_the_limit(proxy: StartProxy) -> None:
    """A limit cuts the groups and says so, never the total."""
    async with proxy() as client:
        await spent(client, ("a", None, "1", "measured"), ("b", None, "2", "measured"))
        report = (await admin(client, "GET", "/spend?limit=1")).document
        assert ([group["group"] for group in report["data"]], report["has_more"]) == ([{"workspace": "b"}], True)
        assert report["total"]["amount_usd"] == "3"


async def test_nothing_spent_is_zero(proxy: StartProxy) -> None:
    """An empty ledger has a total of nothing, by whatever it is asked."""
    async with proxy() as client:
        for by in ("workspace", "feature", "user", "model", "key", "provider"):
            report = (await admin(client, "GET", f"/spend?by={by}")).document
            assert (report["data"], report["total"]["amount_usd"], report["total"]["requests"]) == ([], "0", 0)
        assert (await admin(client, "GET", "/spend?by=team")).document["error"]["param"] == "by"


# Reload


async def test_a_reload_takes_over_the_file(proxy: StartProxy) -> None:
    """After a reload the gateway serves what the file says now."""
    async with proxy() as client:
        file = client.app._read_source().path
        assert file is not None
        file.write_text(file.read_text().replace('"test": "upstream', '"renamed": "upstream'))
        assert (await admin(client, "POST", "/config/reload")).document == {"status": "reloading"}
        listed = (await client.request("GET", "/v1/models")).document["data"]
        assert listed[0]["id"] == "renamed"


async def test_a_reload_holds_stored_keys_to_what_their_workspace_may_now(proxy: StartProxy) -> None:
    """A key from the database obeys the file's new limits from the first request after the reload."""
    async with proxy() as client:
        key = (await made(client))["key"]
        await eventually(lambda: _is(client, key, 200))
        file = client.app._read_source().path
        assert file is not None
        settings = json.loads(file.read_text())
        settings["workspaces"]["default"]["models"] = ["demo/*"]
        file.write_text(json.dumps(settings))
        await admin(client, "POST", "/config/reload")
        asked = {"model": "test", "messages": []}
        assert (await client.request("POST", "/v1/chat/completions", asked, key=key)).status == 403


async def test_a_wrong_file_is_refused_with_every_mistake(proxy: StartProxy) -> None:
    """A reload of a file with mistakes is a 400 that tells them all, and the old configuration goes on."""
    async with proxy(upstream=[reply("still here")]) as client:
        file = client.app._read_source().path
        assert file is not None
        file.write_text("servers: {}\nmodels: {a: {targets: 1}}\n")
        response = await admin(client, "POST", "/config/reload")
        error = response.document["error"]
        assert (response.status, error["code"]) == (400, "config_error")
        assert "servers" in error["message"]
        assert "models.a.targets" in error["message"]
        assert (await client.chat()).text == "still here"


async def test_a_section_that_needs_a_restart_is_not_reloaded(proxy: StartProxy) -> None:
    """Changing what sockets, pools and files stand on is refused by name instead of being half done."""
    async with proxy() as client:
        file = client.app._read_source().path
        assert file is not None
        file.write_text(file.read_text().replace('"logging": {', '"journal": {"batch_rows": 7}, "logging": {'))
        response = await admin(client, "POST", "/config/reload")
        assert response.status == 400
        assert response.document["error"]["message"].startswith("journal: ")


# Failure, and times


async def test_without_the_database_the_admin_api_says_so(proxy: StartProxy, llmproxy_server_url: str) -> None:
    """A lost database is a 503 on every path that needs it."""
    async with proxy() as client, closed_to_everyone(client, llmproxy_server_url):
        for method, path, body in (
            ("POST", "/keys", {"workspace": "default"}),
            ("GET", "/workspaces", None),
            ("GET", "/requests", None),
            ("GET", "/spend", None),
        ):
            response = await admin(client, method, path, body)
            assert (response.status, response.document["error"]["code"]) == (503, "storage_unavailable"), path


@asynccontextmanager
async def closed_to_everyone(client: ProxyClient, server_url: str) -> AsyncIterator[None]:
    """The gateway's database ends all connections and takes no more."""
    row = await client.app.services.database.fetch_row("SELECT current_database() AS name")
    assert row is not None
    server = make_postgres(urlsplit(server_url).geturl(), pool_size=2)
    await server.open()
    try:
        await server.execute(f"ALTER DATABASE {row['name']} ALLOW_CONNECTIONS false")
        await server.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", row["name"])
        yield
        await server.execute(f"ALTER DATABASE {row['name']} ALLOW_CONNECTIONS true")
    finally:
        await server.close()


@given(st.integers(min_value=0, max_value=10_000), st.sampled_from("smhdw"))
def test_an_age_is_that_long_before_now(count: int, unit: str) -> None:
    """`7d` is seven days ago, and so for every unit."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[unit]
    assert (NOW - moment(f"{count}{unit}", NOW, "since")).total_seconds() == count * seconds


@given(st.datetimes(timezones=st.sampled_from([UTC])))
def test_a_time_is_read_as_it_was_written(at: datetime) -> None:
    """ISO 8601 is read exactly, and is UTC where it does not say."""
    assert moment(at.isoformat(), NOW, "since") == at
    assert moment(at.replace(tzinfo=None).isoformat(), NOW, "since") == at


@given(st.text(max_size=30))
def test_no_text_breaks_the_reading_of_times(text: str) -> None:
    """Whatever stands there is a time or a BadRequest that names its parameter."""
    try:
        assert moment(text, NOW, "since").tzinfo is not None
    except BadRequest as error:
        assert error.param == "since"  # noqa: PT017 - both endings are right


async def _is(client: ProxyClient, key: str, status: int) -> bool:
    return await status_with(client, key) == status
