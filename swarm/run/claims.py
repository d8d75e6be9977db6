"""Which state a run has reached, as its peers say: a newcomer takes what most of them say.

    newcomer                            member
    Which{run} ──────────────────────▶           on `/potluck/state/1`
             ◀──── States{claims}                 its last checkpoints, each signed

A claim binds whoever signs it to one name for one moment of a run. Where an exchange leaves all
survivors with equal bits, two names for one moment mean that somebody is wrong: more than half of
those who answered decide, three at least, and the others are asked for nothing. Where peers have
weights of their own (gossip), nobody has a majority, and that is said.

A majority is worth as much as the sample is fair: whom to ask is not decided here (swarm/sampling).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from ...crypto.codec import Size, decode, encode
from ...crypto.envelope import OVERHEAD_BYTES, open_, sign
from ...crypto.keys import IdentityKey
from ...crypto.merkle import Digest
from ...errors import RemoteError
from ..chunk import Chunk, ChunkBytes
from .checkpoint import Number

PROTOCOL: Final = "/potluck/state/1"
DOMAIN: Final = "potluck state"
CLAIM_BYTES_MAX: Final = 256 + OVERHEAD_BYTES
CLAIMS_MAX: Final = 4  # a peer that is an epoch ahead, or behind, has one in common with the others
LETTER_BYTES_MAX: Final = CLAIMS_MAX * (CLAIM_BYTES_MAX + 8) + 64
LEAST: Final = 3  # answers; algorithms.md 5: a late joiner asks three


@dataclass(frozen=True, slots=True)
class Claim:
    """That a run had the state of this manifest after so many exchanges, and steps since."""

    run: Digest
    epoch: Number
    step: Number
    manifest: Digest
    size: ChunkBytes  # of the manifest

    @property
    def moment(self) -> tuple[int, int]:
        return self.epoch, self.step

    @property
    def chunk(self) -> Chunk:
        return Chunk(self.manifest, self.size)


@dataclass(frozen=True, slots=True)
class Which:
    TAG: ClassVar[str] = "which"

    run: Digest


@dataclass(frozen=True, slots=True)
class States:
    """The newest first."""

    TAG: ClassVar[str] = "states"

    claims: Annotated[tuple[Annotated[bytes, Size(CLAIM_BYTES_MAX)], ...], Size(CLAIMS_MAX)]


def sign_claim(key: IdentityKey, claim: Claim) -> bytes:
    return sign(key, DOMAIN, encode(claim))


def read_claim(raw: bytes, peer: str, run: bytes) -> Claim:
    """Raises RemoteError unless the peer itself signed it, for this run."""
    signer, body = open_(raw, DOMAIN, max_bytes=CLAIM_BYTES_MAX)
    claim = decode(body, Claim)
    if signer != peer or claim.run != run:
        raise RemoteError("a claim of somebody else, or about another run")
    return claim


def read_states(raw: bytes, peer: str, run: bytes) -> tuple[Claim, ...]:
    """The claims of an answer. Raises RemoteError for what no honest peer says."""
    told = decode(raw, States, max_bytes=LETTER_BYTES_MAX)
    claims = tuple(read_claim(one, peer, run) for one in told.claims)
    if any(contradict(one, other) for one in claims for other in claims):
        raise RemoteError("two names for one state")
    return claims


def contradict(one: Claim, other: Claim) -> bool:
    """Whether one peer cannot honestly have signed both."""
    return one != other and (one.run, one.moment) == (other.run, other.moment)


Answers = Mapping[str, Sequence[Claim]]  # by peer; () of one that has nothing


def agreed(answers: Answers, least: int = LEAST) -> Claim | None:
    """The newest state that more than half of those who answered give the same name; None when
    there is none, or too few answered."""
    if len(answers) < least:
        return None
    votes: Counter[Claim] = Counter()
    for claims in answers.values():
        votes.update(set(claims))
    found = [claim for claim, count in votes.items() if 2 * count > len(answers)]
    return max(found, key=lambda claim: claim.moment, default=None)


def leading(answers: Answers, moment: tuple[int, int], least: int = LEAST) -> Claim | None:
    """Of one moment, the state that most of those give it who have one, and more than a third; of
    equally many the one of the smaller name, so that an even split ends alike for both halves. For
    a member, whose own claim is among them: two halves that each saw but the other's majority would
    change places for ever. None when too few have one.

    More than a third: liars are fewer (seeds.py), so they alone can make no state lead.
    """
    votes = Counter(
        claim for claims in answers.values() for claim in set(claims) if claim.moment == moment
    )
    voices = votes.total()
    if voices < least:
        return None
    best = min(votes, key=lambda claim: (-votes[claim], claim.manifest, claim.size))
    return best if 3 * votes[best] > voices else None


def vouched(answers: Answers, votes: int) -> Claim | None:
    """The newest state that at least so many of those who answered give the same name, however many
    others answered: for whoever knows how many can lie."""
    found: Counter[Claim] = Counter()
    for claims in answers.values():
        found.update(set(claims))
    enough = [claim for claim, count in found.items() if count >= votes]
    return max(enough, key=lambda claim: claim.moment, default=None)


def holders(answers: Answers, claim: Claim) -> tuple[str, ...]:
    """Who says so."""
    return tuple(sorted(peer for peer, claims in answers.items() if claim in claims))


def opposed(answers: Answers, claim: Claim) -> tuple[str, ...]:
    """Who gives that moment another name."""
    return tuple(sorted(peer for peer, said in answers.items() if _against(said, claim)))


def _against(said: Iterable[Claim], claim: Claim) -> bool:
    return any(contradict(one, claim) for one in said)
