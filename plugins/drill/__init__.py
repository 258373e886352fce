"""Make providers seem to fail, for a share of the requests to a deployment that is there to be tested."""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import inf
from random import Random

from llmproxy.api import (
    Answer,
    Attempt,
    Exchange,
    Failure,
    Services,
    StateKey,
    UpstreamBroken,
    UpstreamCut,
    UpstreamRefused,
    UpstreamTimeout,
    hookimpl,
)
from llmproxy_plugins.drill.config import DrillConfig, Fault, FaultRule
from llmproxy_plugins.drill.streams import CutStream, SlowStream

__all__ = ["Drill", "DrillConfig", "Fault", "FaultRule"]

# Which of the faults may strike an exchange: drawn once, so that trying again meets the same outage.
_DRAWN = StateKey[tuple[FaultRule, ...]]("drill.drawn")


class Drill:
    """The plugin.

    Args:
        random: Where chance comes from.
    """

    name = "drill"
    Config = DrillConfig

    def __init__(self, config: DrillConfig, services: Services, *, random: Random | None = None) -> None:
        self._config = config
        self._clock = services.clock
        self._log = services.log
        self._random = random or Random()  # noqa: S311 - chance, not cryptography

    @hookimpl
    def startup(self) -> None:
        """Say what this deployment is, to whoever finds it where it should not be."""
        self._log.warning("drill_breaks_requests", faults=len(self._config.faults))

    @hookimpl
    async def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Fail in place of a provider that is not even asked."""
        rule = self._rule(exchange, attempt)
        if rule is None:
            return
        exchange.decide(self.name, f"{attempt.target.provider} seems to fail: {rule.fault}", _whom(rule))
        match rule.fault:
            case "503":
                raise _refused("A drill: the provider is overloaded.", 503)
            case "429":
                raise _refused("A drill: the provider asks to wait.", 429, retry_after_seconds=rule.seconds)
            case "error_in_200":
                raise _refused("A drill: the provider's answer holds an error.", 200)
            case "hang":
                await self._clock.sleep(min(rule.seconds, attempt.timeout_seconds or inf))
                raise UpstreamTimeout("A drill: the provider did not answer.", phase="first_byte")
            case "malformed" | "cut" | "slow":
                # Of the provider's answer, once it is there.
                pass

    @hookimpl
    async def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> Answer | None:
        """Spoil the answer of a provider that was asked."""
        rule = self._rule(exchange, attempt)
        if rule is None:
            return None
        if rule.fault == "malformed":
            raise UpstreamBroken("A drill: the provider sent an answer that cannot be read.")
        if rule.fault == "cut" and answer.stream is None:
            raise UpstreamCut("A drill: the provider broke its answer off.")
        if answer.stream is not None and rule.fault == "cut":
            answer.stream = CutStream(answer.stream, rule.after_events)
        elif answer.stream is not None and rule.fault == "slow":
            answer.stream = SlowStream(answer.stream, self._clock, rule.pause_seconds)
        return answer

    def _rule(self, exchange: Exchange, attempt: Attempt) -> FaultRule | None:
        if _DRAWN not in exchange.state:
            exchange.state[_DRAWN] = tuple(rule for rule in self._config.faults if self._strikes(rule, exchange))
        provider = attempt.target.provider
        return next((rule for rule in exchange.state[_DRAWN] if fnmatchcase(provider, rule.provider)), None)

    def _strikes(self, rule: FaultRule, exchange: Exchange) -> bool:
        is_meant = rule.header is None or rule.header in exchange.headers
        return is_meant and self._random.random() < rule.share


def _refused(message: str, upstream_status: int, *, retry_after_seconds: float | None = None) -> UpstreamRefused:
    is_limit = upstream_status == 429
    return UpstreamRefused(
        message,
        failure=Failure.RATE_LIMIT if is_limit else Failure.OVERLOADED,
        upstream_status=upstream_status,
        status=429 if is_limit else 503,
        code="rate_limit_exceeded" if is_limit else "service_unavailable",
        retry_after_seconds=retry_after_seconds,
    )


def _whom(rule: FaultRule) -> str:
    carrying = f" that carry {rule.header}" if rule.header else ""
    return f"a drill strikes {rule.share:.4g} of the requests{carrying}"
