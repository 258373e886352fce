"""The configuration file: strict YAML, variables, mistakes with their places, and the schema for editors."""

from __future__ import annotations

import copy
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from llmproxy.config import Config, ProviderConfig, Section, Timeouts
from llmproxy.config_document import ConfigDocument, load_config
from llmproxy.config_schema import config_schema
from llmproxy.errors import ConfigError


def mistakes(text: str | bytes, model: type[BaseModel] = Config, **environ: str) -> tuple[str, ...]:
    """Everything wrong with a file called c.yaml."""
    try:
        document = ConfigDocument.parse(text, "c.yaml", environ)
    except ConfigError as error:
        return error.mistakes
    document.validate(model)
    return document.mistakes


class Scalars(Section):
    text: str = ""
    number: float = 0
    whole: int = 0
    switch: bool = False
    secret: SecretStr | None = None
    word: Literal["red", "green"] = "red"


def scalars(text: str, **environ: str) -> Scalars:
    """A text that has to be valid, as a section."""
    document = ConfigDocument.parse(text, "c.yaml", environ)
    section = document.validate(Scalars)
    document.raise_if_mistaken()
    assert section is not None
    return section


# Reading


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "NO", "y", "12:30", "2026-11-22", "1_000", ".inf", "0b1"])
def test_words_of_yaml_1_1_stay_text(word: str) -> None:
    """What only YAML 1.1 takes for a bool, a time, a date or a number is the text it looks like."""
    assert scalars(f"text: {word}").text == word


@pytest.mark.parametrize(
    ("text", "number"), [("010", 10), ("0o17", 15), ("0x1F", 31), ("-7", -7), ("1e3", 1000), (".5", 0.5), ("+2.", 2)]
)
def test_numbers_follow_the_core_rules(text: str, number: float) -> None:
    """Decimal integers may begin with zeros; 0o and 0x name other bases; floats are as in JSON and a bit more."""
    assert scalars(f"number: {text}").number == number


def test_an_explicit_text_tag_keeps_text() -> None:
    """`!!str 5` is the text 5."""
    assert scalars("text: !!str 5").text == "5"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("text: a\nnumber: 1\ntext: b\n", "c.yaml:3:1: text: stands here twice; the first is on line 1"),
        ("1: a", "c.yaml:1:1: keys must be text; put this one in quotes"),
        ("true: a", "c.yaml:1:1: keys must be text; put this one in quotes"),
        ("<<: {text: a}", "c.yaml:1:1: merging with << is not supported; write the keys out"),
        ("? [a]\n: b", "c.yaml:1:3: keys must be text, not lists or sections"),
        ("text: !secret a", "c.yaml:1:1: text: must not have a YAML tag (!...); leave the tag out"),
        ("text:\n\ta", "c.yaml:2:1: a tab cannot indent; use spaces"),
        ("text: [a", "c.yaml:1:9: this cannot be read as YAML: did not find expected ',' or ']'"),
        (
            "{text: ${A}}",
            (
                "c.yaml:1:9: this cannot be read as YAML: did not find expected ',' or '}'; "
                "inside {} and [] a variable needs quotes"
            ),
        ),
        ("text: *a", "c.yaml:1:7: this cannot be read as YAML: found undefined alias"),
        (b"text: a\nnumber: \xff", "c.yaml:2:9: the text cannot be read: invalid leading UTF-8 octet"),
        ("[" * 100_000, "c.yaml:1:32: this cannot be read as YAML: sections are nested too deeply"),
        ("a: &a [*a]", "c.yaml:1:4: aliases make this file endless or too large; write fewer"),
    ],
)
def test_what_is_not_strict_yaml_is_refused_where_it_stands(text: str | bytes, mistake: str) -> None:
    """Duplicate and odd keys, tags, tabs, broken syntax, bad bytes and endless nesting are told with their place."""
    assert mistakes(text, Scalars) == (mistake,)


# Variables


