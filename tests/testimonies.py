"""Signed records, chunks and accusations to test with."""

from __future__ import annotations

from dht_swarm import announcement
from receipts import opening

from potluck.crypto.codec import encode
from potluck.crypto.digest import digest
from potluck.crypto.envelope import sign
from potluck.crypto.keys import IdentityKey
from potluck.dht.record import Record, sign_fact
from potluck.swarm.receipt import CHUNK, OPENING, Chunk
from potluck.swarm.testimony import Accusation

NOW = 1_790_000_000.0
MODEL = "ab" * 32


def announced(
    key: IdentityKey, *, boot: int = 7, seq: int = 1, stop: int = 8, model: str = MODEL,
    now: float = NOW,
) -> Record:  # fmt: skip
    fact = announcement(key.peer_id, model=model, stop=stop)
    return sign_fact(key, fact, boot=boot, seq=seq, now=now)


def chunk(key: IdentityKey, *, prev: bytes = b"prev", gave: bytes = b"gave") -> bytes:
    told = Chunk(digest("t", prev), 0, 32, 32, digest("t", b"took"), digest("t", gave))
    return sign(key, CHUNK, encode(told))


def accusation(accused: IdentityKey, *, now: float = NOW, gave: bytes = b"gave") -> Accusation:
    return Accusation(
        accused=accused.peer_id, opening=sign(accused, OPENING, encode(opening(0, 2))),
        chunk=chunk(accused, gave=gave), inputs=digest("t", b"inputs"), error=0.12, issued_s=now,
    )  # fmt: skip
