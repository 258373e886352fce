"""`llmproxy prices`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final

import click

from llmproxy.cli.offline import offline_services
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.config import LoggingConfig
from llmproxy.errors import ModelNotFound
from llmproxy.exchange import Target
from llmproxy.gateway import Configuration, read_configuration
from llmproxy.listing import plain
from llmproxy.logs import make_log
from llmproxy.plugins import named_models
from llmproxy.prices import UNIT_SIZES, Prices, Rates
from llmproxy.request import Document
from llmproxy.usage import TOKEN_CLASSES, UNIT_CLASSES

_MILLION: Final = Decimal(1_000_000)
_UNIT_NAMES: Final[Mapping[str, str]] = {
    "web_searches": "per 1,000 searches",
    "images": "per image",
    "audio_seconds": "per hour of audio",
    "characters": "per million characters",
}


@click.group("prices")
def command() -> None:
    """Show what models cost, and which have no price."""


@command.command("show")
@click.argument("model")
@shared_options
@pass_settings
def show(settings: Settings, model: str) -> None:
    """Show what each class of usage costs for a model or an alias, in each service tier, and where that comes from.

    Amounts are US dollars per million tokens, but for what is not counted in tokens.
    """
    configuration = _configuration(settings)
    targets = configuration.catalogue.targets(model)
    if not targets:
        raise ModelNotFound(f"The model '{model}' is not configured here; 'llmproxy models' lists those that are.")
    # The keys of a provider make targets of one price.
    distinct = {(target.name, target.region): target for target in targets}
    found = [_prices_of(configuration, target) for target in distinct.values()]
    if settings.json:
        return print_json([price for prices in found for price in prices])
    for number, prices in enumerate(found):
        click.echo("\n" if number else "", nl=False)
        _print(prices)
    return None


@command.command("check")
@shared_options
@pass_settings
def check(settings: Settings) -> None:
    """List the price of every model that the file names; status 1 when one has none, and so no budget can hold it."""
    configuration = _configuration(settings)
    rows = [_row(configuration, target) for target in configured_targets(configuration)]
    unpriced = [row["model"] for row in rows if row["price_source"] is None]
    if settings.json:
        print_json({"ok": not unpriced, "models": rows})
    else:
        print_table(("model", "input_usd_per_mtok", "output_usd_per_mtok", "price_source"), rows)
        for name in unpriced:
            click.echo(f"The price of {name} is not known; add it under 'prices:'.", err=True)
    sys.exit(1 if unpriced else 0)


def configured_targets(configuration: Configuration) -> Sequence[Target]:
    """Every target that the file names: whatever else clients ask for is not known beforehand."""
    catalogue = configuration.catalogue
    named = [*configuration.config.models]
    named += [f"{name}/{model}" for name, each in configuration.providers.items() for model in each.config.models]
    named += [model for plugin in configuration.plugins.enabled for _, model in named_models(plugin.config)]
    targets = (target for name in named for target in catalogue.targets(name))
    return list({target.name: target for target in targets}.values())


def _configuration(settings: Settings) -> Configuration:
    return read_configuration(settings.config_path, offline_services(settings, make_log(LoggingConfig())))


def _row(configuration: Configuration, target: Target) -> Document:
    prices = configuration.listing.prices(target)
    return {
        "model": target.name,
        "input_usd_per_mtok": prices and plain(prices.input_usd_per_mtok),
        "output_usd_per_mtok": prices and plain(prices.output_usd_per_mtok),
        "price_source": prices and prices.source,
    }


def _prices_of(configuration: Configuration, target: Target) -> Sequence[Document]:
    """The usual price first, then those of the service tiers that have another."""
    listing = configuration.listing
    usual = listing.prices(target)
    if usual is None:
        return [{"model": target.name, "service_tier": "default", "price_source": None}]
    served = {tier: listing.prices(target, tier) for tier in listing.service_tiers(target)}
    others = {tier: prices for tier, prices in served.items() if prices is not None and prices != usual}
    return [
        {"model": target.name, "service_tier": tier, **_document(prices)}
        for tier, prices in {"default": usual, **others}.items()
    ]


def _document(prices: Prices) -> Document:
    units = zip(UNIT_CLASSES, prices.unit_rates, strict=True)
    return {
        "price_source": prices.source,
        "since": prices.since,
        "usd_per_mtok": _by_class(prices.rates),
        "long_context": [
            {"above_input_tokens": start, "usd_per_mtok": _by_class(rates)} for start, rates in prices.steps
        ],
        "usd_per_unit": {
            name: {"usd": plain(rate), "per": UNIT_SIZES[name]} for name, rate in units if rate is not None
        },
        "usd_per_request": plain(prices.request_usd),
    }


def _by_class(rates: Rates) -> Mapping[str, str | None]:
    named = zip(TOKEN_CLASSES, rates, strict=True)
    return {name: None if rate is None else plain(rate * _MILLION) for name, rate in named}


def _print(prices: Sequence[Document]) -> None:
    """One table of a target: a row for each class with a rate of its own, a column for each way of being served."""
    usual = prices[0]
    if usual["price_source"] is None:
        return click.echo(f"{usual['model']}: the price is not known")
    since = f", since {usual['since']}" if usual["since"] else ""
    click.echo(f"{usual['model']}: {usual['price_source']}{since}")
    columns = dict(_columns(prices))
    names = [name for name in TOKEN_CLASSES if any(_differs(name, rates) for rates in columns.values())]
    rows = [{"usd_per_mtok": name, **{column: rates[name] for column, rates in columns.items()}} for name in names]
    rows += [_unit_row(name, prices) for name in UNIT_CLASSES if name in usual["usd_per_unit"]]
    if usual["usd_per_request"] != "0":
        rows.append(
            {"usd_per_mtok": "per request", **{each["service_tier"]: each["usd_per_request"] for each in prices}}
        )
    print_table(("usd_per_mtok", *columns), rows)
    return None


def _columns(prices: Sequence[Document]) -> Iterator[tuple[str, Mapping[str, str | None]]]:
    for each in prices:
        yield each["service_tier"], each["usd_per_mtok"]
        for step in each["long_context"]:
            yield f"{each['service_tier']}_above_{step['above_input_tokens']}", step["usd_per_mtok"]


def _differs(name: str, rates: Mapping[str, str | None]) -> bool:
    """Whether a class costs something else than plain input or output does."""
    plain_class = TOKEN_CLASSES[0] if name.endswith("_input_tokens") else "text_output_tokens"
    return name == plain_class or rates[name] != rates[plain_class]


def _unit_row(name: str, prices: Sequence[Document]) -> dict[str, str | None]:
    units = {each["service_tier"]: each["usd_per_unit"][name]["usd"] for each in prices if name in each["usd_per_unit"]}
    return {"usd_per_mtok": _UNIT_NAMES[name], **units}
