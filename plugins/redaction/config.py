"""The plugin's section of the configuration, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from llmproxy.api import Pattern, Seconds, Section, suggestion
from llmproxy_plugins.redaction.detectors import PERSONAL, SOLID, Rule
from llmproxy_plugins.redaction.libraries import compiled, literal
from llmproxy_plugins.redaction.national_ids import BY_COUNTRY
from llmproxy_plugins.redaction.secrets import SECRET

Action = Literal["mask", "hash", "placeholder", "block", "report"]
AnswerAction = Literal["mask", "block", "report"]
Uninspectable = Literal["pass", "strip", "refuse"]
DetectorName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,30}$")]

BUILT_IN: Final = (*PERSONAL, "national_id", "secret")
# What stands for words of the client's own that look like a placeholder.
LITERAL: Final = "text"

_MIN_HASH_KEY_CHARACTERS: Final = 16
# Anything in a pattern by which a value might hold whitespace.
_SPACIOUS: Final = re.compile(r"\s|\.|\[\^|\[:|\\[sWDPxCtnrfvpQB0-7]")
_ANCHOR: Final = re.compile(r"(?<!\[)\^|\$|\\[AzbB]")


class PatternConfig(Section):
    """What an operator looks for."""

    pattern: Pattern = Field(
        description="What to find, in RE2's syntax; the first group, if there is one, is the value."
    )
    action: Action = Field(description="What to do with it in requests.")
    max_characters: int = Field(
        default=128, ge=1, le=4096, description="The longest value; as much of a streamed answer may be held back."
    )

    @field_validator("pattern")
    @classmethod
    def _is_accepted(cls, pattern: str) -> str:
        if compiled(pattern).search(b"", 0) is not None:
            raise ValueError("a pattern must not match nothing")
        return pattern

    def rule(self) -> Rule:
        """The pattern as a rule."""
        alphabet = "" if _SPACIOUS.search(self.pattern) or not self.pattern.isascii() else SOLID
        minds_bounds = bool(_ANCHOR.search(self.pattern))
        return Rule(self.pattern, alphabet=alphabet, longest=self.max_characters, minds_bounds=minds_bounds)


class DictionaryConfig(Section):
    """Words that must not be told, such as the names of customers."""

    words: tuple[Annotated[str, Field(min_length=2, max_length=256)], ...] = Field(
        min_length=1, description="Found as whole words, in capitals or not."
    )
    action: Action = Field(description="What to do with them in requests.")

    def rule(self) -> Rule:
        """The words as one rule: of two that begin alike, the longer one counts."""
        words = sorted(set(self.words), key=len, reverse=True)
        is_solid = all(set(word) <= set(SOLID) for word in words)
        pattern = f"(?i){_EDGE_BEFORE}({'|'.join(map(literal, words))}){_EDGE_AFTER}"
        return Rule(pattern, alphabet=SOLID if is_solid else "", longest=len(words[0]) + 2)


# RE2's \b knows ASCII alone. Marks of scripts without spaces between words are no letters in this sense.
_WORD: Final = r"0-9A-Z_a-zÀ-ӿ"
_EDGE_BEFORE: Final = f"(?:^|[^{_WORD}])"
_EDGE_AFTER: Final = f"(?:$|[^{_WORD}])"


class WebhookConfig(Section):
    """A detector of the operator's own, asked over HTTP."""

    url: Pattern = Field(description="Gets a POST with the texts of each request.")
    detectors: dict[DetectorName, Action] = Field(
        min_length=1, description="The detectors that it may name, and what to do with what each has found."
    )
    timeout_seconds: Seconds = Field(default=2, description="How long it may take.")
    fail: Literal["closed", "open"] = Field(
        default="closed", description="When it does not answer: refuse the request, or go on without it."
    )


class RedactionConfig(Section):
    """What to look for, where, and what to do with it."""

    detectors: dict[DetectorName, Action] = Field(
        default={},
        description="Built-in detectors and what to do with what they find in requests: `email`, `phone`, `card`, "
        "`iban`, `ip`, `national_id`, `secret`; `mask`, `hash`, `placeholder`, `block`, `report`.",
    )
    countries: tuple[str, ...] = Field(
        default=tuple(BY_COUNTRY), description="Whose numbers `national_id` looks for, by ISO 3166 code."
    )
    patterns: dict[DetectorName, PatternConfig] = Field(default={}, description="Detectors by pattern.")
    dictionaries: dict[DetectorName, DictionaryConfig] = Field(default={}, description="Detectors by words.")
    webhook: WebhookConfig | None = Field(default=None, description="A detector of your own.")
    answers: dict[DetectorName, AnswerAction] = Field(
        default={}, description="Detectors to look through answers with, for what the model makes up."
    )
    uninspectable: Uninspectable = Field(
        default="pass", description="What becomes of images, audio, files and token ids: `pass`, `strip` or `refuse`."
    )
    hash_key: SecretStr | None = Field(
        default=None, description="Key of the hashes, of 16 characters or more; with another key, all differ."
    )

    @property
    def actions(self) -> Mapping[str, Action]:
        """What to do in requests, by detector."""
        own: dict[str, Action] = {name: each.action for name, each in (self.patterns | self.dictionaries).items()}
        return {**self.detectors, **own, **(self.webhook.detectors if self.webhook else {})}

    def rules(self, names: Mapping[str, object]) -> list[tuple[str, Rule]]:
        """The rules of the detectors called so, those of the webhook left out."""
        return [(name, rule) for name in names for rule in self._rules_of(name)]

    def _rules_of(self, name: str) -> tuple[Rule, ...]:
        if custom := self.patterns.get(name) or self.dictionaries.get(name):
            return (custom.rule(),)
        if name == "national_id":
            return tuple(rule for country in self.countries for rule in BY_COUNTRY[country])
        return SECRET if name == "secret" else PERSONAL.get(name, ())

    @model_validator(mode="after")
    def _is_meaningful(self) -> Self:
        for mistake in self._mistakes():
            raise ValueError(mistake)
        return self

    def _mistakes(self) -> Iterator[str]:
        own = [*self.patterns, *self.dictionaries, *(self.webhook.detectors if self.webhook else ())]
        taken = {*BUILT_IN, LITERAL}
        for name in own:
            if name in taken:
                yield f"the name {name!r} is taken; call the detector something else"
            taken.add(name)
        yield from _unknown("there is no detector", self.detectors, BUILT_IN)
        yield from _unknown(
            "answers cannot be searched for", self.answers, (*BUILT_IN, *self.patterns, *self.dictionaries)
        )
        yield from (f"no numbers of a country {code!r} are known" for code in self.countries if code not in BY_COUNTRY)
        key = self.hash_key.get_secret_value() if self.hash_key else ""
        if "hash" in self.actions.values() and len(key) < _MIN_HASH_KEY_CHARACTERS:
            yield f"the action hash needs a hash_key of at least {_MIN_HASH_KEY_CHARACTERS} characters"


def _unknown(sentence: str, names: Iterable[str], known: Collection[str]) -> Iterator[str]:
    return (f"{sentence} {name!r}{suggestion([name], known)}" for name in names if name not in known)
