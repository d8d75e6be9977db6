"""A run's state as it is named, cut and checked: each parameter for itself, all under one digest.

Nothing in a checkpoint says who saved it, nor how the blocks of the model were divided then. So it
is loaded under any division, by any number of peers, and whoever saves the same state gives it the
same name, alone or in parts.

    name = H("chunk", manifest)
                run, epoch, step, counters
                weights/blocks.3...  block 3  f32 [8, 48]   H(chunk) H(chunk) ...
                own/inner/exp_avg/blocks.3...               H(chunk) ...

What is a peer's own (its optimizer's moments, its place in the data) is told apart by its name, so
that peers whose shared state is equal give that the same name, too.

A manifest is a chunk too (swarm/chunk.py): it is kept and fetched as its parameters are, and what
did not change from one checkpoint to the next is kept once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, Final, Literal

from ...crypto.codec import Range, Size, decode, encode
from ...crypto.merkle import Bytes, Digest
from ...errors import RemoteError, UserError
from ..blocks import BlockRange
from ..chunk import CHUNK_BYTES_MAX, Chunk, ChunkBytes, check
from ..wire import BlockNumber

ENTRIES_MAX: Final = 1 << 16
COUNTERS_MAX: Final = 64
OWN: Final = "own/"  # how names begin of what only one peer has

Dtype = Literal["bf16", "f16", "f32", "f64", "i64", "u8"]
ITEM_BYTES: Final[Mapping[str, int]] = {
    "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "i64": 8, "u8": 1,
}  # fmt: skip
Number = Annotated[int, Range(0, 1 << 53)]
Name = Annotated[str, Size(256, 1)]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor, little-endian, row by row. block: of the model, to which it belongs; None: to
    all."""

    name: Name
    block: BlockNumber | None
    dtype: Dtype
    shape: Annotated[tuple[Annotated[int, Range(0, 1 << 40)], ...], Size(8)]
    chunks: Annotated[tuple[Digest, ...], Size(1 << 17)]

    @property
    def size(self) -> int:
        """In bytes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Counter:
    """A number of the state that is no tensor: batches taken, an optimizer's steps."""

    name: Name
    value: Number


@dataclass(frozen=True, slots=True)
class Manifest:
    """run: whose state it is. epoch: exchanges before it. step: inner steps since the last one.
    chunk_bytes: of each chunk but a tensor's last."""

    run: Digest
    epoch: Number
    step: Number
    counters: Annotated[tuple[Counter, ...], Size(COUNTERS_MAX)]
    chunk_bytes: ChunkBytes
    entries: Annotated[tuple[Entry, ...], Size(ENTRIES_MAX)]

    def __post_init__(self) -> None:
        for named in (self.entries, self.counters):
            names = [one.name for one in named]
            if names != sorted(set(names)):
                raise ValueError("names are not in order, or one stands twice")
        for entry in self.entries:
            if len(entry.chunks) != -(-entry.size // self.chunk_bytes):
                raise ValueError(f"{entry.name:.40} has another number of chunks than its shape")

    @property
    def size(self) -> int:
        """Of all tensors, in bytes."""
        return sum(entry.size for entry in self.entries)

    @property
    def shared(self) -> Manifest:
        """Of what is equal at all peers whose exchanges leave them equal."""
        return replace(
            self,
            counters=tuple(one for one in self.counters if not one.name.startswith(OWN)),
            entries=tuple(one for one in self.entries if not one.name.startswith(OWN)),
        )

    def count(self, name: str) -> int:
        """A counter's value; 0 for one that is not there."""
        return next((one.value for one in self.counters if one.name == name), 0)

    def of(self, blocks: BlockRange | None) -> tuple[Entry, ...]:
        """What belongs to these blocks, and what belongs to none. None: everything."""
        if blocks is None:
            return self.entries
        return tuple(
            one for one in self.entries
            if one.block is None or blocks.start <= one.block < blocks.stop
        )  # fmt: skip

    def chunks(self, entries: Iterable[Entry]) -> list[Chunk]:
        """Of these entries, each once."""
        found: dict[Chunk, None] = {}
        for entry in entries:
            left = entry.size
            for name in entry.chunks:
                found[Chunk(name, min(left, self.chunk_bytes))] = None
                left -= self.chunk_bytes
        return list(found)


def write_manifest(manifest: Manifest) -> bytes:
    """Raises UserError for one that no peer would take."""
    raw = encode(manifest)
    if len(raw) > CHUNK_BYTES_MAX:
        raise UserError(
            f"a state of {len(manifest.entries)} tensors and {manifest.size} bytes is too large for"
            " a checkpoint: train fewer of the model's tensors"
        )
    return raw


def read_manifest(raw: Bytes, chunk: Chunk, run: bytes) -> Manifest:
    """The manifest that is this chunk. Raises RemoteError unless it is, and this run's."""
    check(chunk, raw)
    manifest = decode(raw, Manifest, max_bytes=CHUNK_BYTES_MAX)
    if manifest.run != run:
        raise RemoteError("the state of another run")
    return manifest


def joined(parts: Iterable[Manifest]) -> Manifest:
    """One of all these, of one moment of one run. Raises RemoteError for what does not belong
    together."""
    first, *others = parts
    entries = {one.name: one for one in first.entries}
    for part in others:
        if replace(part, entries=()) != replace(first, entries=()):
            raise RemoteError("parts of different moments, or of different runs")
        for one in part.entries:
            if entries.setdefault(one.name, one) != one:
                raise RemoteError(f"two parts say different things of {one.name:.80}")
    return replace(first, entries=tuple(entries[name] for name in sorted(entries)))


Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # by name: dtype, shape


def check_shapes(entries: Iterable[Entry], wanted: Shapes) -> None:
    """Raises RemoteError unless these are exactly the tensors that the run has, by name."""
    told = {one.name: (one.dtype, one.shape) for one in entries}
    if told != dict(wanted):
        wrong = sorted(
            name for name in told.keys() | wanted.keys() if told.get(name) != wanted.get(name)
        )
        raise RemoteError(f"a state of other tensors than the run's: {', '.join(wrong)[:200]}")
