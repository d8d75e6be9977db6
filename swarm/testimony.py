"""What one peer may say against another, and how anybody checks it, offline.

    A  Contradiction   two statements that one peer signed for the same place and time, and that
                       differ: whoever reads the two signatures knows, and needs to trust nobody
    B  Accusation      "compute this again": a chunk of work that the accused signed, what went in,
                       and by how much it was off; signed by the accuser, who answers for it
       Attestation     what a peer found that did compute it again
    C  slow, silent    a matter between two peers: there is no message for it

A contradiction is known by whom it convicts, an accusation by the digest of who says what.
algorithms.md 3.5; accusations as in BTARD (Gorbunov et al., 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, Literal, TypeVar

from ..crypto.codec import Range, Size, decode, encode
from ..crypto.digest import DIGEST_BYTES, digest
from ..crypto.envelope import OVERHEAD_BYTES, Envelope, open_, sign
from ..crypto.keys import PEER_ID_CHARS, IdentityKey, peer_id_of
from ..dht.record import BODY_BYTES_MAX, RECORD_BYTES_MAX, Signed
from ..dht.record import DOMAIN as RECORD
from ..errors import RemoteError
from .receipt import CHUNK, OPENING, Account, Chunk, Opening
from .run.btard_wire import DOMAIN as GUARDED
from .run.btard_wire import claim_name
from .run.statement import DOMAIN as WEIGHTS
from .run.statement import statement_name
from .tally import Tally, read_tally, tally_in
from .tally import contradiction as convicted_by
from .wire import CHUNK_BYTES_MAX, OPENING_BYTES_MAX

ACCUSATION: Final = "accusation"
ATTESTATION: Final = "attestation"
TALLY_LOW, TALLY_HIGH = "tally of low", "tally of high"  # who signed both, of the pair
TALLIES: Final = (TALLY_LOW, TALLY_HIGH)
OF_RUNS: Final = (GUARDED, WEIGHTS)  # told among those who know of runs (topics.py)
_TALLY_OF: Final = {True: TALLY_LOW, False: TALLY_HIGH}
ACCUSATION_BYTES_MAX: Final = OPENING_BYTES_MAX + CHUNK_BYTES_MAX + 512 + OVERHEAD_BYTES
ATTESTATION_BYTES_MAX: Final = 256 + OVERHEAD_BYTES
ITEM_BYTES_MAX: Final = 2 * RECORD_BYTES_MAX + 64  # of any item of evidence

T = TypeVar("T")
Peer = Annotated[str, Size(PEER_ID_CHARS, least=PEER_ID_CHARS)]
Digest = Annotated[bytes, Size(DIGEST_BYTES, least=DIGEST_BYTES)]
Verdict = Literal["wrong", "right"]  # of the accused's work


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two signed statements, the one with the lesser bytes first; `domain` says of what kind. Two
    tallies, which both of a pair have signed, convict the one of the lower key or the other."""

    TAG: ClassVar[str] = "contradiction"

    domain: Annotated[str, Size(16)]
    one: Annotated[bytes, Size(RECORD_BYTES_MAX)]
    other: Annotated[bytes, Size(RECORD_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class SignedAccusation:
    TAG: ClassVar[str] = "accusation"

    raw: Annotated[bytes, Size(ACCUSATION_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class SignedAttestation:
    TAG: ClassVar[str] = "attestation"

    raw: Annotated[bytes, Size(ATTESTATION_BYTES_MAX)]


Item = Contradiction | SignedAccusation | SignedAttestation
ITEMS: Final = (Contradiction, SignedAccusation, SignedAttestation)


@dataclass(frozen=True, slots=True)
class Accusation:
    """That what `accused` gave out in `chunk` is not what comes out of what it took in.

    opening: of the session, which says what was to be computed; inputs: of the bytes to compute
    from and the account between the two, which the accuser gives out to whoever asks.
    """

    accused: Peer
    opening: Annotated[bytes, Size(OPENING_BYTES_MAX)]  # both as the accused signed them
    chunk: Annotated[bytes, Size(CHUNK_BYTES_MAX)]
    inputs: Digest
    error: Annotated[float, Range(0.0, 1e9)]  # relative, against what the accuser got
    issued_s: Annotated[float, Range(0, 1e11)]


@dataclass(frozen=True, slots=True)
class Attestation:
    """What the signer got when it computed this accusation's work itself."""

    accusation: Digest
    verdict: Verdict
    issued_s: Annotated[float, Range(0, 1e11)]


@dataclass(frozen=True, slots=True)
class Case:
    """An accusation whose signatures have been checked."""

    id: bytes
    accuser: str
    told: Accusation
    opening: Opening


def contradiction_of(domain: str, one: bytes, other: bytes) -> Contradiction:
    """Of two statements as they were signed: records of one slot, boot and seq, chunks, or weights
    of one epoch of a run."""
    first, second = sorted((one, other))
    return Contradiction(domain, first, second)


def forks_of(one: bytes, other: bytes) -> list[Contradiction]:
    """What two tallies prove, as they were signed: one for each that they convict. Raises
    RemoteError unless both are tallies."""
    tally = read_tally(one)
    return [
        contradiction_of(_TALLY_OF[peer == tally.peers[0]], one, other)
        for peer in convicted_by(tally, read_tally(other))
    ]


def fork_of(account: Account, raw: bytes) -> Contradiction | None:
    """What a receipt proves that does not follow this account: that its server has signed another
    behind the same one. None when it proves nothing."""
    try:
        signer, body = open_(raw, CHUNK, max_bytes=CHUNK_BYTES_MAX)
        prev = decode(body, Chunk).prev
    except RemoteError:
        return None
    if signer != account.peer or prev not in account.names[:-1]:
        return None
    known = account.raw[account.names.index(prev) + 1]
    if open_(known, CHUNK, max_bytes=CHUNK_BYTES_MAX)[1] == body:
        return None
    return contradiction_of(CHUNK, known, raw)


def suspect(item: Contradiction) -> str:
    """Whom it would convict, if it is true: no signature is checked yet. Raises RemoteError."""
    if item.domain in TALLIES:
        return _whose(item.domain, tally_in(item.one))
    return peer_id_of(decode(item.one, Envelope, max_bytes=RECORD_BYTES_MAX).public)


def check_contradiction(item: Contradiction) -> str:
    """The peer that contradicts itself. Raises RemoteError unless both statements prove it."""
    if item.one >= item.other:
        raise RemoteError("a contradiction whose statements stand in the wrong order")
    if item.domain in TALLIES:
        return _check_tallies(item)
    name = _NAMES.get(item.domain)
    if name is None:
        raise RemoteError(f"a contradiction of kind {item.domain!r}")
    one, first = open_(item.one, item.domain, max_bytes=RECORD_BYTES_MAX)
    other, second = open_(item.other, item.domain, max_bytes=RECORD_BYTES_MAX)
    if one != other:
        raise RemoteError(f"statements of {one} and of {other}: no contradiction")
    if first == second or name(first) != name(second):
        raise RemoteError(f"two statements of {one} that do not contradict each other")
    return one


def _check_tallies(item: Contradiction) -> str:
    """Both of a pair have signed each; of its two places in the pair the domain names one."""
    tally = read_tally(item.one)
    peer = _whose(item.domain, tally)
    if peer not in convicted_by(tally, read_tally(item.other)):
        raise RemoteError(f"two tallies in which {peer} does not contradict itself")
    return peer


def _whose(domain: str, tally: Tally) -> str:
    return tally.peers[domain != TALLY_LOW]


def sign_accusation(key: IdentityKey, told: Accusation) -> SignedAccusation:
    return SignedAccusation(sign(key, ACCUSATION, encode(told)))


def check_accusation(item: SignedAccusation) -> Case:
    """Raises RemoteError unless the accuser signed it, and the accused what it is accused of."""
    accuser, body = open_(item.raw, ACCUSATION, max_bytes=ACCUSATION_BYTES_MAX)
    told = decode(body, Accusation, max_bytes=ACCUSATION_BYTES_MAX)
    opening = _work_of(told.accused, told.opening, OPENING, Opening)
    _work_of(told.accused, told.chunk, CHUNK, Chunk)
    if accuser == told.accused:
        raise RemoteError(f"{accuser} accuses itself")
    return Case(digest(ACCUSATION, accuser.encode(), body), accuser, told, opening)


def _work_of(accused: str, raw: bytes, domain: str, kind: type[T]) -> T:
    signer, body = open_(raw, domain, max_bytes=OPENING_BYTES_MAX)
    if signer != accused:
        raise RemoteError(f"{accused} is accused of what {signer} signed")
    return decode(body, kind)


def sign_attestation(key: IdentityKey, told: Attestation) -> SignedAttestation:
    return SignedAttestation(sign(key, ATTESTATION, encode(told)))


def check_attestation(item: SignedAttestation) -> tuple[str, Attestation]:
    """(who attests, what). Raises RemoteError unless the signature is good."""
    attester, body = open_(item.raw, ATTESTATION, max_bytes=ATTESTATION_BYTES_MAX)
    return attester, decode(body, Attestation, max_bytes=ATTESTATION_BYTES_MAX)


def _record_name(body: bytes) -> tuple[object, ...]:
    told = decode(body, Signed, max_bytes=BODY_BYTES_MAX + 512)
    return told.place, told.boot, told.seq


def _chunk_name(body: bytes) -> tuple[object, ...]:
    return (decode(body, Chunk).prev,)


# What an honest peer says only once, by the domain that it is signed in.
_NAMES: Final[Mapping[str, Callable[[bytes], tuple[object, ...]]]] = MappingProxyType(
    {RECORD: _record_name, CHUNK: _chunk_name, GUARDED: claim_name, WEIGHTS: statement_name}
)
