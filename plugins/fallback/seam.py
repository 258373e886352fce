"""Where one answer ends in the middle and another goes on: what the second repeats of the first is left out."""

from __future__ import annotations

from typing import Final

# How far back a repetition may begin, and so the most that is ever held back.
_WINDOW_CHARACTERS: Final = 1000
# Shorter ones of a single word may be meant: "very very good".
_CERTAIN_CHARACTERS: Final = 12


class Seam:
    """Joins a continuation to what was said before it.

    Args:
        said: The text so far.
    """

    def __init__(self, said: str) -> None:
        self._said = said[-_WINDOW_CHARACTERS:]
        self._held = ""
        self._is_joined = False

    def feed(self, text: str) -> str:
        """What of the continuation may go out now; nothing as long as all of it may be a repetition."""
        if self._is_joined:
            return text
        self._held += text
        # Found before the very end, it may go on to repeat the rest as well.
        return "" if self._said[:-1].find(self._held) != -1 else self.finish()

    def finish(self) -> str:
        """What was held back, without what it repeats."""
        self._is_joined = True
        held, self._held = self._held, ""
        return held[self._repeated(held) :]

    def _repeated(self, text: str) -> int:
        """How many characters at its beginning were said at the end of what came before."""
        longest = min(len(text), len(self._said))
        lengths = (length for length in range(longest, 0, -1) if self._said.endswith(text[:length]))
        return next((length for length in lengths if self._is_repetition(text[:length])), 0)

    def _is_repetition(self, text: str) -> bool:
        """Whether such a match can be no coincidence. A space that both have at the seam was meant once."""
        words = len(text.split())
        return words != 1 or len(text) >= _CERTAIN_CHARACTERS or len(text) == len(self._said)
