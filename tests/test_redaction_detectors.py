"""What the detectors of the plugin redaction find, and what they leave alone."""

from __future__ import annotations

import itertools
import random
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmproxy.api import ConfigError
from llmproxy_plugins.redaction import libraries
from llmproxy_plugins.redaction.config import RedactionConfig
from llmproxy_plugins.redaction.lenses import merged
from llmproxy_plugins.redaction.scanner import Found, Scanner
from tests.redaction_samples import NATIONAL_IDS, ONE_OF_EACH, SETTINGS, VALUES


def scanner(**settings: object) -> Scanner:
    """The detectors of the settings, with some changed."""
    config = RedactionConfig.model_validate({**SETTINGS, **settings})
    return Scanner(config.rules(config.actions))


SCANNER = scanner()

EACH_VALUE = [(detector, value) for detector, values in VALUES.items() for value in values]

AROUND = (
    "{}",
    "write to {} today",
    "({})",
    '"{}"',
    "is:{},",
    "日本語{}日本語",
    "a\n{}\nb",
    "=> {}; // done",
    "😀 {} é",
)


@pytest.mark.parametrize(("detector", "value"), EACH_VALUE)
def test_values_are_found_wherever_they_stand(detector: str, value: str) -> None:
    """A value is found whole, at its place in characters, whatever stands around it."""
    for around in AROUND:
        text = around.format(value)
        places = [(each.detector, each.start, each.end) for each in SCANNER.find(text)]
        start = around.index("{}")
        assert (detector, start, start + len(value)) in places, text


@pytest.mark.parametrize("country", NATIONAL_IDS)
def test_numbers_are_found_for_the_countries_asked_for(country: str) -> None:
    """`countries` says whose numbers count, and every country's are known by themselves."""
    alone = scanner(detectors={"national_id": "mask"}, countries=[country], patterns={}, dictionaries={})
    found = alone.find(f"no. {NATIONAL_IDS[country]} of them")
    assert [each.detector for each in found][:1] == ["national_id"]
    assert scanner(countries=[], detectors={"national_id": "mask"}).find(f"no. {NATIONAL_IDS[country]}.") == []


LOOK_ALIKES = [
    # Versions and packages
    *("1.2.3", "v1.2.3.4", "10.0.19041.1288", "python 3.11.4", "lodash@4.17.21", "react@18.3.0-beta.rc", "icon@2x.png"),
    *("actions/checkout@v4.1.beta", "1.2.3.4.5", "==2.31.0", "127.0.0.1", "git@github.com:example/repo.git"),
    # Orders, invoices, sums
    *("order 4711-0815-4242", "invoice 2024-000123", "No. 1234567890123456", "SKU 9781861972712", "EUR 1.234.567,89"),
    *("00123456789", "112-7654321-1234567", "RMA0012345678", "PO-2025-11-22-001", "#4433221100", "12,345,678.90"),
    # Dates and times
    *("2026-11-22T16:20:11.123456Z", "12:30:45", "20261122", "1732292411", "1732292411123", "22.11.2026 16:20"),
    # Identifiers
    *(
        "d41d8cd98f00b204e9800998ecf8427e",
        "e83c5163316f89bfbde7d9ab23ca2e25604af290",
        "call_9pXzQ4kR2vT8",
        "0xDEADBEEF",
    ),
    *("3f2504e0-4f89-11d3-9a0c-0305e82c3301", "chatcmpl-AbCdEf0123456789", "msg_01XFDUDYJgAACzvnptvVoYEL", "req-42"),
    *(
        "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "00:1a:2b:3c:4d:5e",
        "ISBN 0-306-40615-2",
    ),
    # Code
    *(
        "std::vector<int>",
        "a::b::c",
        "dead::beef",
        "x = x[1:2:3]",
        "@app.route('/x')",
        "def f(a, *, b): ...",
        "#!/bin/sh",
    ),
    *("SELECT * FROM t WHERE a = 1", "https://example.com/a?b=1", "http://localhost:8080/health", "{{ user@host }}"),
    *("sk-learn", "task-force", "risk-averse-investors-and-others", "AKIA", "xoxo", "desk-organizer-with-many-drawers"),
    *("-----BEGIN CERTIFICATE-----", "Bearer token", "password", "eyJ", "x+1234567", "1+23456789", "+1.23456789012"),
    # Figures like telephones
    *("3.14159265358979", "2.718281828459045", "(1024) 768-600", "123-456", "800x600", "1,234,567,890", "555-1234"),
    *("100-200-3000", "page 212-555", "score 100:99", "+5", "+100 points", "+1 to that", "10-20-30", "24/7/365"),
    *("4111 1111 1111 1112", "GB82 WEST 1234 5698 7654 33", "000-12-3456", "666-12-3456", "12345678A", "DE12 BUS LINE"),
]


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_look_alikes_are_left_alone(text: str) -> None:
    """What only looks like a value, in code, prose and lists, is not taken for one."""
    assert SCANNER.find(f"see {text} there") == []


def test_chance_hits_among_identifiers_are_rare() -> None:
    """Of UUIDs and hashes fewer than one in a thousand is taken for anything; of order numbers, one in fifty."""
    chance = random.Random(7)  # noqa: S311 - the same identifiers each time, and no secret
    uuids = [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(2000)]
    hashes = [f"{chance.getrandbits(160):040x}" for _ in range(2000)]
    assert sum(bool(SCANNER.find(f"id {each} ok")) for each in (*uuids, *hashes)) < 4
    orders = [f"{chance.randrange(10**7, 10**10)}" for _ in range(2000)]
    assert sum(bool(SCANNER.find(f"order {each} ok")) for each in orders) < 40


