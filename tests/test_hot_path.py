"""What the hot path remembers or leaves out, so that it need not be done again, changes nothing that can be seen."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import orjson
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.audit import BUSY_ROWS, BUSY_SHIP_SECONDS, SHIP_SECONDS
from llmproxy.config import PriceConfig, ProviderConfig
from llmproxy.db import Postgres
from llmproxy.exchange import Target
from llmproxy.journal import Journal
from llmproxy.offers import Offers
from llmproxy.pricing import PriceBook
from llmproxy.providers.openai import OpenAI
from llmproxy.request import Operation, Request
from llmproxy.testing.clock import Clock
from llmproxy.testing.connections import wait_until
from llmproxy.usage import USAGE_CLASSES
from tests.providers import services
from tests.test_audit import CONFIG, carry, make_recorder, record

BODY = b'{"model":"a","n":1,"user":"u"}'
EDITS = st.lists(st.tuples(st.sampled_from(["model", "n", "extra"]), st.sampled_from(["b", 2, None])), max_size=6)


def apply(request: Request, edits: list[tuple[str, object]], *, encodes: bool) -> bytes:
    """The body after some edits, of which those to None take a member out."""
    for name, value in edits:
        if encodes:
            request.encode()
        if value is None:
            request.remove(name)
        else:
            request.set(name, value)
    return request.encode()


@given(EDITS)
def test_a_body_that_was_asked_for_before_an_edit_has_the_edit(edits: list[tuple[str, object]]) -> None:
    """Encoding a request between its edits, as measuring it does, never shows in what is sent."""
    often, once = (Request(Operation.CHAT, BODY, orjson.loads(BODY)) for _ in range(2))
    assert apply(often, edits, encodes=True) == apply(once, edits, encodes=False)
    assert often.copy().encode() == once.encode()


@given(EDITS, EDITS)
def test_a_copy_and_its_original_are_edited_apart(
    first: list[tuple[str, object]], second: list[tuple[str, object]]
) -> None:
    """What a copy has been encoded to is not what its original is, nor the other way round."""
    original = Request(Operation.CHAT, BODY, orjson.loads(BODY))
    before = apply(original, first, encodes=True)
    twin = original.copy()
    apply(twin, second, encodes=True)
    assert original.encode() == before
    assert orjson.loads(twin.encode()) == twin.document


def test_a_price_holds_from_the_minute_it_begins() -> None:
    """A price that was just looked up does not outlive its day, whichever was asked for first."""
    prices = [
        PriceConfig.model_validate({"match": "own/*", "until": "2026-05-05", "input_usd_per_mtok": 1}),
        PriceConfig.model_validate({"match": "own/*", "input_usd_per_mtok": 2}),
    ]
    offers = Offers(PriceBook(prices))
    provider, target = OpenAI("own", ProviderConfig(base_url="http://127.0.0.1:1/v1"), services()), Target("own", "m")
    last, first = datetime(2026, 5, 4, 23, 59, 59, 999_999, UTC), datetime(2026, 5, 5, tzinfo=UTC)
    found = [offers.prices(provider, target, at) for at in (last, first, last, first)]
    assert [each.input_usd_per_mtok if each else None for each in found] == [Decimal(1), Decimal(2)] * 2


async def test_a_record_without_what_was_not_used_has_zeros(database: Postgres, tmp_path: Path) -> None:
    """Classes of usage that a record leaves out are zero in every table, and not unknown."""
    journal = Journal(tmp_path / "journal", CONFIG)
    lean = record()
    for row in (lean["request"], *lean["attempts"], *lean["ledger"]):
        for name in USAGE_CLASSES:
            row.pop(name, None)
    carry(journal, lean)
    await make_recorder(journal, database, tmp_path).ship()
    for table in ("requests", "attempts", "ledger_entries"):
        rows = await database.fetch(f"SELECT {', '.join(USAGE_CLASSES)} FROM {table}")  # noqa: S608 - names of ours
        assert rows
        assert {value for row in rows for value in row.values()} == {0}
    journal.close()


async def test_many_rows_are_shipped_more_at_once(database: Postgres, tmp_path: Path) -> None:
    """Where many rows wait, the next batch is given longer to fill; a few are shipped soon."""
    journal, clock = Journal(tmp_path / "journal", CONFIG), Clock()
    recorder = make_recorder(journal, database, tmp_path, clock=clock)
    carry(journal, *(record() for _ in range(BUSY_ROWS)))
    recorder.startup()
    await wait_until(lambda: not recorder.pending and clock.sleepers == 3)
    carry(journal, record())
    await clock.advance(SHIP_SECONDS)
    assert recorder.pending == 1
    await clock.advance(BUSY_SHIP_SECONDS)
    await wait_until(lambda: not recorder.pending)
    await recorder.shutdown(1)
    journal.close()
