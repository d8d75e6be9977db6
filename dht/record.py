"""One record, whether it may be believed, and which of two wins.

A record is a fact that a peer signs about itself. It is expiring (at most 90 s; that a peer has a
chunk of weights, which does not change by the minute: 30 min) and monotonic
(`boot`, then `seq`); whoever reads one checks signature, signer, place, time and order, and merges
by taking the newest, so that all who read the same records end with the same set (a CRDT).

    Record { kind, place, boot, seq, issued_s, expires_s, body }   signed in the domain "record"
        kind "span"    body = Announcement      under keyspace.spans_of(model)
        kind "models"  body = ModelList         under keyspace.MODELS
        kind "chunk"   body = Provider          under keyspace.chunk_of(chunk)

`boot` comes from the wall clock, max(unix seconds, last + 1), so that a disk restored from an old
snapshot does not make an honest peer contradict itself. If the clock was set back as well, two runs
may have one boot: so `seq` begins anywhere, in each run, by dice that no snapshot holds. Nothing
here reads a clock: `now` is unix seconds, given by the caller.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Final, Literal, TypeVar

from ..crypto.codec import LOCAL, Range, Size, decode, encode
from ..crypto.digest import DIGEST_BYTES, digest
from ..crypto.envelope import OVERHEAD_BYTES, open_, sign
from ..crypto.keys import IdentityKey
from ..errors import RemoteError
from .keyspace import MODEL_CHARS, MODELS, PLACE_BYTES, Slot, chunk_of, spans_of

TTL_MAX_S: Final = 90.0  # with a refresh each 30 s two lost refreshes in a row are survived
REFRESH_S: Final = TTL_MAX_S / 3
CHUNK_TTL_MAX_S: Final = 1800.0  # a model has thousands: 90 s would cost a core (dht/chunks.py)
CHUNK_REFRESH_S: Final = CHUNK_TTL_MAX_S / 3
SKEW_MAX_S: Final = 30.0  # how far a peer's clock may be ahead of ours
BODY_BYTES_MAX: Final = 4096
RECORD_BYTES_MAX: Final = BODY_BYTES_MAX + 512 + OVERHEAD_BYTES
DOMAIN: Final = "record"

Model = Annotated[str, Size(MODEL_CHARS, least=MODEL_CHARS)]
Count = Annotated[int, Range(0, 2**53)]
Counter = Annotated[int, Range(0, 2**32 - 1)]
Rate = Annotated[float, Range(0, 1e12)]
State = Literal["joining", "online", "draining", "gone"]


class Stale(RemoteError):
    """Rightly signed, but not of now: an honest keeper may still have it. Ignore the record."""


@dataclass(frozen=True, slots=True)
class Stamped:
    """Where a record came from and when; told by the record around the body, not by the body."""

    peer: str = field(default="", metadata=LOCAL, kw_only=True)
    boot: int = field(default=0, metadata=LOCAL, kw_only=True)
    seq: int = field(default=0, metadata=LOCAL, kw_only=True)
    issued_s: float = field(default=0.0, metadata=LOCAL, kw_only=True)
    expires_s: float = field(default=0.0, metadata=LOCAL, kw_only=True)


@dataclass(frozen=True, slots=True)
class Announcement(Stamped):
    """What one peer says of the blocks that it serves: start..stop (half-open) of `blocks`."""

    KIND: ClassVar[str] = "span"

    model: Model  # digest, hex
    name: Annotated[str, Size(200)]  # what people call it; not proof of anything
    start: Count
    stop: Count
    blocks: Annotated[int, Range(1, 100_000)]  # of the whole model
    state: State
    device: Annotated[str, Size(64)]
    dtype: Annotated[str, Size(16)]
    quantization: Annotated[str, Size(16)]
    decode_tokens_s: Rate  # tokens a second through one block, one at a time
    prefill_tokens_s: Rate  # tokens a second through one block, in chunks
    addresses: Annotated[tuple[Annotated[str, Size(256)], ...], Size(8)]
    cache_tokens_free: Count
    context_tokens_max: Count
    numerics: Annotated[str, Size(128)]  # peers of one class give equal bits for equal steps
    version: Annotated[str, Size(32)]  # of the program
    asked_tokens_s: Rate = 0.0  # tokens a second that went through its blocks lately

    def __post_init__(self) -> None:
        if not self.start < self.stop <= self.blocks:
            raise ValueError(f"blocks {self.start}:{self.stop} of {self.blocks}")

    def place(self) -> bytes:
        return spans_of(self.model)


@dataclass(frozen=True, slots=True)
class ModelName:
    model: Model
    name: Annotated[str, Size(200)]
    blocks: Annotated[int, Range(1, 100_000)]


@dataclass(frozen=True, slots=True)
class ModelList(Stamped):
    """Which models one peer serves."""

    KIND: ClassVar[str] = "models"

    models: Annotated[tuple[ModelName, ...], Size(8)]

    def place(self) -> bytes:
        return MODELS


@dataclass(frozen=True, slots=True)
class Provider(Stamped):
    """That one peer has a chunk of weights, and where it may be asked for it."""

    KIND: ClassVar[str] = "chunk"

    chunk: Annotated[bytes, Size(DIGEST_BYTES, least=DIGEST_BYTES)]  # the digest of its bytes
    addresses: Annotated[tuple[Annotated[str, Size(256)], ...], Size(4)]

    def place(self) -> bytes:
        return chunk_of(self.chunk)


Fact = TypeVar("Fact", Announcement, ModelList, Provider)
AnyFact = Announcement | ModelList | Provider


def ttl_max_s(kind: str) -> float:
    """How long a record of this kind may live."""
    return CHUNK_TTL_MAX_S if kind == Provider.KIND else TTL_MAX_S


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature covers. `place` is inside: a record cannot be moved to another."""

    kind: Annotated[str, Size(16)]
    place: Annotated[bytes, Size(PLACE_BYTES, least=PLACE_BYTES)]
    boot: Counter
    seq: Counter
    issued_s: Annotated[float, Range(0, 1e11)]
    expires_s: Annotated[float, Range(0, 1e11)]
    body: Annotated[bytes, Size(BODY_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Record:
    """A record whose signature, signer, size and times have been checked; of any kind."""

    kind: str
    slot: Slot
    boot: int
    seq: int
    issued_s: float
    expires_s: float
    body: bytes
    raw: bytes  # as signed and sent
    digest: bytes  # of what was signed: two of one (slot, boot, seq) are a contradiction

    @property
    def order(self) -> tuple[int, int]:
        return self.boot, self.seq


def sign_fact(
    key: IdentityKey, fact: AnyFact, *, boot: int, seq: int, now: float,
    ttl_s: float = CHUNK_TTL_MAX_S,
) -> Record:  # fmt: skip
    """`fact`, stamped and signed by `key`, good for `ttl_s`, or for as long as its kind may."""
    place, body = fact.place(), encode(fact)
    expires_s = now + min(ttl_s, ttl_max_s(fact.KIND))
    signed = encode(Signed(fact.KIND, place, boot, seq, now, expires_s, body))
    raw = sign(key, DOMAIN, signed)
    slot = Slot(place, key.peer_id)
    return Record(fact.KIND, slot, boot, seq, now, expires_s, body, raw, digest(DOMAIN, signed))


def check_record(raw: bytes, place: bytes | None, now: float, *, peer: str | None = None) -> Record:
    """The record of any kind that these bytes are, if it may be kept under `place`.

    place: None for whichever it names; peer: the only signer to be accepted, None for any.
    Raises RemoteError when it is oversize, not canonical, forged, someone else's, of another place,
    expired, from the future, or claims to live longer than its kind may.
    """
    signer, signed = open_(raw, DOMAIN, max_bytes=RECORD_BYTES_MAX)
    if peer is not None and signer != peer:
        raise RemoteError(f"a record of {peer} signed by {signer}")
    told = decode(signed, Signed, max_bytes=BODY_BYTES_MAX + 512)
    if place is not None and told.place != place:
        raise RemoteError("a record of another place")
    if not 0 < told.expires_s - told.issued_s <= ttl_max_s(told.kind) + 1e-3:  # floats round
        raise RemoteError(f"a record that lives {told.expires_s - told.issued_s:.0f} s")
    record = Record(
        told.kind, Slot(told.place, signer), told.boot, told.seq, told.issued_s, told.expires_s,
        told.body, bytes(raw), digest(DOMAIN, signed),
    )  # fmt: skip
    check_times(record, now)
    return record


def check_times(record: Record, now: float) -> None:
    """Raises Stale when a record has expired, or is from more than 30 s in the future."""
    if record.issued_s > now + SKEW_MAX_S:
        raise Stale(f"a record from {record.issued_s - now:.0f} s in the future")
    if now >= record.expires_s:
        raise Stale(f"a record that expired {now - record.expires_s:.0f} s ago")


def read(record: Record, kind: type[Fact]) -> Fact:
    """The fact in a checked record. Raises RemoteError when it is not a well-formed one."""
    if record.kind != kind.KIND:
        raise RemoteError(f"a record of kind {record.kind}, not {kind.KIND}")
    told = decode(record.body, kind, max_bytes=BODY_BYTES_MAX)
    if told.place() != record.slot.place:
        raise RemoteError("a record whose body belongs to another place")
    peer = record.slot.peer
    if isinstance(told, Announcement | Provider):
        for address in told.addresses:
            if not address.endswith(f"/p2p/{peer}"):
                raise RemoteError(f"an address that is not the signer's own: {address:.80}")
    return replace(
        told, peer=peer, boot=record.boot, seq=record.seq,
        issued_s=record.issued_s, expires_s=record.expires_s,
    )  # fmt: skip


def check(raw: bytes, place: bytes, now: float, *, peer: str | None = None) -> Announcement:
    """The announcement that these bytes are, with its signer and stamps. RemoteError otherwise."""
    return read(check_record(raw, place, now, peer=peer), Announcement)


def newest(one: Record, other: Record) -> Record:
    """Which of two records of one slot wins: later boot, then later seq, then greater digest."""
    return max(one, other, key=lambda record: (*record.order, record.digest))


@dataclass(slots=True)
class _Mark:
    order: tuple[int, int]
    digest: bytes
    until_s: float


class Registry:
    """The newest (boot, seq) ever seen of each slot: nobody can roll a reader back.

    A mark may be forgotten once every older record of its slot has expired by itself: an older
    one was issued before, up to SKEW_MAX_S of a clock set back, and lives ttl_max_s at most.
    """

    def __init__(self, *, marks_max: int = 65_536) -> None:  # 64k peers' spans, about 20 MB
        self._marks: dict[Slot, _Mark] = {}
        self._marks_max = marks_max

    def __len__(self) -> int:
        return len(self._marks)

    def admit(self, record: Record) -> bool:
        """Remember a checked record; whether it is news. The same once more is no news, no fault.

        Raises Stale when a newer one has been seen, RemoteError at another of this boot and seq.
        """
        until_s = record.issued_s + ttl_max_s(record.kind) + SKEW_MAX_S
        mark = self._marks.pop(record.slot, None)
        if mark is None:
            self._make_room()
            self._marks[record.slot] = _Mark(record.order, record.digest, until_s)
            return True
        self._marks[record.slot] = mark  # popped and put: the last one touched is the last evicted
        if record.order < mark.order:
            raise Stale(f"a record {record.order} after {mark.order}: rolled back")
        if record.order == mark.order:
            if record.digest != mark.digest:
                raise RemoteError(f"two records {record.order} of one slot: a contradiction")
            return False
        mark.order, mark.digest = record.order, record.digest
        mark.until_s = max(mark.until_s, until_s)
        return True

    def forget_expired(self, now: float) -> None:
        stale = [slot for slot, mark in self._marks.items() if mark.until_s <= now]
        for slot in stale:
            del self._marks[slot]

    def _make_room(self) -> None:
        while len(self._marks) >= self._marks_max:
            del self._marks[next(iter(self._marks))]  # the longest untouched
