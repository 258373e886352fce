"""Wrappers: sync generators of plugins around a whole hook, for spans, timing and second thoughts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final

from llmproxy.hookcalls import Check, Function, Verdict, raise_unless_settled

_ENDED: Final = object()


@dataclass(frozen=True, slots=True)
class Wrapper:
    """One plugin's generator around a hook, driven as pluggy drives it."""

    function: Function
    check: Check
    verdict: Verdict

    def enter(self, args: tuple[object, ...]) -> Generator[None, object, object] | None:
        """Run up to the `yield`. None when that failed and the failure was settled."""
        try:
            generator: Generator[None, object, object] = self.function(*args)
            if next(generator, _ENDED) is _ENDED:
                raise RuntimeError("A wrapper must yield once, and this one did not.")
        except Exception as error:  # noqa: BLE001  # a plugin may raise anything, and the verdict says what follows
            raise_unless_settled(self.verdict, error)
            return None
        return generator

    def leave(
        self,
        generator: Generator[None, object, object],
        args: tuple[object, ...],
        result: object,
        error: BaseException | None,
    ) -> tuple[object, BaseException | None]:
        """What follows from `result` or `error` once the wrapper has seen it."""
        try:
            value = _finish(generator, result, error)
            if value is not None:
                self.check(args, value)
        except Exception as raised:  # noqa: BLE001  # as above
            return None, self.verdict(raised)
        except BaseException as raised:  # noqa: BLE001  # the wrappers further out have to see it too
            return None, raised
        return value, None


def _finish(generator: Generator[None, object, object], result: object, error: BaseException | None) -> object:
    try:
        if error is None:
            generator.send(result)
        else:
            generator.throw(error)
    except StopIteration as stop:
        return stop.value
    generator.close()
    raise RuntimeError("A wrapper must yield once, and this one did so again.")


def around(wrappers: Sequence[Wrapper], run: Function) -> Function:
    """`run` inside the wrappers, the first of them outermost. A cancellation is never swallowed."""

    async def call(*args: object) -> object:
        opened: list[tuple[Wrapper, Generator[None, object, object]]] = []
        result: object = None
        error: BaseException | None = None
        try:
            for wrapper in wrappers:
                if (generator := wrapper.enter(args)) is not None:
                    opened.append((wrapper, generator))  # noqa: PERF401  # kept one by one: the next may fail
            result = await run(*args)
        except BaseException as raised:  # noqa: BLE001  # the wrappers have to see a cancellation too
            error = raised
        cancellation = None if isinstance(error, Exception) else error
        for wrapper, generator in reversed(opened):
            result, error = wrapper.leave(generator, args, result, error)
        if (last_word := cancellation or error) is not None:
            raise last_word
        return result

    return call
