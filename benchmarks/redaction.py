"""`python -m benchmarks.redaction`: what inspecting a request of 100 kB takes, and the events of a stream.

No sockets and no gateway: the CPU time of the hooks alone, in medians. Beside each figure stands its ratio to a bare
decoding and encoding of the same JSON, which says more than milliseconds of a machine that nobody else has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from time import thread_time
from typing import Final

import orjson

from llmproxy.api import Chunk, Document
from llmproxy.testing import make_exchange, make_services
from llmproxy_plugins.redaction import Redaction, RedactionConfig

_BUILT_IN: Final = ("email", "phone", "card", "iban", "ip", "national_id", "secret")
_PROSE: Final = (
    "The meeting of 2026-11-22 at 16:20 settled order 4711-0815: 12 units at EUR 1,234.50 each, version 1.2.3 of the "
    "form, ticket #98213. Everybody agreed, and nobody wrote down why; see section 4.2 (page 17) of the minutes.\n"
)
_CODE: Final = (
    'def area(width: float, height: float = 1.0) -> float:\n    return width * height  # "m2", see a::b[0:12]\n'
)
_VALUES: Final = "Ask jo.public@example.com or +47 22 33 44 55 about card 4111 1111 1111 1111.\n"
_ROW: Final = {"id": 17, "name": "Bolt M8", "note": 'see "list B"\nand others', "stock": [1, 2, 3], "price": 12.5}
_SIZE: Final = 100_000
_ROUNDS: Final = 40


def texts() -> Mapping[str, str]:
    """What prompts of 100 kB are made of."""
    return {
        "prose": _repeated(_PROSE),
        "source code": _repeated(_CODE),
        "prose with a value in each kB": _repeated(_PROSE * 4 + _VALUES),
        "a tool result in JSON": orjson.dumps([_ROW] * (_SIZE // len(orjson.dumps(_ROW)))).decode(),
        "Cyrillic prose": _repeated("Совет решил вопрос 22.11.2026, и никто не записал почему; смотри страницу 17.\n"),
    }


def _repeated(text: str) -> str:
    return (text * (_SIZE // len(text) + 1))[:_SIZE]


def milliseconds(call: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """The median of how long a call takes."""
    times = []
    for _ in range(rounds):
        started = thread_time()
        call()
        times.append(thread_time() - started)
    return median(times) * 1000


async def requests(plugin: Redaction) -> None:
    """Print what inspecting a request takes."""
    print(f"{'request of 100 kB':34}{'inspected':>12}{'bare':>10}{'ratio':>8}")
    for name, text in texts().items():
        inspected = median([await _inspected(plugin, text) for _ in range(_ROUNDS)]) * 1000
        body = make_exchange(text).request.encode()
        bare = milliseconds(partial(_recoded, body))
        print(f"{name:34}{inspected:9.2f} ms{bare:7.2f} ms{inspected / bare:8.0f}")


async def _inspected(plugin: Redaction, text: str) -> float:
    """How many seconds the hook takes, with the encoding of what it changed."""
    exchange = make_exchange(text)
    started = thread_time()
    await plugin.pre_request(exchange)
    exchange.request.encode()
    return thread_time() - started


def _recoded(*bodies: bytes) -> list[bytes]:
    return [orjson.dumps(orjson.loads(body)) for body in bodies]


async def streams(plugins: Mapping[str, Redaction]) -> None:
    """Print what the first token and every other event take."""
    print(f"\n{'stream':34}{'first token':>12}{'event':>10}{'bare':>10}{'ratio':>8}")
    documents = [_event(word + " ") for word in _PROSE.split() * 5]
    bare = milliseconds(partial(_recoded, *map(orjson.dumps, documents))) / len(documents) * 1000
    for name, plugin in plugins.items():
        first = median([await _relayed(plugin, documents[:1]) for _ in range(_ROUNDS)]) * 1000
        event = median([await _relayed(plugin, documents) for _ in range(_ROUNDS)]) / len(documents) * 1_000_000
        print(f"{name:34}{first:9.3f} ms{event:7.1f} us{bare:7.1f} us{event / bare:8.1f}")


async def _relayed(plugin: Redaction, documents: list[Document]) -> float:
    """How many seconds the hook takes for some events of a stream."""
    exchange = make_exchange(_VALUES)
    await plugin.pre_request(exchange)
    started = thread_time()
    for document in documents:
        plugin.on_stream_chunk(exchange, Chunk(b"", document))
    return thread_time() - started


def _event(text: str) -> Document:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def made(**settings: object) -> Redaction:
    """The plugin, as its section makes it."""
    return Redaction(RedactionConfig.model_validate(settings), make_services())


async def main() -> None:
    """Print both tables."""
    placeholders = dict.fromkeys(_BUILT_IN, "placeholder")
    plugin = made(detectors=placeholders)
    await requests(plugin)
    await streams(
        {
            "placeholders put back": plugin,
            "and searched by all detectors": made(detectors=placeholders, answers=dict.fromkeys(_BUILT_IN, "mask")),
            "nothing to put back": made(detectors={"ip": "placeholder"}),
        }
    )


if __name__ == "__main__":
    asyncio.run(main())
