"""Which requests are the same request: the canonical form, and the key made of it.

Everything a request says counts, except what is known not to change the answer. Two requests that differ in anything
else never share an answer, whatever the member is called.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from llmproxy.api import Document, Exchange, Operation

# How an answer travels, whose it is, and where the vendor keeps it; none of these changes what it says.
IGNORED: Final = frozenset(
    {
        "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "store", "stream",
        "stream_options", "user",
    }
)  # fmt: skip
# Tools that the client runs. Others the vendor runs, and what they find changes by the hour.
_CLIENTS_TOOLS: Final = ("custom", "function")
# Changes when what goes into a key, or how, does: entries of another form must not be found.
_FORM: Final = 1
_TAG_CHARACTERS: Final = 16
# Where a client's constraint on the way an answer is made stands outside of the body.
_CONSTRAINTS: Final = ("x-llmproxy-region",)
# A number that is whole but not written so, in compact JSON; inside of a string it does no harm.
_UNUSUAL_NUMBER: Final = re.compile(rb"[:\[,]-?(?:[0-9]+\.0|[0-9.]+e[+-]?[0-9]+)[,\]}]")
_SPACED_COLON: Final = re.compile(rb'"[ \t\r\n]+:')
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\r\n]*+(:?)')
# Beyond these, a float and an integer that look alike need not be the same number.
_MAX_EXACT: Final = 2**53


@dataclass(frozen=True, slots=True)
class Key:
    """The name of an answer. `digest` is told to clients; `tenant` and `model` are what purges go by."""

    tenant: str
    model: str
    digest: str

    @property
    def prefix(self) -> str:
        """Where its entries are stored, whichever purges there were."""
        return f"{self.tenant}:{self.model}:{self.digest}"


def key_of(
    exchange: Exchange, tenant: tuple[str, ...], namespace: tuple[str, ...], vary_headers: tuple[str, ...]
) -> Key | None:
    """The key of a request; None when no two readers need agree on what it says.

    Beside the request itself, whoever may answer it goes into the key: another set of candidates is another question.

    Args:
        tenant: The workspaces that share the answer.
        namespace: Names within which alone it is found.
        vary_headers: The client's headers that may change it.
    """
    canonical = canonical_form(exchange.request.document, exchange.request.encode())
    if canonical is None:
        return None
    context = orjson.dumps(
        [
            _FORM,
            tenant,
            namespace,
            exchange.operation,
            sorted({(each.provider, each.model, each.region or "") for each in exchange.candidates}),
            [exchange.headers.get(name, "") for name in (*_CONSTRAINTS, *vary_headers)],
        ]
    )
    # A JSON list tells its own end, so the two can never be cut apart differently.
    digest = hashlib.sha256(context + canonical).hexdigest()
    return Key(tag(orjson.dumps(tenant).decode()), tag(exchange.request.model), digest)


def tag(name: str) -> str:
    """A name as a short word that is safe in any store's keys and patterns."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_TAG_CHARACTERS]


def canonical_form(document: Document, body: bytes) -> bytes | None:
    """The request as bytes that are equal for equivalent requests; None when it can be read in more than one way.

    Neither the order of members, nor white space, escapes, or how a number is written matters. A body that has a
    member twice is one request for a reader that takes the first, and another for one that takes the last.
    """
    counted = {name: value for name, value in document.items() if name not in IGNORED}
    ignored = {name: value for name, value in document.items() if name in IGNORED}
    try:
        canonical = orjson.dumps(counted, option=orjson.OPT_SORT_KEYS)
        # The search is slow, and without these there is nothing to find.
        if (b".0" in canonical or b"e+" in canonical) and _UNUSUAL_NUMBER.search(canonical):
            canonical = orjson.dumps(_with_usual_numbers(counted), option=orjson.OPT_SORT_KEYS)
        if _has_more_members(body, canonical, orjson.dumps(ignored)):
            return None
    except (TypeError, RecursionError):
        # Nested too deep to be written.
        return None
    return canonical


def is_deterministic(operation: Operation, document: Document) -> bool:
    """Whether asking again would, as far as the vendor can help it, give the same answer."""
    if operation is Operation.EMBEDDINGS:
        return True
    if document.get("web_search_options") is not None or _has_vendors_tools(document.get("tools")):
        return False
    temperature, seed = document.get("temperature"), document.get("seed")
    is_cold = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    return is_cold or (isinstance(seed, int) and not isinstance(seed, bool))


# The value is whatever the client sent.
def _has_vendors_tools(tools: Any) -> bool:
    if not isinstance(tools, list):
        return tools is not None
    return any(not isinstance(tool, dict) or tool.get("type") not in _CLIENTS_TOOLS for tool in tools)


def _has_more_members(body: bytes, *parts: bytes) -> bool:
    """Whether there is a member in a body that is in none of the parts, which are compact and have no member twice."""
    if b"\\u00" not in body and not _SPACED_COLON.search(body):
        # Nothing in it hides a quote, a colon, or that they meet: members aside, these are in strings in both.
        return body.count(b'":') != sum(part.count(b'":') for part in parts)
    return _member_count(body) != sum(map(_member_count, parts))


def _member_count(data: bytes) -> int:
    """How many members the objects in some JSON have: the strings that a colon follows."""
    found: list[bytes] = _STRING.findall(data)
    return found.count(b":")


# JSON's values are whatever the client sent.
def _with_usual_numbers(value: Any) -> Any:
    match value:
        case dict():
            return {name: _with_usual_numbers(each) for name, each in value.items()}
        case list():
            return [_with_usual_numbers(each) for each in value]
        case float() if value.is_integer() and abs(value) <= _MAX_EXACT:
            return int(value)
        case _:
            return value
