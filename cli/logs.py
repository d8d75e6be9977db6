"""One line an event, on stderr, so that stdout holds answers alone: for people, or as JSON."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

from ..errors import UserError
from .options import colour

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def show_logs(level: str, *, as_json: bool = False) -> None:
    """Show what is of this level or above. as_json: an object a line, {"event", "level", "time"
    (UTC, ISO 8601)} and what the event is about. Raises UserError for a level that is not one."""
    if level not in LEVELS:
        raise UserError(f"log level {level} is not one of {', '.join(LEVELS)}")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            *(_for_machines() if as_json else _for_people()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever it is by then
    )


def _for_people() -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(colors=colour(sys.stderr), pad_event_to=24),
    ]


def _for_machines() -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.JSONRenderer(),
    ]
