"""Which blocks a peer fetches to its disk before anybody asks it to serve them.

What a move costs is mostly fetching: weights of a GiB over a home's road. A peer that serves has
road and disk to spare, so it fetches on beside its work, a span at a time:

    the run of a peer      from a block that its name gives, onwards, and from the last to the first
    so much of it          a span each AHEAD_EVERY_S of its age, up to AHEAD_SPANS spans

Both follow from what its signed record says, so that all who elect movers (placement.py) know
without being told what lies at hand on whose disk: where each of 24 candidates has a fourth of the
blocks, one of them has what is needed but once in a thousand times. Who is behind its schedule, or
has no disk to spare, moves as slowly as it must: nobody else is harmed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..crypto.digest import digest

AHEAD_EVERY_S = 300.0  # guess: a third of the road, where a span takes 105 s to fetch
AHEAD_SPANS = 8  # sim (`stages`): 4 cost .003 of the flow
READY_S = 15.0  # guess: to load and check what lies on the disk


def spans_ahead(age_s: float) -> int:
    """So many spans a peer of this age has fetched beside its own."""
    return max(0, min(AHEAD_SPANS, int(age_s / AHEAD_EVERY_S)))


def blocks_ahead(peer: str, total: int, count: int) -> list[int]:
    """The first `count` blocks that this peer fetches, in their order; none comes twice."""
    start = int.from_bytes(digest("ahead", peer.encode())[:8]) % total
    return [(start + step) % total for step in range(min(count, total))]


def at_hand(peer: str, total: int, length: int, age_s: float) -> NDArray[np.bool_]:
    """Of each block whether a peer of `length` blocks should have fetched it by this age."""
    found = np.zeros(total, dtype=np.bool_)
    found[blocks_ahead(peer, total, spans_ahead(age_s) * length)] = True
    return found


def is_ready(peer: str, total: int, length: int, age_s: float) -> NDArray[np.bool_]:
    """Of each window of `length` blocks, by its start, whether all of it should be at hand."""
    found = np.concatenate([[0], np.cumsum(at_hand(peer, total, length, age_s))])
    ready: NDArray[np.bool_] = found[length:] - found[:-length] == length
    return ready
