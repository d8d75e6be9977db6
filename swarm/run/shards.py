"""Which sequences a peer trains on, so that anybody can say it again.

    sequences 0..n ── permuted by the seed ──▶ │ held out │ for training ......... │
    training ── permuted by (run, epoch, peer) ──▶ step 0 │ step 1 │ step 2 ...

A batch follows from (run, epoch, peer, step) alone: a validator recomputes it without the peer, and
nobody chooses what it trains on (algorithms.md 5; BTARD's public seeds). Within an epoch a peer
sees no sequence twice before it has seen all; peers draw independently of each other.

A permutation is four rounds of a Feistel network with BLAKE2b, walked until it falls within the
range: any one place of it costs the same, however many sequences there are. Source: Luby and
Rackoff, 1988; Black and Rogaway, 2002 (cycle walking).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...crypto.digest import digest

ROUNDS: Final = 4
_HALF_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Split:
    """Of `count` sequences, the first `held` places of their permutation by `key` are held out."""

    key: bytes
    count: int
    held: int

    @classmethod
    def of(cls, count: int, share: float, seed: int) -> Split:
        """At least one is held out where any share is, and one is left to train on."""
        held = min(max(round(share * count), 1 if share > 0 else 0), count - 1)
        return cls(digest("run split", seed.to_bytes(8)), count, held)

    @property
    def training(self) -> int:
        """How many there are to train on."""
        return self.count - self.held

    def held_out(self, most: int) -> tuple[int, ...]:
        """The first so many of those that are held out."""
        return tuple(permuted(self.key, place, self.count) for place in range(min(most, self.held)))

    def judging(self) -> tuple[int, ...]:
        """Those that are held out to judge others by: the last half, from which no loss that is
        told is made (`scored`). The same one where there is one."""
        first = self.scored if self.held > 1 else 0
        return tuple(permuted(self.key, place, self.count) for place in range(first, self.held))

    @property
    def scored(self) -> int:
        """How many of those that are held out a loss may be told of: they come first."""
        return -(-self.held // 2)

    def batch(self, run: bytes, epoch: int, peer: str, step: int, *, size: int) -> tuple[int, ...]:
        """The sequences of a step: what the peer has to train on then."""
        found = []
        for place in range(step * size, (step + 1) * size):
            turn, at = divmod(place, self.training)
            drawn = permuted(shard_key(run, epoch, peer, turn), at, self.training)
            found.append(permuted(self.key, self.held + drawn, self.count))
        return tuple(found)


def shard_key(run: bytes, epoch: int, peer: str, turn: int) -> bytes:
    """Of the order in which a peer goes through all sequences, for the `turn`-th time."""
    return digest("run shard", run, epoch.to_bytes(8), turn.to_bytes(8), peer.encode())


def permuted(key: bytes, place: int, count: int) -> int:
    """Where this place of 0..count goes: each of them once."""
    if not 0 <= place < count:
        raise ValueError(f"place {place} of {count}")
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    while True:
        place = _mixed(key, place, half)
        if place < count:
            return place


def _mixed(key: bytes, place: int, half: int) -> int:
    mask = (1 << half) - 1
    left, right = place >> half, place & mask
    for turn in range(ROUNDS):
        drawn = digest("run shuffle", key, bytes((turn,)), right.to_bytes(_HALF_BYTES))
        left, right = right, left ^ (int.from_bytes(drawn[:_HALF_BYTES]) & mask)
    return left << half | right