@pytest.mark.parametrize(
    ("text", "environ", "value"),
    [
        ("${A}", {"A": "x"}, "x"),
        ("${A:-d}", {}, "d"),
        ("${A:-d}", {"A": ""}, "d"),
        ("'${A}'", {"A": ""}, ""),
        ("'${A}'", {"A": "8080"}, "8080"),
        ("${A}-${B}", {"A": "x", "B": "y"}, "x-y"),
        ("$${A}", {"A": "x"}, "${A}"),
        ("a$$b", {}, "a$b"),
        ("^a$", {}, "^a$"),
        ("${A}", {"A": "${B} # a: [\n"}, "${B} # a: [\n"),
    ],
)
def test_variables_are_filled_in_on_values(text: str, environ: dict[str, str], value: str) -> None:
    """A variable's value is text, whatever it holds: it is neither YAML nor looked through for variables again."""
    assert scalars(f"text: {text}", **environ).text == value


def test_a_plain_variable_means_what_its_value_would_mean() -> None:
    """Without quotes, a variable's value is a number or a bool just as if it stood there."""
    section = scalars("whole: ${A}\nnumber: ${B:-1.5}\nswitch: ${C}\nsecret: ${D:-}", A="12", C="true")
    assert (section.whole, section.number, section.switch, section.secret) == (12, 1.5, True, None)


def test_variables_are_not_looked_for_in_keys_or_comments() -> None:
    """A key keeps its `${A}`, and a comment needs no variable to be set."""
    assert mistakes("${A}: 1 # ${B}", Scalars) == ("c.yaml:1:1: ${A}: is not a key that may stand here",)


def test_an_unset_variable_is_one_mistake() -> None:
    """A variable without value and default is told once, where it stands; that it is no number is not told as well."""
    assert mistakes("text: a\nwhole: ${PORT}", Scalars) == (
        "c.yaml:2:1: whole: PORT is not set; set it, or give a default: ${PORT:-...}",
    )


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A-b}", "${A:=b}", "x${A"])
def test_what_only_begins_like_a_variable_is_a_mistake(text: str) -> None:
    """`${` that is no variable is refused rather than sent somewhere as it stands."""
    [mistake] = mistakes(f"text: '{text}'", Scalars, A="x")
    assert mistake.startswith("c.yaml:1:1: text: a variable is ${NAME}")


# Validating


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("server: {port: abc}", "1:10: server.port: must be a whole number, not text"),
        ("server: {port: 1.5}", "1:10: server.port: must be a whole number"),
        ("server: {port: 70000}", "1:10: server.port: must be less than or equal to 65535"),
        ("server: {port: }", "1:10: server.port: must be a whole number, not empty"),
        ("server: {head_seconds: [1]}", "1:10: server.head_seconds: must be a number, not a list"),
        ("server: {head_seconds: 1e999}", "1:10: server.head_seconds: must be a finite number"),
        ("server: {host: 1}", "1:10: server.host: must be text, not a number; put it in quotes"),
        ("server: {prot: 1}", "1:10: server.prot: is not a key that may stand here (did you mean 'port'?)"),
        ("server: {zzz: 1}", "1:10: server.zzz: is not a key that may stand here"),
        ('server: {" ": 1}', "1:10: server.' ': is not a key that may stand here"),
        ('"": 1', "1:1: '': is not a key that may stand here"),
        ("server: 5", "1:1: server: must be a section of keys, not a number"),
        ("sever: {}", "1:1: sever: is not a key that may stand here (did you mean 'server'?)"),
        ("server: {tls: {key_file: a}}", "1:10: server.tls.certificate_file: is missing"),
        ("prices: {}", "1:1: prices: must be a list, not a section"),
        (
            "prices: [{match: a, fre: true}]",
            "1:21: prices.0.fre: is not a key that may stand here (did you mean 'free'?)",
        ),
        ("prices: [{match: a, free: 3}]", "1:21: prices.0.free: must be true or false, not a number"),
        ("models: {a: ''}", "1:10: models.a: must have at least 1 character"),
        ("models: {a: 1}", "1:10: models.a: must be a section of keys, not a number"),
        ("models: {a: {targets: []}}", "1:14: models.a.targets: must have at least 1 item"),
        ("models: {a: {targets: [{model: ''}]}}", "1:25: models.a.targets.0.model: must have at least 1 character"),
        ("models: {a: {targets: [{weight: 2}]}}", "1:24: models.a.targets.0.model: is missing"),
        ("plugins: [a, a]", "1:1: plugins: must not name a section twice"),
        ("- a", "1:1: must be a section of keys, not a list"),
        (
            "audit: {bodies: reqests}",
            "1:9: audit.bodies: must be 'none', 'requests', 'responses' or 'all' (did you mean 'requests'?)",
        ),
    ],
)
def test_a_mistake_is_a_plain_sentence_at_its_key(text: str, mistake: str) -> None:
    """What is wrong stands in plain words after file, line, column and path, with the name that was meant."""
    assert mistakes(text) == (f"c.yaml:{mistake}",)


