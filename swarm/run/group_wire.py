"""What the members of a group say to each other, on `/potluck/group/1/RUN`.

A card is what a peer announces of itself, signed, and passed on in a plan: nobody can be put into a
group, or be given a weight there, but by his own word. Everything else is between two peers, whose
names the road proves, and is about one state, from which one next state is to be chosen.

    Told      a card; ask: for yours                                       everybody ──▶ everybody
    Prepare   follow me under this ballot                                  leader  ──▶ all
    Promise   I do, and this is what I agreed to before                    all ──▶ leader
    Plan      whose numbers are averaged, by their cards                   leader  ──▶ all
    Part      + bytes: of the own vector to its reducer; of the mean to all
    Held      I have all of the mean, and this is the state it leads to    all ──▶ leader
    Missing   I wait for parts of these; or, by my own name, I leave       all ──▶ leader
    Propose   all hold this one: agree to it                               leader  ──▶ all
    Agreed    I have                                                       all ──▶ leader
    Commit    enough have: take it                                         leader  ──▶ all
    Ask       send me your state of this digest: Given + bytes follow      who fell behind

Sources: PCCL (2025), for what a group promises; Lamport, "Paxos Made Simple" (2001), for how.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Final, Literal

from ...crypto.codec import Range, Size, decode, decode_any, encode
from ...crypto.digest import DIGEST_BYTES, digest
from ...crypto.envelope import OVERHEAD_BYTES, open_
from ...crypto.keys import PEER_ID_CHARS
from ...errors import RemoteError

PROTOCOL: Final = "/potluck/group/1"
DOMAIN: Final = "group card"
GROUP_MAX: Final = 16  # DeDLOC's and hivemind's
CARD_BYTES_MAX: Final = 384 + OVERHEAD_BYTES
LETTER_BYTES_MAX: Final = 4096 + GROUP_MAX * CARD_BYTES_MAX
RATE_MAX: Final = 1 << 40  # bytes a second

Digest = Annotated[bytes, Size(DIGEST_BYTES, least=DIGEST_BYTES)]
Peer = Annotated[str, Size(PEER_ID_CHARS, least=PEER_ID_CHARS)]
Count = Annotated[int, Range(0, 2**53)]


def protocol_of(run: bytes) -> str:
    """A protocol for each run: what is said on it is about this run alone."""
    return f"{PROTOCOL}/{run.hex()[:32]}"


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A peer, from when its process began: one that was killed has forgotten what it promised.

    boot: unix seconds, or anything else that is never less after a restart.
    """

    peer: Peer
    boot: Count


Members = Annotated[tuple[Member, ...], Size(GROUP_MAX)]


@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    """Of two, the greater one is followed."""

    number: Annotated[int, Range(0, 1 << 32)]
    leader: Member


@dataclass(frozen=True, slots=True)
class Value:
    """What can be chosen: the next state, made under this ballot out of these members' numbers."""

    state: Digest
    ballot: Ballot
    members: Members


@dataclass(frozen=True, slots=True)
class Vote:
    """That a member agreed to a value, under a ballot."""

    ballot: Ballot
    value: Value


@dataclass(frozen=True, slots=True)
class Card:
    """What a peer says of itself: where it stands, and what it brings.

    number: of its cards since `boot`; the greatest counts. state: the digest of where it stands;
    before: of the state that this one came from, zeros at first. commits: how many led there.
    tokens: that its numbers are made of. rate: bytes a second that it can send. waits: for an
    exchange, now.
    """

    run: Digest
    peer: Peer
    boot: Count
    number: Count
    state: Digest
    before: Digest
    commits: Count
    tokens: Count
    rate: Annotated[int, Range(1, RATE_MAX)]
    waits: bool

    @property
    def member(self) -> Member:
        return Member(self.peer, self.boot)


@lru_cache(maxsize=4096)  # a card comes again with each plan
def card_of(raw: bytes) -> Card:
    """The card in a signed envelope. Raises RemoteError."""
    signer, body = open_(raw, DOMAIN, max_bytes=CARD_BYTES_MAX)
    card = decode(body, Card)
    if card.peer != signer:
        raise RemoteError("a card in another's name")
    return card


SignedCard = Annotated[bytes, Size(CARD_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Told:
    TAG: ClassVar[str] = "told"
    card: SignedCard
    ask: bool


@dataclass(frozen=True, slots=True)
class Prepare:
    """config: whose word decides; the leader among them."""

    TAG: ClassVar[str] = "prepare"
    state: Digest
    config: Members
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Promise:
    """held: the state that the member can go to at once; None."""

    TAG: ClassVar[str] = "promise"
    state: Digest
    ballot: Ballot
    boot: Count
    vote: Vote | None
    held: Digest | None


@dataclass(frozen=True, slots=True)
class Plan:
    TAG: ClassVar[str] = "plan"
    state: Digest
    ballot: Ballot
    cards: Annotated[tuple[SignedCard, ...], Size(GROUP_MAX, least=1)]

    @property
    def digest(self) -> bytes:
        return digest("group plan", *self.cards)


@dataclass(frozen=True, slots=True)
class Part:
    """kind: "give" to who reduces it, "mean" from there. index: of the reducer, in the plan.

    plan: its digest. A leader that told two plans under one ballot makes no honest member's part
    look wrong to another.
    """

    TAG: ClassVar[str] = "part"
    state: Digest
    ballot: Ballot
    plan: Digest
    kind: Literal["give", "mean"]
    index: Annotated[int, Range(0, GROUP_MAX - 1)]
    size: Count


@dataclass(frozen=True, slots=True)
class Held:
    TAG: ClassVar[str] = "held"
    state: Digest
    ballot: Ballot
    next: Digest


@dataclass(frozen=True, slots=True)
class Missing:
    TAG: ClassVar[str] = "missing"
    state: Digest
    ballot: Ballot
    peers: Annotated[tuple[Peer, ...], Size(GROUP_MAX)]


@dataclass(frozen=True, slots=True)
class Propose:
    TAG: ClassVar[str] = "propose"
    state: Digest
    ballot: Ballot
    value: Value


@dataclass(frozen=True, slots=True)
class Agreed:
    TAG: ClassVar[str] = "agreed"
    state: Digest
    ballot: Ballot
    boot: Count


@dataclass(frozen=True, slots=True)
class Commit:
    TAG: ClassVar[str] = "commit"
    state: Digest
    value: Value


@dataclass(frozen=True, slots=True)
class Ask:
    """The first and only letter of a stream of its own."""

    TAG: ClassVar[str] = "ask"
    state: Digest


@dataclass(frozen=True, slots=True)
class Given:
    """Answers Ask; what the state is made of comes behind it, so many bytes."""

    TAG: ClassVar[str] = "given"
    before: Digest
    commits: Count
    members: Members
    size: Count


Message = Told | Prepare | Promise | Plan | Held | Missing | Propose | Agreed | Commit
KINDS: Final = (
    Told, Prepare, Promise, Plan, Held, Missing, Propose, Agreed, Commit, Part, Ask, Given,
)  # fmt: skip


def pack(message: Message | Part | Ask | Given) -> bytes:
    return encode(message)


def unpack(raw: bytes) -> Message | Part | Ask | Given:
    """Raises RemoteError."""
    found: Message | Part | Ask | Given = decode_any(raw, KINDS, max_bytes=LETTER_BYTES_MAX)
    return found
