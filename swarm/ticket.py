"""Who may push to whom in a session, and who pushed what: three statements, each signed.

A client that has the outputs of one hop go straight to the next signs a `Ticket`: between which two
servers, in which session, at which block, until when. The first of them, asked by that client in
that very session, answers with a `Consent`, which says where it may be dialed. So the second dials
nobody whom a client merely names, and the first takes nobody but whom the client named, once.

    client ── Ticket ──▶ leader ── Consent ──▶ client ── both ──▶ follower ── dials ──▶ leader

Where receipts are asked for the leader also signs for each step that it pushes (`Seal`). The
follower takes none without, and shows it with its answer. The client holds it against the rows that
it was given by the leader: if they differ, the leader told two stories; if there is no good seal,
it is the follower's fault. The number of the step is in it, for the same position may be computed
again with other rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from ..crypto.codec import Range, Size, decode, encode
from ..crypto.digest import digest
from ..crypto.envelope import open_, sign
from ..crypto.keys import IdentityKey
from ..crypto.merkle import Bytes, Digest
from ..errors import RemoteError
from .wire import (
    CONSENT_BYTES_MAX,
    SEAL_BYTES_MAX,
    TICKET_BYTES_MAX,
    BlockNumber,
    Number,
    Position,
)

TICKET, CONSENT, SEAL = "chain ticket", "chain consent", "chain seal"  # domains of signatures
TICKET_S: Final = 30.0  # to be made use of: two round trips and a dial
SKEW_S: Final = 30.0  # as of records: how far a peer's clock may be from ours
ADDRESSES_MAX: Final = 8  # as of records

PeerId = Annotated[str, Size(64)]


@dataclass(frozen=True, slots=True)
class Ticket:
    """In this session `leader` may push what comes out before `block` to `follower`. nonce: drawn
    by the client, so that no two are equal."""

    session: Annotated[bytes, Size(16, 16)]
    nonce: Annotated[bytes, Size(16, 16)]
    block: BlockNumber
    leader: PeerId
    follower: PeerId
    expires_s: Annotated[float, Range(0, 1e11)]  # unix seconds

    def stale(self, now: float) -> str:
        """Why it is of no use any more, or yet; empty: it is. now: unix seconds."""
        left_s = self.expires_s - now
        if -SKEW_S <= left_s <= TICKET_S + SKEW_S:
            return ""
        return f"a ticket that is good until {left_s:.0f} s from now"


@dataclass(frozen=True, slots=True)
class Consent:
    """Its signer waits for the follower of the ticket with this digest, at these addresses."""

    ticket: Digest
    addresses: Annotated[tuple[Annotated[str, Size(256)], ...], Size(ADDRESSES_MAX)]


@dataclass(frozen=True, slots=True)
class Seal:
    """Its signer pushed rows of this digest as the step of this number."""

    session: Annotated[bytes, Size(16, 16)]
    number: Number
    at: Position
    rows: Digest


def sign_ticket(key: IdentityKey, ticket: Ticket) -> bytes:
    return sign(key, TICKET, encode(ticket))


def read_ticket(raw: bytes, client: str, session: bytes) -> Ticket:
    """The ticket of this client for this session. Raises RemoteError unless it is one."""
    signer, body = open_(raw, TICKET, max_bytes=TICKET_BYTES_MAX)
    ticket = decode(body, Ticket)
    if signer != client:
        raise RemoteError(f"a ticket of {client} signed by {signer}")
    if ticket.session != session:
        raise RemoteError("a ticket for another session")
    return ticket


def name_of(ticket: bytes) -> bytes:
    """By which a signed ticket is known."""
    return digest("ticket", ticket)


def sign_consent(key: IdentityKey, ticket: bytes, addresses: tuple[str, ...]) -> bytes:
    return sign(key, CONSENT, encode(Consent(name_of(ticket), addresses[:ADDRESSES_MAX])))


def read_consent(raw: bytes, ticket: bytes, leader: str) -> tuple[str, ...]:
    """Where the leader of this ticket may be dialed. Raises RemoteError unless it consents."""
    signer, body = open_(raw, CONSENT, max_bytes=CONSENT_BYTES_MAX)
    consent = decode(body, Consent)
    if signer != leader or consent.ticket != name_of(ticket):
        raise RemoteError(f"no consent of {leader} to this ticket")
    return consent.addresses


def seal_of(key: IdentityKey, session: bytes, number: int, at: int, rows: Bytes) -> bytes:
    return sign(key, SEAL, encode(Seal(session, number, at, digest("pushed", rows))))


def check_seal(raw: bytes, leader: str, session: bytes, number: int, at: int) -> bytes:
    """The digest of the rows that this leader pushed. Raises RemoteError unless it has signed."""
    signer, body = open_(raw, SEAL, max_bytes=SEAL_BYTES_MAX)
    seal = decode(body, Seal)
    if (signer, seal.session, seal.number, seal.at) != (leader, session, number, at):
        raise RemoteError(f"no seal of {leader} on step {number}")
    return seal.rows


def is_sealed(rows: Bytes, sealed: bytes) -> bool:
    """Whether these are the rows of that digest."""
    return digest("pushed", rows) == sealed
