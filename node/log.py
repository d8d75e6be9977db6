"""One line per event, with what it is about bound to it.

A program that only uses the client hears warnings, on stderr; a daemon or a command sets its own
level (cli/logs.py).
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

if not structlog.is_configured():
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever it is by then
    )


def get_logger() -> Any:
    """A logger that follows whatever is configured when it is used."""
    return structlog.get_logger()
