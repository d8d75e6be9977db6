"""Signed records, chunks and accusations to test with."""

from __future__ import annotations

from receipts import opening

from potluck.crypto.codec import encode
from potluck.crypto.digest import digest
from potluck.crypto.envelope import sign
from potluck.crypto.keys import IdentityKey
from potluck.dht.record import Announcement, Record, sign_fact
from potluck.swarm.receipt import CHUNK, OPENING, Chunk
from potluck.swarm.testimony import Accusation

NOW = 1_790_000_000.0
MODEL = "ab" * 32


def announced(
    key: IdentityKey, *, boot: int = 7, seq: int = 1, stop: int = 8, model: str = MODEL,
    now: float = NOW,
) -> Record:  # fmt: skip
    fact = Announcement(
        model=model, name="org/name", start=0, stop=stop, blocks=16, state="online", device="cpu",
        dtype="float32", quantization="none", decode_tokens_s=900.0, prefill_tokens_s=9000.0,
        addresses=(f"/ip4/192.0.2.7/tcp/4001/p2p/{key.peer_id}",), cache_tokens_free=8192,
        context_tokens_max=2048, numerics="none", version="0.1.0",
    )  # fmt: skip
    return sign_fact(key, fact, boot=boot, seq=seq, now=now)


def chunk(key: IdentityKey, *, prev: bytes = b"prev", gave: bytes = b"gave") -> bytes:
    told = Chunk(digest("t", prev), 0, 32, 32, digest("t", b"took"), digest("t", gave))
    return sign(key, CHUNK, encode(told))


def accusation(accused: IdentityKey, *, now: float = NOW, gave: bytes = b"gave") -> Accusation:
    return Accusation(
        accused=accused.peer_id, opening=sign(accused, OPENING, encode(opening(0, 2))),
        chunk=chunk(accused, gave=gave), inputs=digest("t", b"inputs"), error=0.12, issued_s=now,
    )  # fmt: skip
