"""One line of the table of bars."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table. holds: None where nothing could be measured."""

    bar: str
    goal: str
    measured: str
    holds: bool | None
    command: str
