"""What queues do not tell: work that a peer has to expect, and how far plans fall short.

*Promises* are a server's. A queue that was just read is old when the work arrives, for others read
it too: everybody goes to the shortest, and it is the shortest no more (sim, `even`: an oracle that
reads all queues of the instant has a p50 1.3 times that of one who reads six; one that knows what
is on the way besides, 0.83 of it). So a peer that is asked for its queue, about a step of known
size, adds a part of that step to what it tells the next, until it would have come: the part of
those that came when it told of such a queue before. Whoever tells of none is mostly chosen.

    asked of six ─▶ each expects its part of the step, until the asker's road is over
    chosen       ─▶ the step's header is there before its rows: all of it, until they are there

*A shortfall* is a client's. The rest of a plan is the best of many guesses, queues among them that
have faded since they were told; and the best of many guesses is too good (the winner's curse). How
far, of late, a client sees at each hop that it binds: what it takes with fresh queues, and what was
planned. Taken into account, it is what a peer must be late by before its span is left early.
"""

from __future__ import annotations

import math

CHOSEN_FIRST = 1 / 3  # of those who ask, so many come, until more is known
DOUBT = 3.0  # asks that this first guess is worth
SHY = 2.0  # times what came is expected; sim: the best of 1, 1.5, 2 and 3 at loads 0.8 and 0.9
LEAST_S = 0.02  # queues below this are alike; above, those of one doubling
MEMORY = 0.995  # guess: of the last two hundred asks
SMOOTHING = 0.02  # guess: some fifty hops


class _Chosen:
    """Of those who were told of queues of about one length, how many came."""

    __slots__ = ("asked", "came")

    def __init__(self) -> None:
        self.asked, self.came = DOUBT, DOUBT * CHOSEN_FIRST


class Promises:
    """One server's. Times are seconds on the caller's clock."""

    __slots__ = ("_chosen", "_expected")

    def __init__(self) -> None:
        self._expected: list[tuple[float, float, float]] = []
        self._chosen: dict[int, _Chosen] = {}

    def expect(self, work_s: float, begins: float, ends: float) -> None:
        """Count `work_s` from `begins` until `ends`."""
        self._expected.append((begins, ends, work_s))

    def asked(self, work_s: float, told_s: float, now: float, until: float) -> None:
        """Somebody was told of a queue of `told_s`, and may come with this work."""
        chosen = self._of(told_s)
        self.expect(work_s * min(1.0, SHY * chosen.came / chosen.asked), now, until)
        chosen.asked = MEMORY * chosen.asked + 1
        chosen.came *= MEMORY

    def came(self, told_s: float) -> None:
        """Somebody who was told of such a queue came."""
        self._of(told_s).came += 1

    def _of(self, told_s: float) -> _Chosen:
        size = 0 if told_s < LEAST_S else 1 + int(math.log2(told_s / LEAST_S))
        found = self._chosen.get(size)
        if found is None:
            found = self._chosen[size] = _Chosen()
        return found

    def seconds(self, now: float) -> float:
        """Of work, beside what is there already."""
        if not self._expected:
            return 0.0
        lasting, total_s = [], 0.0
        for one in self._expected:
            begins, ends, work_s = one
            if ends > now:
                lasting.append(one)
                if begins <= now:
                    total_s += work_s
        self._expected = lasting
        return total_s


class Shortfall:
    """One client's: a moving average of seconds, for each block of a step."""

    __slots__ = ("_mean_s",)

    def __init__(self) -> None:
        self._mean_s = 0.0

    def saw(self, planned_s: float, found_s: float, blocks: float) -> None:
        """A hop of so many blocks was planned and found so; all else in both is the same."""
        self._mean_s += SMOOTHING * ((found_s - planned_s) / blocks - self._mean_s)

    def block_s(self) -> float:
        """Never below nothing: that plans were worse than life is no reason to hurry."""
        return max(0.0, self._mean_s)
