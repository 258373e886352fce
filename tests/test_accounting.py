"""What an exchange cost: measured where the provider said so, estimated where it did work, nothing where it did not."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from llmproxy.accounting import Accounting, total
from llmproxy.config import PriceConfig
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import Failure, LLMProxyError, UpstreamCut, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from llmproxy.exchange import Answer, Attempt, Exchange, Target
from llmproxy.pricing import PriceBook
from llmproxy.request import Operation, Request
from llmproxy.services import SystemClock
from llmproxy.usage import Cost, Usage
from tests.providers import provider

PRICE = PriceConfig(match="groq/*", input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(2))
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
USAGE_EVENT = b'data: {"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":500}}\n\n'
REFUSED = UpstreamRefused("No.", failure=Failure.OVERLOADED, upstream_status=503, status=503)


def accounting(*prices: PriceConfig) -> Accounting:
    """An accounting for one vendor."""
    return Accounting({("groq", None): provider("groq")}, PriceBook(prices), SystemClock())


def attempt(error: LLMProxyError | None = None, *, usage: Usage | None = None, events: bytes | None = None) -> Attempt:
    """An attempt that ended like this."""
    request = Request(Operation.CHAT, b"x" * 400, {"model": "m"})
    made = Attempt(1, Target("groq", "m"), request, datetime.now(UTC), 0.0, error=error, usage=usage, is_sent=True)
    if events is not None:
        facts = StreamFacts(hide_usage=False)
        facts.feed(events)
        made.progress = facts
    return made


def exchange(*attempts: Attempt, body: bytes | None = None) -> Exchange:
    """An exchange with these attempts, and this answer."""
    made = Exchange("id", datetime.now(UTC), 0.0, Operation.CHAT, "/v1/chat/completions", {})
    made.request = Request(Operation.CHAT, b"x" * 400, {"model": "m"})
    made.attempts = list(attempts)
    made.answer = Answer(body=body) if body is not None else None
    return made


def settled(*attempts: Attempt, body: bytes | None = None) -> Exchange:
    """The exchange after settling; doing so twice changes nothing."""
    made = exchange(*attempts, body=body)
    ours = accounting(PRICE)
    ours.settle(made)
    once = (made.usage, made.cost)
    ours.settle(made)
    assert (made.usage, made.cost) == once
    return made


def test_reported_usage_is_priced_as_measured() -> None:
    """A thousand tokens in at a dollar a million and five hundred out at two make 0.002."""
    usage = Usage(uncached_input_tokens=1000, text_output_tokens=500)
    assert settled(attempt(usage=usage)).cost == Cost(Decimal("0.002"), "measured", "config")


def test_a_streams_usage_event_counts_as_measured() -> None:
    """Also when the stream was cut behind it."""
    found = settled(attempt(UpstreamCut("Cut."), events=EVENT + USAGE_EVENT))
    assert found.cost == Cost(Decimal("0.002"), "measured", "config")


def test_a_stream_without_usage_is_estimated_from_what_was_seen() -> None:
    """Three events are about three tokens, four hundred bytes about a hundred."""
    found = settled(attempt(UpstreamCut("Cut."), events=EVENT * 3))
    assert found.usage == Usage(uncached_input_tokens=100, text_output_tokens=3, provenance="estimated")
    assert found.cost == Cost(Decimal("0.000106"), "estimated", "config")


def test_large_events_count_for_what_they_hold() -> None:
    """A provider that sends four thousand characters in one event has sent about a thousand tokens, not one."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % (b"word" * 1000)
    found = settled(attempt(UpstreamCut("Cut."), events=EVENT + event))
    assert found.usage is not None
    assert found.usage.text_output_tokens == pytest.approx(1000, rel=0.15)


def test_usage_told_before_the_cut_is_no_less_than_what_was_seen() -> None:
    """A count from the first event says little of a stream that went on for five hundred."""
    early = (
        b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":9,"completion_tokens":1}}\n\n'
    )
    found = settled(attempt(UpstreamCut("Cut."), events=early + EVENT * 500))
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.provenance) == (9, "estimated")
    assert found.usage.output_tokens >= 500


def test_a_body_that_was_cut_after_its_head_is_charged() -> None:
    """The provider had answered 200, and will charge."""
    cut = attempt(UpstreamCut("Cut."))
    cut.status = 200
    assert settled(cut).usage is not None


def test_what_was_never_sent_is_not_charged() -> None:
    """Whatever it failed with."""
    unsent = attempt()
    unsent.is_sent = False
    assert (settled(unsent).usage, settled(unsent).cost) == (None, None)


def test_a_whole_answer_without_usage_is_estimated_from_its_size() -> None:
    """Four bytes a token."""
    found = settled(attempt(), body=b"y" * 800)
    assert found.usage == Usage(uncached_input_tokens=100, text_output_tokens=200, provenance="estimated")


