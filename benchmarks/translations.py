"""`python -m benchmarks.translations`: what each vendor's translation costs, beside decoding and encoding its bytes.

No sockets and no gateway: the CPU time of `prepare`, `answer` and the stream decoder alone. Every round measures all
vendors, so that what disturbs the machine for a while disturbs them alike; a measure stands next to its bare one, and
ratios are taken within a round. So are the probes that tell how slow this machine is: see `benchmarks/scale.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

import orjson
from multidict import CIMultiDict

from benchmarks.report import markdown
from benchmarks.scale import Scale, Work, known_probes, microseconds
from llmproxy.exchange import Target
from llmproxy.providers import Provider
from llmproxy.providers.builtin import every_kind
from llmproxy.request import Operation, Request
from llmproxy.sse import SSEDecoder, event_data
from llmproxy.testing import Reply
from llmproxy.testing.http1 import Fields
from llmproxy.testing.messages import RecordedRequest
from tests.providers import services
from tests.vendor_answers import VENDORS, Said, Vendor
from tests.vendor_matrix import TOOL

ROUNDS: Final = 25
REQUEST_BYTES: Final = 2048
EVENTS: Final = 200
EXCHANGE_LIMIT_US, EVENT_LIMIT_US = 60, 15

_SENTENCE: Final = "A gateway is one door with one lock: whoever comes in is known, counted and shown the way. "


@dataclass(frozen=True, slots=True)
class Subject:
    """One vendor's translation, and the bytes that go through it.

    Attributes:
        events: A stream, event by event, as the vendor sends it; none where the gateway does not look into it.
        payloads: The JSON in each of them.
        asked: The same request, as it is known by the time its answer comes.
    """

    name: str
    provider: Provider
    target: Target
    request: bytes
    answer: bytes
    events: Sequence[bytes]
    payloads: Sequence[bytes]
    asked: Request
    headers: Mapping[str, str] = field(default_factory=CIMultiDict)

    def prepare(self) -> object:
        """The request on its way to the vendor."""
        request = Request(Operation.CHAT, self.request, orjson.loads(self.request))
        return self.provider.prepare(request, self.target, self.headers)

    def translate_answer(self) -> object:
        """The vendor's whole answer on its way to the client."""
        return self.provider.answer(self.asked, self.answer, orjson.loads(self.answer))

    def translate_stream(self) -> object:
        """The vendor's stream on its way to the client, one event at a time."""
        decoder = self.provider.stream_decoder(self.asked)
        if decoder is None:
            raise TypeError(f"{self.name} streams in OpenAI's format already.")
        return [event for data in self.events for event in decoder.feed(data)], list(decoder.finish())


def subjects() -> Iterator[Subject]:
    """Every vendor."""
    kinds = {kind.kind: kind for kind in every_kind()}
    for vendor in VENDORS:
        kind = kinds[vendor.kind]
        config = kind.Config.model_validate({"base_url": "http://127.0.0.1:1/v1", "api_key": "key", **vendor.section})
        provider = kind(vendor.kind, config, services())
        events, payloads = _stream(vendor, provider)
        target = Target(vendor.kind, vendor.model)
        request = _request(vendor)
        asked = Request(Operation.CHAT, request, orjson.loads(request))
        yield Subject(vendor.name, provider, target, request, _answer(vendor), events, payloads, asked)


def _request(vendor: Vendor) -> bytes:
    """A short conversation with a tool, of 2 kB."""
    system = {"role": "system", "content": "Be brief."}
    turns = [{"role": role, "content": _SENTENCE * 4} for role in ("user", "assistant")]
    members = {"model": vendor.model, "max_tokens": 500, "stop": ["END"], "tools": [TOOL]}
    last = {"role": "user", "content": ""}
    short = orjson.dumps({**members, "messages": [system, *turns, last]})
    last["content"] = (_SENTENCE * 20)[: REQUEST_BYTES - len(short)]
    return orjson.dumps({**members, "messages": [system, *turns, last]})


def _answer(vendor: Vendor) -> bytes:
    """Whole, of a little more than 2 kB in the vendor's format."""
    return _body(vendor.whole(Said(text=(_SENTENCE * 20,))))


