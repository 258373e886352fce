"""Quiet hours: what is refused, when, and for how long."""

from __future__ import annotations

from pathlib import Path

import pytest
from llmproxy_quiet_hours import QuietHours, QuietHoursConfig

from llmproxy.api import ConfigError, Refused
from llmproxy.testing import (
    StartProxy,
    WallClock,
    call_hook,
    configuration_table,
    make_exchange,
    make_services,
    reply,
)

README = Path(__file__).parent.parent / "README.md"


async def test_refuses_at_night(proxy: StartProxy) -> None:
    """Requests outside office hours get 403 and never reach the provider."""
    async with proxy(QuietHours, {"opens": "09:00"}, now="02:00", upstream=[reply("hi")]) as client:
        response = await client.chat("hello")
        assert (response.status, response.headers["retry-after"]) == (403, str(7 * 3600))
        assert response.document["error"]["code"] == "quiet_hours"
        assert client.upstream.requests == []


async def test_serves_by_day(proxy: StartProxy) -> None:
    """Inside office hours nobody notices the plugin, and the row of what it refused says why."""
    async with proxy(QuietHours, now="08:59:59", upstream=[reply("hi")]) as client:
        assert (await client.chat("hello")).status == 403
        client.clock.set("09:00")
        assert (await client.chat("hello")).text == "hi"
        rows = (await client.rows()).requests
        refused = next(row for row in rows if row["outcome"] == "refused")
        assert refused["decisions"] == [{"by": "quiet_hours", "what": "refused", "why": "it is 08:59"}]


@pytest.mark.parametrize(
    ("settings", "now", "waits_seconds"),
    [
        ({}, "09:00", None),
        ({}, "16:59:59", None),
        ({}, "17:00", 16 * 3600),
        ({}, "08:59:59", 1),
        ({"opens": "22:00", "closes": "06:00"}, "23:00", None),
        ({"opens": "22:00", "closes": "06:00"}, "05:59", None),
        ({"opens": "22:00", "closes": "06:00"}, "06:00", 16 * 3600),
        ({"time_zone": "Europe/Oslo"}, "08:00", None),
        ({"time_zone": "Europe/Oslo"}, "16:00", 16 * 3600),
        # The night in which the clocks are put forward is an hour shorter.
        ({"time_zone": "Europe/Oslo"}, "2026-03-28T18:00+01:00", 14 * 3600),
    ],
)
async def test_hours_are_those_of_the_office(settings: dict[str, str], now: str, waits_seconds: int | None) -> None:
    """Open from `opens` up to `closes`, also past midnight, in the office's own time."""
    plugin = QuietHours(QuietHoursConfig.model_validate(settings), make_services(clock=WallClock(now)))
    if waits_seconds is None:
        assert await call_hook(plugin, "pre_request", make_exchange()) is None
        return
    with pytest.raises(Refused) as raised:
        await call_hook(plugin, "pre_request", make_exchange())
    assert raised.value.retry_after_seconds == waits_seconds


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"opens": "17:00"}, "opens and closes must differ"),
        ({"opens": "09:00+02:00"}, "take no offset"),
        ({"time_zone": "Atlantis"}, "no time zone is called 'Atlantis'"),
        ({"open": "09:00"}, "did you mean 'opens'"),
    ],
)
async def test_mistakes_are_told_at_start(proxy: StartProxy, settings: dict[str, str], mistake: str) -> None:
    """A gateway with hours that make no sense does not start."""
    with pytest.raises(ConfigError, match=mistake):
        async with proxy(QuietHours, settings):
            pass


def test_the_readme_has_every_key() -> None:
    """The table of the README is made from the declaration of the keys."""
    assert configuration_table(QuietHoursConfig) in README.read_text()
