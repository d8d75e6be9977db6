"""What the word of others is worth, who say that a peer is gone: a probe at once, a shorter wait.

A word of others has nobody missed; but it is worth a probe of our own, now and not when its turn
comes. Words are cheap, and a liar's may come without end: each who speaks, and all together, may
cause so many probes in a row, and one more with each period that passes. Beyond that a word is
passed over, and whom it is about is probed in its turn, as without it. Who is right is charged as
well: else two who play dead and alive again for each other would have us probe without end.

How much shorter the wait of a suspect is, the more suspect it, is Lifeguard's rule (Dadgar,
Phillips and Currey, 2017).
"""

from __future__ import annotations

import math

LOOKS_OF_ONE = 4  # guess: of many who die at once, each who lives finds a few before the others
LOOKS_OF_ALL = 16  # guess: liars of four names use them up

SUSPICION = 6  # memberlist's WAN settings, as is the next
SUSPICION_MAX = 6  # times the least wait, with nobody else suspecting
CONFIRMED = SUSPICION - 2  # so many more suspecting shorten the wait to the least


class Hearsay:
    """The looks of late, each by whose word it was."""

    def __init__(self) -> None:
        self._looks: list[str] = []

    def look(self, by: str) -> bool:
        """Whether the word of this peer may cause a probe now; if so, it is charged with one."""
        if len(self._looks) >= LOOKS_OF_ALL or self._looks.count(by) >= LOOKS_OF_ONE:
            return False
        self._looks.append(by)
        return True

    def period(self) -> None:
        """One has passed: the oldest look is forgotten."""
        del self._looks[:1]


def wait_periods(others: int, members: int) -> float:
    """How many periods a suspect has to object, where so many others suspect it too."""
    least = SUSPICION * max(1.0, math.log10(members + 1))
    most = SUSPICION_MAX * least
    return max(least, most - (most - least) * math.log(others + 1) / math.log(CONFIRMED + 1))
