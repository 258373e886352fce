"""The configuration as frozen, typed values; every key is declared here once, with its meaning and its default.

`config_document` reads the YAML and says where each mistake is; `config.example.yaml` shows every key, and a
test holds the two together. Provider and plugin sections are validated by the kind's or plugin's own model.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from importlib.util import find_spec
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_core import CoreSchema, core_schema

Seconds = Annotated[float, Field(gt=0)]
Pattern = Annotated[str, Field(min_length=1)]
Price = Annotated[Decimal, Field(ge=0)]
EventLoop = Literal["asyncio", "uvloop"]
TokenizerName = Literal["cl100k_base", "o200k_base"]
KeptBodies = Literal["none", "requests", "responses", "all"]
# As good as for ever, and no date is too far to be reckoned with.
MAX_DAYS: Final = 36_500


class ModelName(str):
    """The name of a model that a plugin asks for: where nothing serves one of that name, its section has a mistake."""

    __slots__ = ()

    # pydantic's own types for a hook of its own, which say nothing here.
    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1))


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys refused. Plugin and provider configs derive from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class TLSConfig(Section):
    """Certificate files; read again when they change."""

    certificate_file: str = Field(description="PEM file with the certificate and its chain.")
    key_file: str = Field(description="PEM file with the private key.")


class ServerConfig(Section):
    """The side clients talk to."""

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; other than loopback asks for a strong key."
    )
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    workers: int = Field(default=1, ge=1, le=256, description="Processes that share the port, one event loop each.")
    max_body_bytes: int = Field(default=33_554_432, ge=1, description="Largest request body; larger ones get 413.")
    max_header_bytes: int = Field(default=16_384, ge=1024, le=1_048_576, description="Largest request head.")
    head_seconds: Seconds = Field(default=10, description="How long a client may take to send a request's head.")
    body_seconds: Seconds = Field(default=60, description="How long a client may take to send a request's body.")
    write_seconds: Seconds = Field(default=120, description="How long a client may leave an answer unread.")
    keep_alive_seconds: Seconds = Field(default=75, description="How long an idle client connection stays open.")
    heartbeat_seconds: Seconds = Field(
        default=15, description="Silence on a stream after which a comment keeps it alive."
    )
    drain_seconds: Seconds = Field(default=30, description="How long running requests may go on when a worker stops.")
    tls: TLSConfig | None = Field(default=None, description="Serve HTTPS with these files; left out, plain HTTP.")
    event_loop: EventLoop = Field(
        default="asyncio", description="What workers run on; `uvloop` comes with `llmproxy[fast]`."
    )

    @field_validator("event_loop")
    @classmethod
    def _is_installed(cls, name: EventLoop) -> EventLoop:
        if find_spec(name) is None:
            raise ValueError("uvloop is not installed; install llmproxy[fast]")
        return name


class DatabaseConfig(Section):
    """Where rows go."""

    url: SecretStr = Field(
        default=SecretStr("embedded"), description="`embedded`, or the URL of a PostgreSQL 15 to 18."
    )
    pool_size: int = Field(default=5, ge=2, le=100, description="Connections of each worker.")
    connect_seconds: Seconds = Field(default=10, description="How long connecting may take.")
    statement_seconds: Seconds = Field(default=30, description="How long one statement may run.")


class JournalConfig(Section):
    """The local write-ahead record of what was let in and how it ended."""

    segment_bytes: int = Field(default=8_388_608, ge=65_536, description="Size at which a new journal file is begun.")
    sync_seconds: Seconds = Field(default=1, description="Longest time a record waits to be forced to disk.")
    batch_rows: int = Field(default=500, ge=1, le=10_000, description="Most records shipped to the database at once.")


class AuditConfig(Section):
    """What is kept of each exchange, and for how long."""

    bodies: KeptBodies = Field(default="none", description="Which bodies are kept: none, requests, responses or all.")
    max_body_bytes: int = Field(default=262_144, ge=0, description="A kept body is cut off here.")
    retention_days: int = Field(default=90, ge=1, description="Days after which rows are deleted.")
    bodies_retention_days: int = Field(default=30, ge=1, description="Days after which kept bodies are deleted.")
    body_key: SecretStr | None = Field(
        default=None, description="Encrypts kept bodies; best as a variable, `${LLMPROXY_BODY_KEY}`. Null: in clear."
    )
    signing_key: SecretStr | None = Field(
        default=None, description="Signs the audit chain, the same on all replicas; null: made in the state directory."
    )
    former_keys: tuple[SecretStr, ...] = Field(
        default=(), description="Signing keys of earlier days, and of other machines: only to verify with."
    )
    checkpoint_seconds: Seconds = Field(default=60, description="How often the signed log says how far a chain is.")
    checkpoint_rows: int = Field(default=10_000, ge=1, description="Rows after which it says so earlier.")


class Timeouts(Section):
    """The four timers of one attempt."""

    connect_seconds: Seconds = Field(default=10, description="How long connecting to the provider may take.")
    first_byte_seconds: Seconds = Field(default=300, description="How long the provider may take to begin its answer.")
    idle_seconds: Seconds = Field(default=120, description="Longest silence inside an answer.")
    total_seconds: Seconds | None = Field(
        default=None, description="Longest time for the whole attempt; null: no limit."
    )


class KeyConfig(Section):
    """One of several keys of a provider."""

    key: SecretStr = Field(description="The credential.")
    weight: float = Field(default=1, ge=0, description="Its share of the provider's requests, against the other keys'.")
    name: Pattern | None = Field(
        default=None, description="What rows and metrics call it; left out, its number in the list."
    )


def _key_alone(value: object) -> object:
    """`api_keys: ["${A}", "${B}"]` is the usual case, so it may be short."""
    return {"key": value} if isinstance(value, str) else value


class ProviderConfig(Section):
    """What every provider section may hold; a provider kind adds its own keys by deriving from this."""

    kind: str | None = Field(default=None, description="What the endpoint speaks; left out, the section's own name.")
    base_url: str | None = Field(default=None, pattern=r"^https?://", description="Replaces the vendor's own address.")
    api_key: SecretStr | None = Field(
        default=None, description="The credential; best as a variable, `${OPENAI_API_KEY}`."
    )
    api_keys: tuple[Annotated[KeyConfig, BeforeValidator(_key_alone, json_schema_input_type=KeyConfig | str)], ...] = (
        Field(default=(), description="Several keys in place of `api_key`; each is a target, and fails, of its own.")
    )
    region: str | None = Field(
        default=None, description="Where the endpoint computes, in the vendor's word or a wider one."
    )
    zero_retention: bool = Field(default=False, description="The vendor has agreed to keep nothing of what it is sent.")
    models: tuple[str, ...] = Field(
        default=(), description="Models served: for /v1/models and names without a provider."
    )
    headers: Mapping[str, str] = Field(default_factory=dict, description="Headers added to every request.")
    forward_headers: tuple[str, ...] = Field(default=(), description="Client headers that travel on to the provider.")
    timeouts: Timeouts | None = Field(default=None, description="Timers for this provider; left out, the general ones.")

    @model_validator(mode="after")
    def _one_way_to_name_keys(self) -> Self:
        if self.api_key is not None and self.api_keys:
            raise ValueError("api_key and api_keys are both set; keep one")
        if len({label for label, _ in self.credentials()}) < len(self.credentials()):
            raise ValueError("two of api_keys have the same name")
        return self

    def credentials(self) -> tuple[tuple[str | None, float], ...]:
        """The label and the weight of each key; one without a label where there is no choice."""
        if not self.api_keys:
            return ((None, 1.0),)
        return tuple((each.name or str(number), each.weight) for number, each in enumerate(self.api_keys, start=1))

    def with_credential(self, number: int) -> Self:
        """The section with one of its keys as the `api_key`."""
        if not self.api_keys:
            return self
        return self.model_copy(update={"api_key": self.api_keys[number].key})


class TargetConfig(Section):
    """One target of an alias."""

    model: Pattern = Field(description="Where requests go, as provider/model.")
    weight: float = Field(default=1, ge=0, description="Share of the requests, against the other targets' weights.")
    region: str | None = Field(default=None, description="Where this model computes, if not where its provider does.")
    zero_retention: bool | None = Field(
        default=None, description="Whether nothing of it is kept; left out, what its provider says."
    )


def _target_of_name(value: object) -> object:
    """`targets: [openai/gpt-4o-mini]` is the usual case, so it may be short."""
    return {"model": value} if isinstance(value, str) else value


class ModelConfig(Section):
    """An alias: what it stands for, and where to go when that fails."""

    targets: tuple[
        Annotated[TargetConfig, BeforeValidator(_target_of_name, json_schema_input_type=TargetConfig | str)], ...
    ] = Field(min_length=1, description="What the alias stands for; more than one share the requests by weight.")
    fallbacks: tuple[Pattern, ...] = Field(default=(), description="Models to try, in order, when the targets fail.")


def _model_of_name(value: object) -> object:
    """`fast: openai/gpt-4o-mini` is the usual case, so it may be short."""
    return {"targets": [value]} if isinstance(value, str) else value


class WorkspaceConfig(Section):
    """A tenant: its keys, and what they may use."""

    keys: tuple[SecretStr, ...] = Field(
        default=(), description='Keys its clients present, best as variables: "${ACME_KEY}".'
    )
    models: tuple[Pattern, ...] = Field(default=("*",), description="Patterns of the models its keys may use.")
    region: str | None = Field(default=None, description="Requests never leave this region; null: any will do.")
    bodies: KeptBodies | None = Field(default=None, description="Replaces `audit.bodies` for this workspace.")
    bodies_retention_days: int | None = Field(
        default=None, ge=1, le=MAX_DAYS, description="Replaces `audit.bodies_retention_days` for this workspace."
    )


class RatesConfig(Section):
    """Rates in US dollars per million tokens. A class left out costs what its parent does, such as audio as input."""

    input_usd_per_mtok: Price | None = Field(default=None, description="Input that no cache served.")
    cache_read_usd_per_mtok: Price | None = Field(default=None, description="Input read from the provider's cache.")
    cache_write_5m_usd_per_mtok: Price | None = Field(
        default=None, description="Input written to its cache for 5 minutes."
    )
    cache_write_1h_usd_per_mtok: Price | None = Field(
        default=None, description="Input written to its cache for an hour."
    )
    audio_input_usd_per_mtok: Price | None = Field(default=None, description="Audio sent.")
    cache_read_audio_usd_per_mtok: Price | None = Field(
        default=None, description="Audio read from the provider's cache."
    )
    image_input_usd_per_mtok: Price | None = Field(default=None, description="Images sent.")
    output_usd_per_mtok: Price | None = Field(default=None, description="Output.")
    reasoning_usd_per_mtok: Price | None = Field(default=None, description="Output spent on reasoning.")
    audio_output_usd_per_mtok: Price | None = Field(default=None, description="Audio received.")
    image_output_usd_per_mtok: Price | None = Field(default=None, description="Images received.")


class LongContextConfig(RatesConfig):
    """Rates for every token of a request whose input is long; what is left out stays as it is."""

    above_input_tokens: int = Field(ge=1, description="Input tokens above which these rates hold for all tokens.")


class PriceConfig(RatesConfig):
    """A price of your own for the models that match."""

    match: Pattern = Field(description="Pattern over provider/model.")
    first_day: date | None = Field(
        default=None, validation_alias="from", description="First day on which it holds (UTC); null: it always did."
    )
    until: date | None = Field(
        default=None, description="First day on which it holds no more (UTC); null: it always will."
    )
    service_tier: str | None = Field(
        default=None, description="Holds for this service tier only, such as priority, flex or batch; null: for any."
    )
    long_context: tuple[LongContextConfig, ...] = Field(default=(), description="Other rates for long inputs.")
    web_searches_usd_per_thousand: Price | None = Field(
        default=None, description="A thousand searches of the provider's own web search."
    )
    image_usd: Price | None = Field(default=None, description="An image, where images are sold by the piece.")
    audio_usd_per_hour: Price | None = Field(default=None, description="An hour of audio, where it is sold by time.")
    characters_usd_per_million: Price | None = Field(
        default=None, description="A million characters, where text is sold by its length."
    )
    request_usd: Price | None = Field(default=None, description="Each request, on top of all else.")
    factor: Price | None = Field(
        default=None, description="Multiplies the price data's prices instead: a discount, or a premium."
    )
    free: bool = Field(default=False, description="These models cost nothing.")

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        rates = {name for name, value in self if isinstance(value, Decimal) and name != "factor"}
        ways = [self.free, self.factor is not None, bool(rates or self.long_context)]
        if sum(ways) != 1:
            raise ValueError("give either rates, or factor, or free: true")
        if self.first_day and self.until and self.first_day >= self.until:
            raise ValueError("until must be later than from")
        return self


class EstimatesConfig(Section):
    """What is charged where a provider does not tell what it used."""

    tokenizer: TokenizerName | None = Field(
        default=None,
        description="Counts tokens; comes with `llmproxy[tokenizer]`. null: from sizes, four bytes a token.",
    )

    @field_validator("tokenizer")
    @classmethod
    def _is_installed(cls, name: TokenizerName | None) -> TokenizerName | None:
        if name is not None and find_spec("bpe_openai") is None:
            raise ValueError("the tokenizer is not installed; install llmproxy[tokenizer]")
        return name


class LoggingConfig(Section):
    """The gateway's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe events written."
    )
    format: Literal["text", "json"] = Field(default="text", description="`text` for people, `json` for machines.")


