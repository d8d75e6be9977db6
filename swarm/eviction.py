"""Which weights go when the disk's budget is full: what the swarm needs least.

    in use here             never
    held by many others     first: it is soonest had again, and least missed
    held by as many         what was used here the longest ago

algorithms.md 2: what is rare is worth keeping; least recently used breaks ties (as in BitTorrent
caches of the kind of Kubiatowicz et al., 2000). Nothing here waits or looks at a disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """One weight file on our disk. copies: how many others have it. used_s: when it was last
    opened here, unix seconds."""

    name: str
    size: int  # bytes that are here
    copies: int
    used_s: float
    in_use: bool = False


def to_evict(kept: Iterable[Kept], room: int, budget: float = math.inf) -> list[Kept] | None:
    """What has to go so that `room` more bytes fit into the budget; None when they never will."""
    there = list(kept)
    over = sum(one.size for one in there) + room - budget
    gone: list[Kept] = []
    for one in sorted(there, key=lambda one: (-one.copies, one.used_s, one.name)):
        if over <= 0:
            break
        if not one.in_use and one.size:
            gone.append(one)
            over -= one.size
    return gone if over <= 0 else None
