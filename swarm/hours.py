"""At which hours of the week a node may work: windows of local time, over midnight if need be.

    22:00-07:00              every night: from ten until seven of the next morning
    mon-fri 18:00-24:00      on these days, from six
    sat,sun 00:00-24:00      all day

A window that ends before it begins ends on the next day, and belongs to the day on which it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import UserError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MIN: Final = 24 * 60
WEEK_MIN: Final = 7 * DAY_MIN


@dataclass(frozen=True, slots=True)
class Hours:
    """days: 0 is Monday. start_min: of the day. length_min: up to a whole day. told: as written."""

    days: frozenset[int]
    start_min: int
    length_min: int
    told: str

    def __post_init__(self) -> None:
        assert self.days and 0 <= self.start_min < DAY_MIN and 0 < self.length_min <= DAY_MIN

    def holds(self, minute: int) -> bool:
        """minute: of the local week, Monday's midnight being 0."""
        return any(
            (minute - day * DAY_MIN - self.start_min) % WEEK_MIN < self.length_min
            for day in self.days
        )

    def begins_in(self, minute: int) -> int:
        """Minutes until it begins the next time, 0 when it does now."""
        return min((day * DAY_MIN + self.start_min - minute) % WEEK_MIN for day in self.days)


def opens_in(hours: Sequence[Hours], minute: int) -> int:
    """Minutes until one of these windows holds; 0: now, or there is none to wait for."""
    if not hours or any(one.holds(minute) for one in hours):
        return 0
    return min(one.begins_in(minute) for one in hours)


def parse_hours(text: str) -> Hours:
    """Raises UserError."""
    *before, window = text.lower().split() or [""]
    days = ",".join(before)
    first, dash, last = window.partition("-")
    try:
        start, stop = _minute(first), _minute(last)
        found = frozenset(_days(days)) if days else frozenset(range(7))
    except ValueError:
        dash = ""
        start = stop = 0
        found = frozenset()
    if not dash or start == DAY_MIN or stop == start or not found:
        raise UserError(
            f"{text} names no hours: give 22:00-07:00, or with days, mon-fri 18:00-24:00"
        )
    length = (stop - start) % DAY_MIN or DAY_MIN
    return Hours(found, start, length, " ".join(text.split()))


def _minute(text: str) -> int:
    """Of the day. Raises ValueError."""
    hour, colon, minute = text.partition(":")
    if not (hour.isascii() and hour.isdigit() and len(hour) <= 2):
        raise ValueError(text)
    if not (minute.isascii() and minute.isdigit() and len(minute) == 2) and colon:
        raise ValueError(text)
    found = 60 * int(hour) + int(minute or "0")
    if found > DAY_MIN or int(minute or "0") > 59:
        raise ValueError(text)
    return found


def _days(text: str) -> Iterator[int]:
    """Raises ValueError."""
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        start = DAYS.index(first)
        stop = DAYS.index(last) if dash else start
        for offset in range((stop - start) % 7 + 1):
            yield (start + offset) % 7
