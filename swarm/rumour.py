"""What the peers of one model segment say to each other: probes, and signed rumours on them.

The messages are those of SWIM (swarm/membership.py). Whoever starts a rumour signs it, and whoever
passes it on passes on the signature: that a peer is alive it says itself, that one is silent each
says in his own name, so that nobody can put a word into another's mouth.

    Letter { model, kind, number, target, news }          one to a stream, which proves the sender
      news: Claim { model, peer, state, incarnation }     signed in the domain "swim" by whose it is
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from ..crypto.codec import Range, Size, decode, encode
from ..crypto.envelope import OVERHEAD_BYTES, open_
from ..errors import RemoteError

PROTOCOL: Final = "/potluck/swim/1"
DOMAIN: Final = "swim"
NEWS_MAX: Final = 8  # rumours in a message
INCARNATION_MAX: Final = 1 << 40  # nobody refutes so often; a liar's number is not taken up
CLAIM_BYTES_MAX: Final = 384 + OVERHEAD_BYTES
LETTER_BYTES_MAX: Final = 512 + NEWS_MAX * CLAIM_BYTES_MAX

State = Literal["alive", "suspect", "dead"]
Model = Annotated[str, Size(64)]  # digest, hex
Peer = Annotated[str, Size(128)]
Number = Annotated[int, Range(0, 2**53)]


@dataclass(frozen=True, slots=True)
class Rumour:
    """That `peer`, in this incarnation, is in this state. by: who says so first.

    proof: the signed claim; none of what we say ourselves, which is signed when it is sent.
    """

    peer: str
    state: State
    incarnation: int
    by: str
    proof: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer with an `Ack` of this number."""

    number: int
    news: tuple[Rumour, ...] = ()


@dataclass(frozen=True, slots=True)
class PingReq:
    """Ping `target` for us, and pass its answer on; or say `Nack`."""

    number: int
    target: str
    news: tuple[Rumour, ...] = ()


@dataclass(frozen=True, slots=True)
class Ack:
    number: int
    news: tuple[Rumour, ...] = ()


@dataclass(frozen=True, slots=True)
class Nack:
    """We hear you, but not whom you asked for."""

    number: int


Message = Ping | PingReq | Ack | Nack


def protocol_of(model: str) -> str:
    """A protocol for each model: a peer may serve several, and tells which by what it speaks."""
    return f"{PROTOCOL}/{model[:16]}"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a rumour's signature covers."""

    model: Model
    peer: Peer
    state: State
    incarnation: Annotated[int, Range(0, INCARNATION_MAX)]


@dataclass(frozen=True, slots=True)
class Letter:
    """A message on the wire. `target`: of a PingReq alone."""

    model: Model
    kind: Literal["ping", "pingreq", "ack", "nack"]
    number: Number
    target: Peer
    news: Annotated[tuple[Annotated[bytes, Size(CLAIM_BYTES_MAX)], ...], Size(NEWS_MAX)]


def pack(message: Message, model: str, sign: Callable[[bytes], bytes]) -> bytes:
    """The bytes of a message. sign: a claim of our own, in the domain "swim"."""

    def proofs(news: tuple[Rumour, ...]) -> tuple[bytes, ...]:
        return tuple(
            one.proof or sign(encode(Claim(model, one.peer, one.state, one.incarnation)))
            for one in news[:NEWS_MAX]
        )

    match message:
        case Ping(number, news):
            letter = Letter(model, "ping", number, "", proofs(news))
        case PingReq(number, target, news):
            letter = Letter(model, "pingreq", number, target, proofs(news))
        case Ack(number, news):
            letter = Letter(model, "ack", number, "", proofs(news))
        case Nack(number):
            letter = Letter(model, "nack", number, "", ())
    return encode(letter)


def unpack(raw: bytes, model: str, *, heed_news: bool = True) -> Message:
    """The message that these bytes are, its rumours checked. Raises RemoteError.

    heed_news: or leave them out unread; each costs a signature to check.
    """
    letter = decode(raw, Letter, max_bytes=LETTER_BYTES_MAX)
    if letter.model != model:
        raise RemoteError("a probe about another model")
    news = tuple(_rumour(proof, model) for proof in letter.news if heed_news)
    match letter.kind:
        case "ping":
            return Ping(letter.number, news)
        case "pingreq":
            return PingReq(letter.number, letter.target, news)
        case "ack":
            return Ack(letter.number, news)
        case "nack":
            return Nack(letter.number)


def _rumour(proof: bytes, model: str) -> Rumour:
    signer, body = open_(proof, DOMAIN, max_bytes=CLAIM_BYTES_MAX)
    claim = decode(body, Claim, max_bytes=CLAIM_BYTES_MAX)
    if claim.model != model:
        raise RemoteError("a rumour of another model")
    if claim.state == "alive" and signer != claim.peer:
        raise RemoteError("a peer that is said to be alive by another")
    return Rumour(claim.peer, claim.state, claim.incarnation, signer, proof)
