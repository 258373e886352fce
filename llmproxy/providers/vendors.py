"""The vendors that speak the OpenAI format, as rows of data: where they are, and in what they differ."""

from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Literal

from pydantic import Field

from llmproxy.config import Section
from llmproxy.request import Operation


class Vendor(Section):
    """One row of `compatible.toml`. What a row leaves out holds for most of the family.

    `{name}` in `base_url` or `headers` stands for a key of the provider section, with its default in `defaults`.

    Attributes:
        key_variables: Environment variables that usually hold the key, where a key is all it takes.
        key_header: The header for the key; in `authorization` it is a bearer token.
        needs_key: Whether the vendor's own address asks for a key.
        price_provider: The vendor's id in the price data.
        max_tokens_only: `max_completion_tokens` is unknown there and goes by its old name.
        developer_role: The `developer` role is known; elsewhere it becomes `system`.
        cache_control: Cache marks on messages and tools are understood; elsewhere they are dropped.
        refused: Parameters that change the meaning of the answer and are not supported: the request is refused.
        dropped: Parameters that are only hints and are not supported: they are left out.
        dropped_message_fields: The same within each message.
        dropped_tool_fields: The same within each tool's function.
        single_choice: More than one choice is refused.
        json_schema: `response_format` may be a JSON schema.
        required_tool_choice: `tool_choice` may be `required`.
        max_temperature: Higher temperatures are lowered to this.
        reasoning_control: What `reasoning_effort` becomes where the vendor can only switch reasoning on and off.
        reasoning_field: The field for reasoning text in answers, given to clients as `reasoning_content`.
        reasoning_apart: `completion_tokens` does not hold the reasoning tokens.
    """

    base_url: str
    key_variables: tuple[str, ...] = ()
    key_header: str = "authorization"
    needs_key: bool = True
    headers: Mapping[str, str] = Field(default_factory=dict)
    defaults: Mapping[str, str] = Field(default_factory=dict)
    price_provider: str | None = None
    operations: frozenset[Operation] = frozenset(Operation)

    max_tokens_only: bool = False
    developer_role: bool = False
    cache_control: bool = False
    refused: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    dropped_message_fields: tuple[str, ...] = ()
    dropped_tool_fields: tuple[str, ...] = ()
    single_choice: bool = False
    json_schema: bool = True
    required_tool_choice: bool = True
    max_temperature: float | None = None
    reasoning_control: Literal["thinking", "enable_thinking"] | None = None
    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning_content"
    reasoning_apart: bool = False

    def parameters(self) -> tuple[str, ...]:
        """The keys of a provider section that the address and the headers are made with."""
        templates = " ".join((self.base_url, *self.headers.values()))
        return tuple(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(templates) if name))


def load_vendors() -> Mapping[str, Vendor]:
    """Every row, by the name that `kind:` uses."""
    text = resources.files("llmproxy.providers").joinpath("compatible.toml").read_text("utf-8")
    return {name: Vendor.model_validate(row) for name, row in tomllib.loads(text).items()}
