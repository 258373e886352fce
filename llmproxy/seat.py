"""What a supervisor and its workers have agreed on."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from llmproxy.errors import ConfigError, LLMProxyError
from llmproxy.services import Log

# Connections the kernel keeps for a worker that is busy, or being replaced.
BACKLOG: Final = 1024
# A worker exits with this when it cannot start at all: wrong configuration, no database.
CANNOT_START: Final = 3
# What a worker may take to close everything once its drain is over; one that takes longer is killed.
CLOSING_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class WorkerSeat:
    """What a worker process is given.

    Attributes:
        number: Counts from 0.
        listener: Its own listening socket.
        supervisor_alive: Reads end-of-file when the supervisor is gone.
        announce_ready: To be called once it serves.
        reload_all: Has the supervisor check the configuration on disk, and all workers take it over.
    """

    number: int
    listener: socket.socket
    supervisor_alive: int
    announce_ready: Callable[[], None]
    reload_all: Callable[[], None]


def log_refusal(log: Log, error: Exception, **fields: object) -> None:
    """Say why a reload changes nothing: with every mistake, or with what was raised that is nobody's own word."""
    if isinstance(error, LLMProxyError):
        mistakes = error.mistakes if isinstance(error, ConfigError) else (error.message,)
        log.error("reload_refused", mistakes=mistakes, **fields)
    else:
        log.error("reload_refused", mistakes=(repr(error),), exc_info=error, **fields)


def allow_open_files() -> None:
    """Raise our own limit of open files, and that of what we start, to the most that the system lets us have.

    The usual one of 1024 is for programs that use `select`, and is reached with five hundred streams.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems call it unlimited and refuse to have it so.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
