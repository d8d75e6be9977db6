"""Training by one byte a step and peer: what a byte says, and what many peers' bytes add up to.

In each round of a run there are one or a few directions, which follow from the run's seed. A peer
measures how its loss changes along one of them (SPSA: two forward passes, no gradient), and says so
in a byte. All who were given the same direction measure the same thing on data of their own, so the
largest and smallest answers can be left out: a few liars do not move the rest.

    weights = base - unit * sum over rounds and directions of  rate * trimmed mean of bytes * signs

All of it but `base` and `unit` are whole numbers, so the sum is exact, and does not depend on the
order in which bytes came: the weights follow from the *set* of what was said. What comes late
changes one mean, and that is made good by adding the difference. Nobody waits for anybody.

    byte     -127..127, sign and logarithm: +-2^((n - 1) / 8) grains; 0: nothing; -128: absent

Sources: Spall, 1992 (SPSA; signs as directions); Malladi et al., 2023 (MeZO); Zelikman et al., 2023
(one byte a step, by shared seeds); Yin et al., 2018 (trimmed means).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Final

from ...crypto.codec import Range
from ...crypto.digest import digest
from ...crypto.merkle import Digest

ABSENT: Final = -128  # whoever was too slow, or measured no number
CODE_MAX: Final = 127
GRAINS: Final = 16  # the smallest byte but 0, in whole numbers: rounding costs a thirtieth at most
RATE_ONE: Final = 256
_ROOTS: Final = (65536, 71468, 77936, 84990, 92682, 101070, 110218, 120194)  # 2^(16 + n / 8)


def _value(level: int) -> int:
    """2^((level - 1) / 8) grains, to the nearest whole number."""
    power, root = divmod(level - 1, 8)
    return ((_ROOTS[root] * GRAINS << power) + (1 << 15)) >> 16


VALUES: Final = (0, *map(_value, range(1, CODE_MAX + 1)))

Rounds = Annotated[int, Range(0, 1 << 40)]


@dataclass(frozen=True, slots=True)
class Rules:
    """What all peers of a run have in common; part of its file, and so of its digest.

    directions: in each round; peers are spread over them. least: answers, without which a direction
    is not gone. trim_percent: of the answers, left out at either end; 50: the median. rounds: over
    which the rate falls to nothing; 0: it does not. epoch_rounds: between two snapshots.
    """

    run: Digest
    directions: Annotated[int, Range(1, 1024)] = 1
    least: Annotated[int, Range(1, 1024)] = 3
    trim_percent: Annotated[int, Range(0, 50)] = 35  # guess: bears 0.3 of liars where many answer
    rounds: Rounds = 0
    epoch_rounds: Annotated[int, Range(1, 1024)] = 64

    def direction(self, peer: str, round_: int) -> int:
        """Which of the round's directions this peer measures."""
        drawn = digest("scalar place", self.run, round_.to_bytes(8), peer.encode())
        return int.from_bytes(drawn[:8]) % self.directions

    def seed(self, round_: int, direction: int) -> bytes:
        """From which the signs follow (crypto/stream.py): a bit each, 1 for plus."""
        return digest("scalar signs", self.run, round_.to_bytes(8), direction.to_bytes(4))

    def rate(self, round_: int) -> int:
        """In RATE_ONE-ths."""
        if not self.rounds:
            return RATE_ONE
        return RATE_ONE * max(0, self.rounds - round_) // self.rounds

    def step(self, round_: int, codes: Iterable[int]) -> int:
        """By how much to go along a direction, in grains' GRAINS-ths and RATE_ONE-ths."""
        values = [value_of(code) for code in codes if code != ABSENT]
        return -self.rate(round_) * combined(values, self.trim_percent, self.least)


def code_of(slope: float, grain: float) -> int:
    """The byte of a measured slope; what is beyond its range is cut to it."""
    if not isfinite(slope):
        return ABSENT
    wished = abs(slope) / grain * GRAINS
    if wished < GRAINS / 2:
        return 0
    above = min(bisect_left(VALUES, wished, lo=1), CODE_MAX)
    below = max(above - 1, 1)
    level = below if wished - VALUES[below] < VALUES[above] - wished else above
    return level if slope > 0 else -level


def value_of(code: int) -> int:
    """In GRAINS-ths of a grain. A code is -127..127."""
    return VALUES[code] if code >= 0 else -VALUES[-code]


def combined(values: Sequence[int], trim_percent: int, least: int) -> int:
    """The mean of what is left without both ends, to the nearest whole number; 0 of too few."""
    count = len(values)
    if count < least or not count:
        return 0
    out = min(count * trim_percent // 100, (count - 1) // 2)
    kept = sorted(values)[out : count - out]
    total = sum(kept)
    size = (2 * abs(total) + len(kept)) // (2 * len(kept))
    return size if total >= 0 else -size


@dataclass(frozen=True, slots=True)
class Change:
    """That the weights go so far along a direction, beside what they went before."""

    round: int
    direction: int
    delta: int
