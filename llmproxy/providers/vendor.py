"""What providers share whose own format is translated: their section's keys, and what they do with the rest."""

from __future__ import annotations

from pydantic import Field

from llmproxy.config import Section
from llmproxy.providers.omissions import Omissions
from llmproxy.providers.openai import OpenAIConfig

__all__ = ["FetchesImages", "Omissions", "VendorConfig"]


class VendorConfig(OpenAIConfig):
    """A section for a vendor with a format of its own."""

    drop_params: bool = Field(
        default=False, description="Leave out what the model cannot do, instead of refusing the request."
    )


class FetchesImages(Section):
    """The key of vendors that take images as bytes only."""

    fetch_images: bool = Field(
        default=True,
        description="Fetch images that requests name by an http address, from public addresses only; else refuse them.",
    )
