"""How far two honest peers may be apart: by their classes of numbers, and by how many blocks.

algorithms.md 4.3. What rounding does grows with the blocks that it goes through, and so does what
they add, against which it is held: a limit is measured for each of some lengths of span, and of a
length between two of them the larger counts. Beyond what was measured there is no limit, and nobody
is convicted by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ANY: Final = 0  # blocks: of a limit that was measured before limits were kept by length
NEVER: Final = 1.0  # a limit from here on says that honest peers are as far apart as any liar

Pair = tuple[str, str, str]  # model's digest or "*", class, class


@dataclass(frozen=True, slots=True)
class Tolerance:
    """limit: of the median over tokens; 0: equal bits."""

    limit: float

    def __post_init__(self) -> None:
        assert 0 <= self.limit < NEVER


EXACT: Final = Tolerance(0.0)


class Tolerances:
    """What was measured between honest peers (potluck calibrate), for pairs of classes.

    A pair that nobody measured cannot be audited: `of` is None, and nobody is convicted by it.
    """

    def __init__(self, measured: Mapping[Pair, Mapping[int, float]]) -> None:
        """measured: of a pair, its classes in any order, the limit for each number of blocks."""
        self._measured = {
            (model, *sorted((one, other))): dict(limits)
            for (model, one, other), limits in measured.items()
        }

    def of(self, model: str, one: str, other: str, blocks: int) -> Tolerance | None:
        """For work that went through so many blocks."""
        pair = sorted((one, other))
        found = self._measured.get((model, *pair)) or self._measured.get(("*", *pair))
        if found is None:
            return EXACT if one == other and is_exact(one) else None
        limit = limit_at(found, blocks)
        return None if limit is None or limit >= NEVER else Tolerance(limit)


def limit_at(limits: Mapping[int, float], blocks: int) -> float | None:
    """Of this many blocks, or the larger of the nearest that are fewer and more."""
    if blocks in limits:
        return limits[blocks]
    fewer = max((length for length in limits if ANY < length < blocks), default=None)
    more = min((length for length in limits if length > blocks), default=None)
    if fewer is None or more is None:
        return limits.get(ANY)
    return max(limits[fewer], limits[more])


def is_exact(numerics: str) -> bool:
    """Whether equal rows give equal bits in this class, whatever else the peers do: our C's. In
    torch's a server that answered step by step and one that is sent a prompt differ."""
    return any(word[:1] == "c" and word[1:].isdigit() for word in numerics.split())