class Choices(Section):
    either: int | tuple[int, ...] = 0
    timers: Timeouts | None = None
    by_alias: str = Field(default="", alias="byAlias")
    token: SecretStr | None = Field(default=None, min_length=8)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("token: short", "1:1: token: must have at least 8 characters"),
        ("either: a", "1:1: either: must be a whole number, not text, or must be a list, not text"),
        (
            "timers: {idel_seconds: 1}",
            "1:10: timers.idel_seconds: is not a key that may stand here (did you mean 'idle_seconds'?)",
        ),
        ("byalias: x", "1:1: byalias: is not a key that may stand here (did you mean 'byAlias'?)"),
    ],
)
def test_unions_and_aliases_are_told_by_the_files_own_names(text: str, mistake: str) -> None:
    """A value that fits no branch of a union is one mistake, and keys are suggested as the file spells them."""
    assert mistakes(text, Choices) == (f"c.yaml:{mistake}",)


def test_all_mistakes_are_raised_at_once_in_the_order_of_the_file() -> None:
    """Mistakes of reading, of the core and of each section's own model are one error, sorted by place."""
    text = "plugins:\n  a: {wrod: red}\nproviders:\n  b: {regoin: eu}\nserver:\n  port: ${PORT}\n  port: 1\n"
    document = ConfigDocument.parse(text, "c.yaml", {})
    document.validate(ProviderConfig, "providers", "b")
    document.validate(Config)
    document.validate(Scalars, "plugins", "a")
    with pytest.raises(ConfigError) as raised:
        document.raise_if_mistaken()
    assert [mistake.split(" ")[1] for mistake in raised.value.mistakes] == [
        "plugins.a.wrod:",
        "providers.b.regoin:",
        "server.port:",
        "server.port:",
    ]


def test_a_section_that_is_absent_or_empty_has_its_defaults() -> None:
    """Absent, empty, named in a list: each is validated as a section without keys."""
    document = ConfigDocument.parse("plugins: [a]\nproviders: {b: }", "c.yaml", {})
    sections = [document.validate(Scalars, *path) for path in (("plugins", "a"), ("providers", "b"), ("nowhere",))]
    assert sections == [Scalars()] * 3
    assert (document.names("plugins"), document.names("providers"), document.names("x")) == (("a",), ("b",), ())


