"""Invoices of vendors beside the ledger: what they say is read right, and what differs is found."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import BadRequest
from llmproxy.invoices import Charged, Charges, InvoiceReader, Place, layout_of, plain_name
from llmproxy.reconciliation import reconcile
from tests.ledger_rows import DAY, CommandLine, Entry, entry, on, write

# As each vendor exports them; all say the same of one model and day, as far as they say it.
OPENAI_COSTS = """\
start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,project_id
1773360000,1773446400,2026-03-13T00:00:00+00:00,2026-03-14T00:00:00+00:00,,,,
1773446400,1773532800,2026-03-14T00:00:00+00:00,2026-03-15T00:00:00+00:00,0.100,usd,"gpt-4o-2024-08-06, input",p
1773446400,1773532800,2026-03-14T00:00:00+00:00,2026-03-15T00:00:00+00:00,0.150,usd,"gpt-4o-2024-08-06, output",p
"""
OPENAI_USAGE = """\
start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,model,input_tokens,output_tokens
1773446400,1773450000,2026-03-14T00:00:00+00:00,2026-03-14T01:00:00+00:00,p,1,gpt-4o-2024-08-06,4,2
1773450000,1773453600,2026-03-14T01:00:00+00:00,2026-03-14T02:00:00+00:00,p,1,gpt-4o-2024-08-06,6,3
"""
ANTHROPIC_COSTS = """\
usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type
2026-03-14,Claude Haiku 4.5,Default,k,message,≤ 200k,input_no_cache,0.10,0.10,token
2026-03-14,Claude Haiku 4.5,Default,k,message,≤ 200k,output,0.15,0.15,token
2026-03-14,,Default,k,message,,,0.01,0.01,web_search
"""
ANTHROPIC_USAGE = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
    "usage_output_tokens\n2026-03-14,claude-haiku-4-5-20251001,k,Default,message,≤ 200k,1,2,3,4,5\n"
)
TODAY = DAY.date()
GENERIC = "date,model,input_tokens,output_tokens,amount_usd\n2026-03-14,gpt-4o,10,5,0.25\n"


def read(text: str, reader: InvoiceReader | None = None) -> Mapping[tuple[str, str | None], Charged]:
    """What a file says, by day and model."""
    charges = (reader or InvoiceReader()).read(text.splitlines(keepends=True))
    return {(place.day.isoformat(), place.model): charged for place, charged in charges.items()}


@pytest.mark.parametrize(
    ("text", "model", "tokens", "amount"),
    [
        (OPENAI_COSTS, "gpt-4o", (None, None), "0.25"),
        (OPENAI_USAGE, "gpt-4o", (10, 5), None),
        (ANTHROPIC_COSTS, "claude-haiku-4-5", (None, None), "0.25"),
        (ANTHROPIC_USAGE, "claude-haiku-4-5", (10, 5), None),
        (GENERIC, "gpt-4o", (10, 5), "0.25"),
    ],
)
def test_each_export_is_known_by_its_columns(
    text: str, model: str, tokens: tuple[int | None, int | None], amount: str | None
) -> None:
    """OpenAI's and Anthropic's costs and usage, and the generic form, are summed up by day and model."""
    charged = read(text)["2026-03-14", model]
    assert (charged.input_tokens, charged.output_tokens) == tokens
    assert charged.amount_usd == (None if amount is None else Decimal(amount))


def test_costs_of_no_model_are_kept_apart() -> None:
    """What a vendor charges beside its models is a line of its own."""
    assert read(ANTHROPIC_COSTS)["2026-03-14", None].amount_usd == Decimal("0.01")


def test_other_columns_are_named() -> None:
    """Any file will do that has a day, a model and something to compare; numbers may be in several columns."""
    layout = layout_of({"date": "Day", "model": "SKU", "input_tokens": "In+Cached", "amount_usd": "Cost"})
    text = 'Day,SKU,In,Cached,Cost\n2026-03-14T23:30:00-02:00,ours,"1,000",5,$1.50\n'
    charged = read(text, InvoiceReader(layout, {"ours": "gpt-4o"}))["2026-03-15", "gpt-4o"]
    assert (charged.input_tokens, charged.output_tokens, charged.amount_usd) == (1005, None, Decimal("1.50"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n1,2\n", "--columns"),
        (GENERIC + "2026-03-32,gpt-4o,1,1,1\n", "Line 3"),
        (GENERIC + "2026-03-14,gpt-4o,1,1,much\n", "Line 3"),
        (GENERIC + "2026-03-14,gpt-4o,1,1,NaN\n", "Line 3"),
        (OPENAI_COSTS.replace("usd", "eur"), "US dollars"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str, told: str) -> None:
    """A file that is not understood is refused, and never taken for one without charges."""
    with pytest.raises(BadRequest) as raised:
        read(text)
    assert told in raised.value.message


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("Claude Haiku 4.5", "claude-haiku-4-5"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("text-embedding-3-small", "text-embedding-3-small"),
        (" ", None),
    ],
)
def test_names_are_compared_without_what_vendors_add(name: str, plain: str | None) -> None:
    """Dates, case and punctuation do not tell models apart; sizes do."""
    assert plain_name(name) == plain


def side(amount: str | None, tokens: int | None = None, day: date = TODAY) -> Charges:
    """One line."""
    return {Place(day, "m"): Charged(tokens, tokens, None if amount is None else Decimal(amount))}


@given(
    invoice=st.decimals(0, 10**6, places=6, allow_nan=False), ledger=st.decimals(0, 10**6, places=6, allow_nan=False)
)
def test_a_line_is_off_by_more_than_the_tolerance(invoice: Decimal, ledger: Decimal) -> None:
    """What is tolerated is a part of what the invoice says, and nothing else."""
    found = reconcile(side(f"{invoice:f}"), side(f"{ledger:f}"), Decimal("0.01"))
    assert bool(found.off) == (abs(invoice - ledger) * 100 > invoice)


def test_a_rounded_amount_is_no_difference() -> None:
    """An invoice in cents cannot be told from the ledger's exact amount, however small that is."""
    cents = InvoiceReader().read("date,model,amount_usd\n2026-03-14,m,0.01\n".splitlines())
    assert reconcile(cents, side("0.0149"), Decimal(0)).off == []
    assert len(reconcile(cents, side("0.0151"), Decimal(0)).off) == 1


