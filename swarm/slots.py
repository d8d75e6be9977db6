"""The view of BASALT: so many slots, each of which keeps the one peer that its own dice like best.

A slot has a secret seed, and ranks every peer by hashes with it: of the widest network first, then
the narrower ones, then of the id (Auvolat, Bromberg, Frey, Mvondo and Taïani, "BASALT", 2023; the
ranking by prefix is theirs too). It keeps the least it has ever been offered. So what a slot keeps
is one draw, uniform over the networks that exist, and neither how often a peer is offered nor who
offers it makes any difference: a flood cannot push what an honest peer once brought.

    rank(slot, peer) = mix(seed ^ /8), mix(seed ^ /16), mix(seed ^ /24), mix(seed ^ id)   least wins

A key of a peer is four numbers of 64 bits, from BLAKE2b, public; the seeds are nobody's business.
For one key and a random seed `mix` (splitmix64's finalizer, a bijection) is uniform, so a key that
was ground for does no better than another against seeds that are not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..crypto.digest import digest
from ..dht.network import Prefixes

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]

LEVELS: Final = 4
EMPTY: Final = -1
_WORST: Final = np.uint64(2**64 - 1)
_LEVEL: Final = tuple(np.uint64((0x9E3779B97F4A7C15 * (level + 1)) % 2**64) for level in range(4))
_ROUNDS: Final = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def key_of(peer: str, prefixes: Prefixes) -> tuple[int, int, int, int]:
    """What the ranks of a peer are made of."""
    wide, middle, narrow = (_number("potluck network", text) for text in prefixes)
    return wide, middle, narrow, _number("potluck sampled", peer)


def keys_of(keys: Sequence[tuple[int, int, int, int]]) -> Hashes:
    """(peers, LEVELS)"""
    return np.array(keys, dtype=np.uint64).reshape(-1, LEVELS)


def ranks(seeds: Hashes, keys: Hashes) -> Hashes:
    """(slots, LEVELS): row i ranks keys[i] by seeds[i]. The least row, from the left, wins."""
    return np.stack(
        [_mix(seeds ^ _LEVEL[level] ^ keys[:, level]) for level in range(LEVELS)], axis=1
    )


class Slots:
    """Seeds, and what each has kept: the number that its owner gives a peer, or EMPTY."""

    def __init__(self, seeds: Hashes) -> None:
        count = len(seeds)
        self.seeds = seeds.copy()
        self.kept: Ints = np.full(count, EMPTY, dtype=np.int64)
        self.hits: Ints = np.zeros(count, dtype=np.int64)  # how often it was chosen as a contact
        self._ranks: Hashes = np.full((count, LEVELS), _WORST, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self.seeds)

    def offer(self, names: Ints, keys: Hashes, slots: Ints | None = None) -> Ints:
        """Take in peers, by the owner's numbers and their keys; the slots that they have won.

        slots: the only ones to be asked; None for all.
        """
        asked = np.arange(len(self.seeds)) if slots is None else slots
        if not len(names) or not len(asked):
            return asked[:0]
        best = _best(self.seeds[asked], keys)
        new = ranks(self.seeds[asked], keys[best])
        won = _less(new, self._ranks[asked])
        winners = asked[won]
        self.kept[winners] = names[best[won]]
        self._ranks[winners] = new[won]
        self.hits[winners] = 0
        return winners

    def reseed(self, slot: int, seed: int) -> int:
        """A new draw in this slot, from nothing; who was there, or EMPTY."""
        before = int(self.kept[slot])
        self.seeds[slot] = seed
        self._clear(np.array([slot]))
        return before

    def drop(self, name: int) -> Ints:
        """Forget this peer wherever it is; the slots that are empty now."""
        held = np.flatnonzero(self.kept == name)
        self._clear(held)
        return held

    def choose(self) -> int | None:
        """The slot whose peer is to be spoken to next: the one that was chosen least often."""
        filled = np.flatnonzero(self.kept != EMPTY)
        if not len(filled):
            return None
        slot = int(filled[np.argmin(self.hits[filled])])
        self.hits[slot] += 1
        return slot

    def _clear(self, slots: Ints) -> None:
        self.kept[slots], self.hits[slots], self._ranks[slots] = EMPTY, 0, _WORST


def _best(seeds: Hashes, keys: Hashes) -> Ints:
    """For each seed, the index of the key that it ranks least."""
    wide, group = np.unique(keys[:, 0], return_inverse=True)
    members = np.argsort(group, kind="stable")  # by widest network
    sizes = np.bincount(group)
    chosen = _mix((seeds ^ _LEVEL[0])[:, None] ^ wide[None, :]).argmin(axis=1)
    rows = np.repeat(np.arange(len(seeds)), sizes[chosen])
    first = np.cumsum(sizes[chosen]) - sizes[chosen]
    within = np.arange(len(rows)) - first[rows]
    columns: Ints = members[(np.cumsum(sizes) - sizes)[chosen][rows] + within]
    for level in range(1, LEVELS):  # among the peers of the best network alone
        begins = np.flatnonzero(np.diff(rows, prepend=-1))
        if len(begins) == len(rows):
            break
        ranked = _mix(seeds[rows] ^ _LEVEL[level] ^ keys[columns, level])
        least = np.minimum.reduceat(ranked, begins)
        stay = ranked == np.repeat(least, np.diff(begins, append=len(rows)))
        rows, columns = rows[stay], columns[stay]
    return columns[np.flatnonzero(np.diff(rows, prepend=-1))]  # a peer given twice wins once


def _less(one: Hashes, other: Hashes) -> NDArray[np.bool_]:
    """Row by row, whether `one` comes before `other`."""
    differs = one != other
    level = differs.argmax(axis=1)[:, None]
    lesser = np.take_along_axis(one, level, 1) < np.take_along_axis(other, level, 1)
    won: NDArray[np.bool_] = lesser[:, 0]
    return won


def _mix(number: Hashes) -> Hashes:
    """splitmix64's finalizer (Steele, Lea and Flood, 2014); of an array that nobody else needs."""
    for shift, odd in _ROUNDS:
        number ^= number >> shift
        number *= odd
    number ^= number >> np.uint64(31)
    return number


def _number(domain: str, text: str) -> int:
    return int.from_bytes(digest(domain, text.encode())[:8])