def test_short_forms_stand_for_the_long_ones() -> None:
    """A model's name stands for its one target, a list of plugins for plugins without settings."""
    short = "models: {a: x/y, b: {targets: [x/y]}}\nplugins: [c]\nserver:\n"
    long = "models: {a: {targets: [{model: x/y}]}, b: {targets: [{model: x/y}]}}\nplugins: {c: {}}"
    configs = [ConfigDocument.parse(text, "c.yaml", {}).validate(Config) for text in (short, long)]
    assert configs[0] is not None
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    ("path", "near", "mistake"),
    [
        (
            ("plugins", "redacton"),
            ["redaction", "caching"],
            "1:11: plugins.redacton: no such name (did you mean 'redaction'?)",
        ),
        (("models", "fast"), ["openai/gpt"], "2:10: models.fast: no such name (did you mean 'openai/gpt'?)"),
        (("models", "none"), ["openai/gpt"], "2:1: models.none: no such name"),
    ],
)
def test_mistakes_of_others_are_placed_and_suggest_too(path: tuple[str, ...], near: list[str], mistake: str) -> None:
    """A mistake that core or a plugin finds by itself stands at its path, or at the section around it."""
    document = ConfigDocument.parse("plugins: {redacton: {}}\nmodels: {fast: openia/gpt}", "c.yaml", {})
    document.mistake("no such name", *path, near=near)
    assert document.mistakes == (f"c.yaml:{mistake}",)


class Talkative(Section):
    key: SecretStr
    name: str

    @field_validator("name")
    @classmethod
    def _no_name(cls, value: str) -> str:
        raise ValueError(f"the name {value} is taken")


class Careless(Section):
    key: str

    @model_validator(mode="before")
    @classmethod
    def _tells_all(cls, value: object) -> object:
        raise ValueError(f"what is {value}?")


class Whole(Section):
    talkative: Talkative
    careless: Careless
    keys: tuple[SecretStr, ...] = ()
    port: int = 0


def test_no_mistake_shows_a_secret_or_a_variable() -> None:
    """Values of secrets and of variables are blanked even in what a model's own validator says."""
    text = """
talkative: {key: in-the-file, name: "${NAME}-${NAME}"}
careless: {key: "x${NAME}"}
keys: [12345, "${KEY}", {in-the-list: 1}]
port: ${KEY}
"""
    document = ConfigDocument.parse(text, "c.yaml", {"NAME": "of-variable", "KEY": "key-of-variable"})
    document.validate(Whole)
    document.mistake("what of key-of-variable and in-the-file?", "port")
    told = "\n".join(document.mistakes)
    assert len(document.mistakes) == 6
    assert "the name ***-*** is taken" in told
    assert "what of *** and ***?" in told
    for value in ("of-variable", "in-the-file", "12345", "in-the-list"):
        assert value not in told


# Files


def test_no_file_is_all_defaults() -> None:
    """Without a path, and with an empty file, everything has its default."""
    config, document = load_config(None, {})
    assert config == Config() == ConfigDocument.parse("", "c.yaml", {}).validate(Config)
    assert document.mistakes == ()


def test_a_file_is_named_in_its_mistakes(tmp_path: Path) -> None:
    """A mistake in a file begins with the file's path, so that editors can jump there."""
    path = tmp_path / "gateway.yaml"
    path.write_text("server:\n  prot: 1\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}:2:3: server.prot: ")):
        load_config(path, {})


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    """A file that is not there, or is a directory, is a ConfigError that says so."""
    with pytest.raises(ConfigError, match="the file cannot be read: No such file or directory"):
        load_config(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="the file cannot be read: Is a directory"):
        load_config(tmp_path, {})


def test_aliases_are_bounded() -> None:
    """Aliases work; a few lines that stand for millions of values are refused."""
    assert scalars("text: &a b\nsecret: *a").secret == SecretStr("b")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "aliases make this file endless or too large" in mistakes("\n".join(lines), Scalars)[0]


# The schema


