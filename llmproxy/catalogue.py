"""Which targets a model name stands for: an alias, `provider/model`, or a bare name that a provider is known for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from llmproxy.attribution import comma_list
from llmproxy.config import ModelConfig, TargetConfig
from llmproxy.errors import BadRequest, ModelNotAllowed, ModelNotFound
from llmproxy.exchange import Principal, Target
from llmproxy.providers import Provider
from llmproxy.request import Request

# ARNs of inference profiles are the longest names in use, at some 150.
MAX_MODEL_CHARACTERS: Final = 500
MAX_FALLBACKS: Final = 10
_FALLBACK_MEMBERS: Final = ("fallbacks", "models")
_MAX_REMEMBERED: Final = 10_000
_MAX_COMPARED: Final = 300


class Catalogue:
    """The models that this configuration offers.

    Args:
        models: The aliases.
        providers: The configured providers, by name.
        known_models: What the price data knows of a provider's models, by the provider's name.
    """

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        providers: Mapping[str, Provider],
        known_models: Mapping[str, Sequence[str]],
    ) -> None:
        self._providers = providers
        self._offered = {name: tuple(provider.model_names()) for name, provider in providers.items()}
        self._known = {name: frozenset(known) for name, known in known_models.items()}
        self._resolved: dict[str, tuple[Target, ...]] = {}
        self._aliases = {name: tuple(self._targets_of(model)) for name, model in models.items()}

    def resolve(self, model: str, principal: Principal) -> tuple[Target, ...]:
        """The targets a model name stands for, first choice first, fallbacks last.

        Raises ModelNotFound with the nearest names, ModelNotAllowed when the key may not use it.
        """
        targets = self.targets(model)
        if not targets:
            raise ModelNotFound(self._unknown(model, principal), param="model")
        if not may_use(principal, model, targets):
            raise ModelNotAllowed(f"This key may not use the model '{model}'.", param="model")
        return targets

    def targets(self, model: str) -> tuple[Target, ...]:
        """The targets a model name stands for, whoever asks; none when nothing is configured for it."""
        known = self._resolved.get(model)
        if known is not None:
            return known
        targets = self._resolve(model)
        if targets:
            self._remember(model, targets)
        return targets

    def names(self, principal: Principal) -> list[str]:
        """Every name to list for a key: aliases, then what each provider offers, as `provider/model`."""
        return [name for name in self._all_names() if may_use(principal, name, self._aliases.get(name, ()))]

    def every_name(self) -> list[str]:
        """Every name there is, whoever may use it."""
        return list(self._all_names())

    def unresolved(self) -> Iterator[tuple[str, str]]:
        """Aliases with a target or fallback that no configured provider serves, as (alias, model) pairs."""
        for alias, targets in self._aliases.items():
            yield from ((alias, target.model) for target in targets if not target.provider)

    def _targets_of(self, alias: ModelConfig) -> Iterator[Target]:
        for entry in alias.targets:
            yield from (_labelled(target, entry) for target in self._weighted(entry.model, entry.weight))
        for name in alias.fallbacks:
            yield from self._weighted(name, 0.0)

    def _weighted(self, name: str, weight: float) -> Iterator[Target]:
        found = self._qualified(name) or self._bare(name) or (Target("", name),)
        yield from (replace(target, weight=weight * target.weight) for target in found)

    def _resolve(self, model: str) -> tuple[Target, ...]:
        if model in self._aliases:
            return self._aliases[model]
        return self._qualified(model) or self._bare(model)

    def _qualified(self, model: str) -> tuple[Target, ...]:
        provider, slash, name = model.partition("/")
        if not slash or not name or provider not in self._providers or not self._providers[provider].serves(name):
            return ()
        return self._at(provider, name)

    def _bare(self, model: str) -> tuple[Target, ...]:
        """A name without a provider, as unchanged applications send it, goes to the first provider known for it."""
        for name in self._providers:
            if model in self._offered[name] or model in self._known.get(name, ()):
                return self._at(name, model)
        return ()

    def _at(self, provider: str, model: str) -> tuple[Target, ...]:
        """A provider's model: one target for each key there is, sharing the weight of one."""
        endpoint = self._providers[provider]
        keys = endpoint.config.credentials()
        total = sum(weight for _, weight in keys) or 1
        target = Target(
            provider,
            model,
            endpoint.config.region,
            zero_retention=endpoint.config.zero_retention,
            takes_prefill=endpoint.takes_prefill(model),
        )
        return tuple(replace(target, weight=weight / total, credential=label) for label, weight in keys)

    def _remember(self, model: str, targets: tuple[Target, ...]) -> None:
        if len(self._resolved) >= _MAX_REMEMBERED:
            self._resolved.clear()
        self._resolved[model] = targets

    def _all_names(self) -> Iterable[str]:
        yield from self._aliases
        for provider, models in self._offered.items():
            yield from (f"{provider}/{model}" for model in models or sorted(self._known.get(provider, ())))

    def _unknown(self, model: str, principal: Principal) -> str:
        # Comparing is slow: where a provider is named, only its models are looked at.
        provider = model[: model.find("/") + 1]
        named = [name for name in self.names(principal) if name.startswith(provider)] or self.names(principal)
        near = difflib.get_close_matches(model[:100], named[:_MAX_COMPARED], n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
        return f"The model '{model[:200]}' is not configured here.{hint}"


def _labelled(target: Target, entry: TargetConfig) -> Target:
    """A target as its own entry describes it, where that says something else than its provider's section."""
    kept_nowhere = target.zero_retention if entry.zero_retention is None else entry.zero_retention
    return replace(target, region=entry.region or target.region, zero_retention=kept_nowhere)


def may_use(principal: Principal, model: str, targets: Sequence[Target]) -> bool:
    """Whether key and workspace both allow a model, by the name asked for or the one it stands for alone."""
    if "*" in principal.models and "*" in principal.workspace_models:
        return True
    names = (model, targets[0].name) if len({target.name for target in targets}) == 1 else (model,)
    return _matches(principal.models, names) and _matches(principal.workspace_models, names)


def _matches(patterns: Sequence[str], names: Sequence[str]) -> bool:
    return "*" in patterns or any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def check_model_name(name: object) -> None:
    """Names travel on in header fields and rows. Raises BadRequest for what could not."""
    if not isinstance(name, str) or not name:
        raise BadRequest("The request names no model; set 'model' to a string.", param="model")
    if len(name) > MAX_MODEL_CHARACTERS or not name.isprintable():
        raise BadRequest(
            f"A model's name must be printable and no longer than {MAX_MODEL_CHARACTERS} characters.", param="model"
        )


def asked_fallbacks(request: Request, headers: Mapping[str, str]) -> list[str]:
    """The models a client names in case the first fails, in the header or the body; the body is rid of them.

    Raises BadRequest.
    """
    asked = headers.get("x-llmproxy-fallback")
    names = list(comma_list(asked)) if asked else []
    for member in _FALLBACK_MEMBERS:
        listed = request.document.get(member)
        if listed is None:
            continue
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise BadRequest(f"'{member}' must be a list of model names.", param=member)
        names += listed
        request.remove(member)
    if len(names) > MAX_FALLBACKS:
        raise BadRequest(f"A request may name at most {MAX_FALLBACKS} models to fall back to.", param="fallbacks")
    for name in names:
        check_model_name(name)
    return names
