"""A modest price on a new identity: a number that was searched for, good for a month.

Hashcash (Back, 2002), double SHA-256, as S/Kademlia's (Baumgart and Mies, 2007) dynamic puzzle:

    SHA256(SHA256("potluck work\\0" | public key | epoch | nonce))   begins with BITS zero bits

It makes ten thousand identities cost hours instead of seconds, and no more: who trusts a peer
because of its work trusts anybody with a graphics card. What holds Sybils back are the limits per
network and that nothing unaudited counts. The work is renewed each epoch, so that a stock of
identities has to be paid for again. Nothing here reads a clock: `now` is unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final

from ..errors import RemoteError
from .codec import Range, Size
from .keys import PUBLIC_BYTES

BITS: Final = 22  # algorithms 3.5: about 4 million hashes, a few seconds
EPOCH_S: Final = 30 * 86_400  # a month, of one length for everybody
GRACE_S: Final = 3 * 86_400  # a new epoch's work may come so early, an old one's so late

NONCE_BYTES: Final = 8
_CONTEXT: Final = b"potluck work\0"


@dataclass(frozen=True, slots=True)
class Work:
    """What a peer shows: which epoch it worked for, and the nonce that it found."""

    epoch: Annotated[int, Range(0, 2**32 - 1)]
    nonce: Annotated[bytes, Size(NONCE_BYTES, least=NONCE_BYTES)]


def epoch_at(now: float) -> int:
    return int(now // EPOCH_S)


def next_epoch_s(now: float) -> float:
    """When the work of `now` will be a month old; it is good for GRACE_S more."""
    return float((epoch_at(now) + 1) * EPOCH_S)


def search(
    public: bytes, epoch: int, *, first: int, tries: int, bits: int = BITS
) -> tuple[Work | None, int]:
    """(the work, if it is among the next `tries` nonces from `first` on; the nonce to go on from).

    Bounded, so that the caller may do it in slices, and stop.
    """
    begun = sha256(_head(public, epoch))
    limit = 1 << (256 - bits)
    for number in range(first, first + tries):
        nonce = (number % 2 ** (8 * NONCE_BYTES)).to_bytes(NONCE_BYTES)
        once = begun.copy()
        once.update(nonce)
        if int.from_bytes(sha256(once.digest()).digest()) < limit:
            return Work(epoch, nonce), number + 1
    return None, first + tries


def check_work(work: Work, public: bytes, now: float, *, bits: int = BITS) -> None:
    """Raises RemoteError unless `public` did this work, and for an epoch that is not over."""
    begins_s, ends_s = work.epoch * EPOCH_S, (work.epoch + 1) * EPOCH_S
    if not begins_s - GRACE_S <= now < ends_s + GRACE_S:
        raise RemoteError(f"work of epoch {work.epoch}, in epoch {epoch_at(now)}")
    found = sha256(sha256(_head(public, work.epoch) + work.nonce).digest()).digest()
    if int.from_bytes(found) >> (256 - bits):
        raise RemoteError(f"work whose hash does not begin with {bits} zero bits")


def _head(public: bytes, epoch: int) -> bytes:
    assert len(public) == PUBLIC_BYTES, len(public)
    return _CONTEXT + public + epoch.to_bytes(4)
