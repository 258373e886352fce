"""What is looked for, as data: for each detector its rules, each a pattern and, where one exists, a check.

A rule's pattern finds candidates, in RE2's syntax; its first group, if it has one, is the value, and what stands around
the group is context. The check then says how much of a candidate is a value after all.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from llmproxy_plugins.redaction.libraries import number_check

# How many characters of a candidate, from its start, are the value; 0 when it is none.
Check = Callable[[str], int]

# A run of such characters at the end of a streamed text may be the first half of a value.
SOLID: Final = "".join(map(chr, (*range(0x21, 0x7F), *range(0xC0, 0x500))))
FIGURES: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ +().-/"


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to find a detector's values.

    Attributes:
        alphabet: What values are made of; "" when that can be anything. In a stream, a run of it is held back.
        longest: How many characters of such a run can matter at most.
        opening: Words that, standing less than `longest` characters before the end of a stream's text, hold it back
            from there: values with spaces begin like this.
        minds_bounds: Whether the pattern asks where the text begins or ends.
    """

    pattern: str
    check: Check | None = None
    alphabet: str = SOLID
    longest: int = 256
    opening: str = ""
    minds_bounds: bool = False


def whole(is_valid: Callable[[str], bool]) -> Check:
    """A check that takes a candidate as a whole or not at all."""
    return lambda value: len(value) if is_valid(value) else 0


def _longest_group(value: str, is_valid: Callable[[str], bool]) -> int:
    """How much of a row of groups of figures is valid: those behind a number may look like more groups of it."""
    ends = (match.end() for match in reversed(list(re.finditer(r"\d+", value))))
    return next((end for end in ends if is_valid(value[:end])), 0)


def groups(is_valid: Callable[[str], bool]) -> Check:
    """A check that takes as many groups of figures, from the first on, as are valid together."""
    return lambda value: _longest_group(value, is_valid)


# E-mail. Letters of Latin, Greek and Cyrillic: Chinese and Japanese put no space before an address.

_LETTER = r"A-Za-z0-9À-ӿ"
_NO_ADDRESS: Final = re.compile(r"git@|.*@v?\d+\.\d+\.|.*\.(?:png|jpe?g|gif|svg|webp|css|js|html)$", re.IGNORECASE)

_EMAIL: Final = (
    Rule(
        # An escaped line feed before an address, as in source code, is no part of it.
        rf"(?:^|\\[nrtbfv]|[^{_LETTER}_.%+'\-])"
        rf"([{_LETTER}_][{_LETTER}._%+'\-]*@(?:[{_LETTER}](?:[{_LETTER}\-]*[{_LETTER}])?\.)+[A-Za-zÀ-ӿ]{{2,}})",
        whole(lambda value: not _NO_ADDRESS.match(value)),
    ),
)

# Phone numbers: international ones, and North American ones as they are usually written.

_CALLING_CODE: Final = re.compile(
    r"1[2-9]\d\d[2-9]\d{6}$|7\d|2[07]\d|3[0-469]\d|4[013-9]\d|5[1-8]\d|6[0-6]\d|8[1246]\d|9[0-58]\d"
    r"|(?:2[1-689]|3[578]|42|5[09]|67|68|69|80|85|87|88|96|97|99)\d"
)
_DECIMAL: Final = re.compile(r"\+\d+\.\d+")


def _is_phone(value: str) -> bool:
    digits = re.sub(r"\(0\)|\D", "", value)
    if value.startswith("00"):
        digits = digits[2:]
    return 8 <= len(digits) <= 15 and bool(_CALLING_CODE.match(digits)) and not _DECIMAL.fullmatch(value)


_PHONE: Final = (
    Rule(r"(?:^|[^0-9A-Za-z+])(\+[1-9](?:[ .\-()/]{0,2}[0-9]){6,14})\b", groups(_is_phone), FIGURES, 48),
    Rule(r"\b00[1-9][0-9]{0,2}[ \-](?:[ .\-()/]{0,2}[0-9]){6,12}\b", groups(_is_phone), FIGURES, 48),
    Rule(
        r"(?:^|[^0-9A-Za-z.\-/+])((?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.\-])[2-9][0-9]{2}[.\-][0-9]{4})"
        r"(?:$|[^0-9A-Za-z\-])",
        None,
        FIGURES,
        48,
    ),
)

_is_luhn: Final = number_check("luhn")
_is_iban: Final = number_check("iban")


def _is_card(value: str) -> bool:
    digits = re.sub(r"\D", "", value)
    return 13 <= len(digits) <= 19 and _is_luhn(digits)


# Cards: by the ranges of their issuers, in the groups they are printed in or in one run.

_CARD: Final = (
    Rule(
        r"\b(?:[2-6][0-9]{3}(?:[ \-]?[0-9]{4}){3}(?:[ \-]?[0-9]{1,3})?"
        r"|3[47][0-9]{2}[ \-]?[0-9]{6}[ \-]?[0-9]{5}"
        r"|3[0689][0-9]{2}[ \-]?[0-9]{6}[ \-]?[0-9]{4}"
        r"|(?:4[0-9]{12}|5[06-8][0-9]{11,17}|6[0-9]{12,18}))\b",
        groups(_is_card),
        FIGURES,
        48,
    ),
)


def _iban_length(value: str) -> int:
    """The words behind an account number may look like more of it: the country says how long it is."""
    ends = [match.end() for match in re.finditer(r"[A-Z0-9]", value)]
    return next((end for end in ends[14:34] if _is_iban(value[:end])), 0)


_IBAN: Final = (Rule(r"\b[A-Z]{2}[0-9]{2}(?:[ \-]?[A-Z0-9]){11,30}", _iban_length, FIGURES, 64),)

# Addresses of machines; those that name no machine in particular are left alone.

_HEX: Final = "[0-9A-Fa-f]{1,4}"
# Short ones outside of these ranges are far more often names in source code, as in `std::cafe`.
_ASSIGNED: Final = "(?:[23][0-9A-Fa-f]{3}|[Ff][CcDdEe][0-9A-Fa-f]{2})"


def _is_address(value: str) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


_IP: Final = (
    Rule(
        r"(?:^|[^0-9A-Za-z.])((?:[0-9]{1,3}\.){3}[0-9]{1,3})(?:$|[^0-9A-Za-z.]|\.(?:$|[^0-9A-Za-z]))",
        whole(_is_address),
    ),
    Rule(
        rf"(?:^|[^0-9A-Za-z:.]|[G-Zg-z]:)((?:{_HEX}:){{7}}{_HEX}|{_ASSIGNED}(?:::?{_HEX}){{1,7}}(?:::)?"
        r"|::[Ff]{4}:(?:[0-9]{1,3}\.){3}[0-9]{1,3})(?:$|[^0-9A-Za-z:])",
        whole(_is_address),
    ),
)

PERSONAL: Final[Mapping[str, tuple[Rule, ...]]] = {
    "email": _EMAIL,
    "phone": _PHONE,
    "card": _CARD,
    "iban": _IBAN,
    "ip": _IP,
}
