"""How long an answer usually takes, and so how long to wait before asking somebody else as well.

The smoothed mean and deviation of TCP's timer (Jacobson, 1988; RFC 6298). Too little patience costs
a question more, too much costs time when a peer is dead: so one deviation less than TCP's four.
"""

from typing import Final

PATIENCE_MIN_S: Final = 0.05
PATIENCE_MAX_S: Final = 0.4  # a round trip across the world
DEVIATIONS: Final = 3.0


class Pace:
    """An estimate over all peers; knows nothing at first, and then is patient."""

    def __init__(self) -> None:
        self._mean_s: float | None = None
        self._deviation_s = 0.0

    def took(self, seconds: float) -> None:
        if self._mean_s is None:
            self._mean_s, self._deviation_s = seconds, seconds / 2
            return
        self._deviation_s += (abs(seconds - self._mean_s) - self._deviation_s) / 4
        self._mean_s += (seconds - self._mean_s) / 8

    def patience_s(self) -> float:
        if self._mean_s is None:
            return PATIENCE_MAX_S
        usual = self._mean_s + DEVIATIONS * self._deviation_s
        return min(max(usual, PATIENCE_MIN_S), PATIENCE_MAX_S)
