"""Whose place a newcomer gets when all are taken. Nothing here waits.

Whoever holds every place with a silent stream would keep all others out. So one connection leaves,
by an order that an attacker pays for (after Bitcoin Core's SelectNodeToEvict, which likewise asks
what cannot be faked, and then looks for the crowd):

    kept (reservations), used (a stream of ours is on it)    never leave
    no stream for a while                                    the idlest
    streams, but no payload for a while                      the newest of the most crowded network
    busy, and one network of many places                     its newest, unless the newcomer's too
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

IDLE_TICKS: Final = 20  # the grace period of go-libp2p for connections that are not used
QUIET_TICKS: Final = 20  # guess: a session that computes moves more often
CROWD: Final = 16  # guess: connections of one network, none of which is worth a stranger's place


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one connection. idle, quiet: seconds without a stream, without payload."""

    network: str
    since: float
    idle_ticks: int
    quiet_ticks: int
    has_streams: bool
    stays: bool = False  # kept, or used by us


def least_worth(all_: Sequence[Standing], newcomer: str) -> int | None:
    """Which connection is to leave for one from `newcomer`'s network; None: the newcomer is."""
    free = [at for at, one in enumerate(all_) if not one.stays]
    idle = [at for at in free if not all_[at].has_streams and all_[at].idle_ticks >= IDLE_TICKS]
    if idle:
        return max(idle, key=lambda at: all_[at].idle_ticks)
    quiet = [at for at in free if all_[at].quiet_ticks >= QUIET_TICKS]
    if quiet:
        return _newest_of_crowd(all_, quiet)
    found = _newest_of_crowd(all_, free) if free else None
    if found is None:
        return None
    network = all_[found].network
    crowd = sum(one.network == network for one in all_)
    return found if crowd > CROWD and network != newcomer else None


def _newest_of_crowd(all_: Sequence[Standing], among: Sequence[int]) -> int:
    crowds = Counter(one.network for one in all_)
    return max(among, key=lambda at: (crowds[all_[at].network], all_[at].since))
