from __future__ import annotations

import pytest

from llmproxy.catalogue import Catalogue
from llmproxy.config import ModelConfig
from llmproxy.providers.builtin import every_kind
from llmproxy.request import Document
from tests.providers import services

KINDS = {kind.kind: kind for kind in every_kind()}


@pytest.mark.parametrize(
    ("kind", "section", "model", "takes_prefill"),
    [
        ("anthropic", {}, "claude-sonnet-4-5", True),
        ("anthropic", {}, "claude-opus-4-8", False),
        ("bedrock", {"region": "eu-west-1"}, "anthropic.claude-sonnet-4-5-20250929-v1:0", True),
        ("bedrock", {"region": "eu-west-1"}, "amazon.nova-pro-v1:0", False),
        ("vertex", {"project": "acme"}, "claude-sonnet-4-5@20250929", True),
        ("vertex", {"project": "acme"}, "gemini-2.5-pro", False),
        ("openai", {}, "gpt-4o", False),
    ],
)
def test_targets_say_whether_their_model_takes_prefill(
    kind: str, section: Document, model: str, *, takes_prefill: bool
) -> None:
    """Whether a model goes on from the beginning of its answer is the provider's knowledge, and each target's."""
    made = KINDS[kind]
    config = made.Config.model_validate({"api_key": "any", **section})
    catalogue = Catalogue(
        {"alias": ModelConfig.model_validate({"targets": [f"there/{model}"]})},
        {"there": made("there", config, services())},
        {},
    )
    for name in ("alias", f"there/{model}"):
        assert [target.takes_prefill for target in catalogue.targets(name)] == [takes_prefill]
