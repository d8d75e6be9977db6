"""What to say of a peer that does not speak a protocol of ours: which of the two is older.

A protocol's id ends in its version, /potluck/kad/2, and a peer says by identify which it speaks. So
who is older is told without any word of its own. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

OURS: Final = "/potluck/"
DIGITS_MAX: Final = 6


def behind(protocol: str, spoken: Iterable[str]) -> str:
    """Why a peer that speaks these may not speak that one, and what to do, to stand behind a
    sentence; empty where it is no matter of versions."""
    family, ours = _split(protocol)
    theirs = [number for one, number in map(_split, spoken) if one == family]
    if not family or not theirs or ours in theirs:
        return ""
    told = f"{family}/{max(theirs)}"
    if max(theirs) < ours:
        return f" (it is an older potluck, which speaks {told}: have its owner update it)"
    return f" (this potluck is the older one, there {told} is spoken: pip install -U potluck)"


def _split(protocol: str) -> tuple[str, int]:
    """(the family, the version); of what is not ours, an empty family."""
    family, _, number = protocol.rpartition("/")
    counted = number.isascii() and number.isdigit() and len(number) <= DIGITS_MAX
    return (family, int(number)) if counted and protocol.startswith(OURS) else ("", 0)
