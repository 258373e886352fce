"""The kit that plugin authors, and our own suite, test with: real sockets, scripted misbehaviour, time held still."""

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

__all__ = [
    "Clock",
    "Ending",
    "FaultProxy",
    "Message",
    "RawClient",
    "RecordedRequest",
    "Reply",
    "ResponseHead",
    "ScriptedUpstream",
    "ServedExchange",
    "ToolCall",
    "completion",
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
