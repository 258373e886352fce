"""The configuration that all workers of a supervisor serve, whatever has become of the file since it was read."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from llmproxy.gateway import ConfigSource


class AcceptedConfig:
    """What the supervisor last found right, in memory that it shares with every process forked from it.

    A worker that takes a dead one's place, hours later, so serves what the others serve.
    """

    def __init__(self, source: ConfigSource) -> None:
        self._path = source.path
        self._file = os.memfd_create("llmproxy-config")
        self.replace(source)

    def replace(self, source: ConfigSource) -> None:
        """Have this found from now on, by workers that run and by those to come."""
        with self._locked(fcntl.LOCK_EX):
            os.pwrite(self._file, source.data, 0)
            os.ftruncate(self._file, len(source.data))

    def read(self) -> ConfigSource:
        """What was last accepted."""
        with self._locked(fcntl.LOCK_SH):
            return ConfigSource(self._path, os.pread(self._file, os.fstat(self._file).st_size, 0))

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        # Such a lock belongs to a process, also where processes have the file from the same parent.
        fcntl.lockf(self._file, kind)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
