"""The gateway's own log, on standard error: readable text for people, one JSON object a line for machines."""

from __future__ import annotations

import logging
import sys
from typing import Final

import orjson
import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import Processor

from llmproxy.config import LoggingConfig
from llmproxy.services import Log

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def make_log(config: LoggingConfig) -> Log:
    """A log of the configured format and level; it belongs to whoever asked, nothing global is set."""
    log: Log = structlog.wrap_logger(
        # A line and its end in one write: printing makes two, and another worker's line may come between.
        structlog.WriteLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_as_json() if config.format == "json" else _as_text()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[config.level]),
        cache_logger_on_first_use=True,
    )
    return log


def _as_text() -> list[Processor]:
    # Never the default, which prints local variables, prompts and keys among them, where it can.
    formatter = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=formatter)]


def _as_json() -> list[Processor]:
    tracebacks = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    return [tracebacks, structlog.processors.JSONRenderer(serializer=_encoded)]


def _encoded(event: object, **_options: object) -> str:
    return orjson.dumps(event, default=str).decode()
