"""What the operator may say of the cache, and what of it holds for one request."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from llmproxy.api import Pattern, Seconds, Section

When = Literal["deterministic", "always", "never"]


class RuleConfig(Section):
    """Other terms for some requests: those that match all of its patterns."""

    model: Pattern = Field(default="*", description="Pattern over the model as the client asks for it.")
    workspace: Pattern = Field(default="*", description="Pattern over the workspace.")
    key: Pattern = Field(default="*", description="Pattern over the virtual key's id or name.")
    ttl_seconds: Seconds | None = Field(default=None, description="Replaces `ttl_seconds`.")
    when: When | None = Field(default=None, description="Replaces `when`.")

    def matches(self, model: str, workspace: str, keys: tuple[str, str]) -> bool:
        """Whether a request is one of those meant."""
        is_meant = fnmatchcase(model, self.model) and fnmatchcase(workspace, self.workspace)
        return is_meant and any(fnmatchcase(key, self.key) for key in keys)


def _one_group(value: object) -> object:
    """`share_between: [a, b]` is the usual case, so it may be short."""
    is_flat = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    return [value] if is_flat else value


Groups = Annotated[
    tuple[tuple[Pattern, ...], ...],
    BeforeValidator(_one_group, json_schema_input_type=tuple[tuple[Pattern, ...], ...] | tuple[Pattern, ...]),
]


class CachingConfig(Section):
    """Where answers are kept, which ones, and for how long."""

    backend: Literal["memory", "redis"] = Field(
        default="memory", description="`memory`: each worker's own; `redis`: Redis or Valkey, shared by all."
    )
    url: SecretStr | None = Field(
        default=None, description="Where Redis is: `redis://host:6379/0`, or `rediss://` for TLS."
    )
    key_prefix: str = Field(
        default="llmproxy:cache", pattern=r"^[\w:.-]+$", description="What every key in Redis begins with."
    )
    timeout_seconds: Seconds = Field(default=0.1, description="Longest wait for Redis; a later answer is a miss.")
    connections: int = Field(default=50, ge=1, le=1000, description="Most connections of each worker to Redis.")
    max_bytes: int = Field(default=268_435_456, ge=1024, description="Memory of each worker for `backend: memory`.")
    max_entry_bytes: int = Field(
        default=1_048_576, ge=1024, description="Largest answer that is kept; a stream counts with its events."
    )
    when: When = Field(
        default="deterministic",
        description="`deterministic`: temperature 0 or a seed, and embeddings; `always`; `never`.",
    )
    ttl_seconds: Seconds = Field(default=3600, description="How long an answer is served.")
    max_ttl_seconds: float = Field(
        default=604_800, gt=0, le=2_592_000, description="Longest time that a client may ask for."
    )
    rules: tuple[RuleConfig, ...] = Field(default=(), description="Other terms; the first rule that matches holds.")
    share_between: Groups = Field(
        default=(), description="Groups of workspaces that may be served each other's answers."
    )
    per_key: bool = Field(default=False, description="Each virtual key has answers of its own.")
    vary_headers: tuple[Pattern, ...] = Field(
        default=("anthropic-beta", "openai-beta"),
        description="Client headers that change answers: those that `forward_headers` of a provider passes on.",
    )
    coalesce: bool = Field(default=True, description="Identical requests in flight share one call.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        url = self.url.get_secret_value() if self.url is not None else ""
        if self.backend == "redis" and not url.startswith(("redis://", "rediss://")):
            raise ValueError("`backend: redis` needs a url that begins with redis:// or rediss://")
        if self.max_entry_bytes > self.max_bytes:
            raise ValueError("max_entry_bytes is larger than max_bytes")
        lifetimes = (self.ttl_seconds, *(rule.ttl_seconds or 0 for rule in self.rules))
        if max(lifetimes) > self.max_ttl_seconds:
            raise ValueError("ttl_seconds is longer than max_ttl_seconds")
        named = [workspace for group in self.share_between for workspace in group]
        if len(set(named)) < len(named):
            raise ValueError("share_between has a workspace in two groups")
        return self


class Terms(NamedTuple):
    """What holds for one request."""

    when: When
    ttl_seconds: float


class Policy:
    """The configuration as answers to what is asked for each request."""

    def __init__(self, config: CachingConfig) -> None:
        self._config = config
        self._usual = Terms(config.when, config.ttl_seconds)
        self._groups = {name: tuple(sorted(group)) for group in config.share_between for name in group}

    def terms(self, model: str, workspace: str, keys: tuple[str, str]) -> Terms:
        """When an answer is kept, and for how long.

        Args:
            keys: The virtual key's id and name.
        """
        for rule in self._config.rules:
            if rule.matches(model, workspace, keys):
                return Terms(rule.when or self._usual.when, rule.ttl_seconds or self._usual.ttl_seconds)
        return self._usual

    def tenant(self, workspace: str) -> tuple[str, ...]:
        """The workspaces that one's answers are shared between: nearly always itself alone."""
        return self._groups.get(workspace, (workspace,))