def _listed(value: object) -> object:
    """`plugins: [a, b]` names sections that need no settings."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return value
    if len(set(value)) < len(value):
        raise ValueError("must not name a section twice")
    return dict.fromkeys(value)


def _filled(value: object) -> object:
    """A section with nothing in it stands for one with all its defaults."""
    if not isinstance(value, dict):
        return value
    return {name: {} if section is None else section for name, section in value.items()}


# What a section may hold is the kind's or the plugin's business, so its values stay `Any` here.
RawSections = Annotated[Mapping[str, Mapping[str, Any]], BeforeValidator(_filled)]
NamedModel = Annotated[ModelConfig, BeforeValidator(_model_of_name, json_schema_input_type=ModelConfig | str)]


class Config(Section):
    """The whole file. `providers` and `plugins` hold raw sections until their own models have validated them."""

    server: ServerConfig = ServerConfig()
    database: DatabaseConfig = DatabaseConfig()
    journal: JournalConfig = JournalConfig()
    audit: AuditConfig = AuditConfig()
    timeouts: Timeouts = Timeouts()
    providers: RawSections = Field(default_factory=dict, description="The endpoints requests can go to, by name.")
    models: Mapping[str, NamedModel] = Field(default_factory=dict, description="Aliases clients may ask for.")
    workspaces: Mapping[str, WorkspaceConfig] = Field(default_factory=dict, description="The tenants, by name.")
    prices: tuple[PriceConfig, ...] = Field(
        default=(), description="Prices of your own; the first that matches counts."
    )
    estimates: EstimatesConfig = EstimatesConfig()
    plugins: Annotated[RawSections, BeforeValidator(_listed)] = Field(
        default_factory=dict, description="Only what stands here runs, in this order."
    )
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: object) -> object:
        """A section whose keys are all commented out is a section left out."""
        if not isinstance(value, dict):
            return value
        return {name: section for name, section in value.items() if section is not None}
