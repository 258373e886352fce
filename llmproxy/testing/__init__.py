"""The kit that plugin authors, and our own suite, test with: real sockets, scripted misbehaviour, time held still."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from llmproxy.testing.chat import ToolCall, tokens
from llmproxy.testing.clock import Clock
from llmproxy.testing.connections import wait_until
from llmproxy.testing.fault_proxy import FaultProxy
from llmproxy.testing.faults import (
    cut_after,
    cut_mid_event,
    end_without_done,
    error_event_after,
    error_in_200,
    flood,
    garbage,
    gzip,
    hang,
    hang_after,
    nothing,
    one_byte_at_a_time,
    raw,
    slow_head,
    stepped,
    with_headers,
)
from llmproxy.testing.messages import Ending, Message, RecordedRequest, Reply
from llmproxy.testing.raw_client import RawClient, ResponseHead
from llmproxy.testing.replies import completion, document, embeddings, events, fail, reasoning, reply, stream, tools
from llmproxy.testing.upstream import ScriptedUpstream, ServedExchange
from llmproxy.testing.wall_clock import WallClock

if TYPE_CHECKING:
    from llmproxy.testing.exchanges import call_hook, make_exchange, make_services
    from llmproxy.testing.proxy_client import ProxyClient, Rows
    from llmproxy.testing.readme import configuration_table
    from llmproxy.testing.responses import ProxyResponse
    from llmproxy.testing.running_proxy import StartProxy

__all__ = [
    "Clock",
    "Ending",
    "FaultProxy",
    "Message",
    "ProxyClient",
    "ProxyResponse",
    "RawClient",
    "RecordedRequest",
    "Reply",
    "ResponseHead",
    "Rows",
    "ScriptedUpstream",
    "ServedExchange",
    "StartProxy",
    "ToolCall",
    "WallClock",
    "call_hook",
    "completion",
    "configuration_table",
    "cut_after",
    "cut_mid_event",
    "document",
    "embeddings",
    "end_without_done",
    "error_event_after",
    "error_in_200",
    "events",
    "fail",
    "flood",
    "garbage",
    "gzip",
    "hang",
    "hang_after",
    "make_exchange",
    "make_services",
    "nothing",
    "one_byte_at_a_time",
    "raw",
    "reasoning",
    "reply",
    "slow_head",
    "stepped",
    "stream",
    "tokens",
    "tools",
    "wait_until",
    "with_headers",
]

# Where the gateway comes along, which takes most of a second to import.
_MODULES: Final = {
    "ProxyClient": "proxy_client",
    "ProxyResponse": "responses",
    "Rows": "proxy_client",
    "StartProxy": "running_proxy",
    "call_hook": "exchanges",
    "configuration_table": "readme",
    "make_exchange": "exchanges",
    "make_services": "exchanges",
}


def __getattr__(name: str) -> object:
    """What needs the gateway, imported when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