def _stream(vendor: Vendor, provider: Provider) -> tuple[Sequence[bytes], Sequence[bytes]]:
    data = _body(vendor.streamed(Said(text=tuple(f"word {number}" for number in range(EVENTS)))))
    if provider.stream_decoder(Request(Operation.CHAT, b"", {"model": vendor.model, "messages": []})) is None:
        return (), ()
    if vendor.kind == "bedrock":
        frames = list(_frames(data))
        return frames, [_payload(frame) for frame in frames]
    events = list(SSEDecoder(1 << 24).feed(data))
    return events, [payload for event in events if (payload := event_data(event)) and payload != b"[DONE]"]


def _body(reply: Reply) -> bytes:
    document = {"model": "model", "stream": True, "stream_options": {"include_usage": True}}
    asked = RecordedRequest(1, 1, "POST", "/", Fields([]), b"", orjson.dumps(document))
    return b"".join(reply.message(asked).pieces)


def _frames(data: bytes) -> Iterator[bytes]:
    """The frames of an AWS event stream, each of which begins with its length."""
    while data:
        (length,) = struct.unpack_from("!I", data)
        yield data[:length]
        data = data[length:]


def _payload(frame: bytes) -> bytes:
    (headers_length,) = struct.unpack_from("!I", frame, 4)
    return frame[12 + headers_length : -4]


@dataclass(frozen=True, slots=True)
class Figure:
    """A translation and the bare decoding and encoding of the same bytes, in microseconds, a pair for each round."""

    translated: Sequence[float]
    bare: Sequence[float]

    @property
    def microseconds(self) -> float:
        """The median over the rounds."""
        return median(self.translated)

    def __add__(self, other: Figure) -> Figure:
        """Both one after the other, round by round."""
        translated = [mine + its for mine, its in zip(self.translated, other.translated, strict=True)]
        return Figure(translated, [mine + its for mine, its in zip(self.bare, other.bare, strict=True)])

    def __str__(self) -> str:
        ratios = [each / base for each, base in zip(self.translated, self.bare, strict=True)]
        return f"{self.microseconds:.1f} ({median(ratios):.1f}; {min(ratios):.1f} to {max(ratios):.1f})"


def measured(works: Mapping[tuple[str, str], tuple[Work, Work, int]], scale: Scale) -> Mapping[tuple[str, str], Figure]:
    """Each pair of works, side by side in every round, and the scale.

    Args:
        works: By model and part: what is measured, what it is measured by, how many units of it are in one call.
    """
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        scale.measure()
        for name, (translated, bare, units) in works.items():
            samples[name].append((microseconds(translated) / units, microseconds(bare) / units))
    return {name: Figure(*zip(*pairs, strict=True)) for name, pairs in samples.items()}


def _bare(*payloads: bytes) -> Work:
    return lambda: [orjson.dumps(orjson.loads(payload)) for payload in payloads]


def _works(subject: Subject) -> Mapping[str, tuple[Work, Work, int]]:
    works: dict[str, tuple[Work, Work, int]] = {
        "request": (subject.prepare, _bare(subject.request), 1),
        "answer": (subject.translate_answer, _bare(subject.answer), 1),
    }
    if subject.events:
        works["event"] = (subject.translate_stream, _bare(*subject.payloads), len(subject.events))
    return works


def _row(name: str, figures: Mapping[tuple[str, str], Figure], factor: float) -> list[str]:
    request, answer, event = (figures.get((name, part)) for part in ("request", "answer", "event"))
    if request is None or answer is None:
        raise TypeError(f"{name} has not been measured.")
    both = request + answer
    on_scale = [f"{each.microseconds / factor:.1f}" if each else "-" for each in (both, event)]
    return [name, str(request), str(answer), str(both), str(event or "-"), *on_scale]


def main() -> None:
    """Measure, and print what it takes here and what that is on the scale of the limits."""
    head = ["Model", "request, µs", "answer, µs", "both, µs", "event, µs", "both on scale", "event on scale"]
    vendors, scale = list(subjects()), Scale(known_probes())
    figures = measured({(each.name, part): work for each in vendors for part, work in _works(each).items()}, scale)
    print(markdown(head, [_row(each.name, figures, scale.factor) for each in vendors]))
    print(f"\nAt most {EXCHANGE_LIMIT_US} µs for both and {EVENT_LIMIT_US} µs for an event are wanted, on the scale of")
    print(f"a machine where these take what stands beside them:\n\n{scale}")


if __name__ == "__main__":
    main()
