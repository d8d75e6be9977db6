"""How much is asked of a model, from what its servers say that they served lately.

A server counts the tokens that went through it; what it announces is a moving average of their rate
(half of it is of the last minute). A stage sees every token of the sessions that go through it, so
what is asked of the whole model is, over all servers, the mean of their rates by blocks:

    offered = sum(rate * blocks served) / blocks of the model

A claim is believed up to what so fast a server could do with full batches: whoever claims more
would draw newcomers to a model that nobody wants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .placement import Demand, Holding

HALF_S: Final = 60.0  # guess: two refreshes of a record
BATCH_GAIN: Final = 16.0  # guess: a batch of sixteen does not do more than sixteen times one's work


class Asked:
    """The moving average of a count's rate. `now` is any clock that only goes on."""

    def __init__(self, now: float) -> None:
        self._at_s = now
        self._count = 0
        self._rate = 0.0

    def rate(self, count: int, now: float) -> float:
        """A second, now that the count is so high."""
        age_s = now - self._at_s
        if age_s > 0:
            fresh = (count - self._count) / age_s
            self._rate += (fresh - self._rate) * (1 - math.exp2(-age_s / HALF_S))
            self._at_s, self._count = now, count
        return self._rate


@dataclass(frozen=True, slots=True)
class Served:
    """One server's claim: tokens a second that went through it."""

    holding: Holding
    asked: float


def demand_of(model: str, total: int, served: Sequence[Served]) -> Demand:
    """What is asked of a model of `total` blocks, and who serves it."""
    offered = sum(
        min(one.asked, BATCH_GAIN * one.holding.share()) * len(one.holding.blocks) / total
        for one in served
    )
    return Demand(model, total, tuple(one.holding for one in served), offered)
