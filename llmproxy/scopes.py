"""Whom a limit holds: what requests are called in each scope, and which of them a section's patterns fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from operator import attrgetter
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from llmproxy.config import Pattern, Section
from llmproxy.exchange import Exchange, Target

Scope = Literal["gateway", "workspace", "feature", "user", "key", "model", "provider", "tag"]
SCOPES: Final[frozenset[Scope]] = frozenset(get_args(Scope))
# What a request is called in one scope, and what else a pattern may call it by.
ScopeName = tuple[str, str]


def _listed(value: object) -> object:
    """One of them may stand without brackets."""
    return [value] if isinstance(value, str) else value


class ScopedSection(Section):
    """A section that holds for one subject, or for each of those that its patterns fit."""

    scope: Annotated[tuple[Scope, ...], BeforeValidator(_listed, json_schema_input_type=Scope | tuple[Scope, ...])] = (
        Field(min_length=1, description="What is held to it; several together: only what fits all of them.")
    )
    match: Annotated[
        tuple[Pattern, ...], BeforeValidator(_listed, json_schema_input_type=Pattern | tuple[Pattern, ...])
    ] = Field(default=(), description="A name or a pattern for each scope; whatever fits has one of its own.")

    @model_validator(mode="after")
    def _names_subjects(self) -> Self:
        if self.match and len(self.match) != len(self.scope):
            raise ValueError("match must have one pattern for each scope")
        if len(set(self.scope)) < len(self.scope):
            raise ValueError("scope must not name anything twice")
        if "gateway" in self.scope and (len(self.scope) > 1 or self.match):
            raise ValueError("the scope gateway stands alone, for all there is, and takes no match")
        return self

    @property
    def is_of_targets(self) -> bool:
        """Whether it holds for some targets only, so that another may have room when it is reached."""
        return "model" in self.scope or "provider" in self.scope

    def fits(self, names: Sequence[ScopeName]) -> bool:
        """Whether it holds for a subject with these names, one for each scope."""
        patterns = self.match or ("*",) * len(names)
        pairs = zip(patterns, names, strict=True)
        return all(any(fnmatchcase(each, pattern) for each in name) for pattern, name in pairs)


class Scopes:
    """Reads what requests are called in some scopes, in the order of the scopes."""

    def __init__(self, scopes: Sequence[Scope]) -> None:
        self._scopes = tuple(scopes)
        self._readers = tuple(_READERS[scope] for scope in scopes)

    def names(self, exchange: Exchange, target: Target | None) -> Iterator[tuple[ScopeName, ...]]:
        """The names of each subject that a request belongs to: of one, with tags of several or none.

        Without a target, model and provider have none yet.
        """
        return product(*(read(exchange, target) for read in self._readers))

    def subject(self, workspace: str, names: Sequence[ScopeName]) -> dict[Scope, str]:
        """A subject by its scopes; that of a user says whose user it is, for nobody's user is another tenant's."""
        subject: dict[Scope, str] = {scope: name for scope, (name, _) in zip(self._scopes, names, strict=True)}
        return {"workspace": workspace, **subject} if "user" in subject and "workspace" not in subject else subject


class CallerKey:
    """All that some scopes go by: requests with the same key belong to the same subjects, and share what is found."""

    def __init__(self, scopes: Iterable[Scope]) -> None:
        wanted = set(scopes)
        paths = sorted({path for scope in wanted for path in _PATHS[scope]})
        # One attribute comes without a tuple around it, which is as good.
        self._caller: Callable[[Exchange], object] = attrgetter(*paths) if paths else lambda _: None
        self._tells_targets = not wanted.isdisjoint(("model", "provider"))

    def of(self, exchange: Exchange, target: Target | None) -> tuple[object, ...]:
        """The key of a request, or with a target of its attempts there."""
        caller = self._caller(exchange)
        if target is None:
            return (caller,)
        return (caller, target.provider, target.model) if self._tells_targets else (caller, True)


def spoken_subject(subject: Mapping[Scope, str]) -> str:
    """A subject as a person would say it."""
    named = [f"{scope} '{name}'" if name else f"requests without a {scope}" for scope, name in subject.items()]
    return ", ".join(named) if "gateway" not in subject else "the gateway"


def _one(name: str, alias: str | None = None) -> Sequence[ScopeName]:
    return ((name, name if alias is None else alias),)


# What of a request each scope goes by, beside its target; a user is somebody of one workspace.
_PATHS: Final[Mapping[Scope, tuple[str, ...]]] = {
    "workspace": ("principal.workspace",),
    "feature": ("attribution.feature",),
    "user": ("principal.workspace", "attribution.user"),
    "key": ("principal.key_id", "principal.key_name"),
    "tag": ("attribution.tags",),
    "gateway": (),
    "model": (),
    "provider": (),
}
_READERS: Final[Mapping[Scope, Callable[[Exchange, Target | None], Sequence[ScopeName]]]] = {
    "gateway": lambda _exchange, _target: _one(""),
    "workspace": lambda exchange, _: _one(exchange.principal.workspace),
    "feature": lambda exchange, _: _one(exchange.attribution.feature or ""),
    "user": lambda exchange, _: _one(exchange.attribution.user or ""),
    "key": lambda exchange, _: _one(exchange.principal.key_id, exchange.principal.key_name),
    "model": lambda _, target: _one(target.name if target else ""),
    "provider": lambda _, target: _one(target.provider if target else ""),
    "tag": lambda exchange, _: [(tag, tag) for tag in dict.fromkeys(exchange.attribution.tags)],
}
