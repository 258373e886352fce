"""Carries out what a lens says, in texts that are there as a whole and in texts that arrive piece by piece."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from llmproxy_plugins.redaction.json_text import BetweenStrings, applied, escaped, rewrite_json, unescaped
from llmproxy_plugins.redaction.lenses import Lens
from llmproxy_plugins.redaction.vault import Form

# A value of which more than this is still unfinished is let go with what has been found in it.
_MAX_HELD_CHARACTERS: Final = 16_384

_STRING_REST: Final = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_UNFINISHED_ESCAPE: Final = re.compile(r"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)$")
_PUNCTUATION: Final = re.compile(r"[\s{}\[\]:,]*")


def rewrite(lens: Lens, text: str, form: Form) -> str:
    """A whole text as the lens has it; the same object when nothing changes."""
    if form is Form.JSON:
        return rewrite_json(lens, text)
    edits = lens.edits(text, form)
    return applied(text, edits, lens.counts) if edits else text


class Window:
    """One text of an answer as it arrives: what may still become part of a value is held back."""

    __slots__ = ("_context", "_form", "_held", "_is_inside", "_lens")

    def __init__(self, lens: Lens, form: Form) -> None:
        self._lens = lens
        self._form = form
        self._held = ""
        # The last character that was let out: it says whether a word or a number can begin behind it.
        self._context = ""
        self._is_inside = False

    @property
    def is_holding(self) -> bool:
        """Whether something is held back."""
        return bool(self._held)

    def feed(self, text: str, *, is_last: bool = False) -> str:
        """What can be let out now; all of it with the last piece. The same object when nothing changes."""
        raw = self._held + text if self._held else text
        is_final = is_last or len(raw) > _MAX_HELD_CHARACTERS
        if self._form is Form.JSON:
            out, done = self._json(raw, is_final=is_final)
        else:
            out, done = self._changed(raw, self._lens, is_final=is_final)
        self._held = raw[done:]
        if is_last and self._held:
            out, self._held = out + self._held, ""
        return text if out == text else out

    def _changed(self, text: str, lens: Lens, *, is_final: bool) -> tuple[str, int]:
        """What becomes of a text, and how much of it is done."""
        shift = len(self._context)
        seen = self._context + text
        edits = [edit for edit in lens.edits(seen, self._form) if edit.end > shift]
        done = len(seen) if is_final else lens.open_from(seen)
        done = max(shift, min((edit.start for edit in edits if edit.start < done < edit.end), default=done))
        self._context = seen[done - 1 : done]
        ready = [replace(edit, start=max(edit.start, shift)) for edit in edits if edit.end <= done]
        return applied(seen[:done], ready, lens.counts)[shift:], done - shift

    # JSON: every string in it is a text of its own, and so is what stands between two

    def _json(self, raw: str, *, is_final: bool) -> tuple[str, int]:
        pieces: list[str] = []
        position = 0
        while position < len(raw):
            end = _string_end(raw, position) if self._is_inside else raw.find('"', position)
            is_closed = end >= 0
            part = raw[position:end] if is_closed else raw[position:]
            become = self._inside if self._is_inside else self._outside
            out, done = become(part, is_final=is_closed or is_final)
            pieces.append(out)
            position += done
            if not is_closed:
                break
            pieces.append('"')
            position += 1
            self._is_inside, self._context = not self._is_inside, ""
        return "".join(pieces), position

    def _inside(self, raw: str, *, is_final: bool) -> tuple[str, int]:
        """Part of a string, its escapes undone for the lens and redone behind it."""
        unfinished = _UNFINISHED_ESCAPE.search(raw) if "\\" in raw else None
        text, offsets = unescaped(raw[: unfinished.start(1)] if unfinished else raw)
        changed, done = self._changed(text, self._lens, is_final=is_final)
        raw_done = offsets[done]
        return (raw[:raw_done] if changed == text[:done] else escaped(changed)), raw_done

    def _outside(self, raw: str, *, is_final: bool) -> tuple[str, int]:
        """Numbers, as a rule; anything at all where it is no JSON."""
        if _PUNCTUATION.fullmatch(raw):
            return raw, len(raw)
        return self._changed(raw, BetweenStrings(self._lens), is_final=is_final)


def _string_end(raw: str, position: int) -> int:
    """Where the quote stands that ends the string; -1 when it is not there."""
    closing = _STRING_REST.match(raw, position)
    return closing.end() - 1 if closing else -1
