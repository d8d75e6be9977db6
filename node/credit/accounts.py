"""What a home gave and took, peer by peer, and what is owed: read from its disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...swarm.credit import Credit
from ..identity import load_if_any
from .tallies import FILE, open_tallies


@dataclass(frozen=True, slots=True)
class Account:
    """One peer and this home. owed: what we gave it beyond what it gave us; faded, as credit is."""

    peer: str
    gave: float
    took: float
    owed: float
    last_s: float


def read_accounts(home: Path, now: float) -> tuple[str, list[Account]] | None:
    """(who this home is, its accounts, those most is owed of first); None when no node has run
    there. Blocks. Raises UserError."""
    key = load_if_any(home)
    if key is None:
        return None
    me = key.peer_id
    if not (home / FILE).exists():
        return me, []
    tallies = open_tallies(home, me)
    reckoned = Credit(me, now, tallies.book())
    accounts = []
    for tally in tallies.sums()[0]:
        reckoned.settle(tally, now)
        (peer,) = set(tally.peers) - {me}
        took, gave = reckoned.owed(peer, now)
        accounts.append(Account(peer, tally.gave(me), tally.gave(peer), gave - took, tally.at_s))
    return me, sorted(accounts, key=lambda one: (-one.owed, one.peer))


def sums(accounts: Sequence[Account]) -> tuple[float, float, float]:
    """Given, taken, owed: of all."""
    return (
        sum(one.gave for one in accounts),
        sum(one.took for one in accounts),
        sum(one.owed for one in accounts),
    )
