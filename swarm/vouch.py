"""What one peer says for another: that it vouches for it until then, or no longer does.

A statement of who signs it, about one other peer; it runs out by itself, and the newest word of a
pair counts, so that what was taken back is not brought back by showing it again. Whoever has a
statement may pass it on; whoever wants to know asks for the words of peers that it names, and takes
no others: so nobody can fill its memory. What a vouch is worth is said in vouching.py.

    Vouch { peer, issued_s, expires_s, revoked }      signed in the domain "vouch"
    Ask(of) ──▶ ◀── Told(vouches)                     under /potluck/vouch/1, a letter each
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from ..crypto.codec import Range, Size, decode, encode
from ..crypto.envelope import OVERHEAD_BYTES, open_, sign
from ..crypto.keys import PEER_ID_CHARS, IdentityKey
from ..dht.record import SKEW_MAX_S
from ..errors import RemoteError

DOMAIN: Final = "vouch"
PROTOCOL: Final = "/potluck/vouch/1"
DAY_S: Final = 86_400.0
LIFE_MAX_S: Final = 90 * DAY_S  # guess: who is not vouched for anew each season is not known well
VOUCH_BYTES_MAX: Final = 160 + OVERHEAD_BYTES
ASKED_MAX: Final = 8  # vouchers in a question
TOLD_MAX: Final = 256  # statements in an answer: 32 of each
LETTER_BYTES_MAX: Final = TOLD_MAX * (VOUCH_BYTES_MAX + 4) + 64

Peer = Annotated[str, Size(PEER_ID_CHARS, least=PEER_ID_CHARS)]
Raw = Annotated[bytes, Size(VOUCH_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Vouch:
    """revoked: the signer takes back what it said of this peer before. Times are unix seconds."""

    peer: Peer
    issued_s: Annotated[float, Range(0, 1e11)]
    expires_s: Annotated[float, Range(0, 1e11)]
    revoked: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.expires_s - self.issued_s <= LIFE_MAX_S + 1e-3:  # floats round
            raise ValueError(f"a vouch that lives {self.expires_s - self.issued_s:.0f} s")


@dataclass(frozen=True, slots=True)
class Ask:
    """What have these peers said, as far as you know?"""

    TAG: ClassVar[str] = "ask"

    of: Annotated[tuple[Peer, ...], Size(ASKED_MAX)]


@dataclass(frozen=True, slots=True)
class Told:
    """Statements as they were signed, all of peers that were asked for."""

    TAG: ClassVar[str] = "told"

    vouches: Annotated[tuple[Raw, ...], Size(TOLD_MAX)]


@dataclass(frozen=True, slots=True)
class Given:
    """A statement whose signature was checked, and whose it is."""

    voucher: str
    told: Vouch
    raw: bytes


def give(key: IdentityKey, told: Vouch) -> Given:
    return Given(key.peer_id, told, sign(key, DOMAIN, encode(told)))


def check_vouch(raw: bytes, now: float) -> Given:
    """Raises RemoteError for what is forged, from the future, too long-lived, or of oneself."""
    voucher, body = open_(raw, DOMAIN, max_bytes=VOUCH_BYTES_MAX)
    told = decode(body, Vouch, max_bytes=VOUCH_BYTES_MAX)
    if told.peer == voucher:
        raise RemoteError(f"{voucher} vouches for itself")
    if told.issued_s > now + 2 * SKEW_MAX_S:  # who passes it on may be as far ahead of us
        raise RemoteError(f"a vouch from {told.issued_s - now:.0f} s in the future")
    return Given(voucher, told, bytes(raw))


def newer(one: Given, other: Given) -> Given:
    """Which of two words of one pair counts: the later; of one moment, what takes back."""
    return max(one, other, key=lambda given: (given.told.issued_s, given.told.revoked, given.raw))
