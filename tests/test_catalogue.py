"""Model names: what they stand for, who may use them, and what is said about those that are unknown."""

from __future__ import annotations

import pytest

from llmproxy.catalogue import Catalogue
from llmproxy.config import ModelConfig, TargetConfig
from llmproxy.errors import ModelNotAllowed, ModelNotFound
from llmproxy.exchange import Principal
from llmproxy.providers.demo import Demo
from llmproxy.providers.openai import OpenAI
from tests.providers import services

ANYONE = Principal("acme", "key_1")


def catalogue(**models: ModelConfig) -> Catalogue:
    """A demo, two OpenAI endpoints, and these aliases."""
    providers = {
        "openai": OpenAI("openai", OpenAI.Config.model_validate({"api_key": "k", "region": "us"}), services()),
        "local": OpenAI("local", OpenAI.Config.model_validate({"models": ["llama"]}), services()),
        "demo": Demo("demo", Demo.Config(), services()),
    }
    return Catalogue(models, providers, {"openai": ("gpt-4o", "gpt-4o-mini")})


def alias(*targets: str, fallbacks: tuple[str, ...] = ()) -> ModelConfig:
    """An alias for some targets."""
    return ModelConfig(targets=tuple(TargetConfig(model=target) for target in targets), fallbacks=fallbacks)


def names(found: Catalogue, model: str, principal: Principal = ANYONE) -> list[str]:
    """The targets' names."""
    return [target.name for target in found.resolve(model, principal)]


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("openai/gpt-4o", "openai/gpt-4o"),
        ("openai/ft:gpt-4o:acme", "openai/ft:gpt-4o:acme"),
        ("local/accounts/x/models/y", "local/accounts/x/models/y"),
        ("gpt-4o", "openai/gpt-4o"),
        ("llama", "local/llama"),
        ("demo/cut-after-7", "demo/cut-after-7"),
    ],
)
def test_a_name_with_a_provider_or_one_that_a_provider_is_known_for_is_found(model: str, target: str) -> None:
    """`provider/model` goes there whatever the model is called; a bare name goes where it is known."""
    assert names(catalogue(), model) == [target]


def test_an_alias_stands_for_its_targets_and_then_its_fallbacks() -> None:
    """The order of the file is the order of the targets, and a target knows its region and weight."""
    found = catalogue(support=alias("openai/gpt-4o", "llama", fallbacks=("demo/echo",)))
    targets = found.resolve("support", ANYONE)
    assert [target.name for target in targets] == ["openai/gpt-4o", "local/llama", "demo/echo"]
    assert [target.weight for target in targets] == [1.0, 1.0, 0.0]
    assert targets[0].region == "us"


def test_an_alias_wins_over_a_bare_name() -> None:
    """What the operator wrote stands before what the price data knows."""
    assert names(catalogue(**{"gpt-4o": alias("local/llama")}), "gpt-4o") == ["local/llama"]


@pytest.mark.parametrize("model", ["gpt-4p", "nowhere/gpt-4o", "openai/", "/gpt-4o", "demo/ech", "x" * 100_000])
def test_an_unknown_name_is_not_found(model: str) -> None:
    """The error names the model, at a bounded length."""
    with pytest.raises(ModelNotFound) as caught:
        catalogue().resolve(model, ANYONE)
    assert model[:200] in caught.value.message
    assert len(caught.value.message) < 600


def test_the_nearest_names_are_suggested() -> None:
    """A misspelt name is answered with what it may have been meant to be."""
    with pytest.raises(ModelNotFound, match=r"Did you mean 'demo/echo'"):
        catalogue().resolve("demo/ech", ANYONE)


def test_names_a_key_may_not_use_are_not_suggested() -> None:
    """An error never tells of models that are not the asker's business."""
    guest = Principal("acme", "key_1", models=("local/*",))
    with pytest.raises(ModelNotFound) as caught:
        catalogue().resolve("demo/ech", guest)
    assert "Did you mean" not in caught.value.message


@pytest.mark.parametrize(
    ("key", "workspace", "allowed"),
    [
        (("*",), ("*",), True),
        (("openai/*",), ("*",), True),
        (("gpt-4o",), ("*",), True),
        (("gpt-4o-mini",), ("*",), False),
        (("*",), ("local/*",), False),
        ((), ("*",), False),
        (("GPT-4O",), ("*",), False),
    ],
)
def test_key_and_workspace_must_both_allow_a_model(
    key: tuple[str, ...], workspace: tuple[str, ...], *, allowed: bool
) -> None:
    """Patterns match the name asked for or the full name it stands for, and case counts."""
    principal = Principal("acme", "key_1", models=key, workspace_models=workspace)
    found = catalogue()
    if allowed:
        assert names(found, "gpt-4o", principal) == ["openai/gpt-4o"]
    else:
        with pytest.raises(ModelNotAllowed):
            found.resolve("gpt-4o", principal)


def test_a_key_for_an_alias_may_not_use_its_targets_by_name() -> None:
    """What is allowed is the alias; where it leads is the operator's decision."""
    found = catalogue(support=alias("openai/gpt-4o", "local/llama"))
    principal = Principal("acme", "key_1", models=("support",))
    assert names(found, "support", principal) == ["openai/gpt-4o", "local/llama"]
    with pytest.raises(ModelNotAllowed):
        found.resolve("openai/gpt-4o", principal)


def test_the_list_holds_what_the_key_may_use() -> None:
    """Aliases first, then what each provider offers or is known for."""
    found = catalogue(support=alias("openai/gpt-4o"))
    assert found.names(ANYONE)[:4] == ["support", "openai/gpt-4o", "openai/gpt-4o-mini", "local/llama"]
    assert found.names(Principal("acme", "key_1", models=("local/*",))) == ["local/llama"]


def test_aliases_that_lead_nowhere_are_reported() -> None:
    """A target or fallback that no configured provider serves is a mistake in the file."""
    found = catalogue(a=alias("openai/gpt-4o", fallbacks=("azure/gpt-4o",)), b=alias("claude-9"))
    assert list(found.unresolved()) == [("a", "azure/gpt-4o"), ("b", "claude-9")]


def test_what_was_resolved_is_bounded() -> None:
    """A client that asks for ever new names of a provider does not make memory grow for ever."""
    found = catalogue()
    for number in range(10_050):
        found.resolve(f"openai/m{number}", ANYONE)
    assert len(found._resolved) <= 10_000
