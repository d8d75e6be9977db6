"""What the members of a guarded group say to one another, and sign.

    Said    a claim (signed: run, epoch, place, digest of the body) and the body
    Proof   two claims of one peer for one place: it tells different things to different peers
    Load    numbers follow, as letters: a part, or a result, known by its digest
    Ask     whoever has what this member said in this place may pass it on

What is signed is a digest, so that a proof is 700 bytes that anybody can check, whatever was said
(swarm/testimony.py knows the kind). Each statement of a phase says what its signer heard in the
phase before (`seen`): that is the echo in which a split broadcast shows.

Sources: Gorbunov et al., 2022, appendix D; Bracha, 1987 (echoes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from ...crypto.codec import Range, Size, decode, decode_any, encode
from ...crypto.digest import DIGEST_BYTES, digest
from ...crypto.envelope import OVERHEAD_BYTES, open_, sign
from ...crypto.keys import IdentityKey
from ...errors import RemoteError
from .coin import Secret

PROTOCOL: Final = "/potluck/guarded/1"
DOMAIN: Final = "guarded claim"
GROUP_MAX: Final = 32  # all-to-all: messages grow as its square
LOAD_BYTES_MAX: Final = 1 << 28
BODY_BYTES_MAX: Final = 4096  # of 32 members: 2.2 KB of digests beside the rest
CLAIM_BYTES_MAX: Final = 256 + OVERHEAD_BYTES
MESSAGE_BYTES_MAX: Final = BODY_BYTES_MAX + CLAIM_BYTES_MAX + 256
MAGNITUDE_MAX: Final = 1e60  # of a share: no norm of fp32 numbers that fit a load is as large

Digest = Annotated[bytes, Size(DIGEST_BYTES, least=DIGEST_BYTES)]
Epoch = Annotated[int, Range(0, 1 << 40)]
Seat = Annotated[int, Range(0, GROUP_MAX - 1)]  # place in the roster, in order of peer ids
Share = Annotated[float, Range(-MAGNITUDE_MAX, MAGNITUDE_MAX)]
Seen = Annotated[tuple[Digest, ...], Size(GROUP_MAX)]
Phase = Literal["pledge", "reduced", "reveal", "sums", "settled"]
PHASES: Final[tuple[Phase, ...]] = ("pledge", "reduced", "reveal", "sums", "settled")


@dataclass(frozen=True, slots=True)
class Pledge:
    """What a member worked out, before it shows any of it. anchor: of the weights that it began
    from; coin: which fixed its batches; parts: the digest of each; toss: its commitment."""

    TAG: ClassVar[Phase] = "pledge"

    standing: Digest
    anchor: Digest
    coin: Digest
    parts: Annotated[tuple[Digest, ...], Size(GROUP_MAX, least=1)]
    toss: Digest
    numerics: Annotated[str, Size(64)]  # whose results are the same bits, of one name


@dataclass(frozen=True, slots=True)
class Reduced:
    """What a reducer made of its part, by digest."""

    TAG: ClassVar[Phase] = "reduced"

    standing: Digest
    result: Digest
    seen: Seen


@dataclass(frozen=True, slots=True)
class Reveal:
    TAG: ClassVar[Phase] = "reveal"

    standing: Digest
    secret: Secret
    seen: Seen


@dataclass(frozen=True, slots=True)
class Sums:
    """Of each part: the own clipped share along the drawn direction, and how far it was."""

    TAG: ClassVar[Phase] = "sums"

    standing: Digest
    sums: Annotated[tuple[Share, ...], Size(GROUP_MAX)]
    norms: Annotated[tuple[Share, ...], Size(GROUP_MAX)]
    seen: Seen


@dataclass(frozen=True, slots=True)
class Settled:
    """That nothing is left to say against this outcome."""

    TAG: ClassVar[Phase] = "settled"

    standing: Digest
    outcome: Digest
    seen: Seen


@dataclass(frozen=True, slots=True)
class Complaint:
    """What should have come from `about` did not. number: of the signer's in this step, from 0.
    late: after the coin could be known."""

    TAG: ClassVar[str] = "complaint"

    number: Seat
    about: Seat
    late: bool


@dataclass(frozen=True, slots=True)
class Accusation:
    """work: `about` worked out something else than its batches give, or lies about its shares.
    part: in the part that `about` reduced, the result or somebody's share is wrong. seen: what the
    signer heard in the phase that it accuses of, so that nobody shows others something else."""

    TAG: ClassVar[str] = "accusation"

    standing: Digest
    kind: Literal["work", "part"]
    about: Seat
    seen: Seen


@dataclass(frozen=True, slots=True)
class Ruling:
    """Who is guilty in this case, as the signer computed it; nobody, where it cannot tell."""

    TAG: ClassVar[str] = "ruling"

    case: Digest
    guilty: Annotated[tuple[Seat, ...], Size(GROUP_MAX)]


Statement = Pledge | Reduced | Reveal | Sums | Settled
Item = Complaint | Accusation | Ruling
Body = Statement | Item
STATEMENTS: Final = (Pledge, Reduced, Reveal, Sums, Settled)
BODIES: Final = (*STATEMENTS, Complaint, Accusation, Ruling)


@dataclass(frozen=True, slots=True)
class Claim:
    """What is signed. place: of the body; an honest peer says one thing in each."""

    run: Digest
    epoch: Epoch
    place: Digest
    body: Digest


@dataclass(frozen=True, slots=True)
class Said:
    TAG: ClassVar[str] = "said"

    epoch: Epoch
    claim: Annotated[bytes, Size(CLAIM_BYTES_MAX)]
    body: Annotated[bytes, Size(BODY_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Proof:
    """Two claims, the one with the lesser bytes first: a `Contradiction` of swarm/testimony.py."""

    TAG: ClassVar[str] = "proof"

    epoch: Epoch
    one: Annotated[bytes, Size(CLAIM_BYTES_MAX)]
    other: Annotated[bytes, Size(CLAIM_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Load:
    TAG: ClassVar[str] = "load"

    epoch: Epoch
    digest: Digest
    size: Annotated[int, Range(0, LOAD_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Ask:
    TAG: ClassVar[str] = "ask"

    epoch: Epoch
    place: Digest
    about: Seat


Message = Said | Proof | Load | Ask
MESSAGES: Final = (Said, Proof, Load, Ask)


@dataclass(frozen=True, slots=True)
class Heard:
    """A statement or an item whose signature is good. digest: of its body."""

    said: Said
    peer: str
    claim: Claim
    body: Body

    @property
    def digest(self) -> bytes:
        return self.claim.body


def read_message(raw: bytes) -> Message:
    """Raises RemoteError."""
    found: Message = decode_any(raw, MESSAGES, max_bytes=MESSAGE_BYTES_MAX)
    return found


def load_digest(data: bytes | memoryview) -> bytes:
    return digest("guarded load", data)


def place_in(standing: bytes, phase: Phase) -> bytes:
    """Of a statement."""
    return _place(phase, standing)


def place_of(body: Body) -> bytes:
    """What an honest peer says only once in a step."""
    match body:
        case Complaint(number):
            return _place(body.TAG, number.to_bytes())
        case Accusation(standing, kind, about):
            return _place(body.TAG, standing, kind.encode(), about.to_bytes())
        case Ruling(case):
            return _place(body.TAG, case)
        case _:
            return place_in(body.standing, body.TAG)


def _place(tag: str, *parts: bytes) -> bytes:
    return digest("guarded place", tag.encode().ljust(16, b"\0"), *parts)


def say(key: IdentityKey, run: bytes, epoch: int, body: Body) -> Said:
    """Signed. Whoever says two things in one place is banned for it."""
    raw = encode(body)
    claim = Claim(run, epoch, place_of(body), _body_digest(raw))
    return Said(epoch, sign(key, DOMAIN, encode(claim)), raw)


def hear(said: Said) -> Heard:
    """Raises RemoteError unless it is rightly signed, and its body what was signed."""
    peer, signed = open_(said.claim, DOMAIN, max_bytes=CLAIM_BYTES_MAX)
    claim = decode(signed, Claim, max_bytes=CLAIM_BYTES_MAX)
    body: Body = decode_any(said.body, BODIES, max_bytes=BODY_BYTES_MAX)
    if (claim.epoch, claim.body) != (said.epoch, _body_digest(said.body)):
        raise RemoteError(f"not what {peer} signed")
    if claim.place != place_of(body):
        raise RemoteError(f"a {body.TAG} in the place of something else")
    return Heard(said, peer, claim, body)


def claim_name(body: bytes) -> tuple[object, ...]:
    """Where a signed claim stands, for whoever checks a contradiction (swarm/testimony.py)."""
    claim = decode(body, Claim, max_bytes=CLAIM_BYTES_MAX)
    return claim.run, claim.epoch, claim.place


def _body_digest(raw: bytes) -> bytes:
    return digest("guarded body", raw)
