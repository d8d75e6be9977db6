"""Forks of tallies and of receipts that prove nothing: a part of the flood (false_flood.py)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from potluck.crypto.codec import encode
from potluck.crypto.digest import digest
from potluck.crypto.envelope import sign
from potluck.dht.record import DOMAIN
from potluck.node.testnet.mischief import false_tallies
from potluck.swarm.receipt import CHUNK, Chunk
from potluck.swarm.tally import accept, first_of, next_of, offer
from potluck.swarm.testimony import TALLIES, contradiction_of, forks_of

from .evidence_sim import NOW, key_of
from .forgery import altered


class Forks:
    """What two liars might really be convicted by, and never shown as it is; and what the same two
    signed that fits together. true: the bytes of what convicts."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self._one, self._other = key_of(3000), key_of(3001)
        self._forked = false_tallies(self._one, self._other, NOW)
        receipts = (self._receipt(b"opening", b"rows"), self._receipt(b"opening", b"others"))
        self._proofs = [
            *(encode(fork) for fork in forks_of(*self._forked)),
            encode(contradiction_of(CHUNK, *receipts)),
        ]
        self._receipts = (receipts[0], self._receipt(b"rows", b"others"))
        *self._chain, self._half = self._tallies()
        self.true = frozenset(self._proofs)

    def kinds(self) -> list[tuple[str, Callable[[], bytes]]]:
        return [
            ("fuzzed fork: a bit", lambda: altered(self._dice.choice(self._proofs), self._dice)),
            ("fork of tallies that follow each other", lambda: self._fork(*self._chain)),
            ("fork of one tally and itself", lambda: self._fork(self._chain[0], self._chain[0])),
            ("fork of half a tally", lambda: self._fork(self._chain[0], self._half)),
            ("fork of tallies called records", lambda: self._called(DOMAIN, *self._forked)),
            ("fork of tallies called receipts", lambda: self._called(CHUNK, *self._forked)),
            ("fork of receipts that follow", lambda: self._called(CHUNK, *self._receipts)),
            ("fork of receipts called records", lambda: self._called(DOMAIN, *self._receipts)),
        ]

    def _fork(self, one: bytes, other: bytes) -> bytes:
        return self._called(self._dice.choice(TALLIES), one, other)

    def _called(self, domain: str, one: bytes, other: bytes) -> bytes:
        return encode(contradiction_of(domain, one, other))

    def _receipt(self, prev: bytes, gave: bytes) -> bytes:
        told = Chunk(digest("sim", prev), 0, 32, 32, digest("sim", b"took"), digest("sim", gave))
        return sign(self._one, CHUNK, encode(told))

    def _tallies(self) -> tuple[bytes, bytes, bytes]:
        """Two of one chain, as honest peers sign them; and the second before it was accepted."""
        me = self._one.peer_id
        first = next_of(
            first_of(me, self._other.peer_id), me,
            boot=5, their_boot=5, gave=1.0, took=0.0, now=NOW, since=bytes(32),
        )  # fmt: skip
        second = next_of(
            first, me, boot=6, their_boot=6, gave=1.0, took=0.0, now=NOW, since=bytes(32)
        )
        offered = [offer(self._one, tally) for tally in (first, second)]
        return accept(self._other, offered[0]), accept(self._other, offered[1]), offered[1]
