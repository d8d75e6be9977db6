"""A run's checkpoints on disk: the last few, each whole, in parts that they share.

    folder/chunks/ab/ab3f...              parameters and manifests, by digest (../chunks/store.py)
    folder/marks/000000000012-000000000340     of which manifest: epoch and step

A mark is written last, in one go, so that a checkpoint is there with all that belongs to it or not
at all: a disk that fills up, or kill -9, leaves the ones before. Whatever no mark leads to is
removed; an old mark goes when there are too many, or when a new one needs its room. Everything here
blocks for files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...crypto.codec import decode, encode
from ...errors import RemoteError, UserError
from ...swarm.blocks import BlockRange
from ...swarm.chunk import Chunk, digest_of
from ...swarm.run.checkpoint import Entry, Manifest, read_manifest, write_manifest
from ..chunks.store import ChunkStore, replace_durably
from ..compute.snapshot import Snapshot, cut_up, put_together

CHUNKS: Final = "chunks"
MARKS: Final = "marks"
KEEP: Final = 3  # guess: the newest, one that others are still fetching, and one for a broken disk
BYTES_MAX: Final = 8 << 30  # guess: Adam's state of an adapter has 100 MB, of a small model 8 GB
_MARK: Final = re.compile(r"(\d{12})-(\d{12})", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Tops:
    """A mark's file."""

    manifest: Chunk
    shared: Chunk


@dataclass(frozen=True, slots=True)
class Mark:
    """That there is a checkpoint of this moment. manifest: where it begins. shared: the same of
    what is not the peer's own."""

    epoch: int
    step: int
    manifest: Chunk
    shared: Chunk

    @property
    def file(self) -> str:
        return f"{self.epoch:012d}-{self.step:012d}"


class Checkpoints:
    """Of one run, in one folder: written by one thread at a time, read by any."""

    def __init__(
        self, folder: Path, run: bytes, *, bytes_max: int = BYTES_MAX, keep: int = KEEP
    ) -> None:
        """bytes_max: of all files. keep: so many at most. Raises UserError."""
        if keep < 1:
            raise UserError(f"{keep} checkpoints to be kept: choose 1 or more")
        self.run = run
        self.chunks = ChunkStore(folder / CHUNKS, bytes_max)
        self._marks = folder / MARKS
        self._keep = keep
        try:
            self._marks.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._marks}: cannot be made ({error.strerror})") from error

    # ---- writing

    def save(self, snapshot: Snapshot) -> Mark:
        """Raises UserError when there is no room; the checkpoints before are left as they were."""
        manifest, parts = cut_up(snapshot)
        tops = []
        for one in (manifest, manifest.shared):
            raw = write_manifest(one)
            tops.append(Chunk(digest_of(raw), len(raw)))
            parts[tops[-1]] = memoryview(raw)
        lacking = self.chunks.lacks(parts)
        self._make_room(sum(one.size for one in lacking), keeping=set(parts))
        try:
            for chunk in lacking:
                self.chunks.put(chunk, parts[chunk])
            return self._mark(Mark(manifest.epoch, manifest.step, *tops))
        except UserError as error:
            self.sweep()
            raise UserError(
                f"no checkpoint of epoch {manifest.epoch}, step {manifest.step}; those before it"
                f" are kept: {error}"
            ) from error

    def adopt(self, top: Chunk, blocks: BlockRange | None = None) -> Mark:
        """What was fetched into `chunks` is a checkpoint from now on. Raises UserError."""
        manifest = self.manifest(top)
        if manifest is None or self.chunks.lacks(manifest.chunks(manifest.of(blocks))):
            raise UserError("a checkpoint of which a part is not here")
        return self._mark(Mark(manifest.epoch, manifest.step, top, top))

    def drop_after(self, epoch: int, step: int) -> None:
        """What came of it is not to be gone on with."""
        self._drop([mark for mark in self.marks() if (mark.epoch, mark.step) > (epoch, step)])

    def sweep(self) -> int:
        """Remove what no checkpoint needs; how many bytes that frees."""
        return self.chunks.keep_only(self._needed())

    # ---- reading

    def marks(self) -> list[Mark]:
        """The newest first."""
        found = []
        for path in self._marks.iterdir():
            if named := _MARK.fullmatch(path.name):
                with suppress(OSError, RemoteError):  # a damaged one leads nowhere
                    tops = decode(path.read_bytes(), _Tops)
                    moment = int(named[1]), int(named[2])
                    found.append(Mark(*moment, tops.manifest, tops.shared))
        return sorted(found, key=lambda mark: mark.file, reverse=True)

    def latest(self, blocks: BlockRange | None = None) -> Snapshot | None:
        """The newest that is whole, of these blocks and what belongs to none; None: nothing is."""
        for mark in self.marks():
            found = self.load(mark.manifest, blocks)
            if found is not None:
                return found
        return None

    def load(self, top: Chunk, blocks: BlockRange | None = None) -> Snapshot | None:
        """One checkpoint; None when a part of it is not here, or damaged."""
        manifest = self.manifest(top)
        if manifest is None:
            return None
        try:
            return put_together(manifest, self._read(manifest.of(blocks)))
        except (_Lost, RemoteError):
            return None

    def manifest(self, top: Chunk) -> Manifest | None:
        """None when it is not here, or is none of this run's."""
        raw = self.chunks.get(top.digest)
        if raw is None:
            return None
        try:
            return read_manifest(raw, top, self.run)
        except RemoteError:
            return None

    def _read(self, entries: tuple[Entry, ...]) -> Iterator[tuple[Entry, list[bytes]]]:
        for entry in entries:
            raws = [self.chunks.get(name) for name in entry.chunks]
            found = [raw for raw in raws if raw is not None]
            if len(found) < len(raws):
                raise _Lost
            yield entry, found

    # ---- marks, and what they need

    def _mark(self, mark: Mark) -> Mark:
        path = self._marks / mark.file
        try:
            replace_durably(path, encode(_Tops(mark.manifest, mark.shared)))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); free the disk"
            ) from error
        self._drop(self.marks()[self._keep :])
        return mark

    def _drop(self, marks: list[Mark]) -> None:
        for mark in marks:
            with suppress(OSError):  # it is dropped the next time
                (self._marks / mark.file).unlink(missing_ok=True)
        if marks:
            self.sweep()

    def _make_room(self, size: int, keeping: set[Chunk]) -> None:
        """The oldest go, never the newest. Raises UserError."""
        room = self.chunks.bytes_max
        if self.chunks.used_bytes() + size <= room:
            return
        kept = {one.digest for one in keeping}
        self.chunks.keep_only(self._needed() | kept)
        while self.chunks.used_bytes() + size > room and len(marks := self.marks()) > 1:
            with suppress(OSError):
                (self._marks / marks[-1].file).unlink(missing_ok=True)
            self.chunks.keep_only(self._needed() | kept)
        used = self.chunks.used_bytes()
        if used + size > room:
            raise UserError(
                f"a checkpoint of {size} bytes beside the last one of {used}, where {room} are"
                f" allowed: allow {used + size} or more"
            )

    def _needed(self) -> set[bytes]:
        names: set[bytes] = set()
        for mark in self.marks():
            names |= {mark.manifest.digest, mark.shared.digest}
            manifest = self.manifest(mark.manifest)
            for entry in () if manifest is None else manifest.entries:
                names.update(entry.chunks)
        return names


class _Lost(Exception):
    """A part is not here."""
