"""A mesh of peers under a virtual clock, for simulations of what is gossiped.

Each has links to `DEGREE` others, as gossipsub's mesh has; a link takes the time that two places
and the way between them take, the same in both directions; nothing is lost on it.
"""

from __future__ import annotations

import math
from random import Random

DEGREE = 8  # gossipsub's D
ACCESS_S = (0.003, 0.020)  # from a home to the Internet: algorithms.md 8.1
ACROSS_S = 0.150  # guess: one way between the farthest two


class Mesh:
    """Peers 0..count-1, and who has a link to whom."""

    def __init__(self, count: int, dice: Random) -> None:
        self.links: list[set[int]] = [set() for _ in range(count)]
        for one in range(count):
            while len(self.links[one]) < DEGREE // 2 or not self.links[one]:
                other = dice.randrange(count)
                if other != one:
                    self.links[one].add(other)
                    self.links[other].add(one)
        self._places = [(dice.random(), dice.random()) for _ in range(count)]
        self._access_s = [dice.uniform(*ACCESS_S) for _ in range(count)]

    def delay_s(self, one: int, other: int) -> float:
        (a, b), (c, d) = self._places[one], self._places[other]
        across = math.hypot(a - c, b - d) / math.sqrt(2)
        return self._access_s[one] + self._access_s[other] + across * ACROSS_S
