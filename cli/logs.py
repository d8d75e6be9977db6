"""One line an event, on stderr, so that stdout holds answers alone."""

from __future__ import annotations

import logging
import sys

import structlog

from ..errors import UserError
from .options import colour

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def show_logs(level: str) -> None:
    """Show what is of this level or above. Raises UserError for a level that is not one."""
    if level not in LEVELS:
        raise UserError(f"log level {level} is not one of {', '.join(LEVELS)}")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=colour(sys.stderr), pad_event_to=24),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever it is by then
    )
