"""How core calls each hook: its kind, its order, what it may return, and what a failure in it means."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from llmproxy.claims import Claim
from llmproxy.exchange import Answer, Chunk, Hedge, Principal, Resume, Retry
from llmproxy.hookcalls import Check
from llmproxy.providers import Provider

# What a hook may return, beside None


def returns(*types: type) -> Check:
    """A check that a result is of one of these types."""
    expected = " or ".join([*(each.__name__ for each in types), "None"])

    def check(_args: tuple[Any, ...], result: object) -> None:
        if not isinstance(result, types):
            raise _unexpected(result, expected)

    return check


def _provider_kinds(_args: tuple[Any, ...], result: object) -> None:
    kinds = result if isinstance(result, Sequence) else (result,)
    if not all(isinstance(kind, type) and issubclass(kind, Provider) for kind in kinds):
        raise _unexpected(result, "a sequence of Provider classes or None")


def _some_of_those_handed_in(args: tuple[Any, ...], result: object) -> None:
    if not isinstance(result, Sequence):
        raise _unexpected(result, "a sequence of targets or None")
    if any(target not in args[1] for target in result):
        raise ValueError("It returned a target that was not among those handed in.")


def _one_of_those_left(args: tuple[Any, ...], result: object) -> None:
    if result not in args[0].targets:
        raise ValueError("It returned something that is not among exchange.targets.")


def _hedge(args: tuple[Any, ...], result: object) -> None:
    if not isinstance(result, Hedge):
        raise _unexpected(result, "Hedge or None")
    _one_of_those_left(args, result.target)


def _chunks(args: tuple[Any, ...], result: object) -> None:
    if not isinstance(result, Sequence) or not all(isinstance(each, Chunk) for each in result):
        raise _unexpected(result, "a sequence of chunks or None")
    if any(each.last for each in result) and not args[1].last:
        raise ValueError("It returned a chunk marked as the last before the stream had ended.")


def _unexpected(result: object, expected: str) -> TypeError:
    if inspect.iscoroutine(result):
        result.close()
        return TypeError("It is a plain `def` that returned a coroutine; declare it `async def`.")
    return TypeError(f"It returned {type(result).__name__}, where {expected} is expected.")


_NOTHING: Final = returns()


# The rules of each hook


class Kind(StrEnum):
    """How the implementations of a hook make one call."""

    EACH = "all; never on the request path"
    ALL = "all"
    FIRST = "first result"
    GATHER = "all results"
    CHAIN = "chain"
    CHUNK_CHAIN = "chain, chunk by chunk"


@dataclass(frozen=True, slots=True)
class Rule:
    """How core calls a hook.

    `is_inside_out`: the last plugin of the configuration runs first. `is_plain`: `def` only.
    `is_isolated`: a failure is reported and stops nobody; otherwise it fails closed.
    """

    kind: Kind
    check: Check = _NOTHING
    is_inside_out: bool = False
    is_plain: bool = False
    is_isolated: bool = False

    @property
    def takes_wrappers(self) -> bool:
        """Whether `wrapper=True` is allowed: not around a chain, where it could undo what a guard took away."""
        return self.kind in (Kind.ALL, Kind.FIRST) and not self.is_plain


RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        "register_providers": Rule(Kind.EACH, _provider_kinds, is_plain=True),
        "register_routes": Rule(Kind.EACH, is_plain=True),
        "register_commands": Rule(Kind.EACH, is_plain=True),
        "startup": Rule(Kind.EACH),
        "shutdown": Rule(Kind.EACH, is_inside_out=True, is_isolated=True),
        "authenticate": Rule(Kind.FIRST, returns(Principal)),
        "claims": Rule(Kind.GATHER, returns(Claim), is_plain=True),
        "pre_request": Rule(Kind.FIRST, returns(Answer)),
        "narrow_targets": Rule(Kind.CHAIN, _some_of_those_handed_in),
        "choose_provider": Rule(Kind.FIRST, _one_of_those_left),
        "pre_attempt": Rule(Kind.ALL),
        "hedge": Rule(Kind.FIRST, _hedge, is_plain=True),
        "on_answer": Rule(Kind.CHAIN, returns(Answer), is_inside_out=True),
        "post_attempt": Rule(Kind.ALL, is_inside_out=True, is_plain=True, is_isolated=True),
        "on_error": Rule(Kind.FIRST, returns(Retry, Answer)),
        "on_stream_chunk": Rule(Kind.CHUNK_CHAIN, _chunks, is_inside_out=True, is_plain=True),
        "on_stream_error": Rule(Kind.FIRST, returns(Resume)),
        "post_response": Rule(Kind.ALL, is_inside_out=True),
        "on_response_head": Rule(Kind.ALL, is_inside_out=True, is_plain=True, is_isolated=True),
        "on_complete": Rule(Kind.ALL, is_inside_out=True, is_isolated=True),
    }
)
