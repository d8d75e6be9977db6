"""What two peers have done for each other, signed by both.

A tally holds the sums since they met, in units of work, and names the one before it by its digest:
TrustChain's half blocks (Otte, de Vos and Pouwelse, 2020), one chain a pair. One of the two offers
it, the other accepts: only what both signed counts, so nobody can boast alone, and whoever is owed
has the last one and shows it. The sums grow and never fall; what was long ago fades at whoever
reads them (credit.py).

    offer     envelope of { low, high, ..., low_gave, high_gave, prev }     by one of the two
    tally     envelope of the offer                                         by the other

Two tallies of one place in a chain, both of the same boot of a peer, convict that peer: whoever
reads the signatures knows (testimony.py). Its boot here is a number from the clock that grows with
each signature of a pair, so that a peer whose disk was restored, or that offers twice because no
answer came, does not contradict itself. Two that are signed at once, each by a process of one of
the two, may have the same place; what counts of them is the larger of each sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Final

from ..crypto.codec import Range, Size, decode, encode
from ..crypto.digest import digest
from ..crypto.envelope import OVERHEAD_BYTES, Envelope, open_, sign
from ..crypto.keys import PUBLIC_BYTES, IdentityKey, peer_id_of, public_of
from ..crypto.merkle import Digest
from ..errors import RemoteError
from .schedule import URGENT_ROWS

EVERY_TOKENS: Final = 512  # algorithms.md 7: then a tally is due; a client that signs none has
EVERY_S: Final = 30.0  # had that much for nothing
OFFER_BYTES_MAX: Final = 512 + OVERHEAD_BYTES
TALLY_BYTES_MAX: Final = OFFER_BYTES_MAX + OVERHEAD_BYTES
PREFILL_WEIGHT, DECODE_WEIGHT, BACKWARD_WEIGHT = 1.0, 2.0, 3.0  # algorithms.md 7, of a token
BLOCK_WEIGHTS: Final = 12e-9  # billions of weights in a block, by its width squared
OFFER, TALLY = "tally offer", "tally"

Public = Annotated[bytes, Size(PUBLIC_BYTES, least=PUBLIC_BYTES)]
Work = Annotated[float, Range(0, 1e18)]  # tokens times billions of weights; twice, to decode
Counter = Annotated[int, Range(0, 2**32 - 1)]
FIRST: Final = bytes(32)  # the `prev` of a first tally


@dataclass(frozen=True, slots=True)
class Tally:
    """low and high: the two, in the order of their public keys. since: the root of the receipts
    (receipt.py) that this one adds; zeros when none were asked for."""

    low: Public
    high: Public
    seq: Counter
    prev: Digest
    low_boot: Counter
    high_boot: Counter
    low_gave: Work
    high_gave: Work
    at_s: Annotated[float, Range(0, 1e11)]
    since: Digest

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError("a tally is of two, the lower key first")

    @property
    def peers(self) -> tuple[str, str]:
        return peer_id_of(self.low), peer_id_of(self.high)

    @property
    def name(self) -> bytes:
        return digest("tally", encode(self))

    def gave(self, peer: str) -> float:
        """What this one of the two gave the other, in all."""
        return self.low_gave if self._is_low(peer) else self.high_gave

    def boot(self, peer: str) -> int:
        return self.low_boot if self._is_low(peer) else self.high_boot

    def _is_low(self, peer: str) -> bool:
        public = public_of(peer)
        assert public in (self.low, self.high)
        return public == self.low


def first_of(one: str, other: str) -> Tally:
    """Where a chain begins: nothing given, seq 0, never signed."""
    low, high = sorted((public_of(one), public_of(other)))
    return Tally(low, high, 0, FIRST, 0, 0, 0.0, 0.0, 0.0, FIRST)


def work_of(tokens: int, blocks: int, width: int) -> float:
    """What a step of so many tokens through these blocks counts. Both ends know all three."""
    weight = DECODE_WEIGHT if tokens <= URGENT_ROWS else PREFILL_WEIGHT
    return tokens * blocks * weight * BLOCK_WEIGHTS * width * width


def next_of(
    last: Tally,
    me: str,
    *,
    boot: int,
    gave: float,
    took: float,
    now: float,
    since: bytes,
    their_boot: int | None = None,
) -> Tally:
    """What `me` offers after `last`: so much more given and taken since. their_boot: of the one who
    is to accept it, as it told; by default that of `last`."""
    mine_low = last._is_low(me)
    more_low, more_high = (gave, took) if mine_low else (took, gave)
    if their_boot is None:
        their_boot = last.high_boot if mine_low else last.low_boot
    return replace(
        last,
        seq=last.seq + 1,
        prev=last.name if last.seq else FIRST,
        low_boot=boot if mine_low else their_boot,
        high_boot=their_boot if mine_low else boot,
        low_gave=last.low_gave + more_low,
        high_gave=last.high_gave + more_high,
        at_s=now,
        since=since,
    )


def offer(key: IdentityKey, tally: Tally) -> bytes:
    return sign(key, OFFER, encode(tally))


def read_offer(raw: bytes) -> tuple[str, Tally]:
    """(who offers, what). Raises RemoteError unless it is one of the two."""
    peer, body = open_(raw, OFFER, max_bytes=OFFER_BYTES_MAX)
    tally = decode(body, Tally)
    if peer not in tally.peers:
        raise RemoteError(f"an offer of {peer} for others")
    return peer, tally


def accept(key: IdentityKey, raw_offer: bytes) -> bytes:
    """The tally: another's offer, countersigned. The caller has checked what it says."""
    return sign(key, TALLY, raw_offer)


def read_tally(raw: bytes) -> Tally:
    """What both signed. Raises RemoteError otherwise."""
    accepted, raw_offer = open_(raw, TALLY, max_bytes=TALLY_BYTES_MAX)
    offered, tally = read_offer(raw_offer)
    if {accepted, offered} != set(tally.peers):
        raise RemoteError("a tally that one of the two did not sign")
    return tally


def tally_in(raw: bytes) -> Tally:
    """What it says; no signature is checked. Raises RemoteError."""
    raw_offer = decode(raw, Envelope, max_bytes=TALLY_BYTES_MAX).body
    return decode(decode(raw_offer, Envelope, max_bytes=OFFER_BYTES_MAX).body, Tally)


def follows(tally: Tally, last: Tally) -> bool:
    """Whether it is a next one of `last`: later, and no sum smaller."""
    return (
        (tally.low, tally.high) == (last.low, last.high)
        and tally.seq == last.seq + 1
        and tally.prev == (last.name if last.seq else FIRST)
        and tally.low_gave >= last.low_gave
        and tally.high_gave >= last.high_gave
        and tally.low_boot >= last.low_boot
        and tally.high_boot >= last.high_boot
    )


def contradiction(one: Tally, other: Tally) -> tuple[str, ...]:
    """Who is convicted by these two, which `read_tally` gave: whoever of the two signed both in
    the same boot, at the same place, and not the same."""
    if (one.low, one.high, one.seq) != (other.low, other.high, other.seq) or one == other:
        return ()
    return tuple(peer for peer in one.peers if one.boot(peer) == other.boot(peer))
