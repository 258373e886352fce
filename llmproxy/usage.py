"""What an answer took, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, NamedTuple

Provenance = Literal["measured", "estimated", "assumed"]


class Usage(NamedTuple):
    """What an answer took: tokens in disjoint classes that add up, and what else is charged by the piece.

    No token is counted in two fields. The sums carry the `gen_ai.usage` names; the fields under them are what is
    priced. `service_tier` and `region` are what the provider says of how and where it served, as far as that changes
    the price: None is the usual way. A tuple because one is made for every answer, which is four times as fast.
    """

    uncached_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_5m_input_tokens: int = 0
    cache_write_1h_input_tokens: int = 0
    audio_input_tokens: int = 0
    cache_read_audio_input_tokens: int = 0
    image_input_tokens: int = 0
    text_output_tokens: int = 0
    reasoning_output_tokens: int = 0
    audio_output_tokens: int = 0
    image_output_tokens: int = 0
    web_searches: int = 0
    images: int = 0
    audio_seconds: int = 0
    characters: int = 0
    provenance: Provenance = "measured"
    service_tier: str | None = None
    region: str | None = None

    @property
    def input_tokens(self) -> int:
        """All tokens that went in, cached or not."""
        return (
            self.uncached_input_tokens
            + self.cache_read_input_tokens
            + self.cache_write_5m_input_tokens
            + self.cache_write_1h_input_tokens
            + self.audio_input_tokens
            + self.cache_read_audio_input_tokens
            + self.image_input_tokens
        )

    @property
    def output_tokens(self) -> int:
        """All tokens that came out, reasoning included."""
        return (
            self.text_output_tokens + self.reasoning_output_tokens + self.audio_output_tokens + self.image_output_tokens
        )

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


_COUNTED: Final = tuple(name for name, default in Usage._field_defaults.items() if isinstance(default, int))
TOKEN_CLASSES: Final = tuple(name for name in _COUNTED if name.endswith("_tokens"))
# What is charged by the piece, whatever it has to do with tokens.
UNIT_CLASSES: Final = tuple(name for name in _COUNTED if name not in TOKEN_CLASSES)
# Everything that is counted, which is what rows hold.
USAGE_CLASSES: Final = (*TOKEN_CLASSES, *UNIT_CLASSES)


@dataclass(frozen=True, slots=True)
class Cost:
    """What something cost. `amount_usd` is None when no price is known, which is not the same as free."""

    amount_usd: Decimal | None
    provenance: Provenance
    price_source: str | None = None
