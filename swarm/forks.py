"""Tallies that peers have shown, so that two which contradict each other are found.

A pair's chain has one tally for each place (tally.py). Whoever signed two, under one boot, has told
two stories of the same work: what it showed to one is held against what it shows to another. Here
are the newest few of each pair, of the pairs that were shown last.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from .tally import Tally
from .testimony import Contradiction, forks_of

PAIRS_MAX: Final = 2048  # 2.3 MB
PLACES_MAX: Final = 2  # of a pair: a head, and the one that it follows


class Shown:
    """One for a node. `hear` each tally that was read: its signatures are good."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, bytes], dict[int, bytes]] = OrderedDict()

    def hear(self, raw: bytes, tally: Tally) -> list[Contradiction]:
        """What it proves beside the one that was shown for its place; no more of it is kept."""
        pair = tally.low, tally.high
        places = self._kept.pop(pair, {})
        self._kept[pair] = places
        if len(self._kept) > PAIRS_MAX:
            self._kept.popitem(last=False)
        known = places.setdefault(tally.seq, raw)
        if len(places) > PLACES_MAX:
            del places[min(places)]
        return forks_of(known, raw) if known != raw else []
