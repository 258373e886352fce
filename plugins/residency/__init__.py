"""Keep requests where they must stay: in regions, and with vendors that keep nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Self

from pydantic import Field, model_validator

from llmproxy.api import Exchange, Pattern, Refused, Section, Services, Target, hookimpl, lies_within


class Rule(Section):
    """What holds for the requests that match; those that match several rules are held to all of them."""

    workspace: Pattern = Field(default="*", description="Pattern over the workspace that asks.")
    key: Pattern = Field(default="*", description="Pattern over the id of the key that asks.")
    model: Pattern = Field(default="*", description="Pattern over the model that is asked for.")
    regions: tuple[Pattern, ...] = Field(
        default=(), description="Requests stay in one of these, such as `eu` or `eu-west-1`; empty: anywhere."
    )
    zero_retention: bool = Field(
        default=False, description="Requests go only where the vendor has agreed to keep nothing of them."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.regions and not self.zero_retention:
            raise ValueError("names neither regions nor zero_retention, so that it keeps nothing anywhere")
        return self

    def concerns(self, exchange: Exchange) -> bool:
        """Whether the rule holds for an exchange."""
        return (
            fnmatchcase(exchange.principal.workspace, self.workspace)
            and fnmatchcase(exchange.principal.key_id, self.key)
            and fnmatchcase(exchange.request.model, self.model)
        )

    def fault_of(self, target: Target) -> str | None:
        """Why a target may not be used; None when it may. What is not known of a target counts against it."""
        if self.regions and not any(lies_within(target.region, region) for region in self.regions):
            return f"it lies in {target.region or 'a region nobody has named'}, not in {' or '.join(self.regions)}"
        if self.zero_retention and not target.zero_retention:
            return "its vendor may keep what it is sent"
        return None

    def __str__(self) -> str:
        said = [f"in {' or '.join(self.regions)}"] if self.regions else []
        return " and ".join([*said, *(["with vendors that keep nothing"] if self.zero_retention else [])])


class ResidencyConfig(Section):
    """Which requests must stay where."""

    rules: tuple[Rule, ...] = Field(min_length=1, description="Every rule that concerns a request holds for it.")


class Residency:
    """Takes away every target that a rule forbids, before any attempt, retry, fallback, hedge or mirror can use it."""

    name = "residency"
    Config = ResidencyConfig

    def __init__(self, config: ResidencyConfig, services: Services) -> None:
        self._rules = config.rules

    @hookimpl(tryfirst=True)
    def narrow_targets(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target] | None:
        """Leave what every rule allows, and leave evidence of it on the row. Refuses when that is nothing."""
        rules = [rule for rule in self._rules if rule.concerns(exchange)]
        if not rules:
            return None
        left = [target for target in targets if not self._is_refused(exchange, rules, target)]
        kept = "; ".join(map(str, rules))
        if not left:
            raise Refused(
                f"No target of this model may be used: this request must stay {kept}; ask for another model.",
                code="residency_not_allowed",
                param="model",
            )
        exchange.decide(self.name, f"kept {kept}", f"{len(left)} of {len(targets)} targets comply")
        return left

    def _is_refused(self, exchange: Exchange, rules: Sequence[Rule], target: Target) -> bool:
        fault = next(_faults(rules, target), None)
        if fault is not None:
            exchange.decide(self.name, f"skipped {target.name}", fault)
        return fault is not None


def _faults(rules: Sequence[Rule], target: Target) -> Iterator[str]:
    yield from (fault for rule in rules if (fault := rule.fault_of(target)) is not None)
