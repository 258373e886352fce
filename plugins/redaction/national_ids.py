"""National identity numbers, by country.

A number with one check digit is right by chance once in ten times, so those are looked for only in the form in which
they are written down, with their separators; a number with letters, a date or two check digits also in one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llmproxy_plugins.redaction.detectors import FIGURES, Rule, whole
from llmproxy_plugins.redaction.libraries import number_check

# Country, module of stdnum, and how the number is written.
_NUMBERS: Final = (
    ("at", "at.vnr", r"[1-9][0-9]{3} [0-9]{6}"),
    ("au", "au.tfn", r"[0-9]{3} [0-9]{3} [0-9]{3}"),
    ("be", "be.nn", r"[0-9]{2}[.\- ]?[0-9]{2}[.\- ]?[0-9]{2}[.\- ]?[0-9]{3}[.\- ]?[0-9]{2}"),
    ("bg", "bg.egn", r"[0-9]{10}"),
    ("br", "br.cpf", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}"),
    ("ca", "ca.sin", r"[0-9]{3}[ \-][0-9]{3}[ \-][0-9]{3}"),
    ("ch", "ch.ssn", r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}"),
    ("cl", "cl.rut", r"[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9Kk]"),
    ("cn", "cn.ric", r"[1-9][0-9]{16}[0-9Xx]"),
    ("cz", "cz.rc", r"[0-9]{6}/[0-9]{4}"),
    ("de", "de.idnr", r"[1-9][0-9](?: [0-9]{3}){3}|[1-9][0-9]{10}"),
    ("dk", "dk.cpr", r"[0-3][0-9][01][0-9]{3}-[0-9]{4}"),
    ("ee", "ee.ik", r"[1-8][0-9]{2}[01][0-9][0-3][0-9]{5}"),
    ("es", "es.dni", r"[0-9]{8}[ \-]?[A-Z]"),
    ("es", "es.nie", r"[XYZ][ \-]?[0-9]{7}[ \-]?[A-Z]"),
    ("fi", "fi.hetu", r"[0-3][0-9][01][0-9]{3}[+\-ABCDEFYXWVU][0-9]{3}[0-9A-Y]"),
    ("fr", "fr.nir", r"[1-478] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}"),
    ("gb", "gb.nhs", r"[0-9]{3}[ \-][0-9]{3}[ \-][0-9]{4}"),
    ("gr", "gr.amka", r"[0-3][0-9][01][0-9]{3}[ \-][0-9]{5}"),
    ("ie", "ie.pps", r"[0-9]{7}[A-W][A-IW]?"),
    ("in", "in_.aadhaar", r"[2-9][0-9]{3}[ \-][0-9]{4}[ \-][0-9]{4}"),
    ("in", "in_.pan", r"[A-Z]{3}[ABCFGHJLPT][A-Z][0-9]{4}[A-Z]"),
    ("is", "is_.kennitala", r"[0-7][0-9][01][0-9]{3}-[0-9]{4}"),
    ("it", "it.codicefiscale", r"[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]"),
    ("kr", "kr.rrn", r"[0-9]{2}[01][0-9][0-3][0-9]-[0-9]{7}"),
    ("lt", "lt.asmens", r"[1-6][0-9]{2}[01][0-9][0-3][0-9]{5}"),
    ("mx", "mx.curp", r"[A-Z]{4}[0-9]{6}[HMX][A-Z]{5}[0-9A-Z][0-9]"),
    ("nl", "nl.bsn", r"[0-9]{4}[. ][0-9]{2}[. ][0-9]{3}"),
    ("no", "no.fodselsnummer", r"[0-7][0-9][0-9]{4}[ \-]?[0-9]{5}"),
    ("pl", "pl.pesel", r"[0-9]{2}[0-389][0-9][0-3][0-9]{6}"),
    ("pt", "pt.cc", r"[0-9]{8}[ \-]?[0-9][ \-]?[A-Z0-9]{2}[0-9]"),
    ("ro", "ro.cnp", r"[1-8][0-9]{2}[01][0-9][0-3][0-9]{7}"),
    ("se", "se.personnummer", r"(?:19|20)?[0-9]{2}[01][0-9][0-9]{2}[\-+][0-9]{4}"),
    ("th", "th.pin", r"[1-8]-[0-9]{4}-[0-9]{5}-[0-9]{2}-[0-9]"),
    ("tr", "tr.tckimlik", r"[1-9][0-9]{10}"),
    ("us", "us.ssn", r"[0-9]{3}-[0-9]{2}-[0-9]{4}"),
    ("za", "za.idnr", r"[0-9]{6} [0-9]{4} [0-9]{3}|[0-9]{2}[01][0-9][0-3][0-9]{3}[0-9]{3}[01][89][0-9]"),
)

# Not part of a longer number, name or version on either side.
_BEFORE: Final = r"(?:^|[^0-9A-Za-z._/\-])"
_AFTER: Final = r"(?:$|[^0-9A-Za-z_/\-])"


def _of_country() -> Mapping[str, tuple[Rule, ...]]:
    rules: dict[str, tuple[Rule, ...]] = {}
    for country, kind, form in _NUMBERS:
        rule = Rule(f"{_BEFORE}({form}){_AFTER}", whole(number_check(kind)), FIGURES, 40)
        rules[country] = (*rules.get(country, ()), rule)
    return rules


BY_COUNTRY: Final[Mapping[str, tuple[Rule, ...]]] = _of_country()