SCHEMA = config_schema({"scalars": Scalars}, {"openai": ProviderConfig, "timed": Choices})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plugins: [scalars]",
        "plugins: {scalars: {word: green}}",
        "plugins: {scalars: }",
        "plugins:\nserver:\nprices:",
        "providers: {openai: {region: eu}}",
        "providers: {mine: {kind: openai, region: eu}}",
        "providers: {timed: {kind: openai, region: eu}}",
        "providers: {timed: {timers: {idle_seconds: 3}}}",
        "models: {a: x/y, b: {targets: [x/y, {model: x/z}]}}",
        "server: {port: '${PORT:-8080}'}",
        "audit: {bodies: '${BODIES}'}",
        "prices: [{match: a, input_usd_per_mtok: 0.5, free: '${FREE}'}]",
    ],
)
def test_the_schema_accepts_what_is_valid(text: str) -> None:
    """The schema knows short forms, variables, and provider sections by kind or by name."""
    assert list(validator().iter_errors(yaml.safe_load(text) or {})) == []


@pytest.mark.parametrize(
    "text",
    [
        "sever: {}",
        "server: {port: abc}",
        "plugins: [other]",
        "plugins: {other: {}}",
        "plugins: {scalars: {word: blue}}",
        "providers: {mine: {region: eu}}",
        "providers: {openai: {regoin: eu}}",
        "providers: {mine: {kind: other}}",
        "providers: {mine: {kind: timed, region: eu}}",
        "providers: {openai: {kind: timed, region: eu}}",
        "models: {a: 1}",
    ],
)
def test_the_schema_refuses_what_is_not(text: str) -> None:
    """An editor finds unknown keys, kinds and plugins, and values of the wrong type."""
    assert list(validator().iter_errors(yaml.safe_load(text)))


def validator() -> Any:  # jsonschema carries no types
    """A validator of the schema, which is a schema itself."""
    jsonschema = import_module("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


# Whatever the file holds

VALID = Path(__file__).parents[1].joinpath("config.example.yaml").read_text()
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("${X}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def check_loads_or_tells(text: str | bytes) -> None:
    """Load a text; anything but a config or a ConfigError whose positions exist is a failure."""
    lines = text.splitlines() or [""]
    for mistake in mistakes(text):
        place = re.match(r"c\.yaml:(\d+):(\d+): \S", mistake)
        assert place is not None, mistake
        assert 1 <= int(place[1]) <= len(lines), mistake
        assert "\n" not in mistake


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of everything below `value`."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in entries for found in [(*path, key), *places(inner, (*path, key))]]


TREE = yaml.safe_load(VALID)
PLACES = places(TREE)


@given(
    place=st.sampled_from(PLACES), change=st.sampled_from(["drop", "rename", "retype"]), value=_VALUES, data=st.data()
)
def test_a_changed_config_loads_or_tells_where(
    place: tuple[str | int, ...], change: str, value: object, data: st.DataObject
) -> None:
    """A valid file with one entry dropped, renamed or retyped loads, or is refused at a line that exists."""
    tree = copy.deepcopy(TREE)
    parent = tree
    for step in place[:-1]:
        parent = parent[step]
    old = parent.pop(place[-1])
    if change == "rename" and isinstance(parent, dict):
        parent[data.draw(st.text(max_size=8))] = old
    elif change == "retype" and isinstance(parent, dict):
        parent[place[-1]] = value
    elif change == "retype":
        parent.insert(place[-1], value)
    check_loads_or_tells(yaml.safe_dump(tree, allow_unicode=True, sort_keys=data.draw(st.booleans())))


@given(st.data())
def test_any_cut_or_damaged_config_loads_or_tells_where(data: st.DataObject) -> None:
    """A valid file with a piece of its text replaced by anything loads, or is refused at a line that exists."""
    start = data.draw(st.integers(0, len(VALID)))
    end = data.draw(st.integers(start, min(len(VALID), start + 40)))
    junk = data.draw(st.text(alphabet=st.sampled_from("${}[]&*!|>'\"#:-? \t\n%@<a1é\u2028\x85"), max_size=12))
    check_loads_or_tells(VALID[:start] + junk + VALID[end:])


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_load_or_tell_where(content: bytes | str) -> None:
    """Bytes and text of any kind load, or are refused at a line that exists."""
    check_loads_or_tells(content)