def test_dictionaries_find_whole_words_in_any_case() -> None:
    """A word is found in capitals or not, and never inside of another."""
    find = scanner(dictionaries={"names": {"words": ["Ærlig", "Acme", "New York City", "York"], "action": "mask"}}).find

    def found(text: str) -> list[str]:
        return [text[each.start : each.end] for each in find(text) if each.detector == "names"]

    assert found("ACME and acme, ærlig") == ["ACME", "acme", "ærlig"]
    assert found("Acmeify acme_x Særlig Yorkshire") == []
    assert found("xNew York City") == ["York"]
    assert found("new york city") == ["new york city"]


def test_candidates_that_are_none_do_not_hide_values() -> None:
    """A value is found although the characters before it look like the beginning of another."""
    text = "12 4111 1111 1111 1111 DE89370400440532013000 AND MORE"
    found = {text[each.start : each.end] for each in SCANNER.find(text)}
    assert {"4111 1111 1111 1111", "DE89370400440532013000"} <= found


@pytest.mark.parametrize("between", [" ", ", ", "\n", " 123 "])
def test_neighbours_do_not_hide_each_other(between: str) -> None:
    """Of two values next to each other, with nothing but a space or a number between, no character is missed."""
    values = [value for values in VALUES.values() for value in values[:3]]
    for first, second in itertools.product(values, values):
        text = f"{first}{between}{second}"
        seen = {place for each in SCANNER.find(text) for place in range(each.start, each.end)}
        must = {*range(len(first)), *range(len(text) - len(second), len(text))}
        assert must <= seen, text


def test_overlapping_values_are_one_under_the_stricter_action() -> None:
    """No part of either is left over, and what is only reported gives way."""
    actions = {"a": "placeholder", "b": "mask", "c": "report"}
    assert merged([Found(0, 6, "a"), Found(4, 9, "b")], actions) == [Found(0, 9, "b")]
    assert merged([Found(4, 9, "c"), Found(0, 6, "a")], actions) == [Found(0, 6, "a")]
    assert merged([Found(0, 2, "a"), Found(2, 3, "b")], actions) == [Found(0, 2, "a"), Found(2, 3, "b")]


@given(st.lists(st.sampled_from([*ONE_OF_EACH.values(), "é", "😀", "日本", " ", ", ", "word", "\n"]), max_size=12))
def test_places_are_counted_in_characters(parts: list[str]) -> None:
    """Whatever scripts a text mixes, a place cut out of it is what was found."""
    text = " ".join(parts)
    for each in SCANNER.find(text):
        if each.detector == "staff":
            assert text[each.start : each.end] == ONE_OF_EACH["staff"]


def test_a_missing_library_is_named_with_its_remedy() -> None:
    """An installation without the extra is told what to install, not which module is missing."""
    with pytest.raises(ImportError, match=re.escape("pip install 'llmproxy[redaction]'")):
        libraries._library("a_module_that_nobody_has")


def test_too_many_patterns_are_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """More patterns than there is memory for keep the gateway from starting."""
    monkeypatch.setattr(libraries, "_MAX_MEMORY_BYTES", 1000)
    with pytest.raises(ConfigError, match="too large"):
        libraries.prefilter(["x{1,500}y{1,500}"])


def test_a_search_that_gave_up_leaves_no_rule_out() -> None:
    """Where the one pass over all patterns ran out of memory, every pattern is searched for by itself."""
    assert list(libraries._candidates([], range(3))) == [0, 1, 2]
    assert list(libraries._candidates([0, 2], range(3))) == [1]


def test_patterns_take_linear_time() -> None:
    """A pattern that would take other engines for ever is searched for in passing."""
    find = scanner(patterns={"slow": {"pattern": "(a+)+b", "action": "mask"}}).find
    assert find("a" * 100_000) == []


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"detectors": {"mail": "mask"}}, "there is no detector 'mail' (did you mean 'email'?)"),
        ({"detectors": {"email": "hide"}}, "mask"),
        ({"detectors": {"email": "hash"}, "hash_key": "short"}, "hash_key of at least 16"),
        ({"patterns": {"email": {"pattern": "x", "action": "mask"}}}, "'email' is taken"),
        ({"patterns": {"text": {"pattern": "x", "action": "mask"}}}, "'text' is taken"),
        ({"patterns": {"p": {"pattern": "(?=x)", "action": "mask"}}}, "not a pattern that RE2 accepts"),
        ({"patterns": {"p": {"pattern": "x*", "action": "mask"}}}, "must not match nothing"),
        ({"answers": {"ghost": "mask"}}, "cannot be searched for 'ghost'"),
        ({"answers": {"secrt": "mask"}}, "cannot be searched for 'secrt' (did you mean 'secret'?)"),
        ({"answers": {"email": "placeholder"}}, "mask"),
        ({"countries": ["xx"]}, "no numbers of a country 'xx'"),
        ({"dictionaries": {"d": {"words": [], "action": "mask"}}}, "at least 1"),
    ],
)
def test_mistakes_are_told_at_start(settings: dict[str, object], mistake: str) -> None:
    """A section that could not do what it says is refused with a sentence."""
    with pytest.raises(ValidationError, match=re.escape(mistake)):
        RedactionConfig.model_validate(settings)
