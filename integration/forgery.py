"""Records that nobody may believe, and answers that no directory gives.

Each forgery is named by what is wrong with it. Those that a peer signs itself carry the device
`forged`, so that a reader that took one can be told from one that took an honest record.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from potluck.crypto.codec import encode
from potluck.crypto.envelope import Envelope, sign
from potluck.crypto.keys import IdentityKey
from potluck.dht import message as directory
from potluck.dht.keyspace import MODELS
from potluck.dht.record import DOMAIN, TTL_MAX_S, Announcement, Signed

MARK = "forged"
YEAR_S = 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Forgery:
    """A record's bytes, and why they are not to be taken."""

    kind: str
    raw: bytes


def announcement(model: str, peer: str, *, device: str = MARK) -> Announcement:
    """What a peer might say of itself."""
    return Announcement(
        model=model, name="records", start=0, stop=8, blocks=8, state="online", device=device,
        dtype="float32", quantization="none", decode_tokens_s=1e9, prefill_tokens_s=1e9,
        addresses=(f"/ip4/127.0.0.1/tcp/9/p2p/{peer}",), cache_tokens_free=1 << 40,
        context_tokens_max=2048, numerics="", version="0",
    )  # fmt: skip


def stamped(
    fact: Announcement, *, now: float, ttl_s: float = TTL_MAX_S, boot: int = 1, seq: int = 1,
    place: bytes | None = None,
) -> bytes:  # fmt: skip
    """What a signature covers: as dht/record.py makes it, without its care."""
    where = fact.place() if place is None else place
    return encode(Signed(fact.KIND, where, boot, seq, now, now + ttl_s, encode(fact)))


def forged_records(
    dice: random.Random, key: IdentityKey, model: str, *, now: float
) -> list[Forgery]:
    """One of each kind that needs no honest record, by the owner of `key`."""
    victim = IdentityKey.from_bytes(dice.randbytes(32))
    mine, theirs = announcement(model, key.peer_id), announcement(model, victim.peer_id)
    seq = dice.randrange(1 << 32)

    def signed(fact: Announcement, **changes: float) -> bytes:
        return sign(key, DOMAIN, stamped(fact, **({"now": now, "seq": seq} | changes)))  # type: ignore[arg-type]

    body, moved = stamped(theirs, now=now), stamped(mine, now=now, place=MODELS)
    shown = encode(Envelope(body, victim.public, key.sign(body)))
    return [
        Forgery("forged: another's key shown", shown),
        Forgery("forged: another's domain", sign(key, "receipt", stamped(mine, now=now))),
        Forgery("forged: no signature", encode(Envelope(body, victim.public, bytes(64)))),
        Forgery("forged: put by another", sign(victim, DOMAIN, body)),
        Forgery("forged: moved to another place", sign(key, DOMAIN, moved)),
        Forgery("forged: another's addresses", signed(theirs)),
        Forgery("far ahead: lives a year", signed(mine, ttl_s=YEAR_S)),
        Forgery("far ahead: lives 100 s", signed(mine, ttl_s=100.0)),
        Forgery("far ahead: issued in a year", signed(mine, now=now + YEAR_S)),
        Forgery("far ahead: issued in 45 s", signed(mine, now=now + 45.0)),
        Forgery("expired", signed(mine, now=now - 2 * TTL_MAX_S)),
        Forgery("never valid", signed(mine, ttl_s=-1.0)),
    ]  # fmt: skip


def altered(raw: bytes, dice: random.Random) -> bytes:
    """An honest record with one bit turned."""
    out = bytearray(raw)
    out[dice.randrange(len(out))] ^= 1 << dice.randrange(8)
    return bytes(out)


def junk_reply(dice: random.Random) -> bytes:
    """A reply to nothing in particular: lies, lures and noise."""
    stranger = IdentityKey.from_bytes(dice.randbytes(32)).peer_id
    lure = directory.Contact(stranger, (f"/ip4/127.0.0.1/tcp/1/p2p/{stranger}",))
    number = dice.randrange(8)
    match dice.randrange(5):
        case 0:
            return dice.randbytes(dice.randrange(1, 500))
        case 1:
            return directory.to_frame(directory.Found(number, (lure,) * 20, ()))
        case 2:
            return directory.to_frame(directory.Found(number, (), (dice.randbytes(200),)))
        case 3:
            return (1 << 31).to_bytes(4) + bytes(64)
        case _:
            return directory.to_frame(directory.Kept(number, (True,)))
