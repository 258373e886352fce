"""Every metric there is: its name, its meaning, what it is told apart by.

Names and buckets are those of OpenTelemetry's `gen_ai` conventions, as Prometheus spells them: `gen_ai_server_*` is
what clients see of the gateway, `gen_ai_client_*` what the gateway sees of the providers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

# The values of a family's labels, in the order of their names; an empty one is a label that is not there.
Labels = tuple[str, ...]

OTHER: Final = "other"
NONE: Final = "none"


class Kind(StrEnum):
    """What the numbers of a series are."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"
    # How many began, how many of them ended, and how many never will: not exposed as they are.
    FLIGHTS = "flights"
    # A process, and a value that it has once, however many write it down.
    VITAL = "vital"


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One metric. `buckets` are upper bounds, without the infinite one."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers each of its series has; a histogram's are a count per bucket, then the sum."""
        match self.kind:
            case Kind.COUNTER | Kind.GAUGE:
                return 1
            case Kind.HISTOGRAM:
                return len(self.buckets) + 2
            case Kind.FLIGHTS:
                return 3
            case Kind.VITAL:
                return 2


_ASKED: Final = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

DURATION: Final = Family(
    "gen_ai_server_request_duration_seconds",
    Kind.HISTOGRAM,
    "How long clients' requests took, from their arrival to the end of their answer.",
    (*_ASKED, "outcome"),
    tuple(0.01 * 2**power for power in range(14)),
)
FIRST_TOKEN: Final = Family(
    "gen_ai_server_time_to_first_token_seconds",
    Kind.HISTOGRAM,
    "How long clients waited for the first content of a stream.",
    _ASKED,
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
PER_TOKEN: Final = Family(
    "gen_ai_server_time_per_output_token_seconds",
    Kind.HISTOGRAM,
    "How long each token of a whole stream took after the first.",
    _ASKED,
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
TOKENS: Final = Family(
    "gen_ai_client_token_usage",
    Kind.HISTOGRAM,
    "Tokens that attempts at providers used; the model is the one that was asked there.",
    (*_ASKED, "gen_ai_token_type"),
    tuple(float(4**power) for power in range(14)),
)
COST: Final = Family(
    "llmproxy_cost_usd",
    Kind.COUNTER,
    "What attempts at providers cost; what no price is known for is not in it.",
    ("provider", "model", "workspace"),
)
REQUESTS: Final = Family(
    "llmproxy_requests",
    Kind.COUNTER,
    "Requests that were let in and have ended, by how, and by who asked: a client or a plugin.",
    ("operation", "model", "origin", "workspace", "outcome"),
)
FLIGHTS: Final = Family("llmproxy_flights", Kind.FLIGHTS, "Requests on their way.", REQUESTS.labels[:-1])
IN_FLIGHT: Final = Family(
    "llmproxy_requests_in_flight", Kind.GAUGE, "Requests that are being served.", ("operation", "model", "origin")
)
ATTEMPTS: Final = Family(
    "llmproxy_attempts",
    Kind.COUNTER,
    "Attempts at providers that have ended, by the kind of their failure.",
    ("provider", "failure"),
)
CACHE: Final = Family("llmproxy_cache", Kind.COUNTER, "Answers that a cache had a say in, by what it was.", ("result",))
PENDING: Final = Family("llmproxy_pending", Kind.VITAL, "Ended requests that are not in the database yet.")
JOURNAL_PENDING: Final = Family("llmproxy_journal_pending", Kind.GAUGE, PENDING.meaning)
PLUGIN_FAILURES: Final = Family(
    "llmproxy_plugin_failures", Kind.COUNTER, "How often a plugin failed in a hook.", ("plugin", "hook")
)

# What is written down, and what is shown, in this order.
RECORDED: Final = (
    *(DURATION, FIRST_TOKEN, PER_TOKEN, TOKENS, COST, REQUESTS, FLIGHTS, ATTEMPTS, CACHE, PENDING, PLUGIN_FAILURES),
)
EXPOSED: Final = (
    *(DURATION, FIRST_TOKEN, PER_TOKEN, TOKENS, COST, REQUESTS, IN_FLIGHT, ATTEMPTS, CACHE, JOURNAL_PENDING),
    PLUGIN_FAILURES,
)