def test_what_stands_on_one_side_only_is_off() -> None:
    """Requests past the gateway, and requests that nobody charges for, are what one looks for."""
    later = TODAY + timedelta(days=1)
    found = reconcile(side("1"), side("1", day=later), Decimal("0.5"))
    assert [(line.place.day, line.invoice is None) for line in found.off] == [(TODAY, False), (later, True)]


def test_tokens_are_compared_where_there_are_no_amounts() -> None:
    """A usage export has no amounts: its tokens are held against the ledger's."""
    assert reconcile(side(None, 100), side("7", 101), Decimal("0.01")).off == []
    assert len(reconcile(side(None, 100), side("7", 102), Decimal("0.01")).off) == 1


# The command


@pytest.fixture
def command_line(tmp_path: Path, database_url: str) -> CommandLine:
    """`llmproxy` on a ledger of two days."""
    own: Entry = {"provider_name": "openai", "response_model": "gpt-4o"}
    rows = [
        entry("0.1", **own),
        entry("0.1", **own),
        entry("0.05", **own, kind="adjustment", entry=1, uncached_input_tokens=0, text_output_tokens=0),
        entry(None, **own, cost_provenance=None, at=DAY + timedelta(days=1)),
        entry("9", provider_name="anthropic"),
    ]
    on(database_url, lambda database: write(database, rows))
    return CommandLine(tmp_path, database_url)


def test_reconcile_ends_with_status_0_when_all_agrees(command_line: CommandLine, tmp_path: Path) -> None:
    """Adjustments are part of what is compared, other providers are not; days that the invoice has not are left out."""
    file = tmp_path / "costs.csv"
    file.write_text("\ufeff" + OPENAI_COSTS)
    result = command_line("reconcile", "--provider", "openai", "--file", str(file))
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "Nothing differs by more than the tolerance.")
    document = command_line.document("reconcile", "--provider", "openai", "--file", str(file))
    (line,) = document["data"]
    assert (line["date"], line["model"], Decimal(line["ledger_usd"])) == ("2026-03-14", "gpt-4o", Decimal("0.25"))
    assert (document["ok"], line["ledger_input_tokens"], line["difference_usd"]) == (True, 20, "0.000")


def test_reconcile_ends_with_status_1_and_names_what_differs(command_line: CommandLine, tmp_path: Path) -> None:
    """A day and model past the tolerance is marked, with both sides and how many of ours have no price."""
    file = tmp_path / "invoice.csv"
    file.write_text("date,model,amount_usd\n2026-03-14,gpt-4o,0.2525\n2026-03-15,gpt-4o,1.0000\n")
    arguments = ("reconcile", "--provider", "openai", "--file", str(file), "--tolerance")
    document = command_line.document(*arguments, "1%")
    found = [(line["date"], line["is_off"], line["ledger_unpriced"]) for line in document["data"]]
    assert found == [("2026-03-14", False, 0), ("2026-03-15", True, 1)]
    result = command_line(*arguments, "0.001")
    assert (result.exit_code, result.stderr) == (1, "2 of 2 differ by more than the tolerance.\n")


@pytest.mark.parametrize("arguments", [("--tolerance", "lots"), ("--columns", "date"), ("--rename", "a=")])
def test_wrong_options_are_told(command_line: CommandLine, tmp_path: Path, arguments: tuple[str, str]) -> None:
    """A mistake in an option is a sentence about that option."""
    file = tmp_path / "invoice.csv"
    file.write_text(GENERIC)
    result = command_line("reconcile", "--provider", "openai", "--file", str(file), *arguments)
    assert isinstance(result.exception, BadRequest)
    assert arguments[0] in result.exception.message