def test_a_client_that_hung_up_while_waiting_pays_for_the_prompt() -> None:
    """The provider had it, and will charge for it and for what it had written until then, which nobody saw."""
    waited = attempt()
    waited.duration_seconds = 2.5
    assert settled(attempt()).usage == Usage(uncached_input_tokens=100, provenance="assumed")
    assert settled(waited).usage == Usage(uncached_input_tokens=100, text_output_tokens=250, provenance="assumed")


@pytest.mark.parametrize("phase", ["first_byte", "idle", "total"])
def test_a_provider_that_was_too_slow_still_charges(phase: str) -> None:
    """It had the prompt; only a connection that never came about is free."""
    error = UpstreamTimeout("Slow.", phase=phase)  # type: ignore[arg-type]
    assert settled(attempt(error)).usage is not None


@pytest.mark.parametrize(
    "error", [REFUSED, UpstreamUnreachable("Down."), UpstreamTimeout("Slow.", phase="connect"), UpstreamCut("Cut.")]
)
def test_an_attempt_that_got_nothing_costs_nothing(error: LLMProxyError) -> None:
    """Refusals and connections that failed are not charged."""
    found = settled(attempt(error))
    assert (found.usage, found.cost) == (None, None)


def test_every_attempt_that_cost_something_counts() -> None:
    """A cut attempt and the one that answered are both on the bill, which is as certain as the less certain one."""
    usage = Usage(uncached_input_tokens=1000, text_output_tokens=500)
    found = settled(attempt(UpstreamCut("Cut."), events=EVENT), attempt(REFUSED), attempt(usage=usage))
    assert found.usage == usage
    assert found.cost == Cost(Decimal("0.002102"), "estimated", "config")


def test_an_unknown_price_makes_the_sum_unknown() -> None:
    """Never a sum that silently leaves something out."""
    priced, unpriced = Cost(Decimal(1), "measured", "config"), Cost(None, "measured")
    assert total([priced, unpriced]) == Cost(None, "measured", None)
    assert total([]) is None


def test_a_model_without_a_price_is_unpriced_not_free() -> None:
    """The amount is None."""
    assert accounting().cost(Target("nowhere", "m"), Usage(text_output_tokens=1)).amount_usd is None


def test_an_attempt_is_priced_as_of_its_beginning() -> None:
    """What was reserved at one price is settled at the same, also when a new one holds by the time of settling."""
    before = PriceConfig.model_validate({"match": "*", "until": "2026-01-01", "input_usd_per_mtok": 1})
    after = PriceConfig.model_validate({"match": "*", "from": "2026-01-01", "input_usd_per_mtok": 5})
    made = attempt(usage=Usage(uncached_input_tokens=1_000_000))
    made.started_at = datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)
    ours = accounting(before, after)
    ours.settle(exchange(made))
    assert made.cost == Cost(Decimal(1), "measured", "config")
    assert ours.cost(made.target, Usage(uncached_input_tokens=1_000_000)).amount_usd == 5


def test_usage_of_nothing_is_usage_that_was_not_told() -> None:
    """A provider that reports zeros has not worked for nothing: the sizes stand in."""
    found = settled(attempt(usage=Usage()), body=b"y" * 800)
    assert found.usage == Usage(uncached_input_tokens=100, text_output_tokens=200, provenance="estimated")


def test_an_estimate_is_priced_in_the_tier_that_was_asked_for() -> None:
    """A cut stream does not say how it was served; where the vendor has no tiers, none was asked for."""
    dear = PriceConfig.model_validate({"match": "*", "service_tier": "priority", "output_usd_per_mtok": 8})
    made, dropped = (attempt(UpstreamCut("Cut."), events=EVENT) for _ in range(2))
    for each in (made, dropped):
        each.request.set("service_tier", "priority")
    dropped.dropped = ("service_tier",)
    accounting(dear, PRICE).settle(exchange(made, dropped))
    assert made.usage is not None
    assert made.usage.service_tier == "priority"
    assert made.cost == Cost(None, "estimated")
    assert dropped.cost == Cost(Decimal("0.000102"), "estimated", "config")


@pytest.mark.parametrize(
    ("members", "tokens"), [({}, 4096), ({"max_tokens": 30}, 30), ({"stream": True}, 0), ({"prompt": "x"}, 16)]
)
def test_what_was_written_unseen_is_bounded(members: dict[str, Any], tokens: int) -> None:
    """By the request's own limit, else by what is assumed of one; a stream shows what it writes."""
    made = attempt(UpstreamTimeout("Slow.", phase="total"))
    made.request = Request(Operation.CHAT, b"x" * 400, {"model": "m", **members})
    made.duration_seconds = 300.0
    found = settled(made)
    assert found.usage is not None
    assert found.usage.text_output_tokens == tokens
