"""What labels may say. Every set is closed: what is not in it is `other`, however many names clients come up with."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import orjson

from llmproxy.api import Attempt, Config, StorageError, Target, UpstreamError
from llmproxy_plugins.metrics.config import MetricsConfig
from llmproxy_plugins.metrics.families import NONE, OTHER


class Names:
    """The providers and models of a configuration."""

    def __init__(self, config: Config, settings: MetricsConfig) -> None:
        most = settings.max_label_values
        self._providers: Final = frozenset(islice(config.providers, most))
        self._models: Final = frozenset(islice(dict.fromkeys(_models(config, settings)), most))

    def provider(self, target: Target | None) -> str:
        """The label of the provider that was asked."""
        if target is None:
            return NONE
        return target.provider if target.provider in self._providers else OTHER

    def asked_model(self, name: str) -> str:
        """The label of the model that a client asked for."""
        return name if name in self._models else OTHER

    def target_model(self, target: Target) -> str:
        """The label of the model that a provider was asked for, which goes without the provider's name."""
        return target.model if target.name in self._models else OTHER


class Roll:
    """The names that were seen first, up to so many; all workers of a gateway have the same ones.

    Raises StorageError when its file cannot be opened.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._most = most
        self._names: set[str] = set()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise StorageError(f"The metrics cannot be kept in {path.parent}: {error.strerror}.") from error

    def label(self, name: str) -> str:
        """The name, or `other` when it came too late."""
        if name in self._names:
            return name
        # What is full stays full, so that the file is asked as often as there are names at most.
        if len(self._names) >= self._most:
            return OTHER
        try:
            self._enter(name)
        except OSError:
            return OTHER
        return name if name in self._names else OTHER

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def _enter(self, name: str) -> None:
        """Read who else was entered meanwhile, and enter the name if there is room."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            size_bytes = os.fstat(self._descriptor).st_size
            lines = os.pread(self._descriptor, size_bytes, 0).splitlines()
            self._names.update(orjson.loads(line) for line in lines)
            if name not in self._names and len(self._names) < self._most:
                os.write(self._descriptor, orjson.dumps(name) + b"\n")
                self._names.add(name)
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def failure_of(attempt: Attempt) -> str:
    """The label of how an attempt ended."""
    if isinstance(attempt.error, UpstreamError):
        return str(attempt.error.failure)
    return NONE if attempt.error is None else OTHER


def _models(config: Config, settings: MetricsConfig) -> Iterator[str]:
    """What can be asked for by a name that the operator has written down, the shortest way of asking first."""
    yield from config.models
    yield from settings.models
    for alias in config.models.values():
        yield from (target.model for target in alias.targets)
        yield from alias.fallbacks
    for provider, section in config.providers.items():
        listed = section.get("models")
        # The provider's own model has not seen its section yet.
        if isinstance(listed, (list, tuple)):
            yield from (f"{provider}/{model}" for model in listed)
