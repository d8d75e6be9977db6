"""How much each peer may ask of us: a token bucket for each, and none for whoever asks little."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

PEERS_REMEMBERED: Final = 4096  # so that a peer does not renew its allowance by coming anew


@dataclass(slots=True)
class Allowance:
    """A token bucket: `rate_s` a second, `burst` at once."""

    rate_s: float
    burst: float
    left: float
    at_s: float

    @property
    def full_s(self) -> float:
        """When it will be full again, if nothing more is taken."""
        return self.at_s + (self.burst - self.left) / self.rate_s

    def take(self, now: float, count: float = 1.0) -> float:
        """Take some; how many seconds to wait before using them."""
        self._fill(now)
        self.left -= count
        return max(0.0, -self.left / self.rate_s)

    def has(self, now: float, count: float = 1.0) -> bool:
        """Take some, if there are so many."""
        if not self.holds(now, count):
            return False
        self.left -= count
        return True

    def holds(self, now: float, count: float = 1.0) -> bool:
        """Whether there are so many."""
        self._fill(now)
        return self.left >= count

    def _fill(self, now: float) -> None:
        self.left = min(self.burst, self.left + (now - self.at_s) * self.rate_s)
        self.at_s = now


def allowance(rate_s: float, burst: float, now: float) -> Allowance:
    """A full one."""
    return Allowance(rate_s, burst, burst, now)


class Intake:
    """What is taken in unasked, of each peer and of all together: (a second, at once) of either."""

    def __init__(self, each: tuple[float, float], together: tuple[float, float]) -> None:
        self._each = Allowances(*each)
        self._together = Allowances(*together)

    def takes(self, peer: str, now: float) -> bool:
        """Whether one more of this peer is taken in; what is too much of it costs nobody else."""
        return self._each.of(peer, now).has(now) and self._together.of("", now).has(now)


class Allowances:
    """One for each peer that has asked of late."""

    def __init__(self, rate_s: float, burst: float) -> None:
        self._rate_s = rate_s
        self._burst = burst
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()

    def __len__(self) -> int:
        return len(self._allowances)

    def of(self, peer: str, now: float) -> Allowance:
        while self._allowances:  # a bucket that is full again remembers nothing
            oldest = next(iter(self._allowances))
            if self._allowances[oldest].full_s > now:
                break
            del self._allowances[oldest]
        found = self._allowances.pop(peer, None)
        if found is None:
            found = allowance(self._rate_s, self._burst, now)
            while len(self._allowances) >= PEERS_REMEMBERED:
                self._allowances.popitem(last=False)
        self._allowances[peer] = found
        return found
