"""Blocks as they are served, kept on disk: what was quantized and packed once is mapped next time.

    magic │ 8 bytes: n │ 32 bytes: hash of the header │ n bytes: the header, JSON │ the buffers
    header: the key, facts of its owner, and for each buffer its dtype, shape, place and sum

A buffer begins at a multiple of 64. A file appears whole, under its final name, or not at all; it
is checked each time that it is read, and one that fails is removed and made anew. The largest
total is the user's; beyond it those go that were not read for the longest time.

The sum (checksum.py) finds damage, not malice: whoever can write here can run as this user.
"""

import hashlib
import json
import math
import mmap
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..native.linear import Pool
from .checksum import checksum

BYTES_MAX = 64 << 30  # a guess: nf4 of 70 billion weights is 40 GiB

_MAGIC = b"potluck larder 1"
_ALIGNMENT = 64  # a processor's cache line, and its widest vector
_HEAD_BYTES = len(_MAGIC) + 8 + 32
_HEADER_BYTES_MAX = 16 << 20
_DISK_LEFT_BYTES = 1 << 30  # a volunteer's disk is not for us to fill; a guess
_STALE_S = 600.0  # a half-written file that nobody wrote to for so long has no writer: a guess
_SUFFIX = ".block"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.bfloat16, torch.float16, torch.float64,
        torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """Which block, and as what."""

    digest: str  # the model's
    block: int
    format: str
    layout: str  # of the bytes: a name and version that the owner of the buffers changes

    def __post_init__(self) -> None:
        for part in (self.digest, self.format, self.layout):
            if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,128}", part):
                raise ValueError(f"{part!r} cannot be part of a file's name")


@dataclass(frozen=True, slots=True)
class Kept:
    """What was kept: the owner's facts, and the buffers, mapped from disk."""

    facts: dict[str, Any]
    buffers: dict[str, Tensor]


class Larder:
    """A folder of kept blocks. Several processes may share it."""

    def __init__(self, root: Path, *, bytes_max: int = BYTES_MAX, pool: Pool | None = None) -> None:
        """pool: threads that check what is read, so that it takes no longer than reading it."""
        self._root = root
        self._bytes_max = bytes_max
        self._pool = pool

    def path(self, key: Key) -> Path:
        """Where a block lies, if it is kept."""
        name = f"{key.block:04d}-{key.format}-{key.layout}{_SUFFIX}"
        return self._root / key.digest[:32] / name

    def has(self, digest: str) -> bool:
        """Whether any block of this model is kept."""
        return any((self._root / digest[:32]).glob(f"*{_SUFFIX}"))

    def get(self, key: Key) -> Kept | None:
        """A block that is kept and undamaged; a damaged one is removed.

        The buffers stay valid while they are used, even when the file is removed meanwhile.
        """
        path = self.path(key)
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if hasattr(mmap, "MADV_WILLNEED"):
                mapped.madvise(mmap.MADV_WILLNEED)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # not to be read, or empty
            found = None
        else:
            found = _read(mapped, key, self._pool)
        with suppress(OSError):
            if found is None:
                path.unlink(missing_ok=True)
            else:
                os.utime(path)  # the last reading: what decides who goes first
        return found

    def put(
        self, key: Key, buffers: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None
    ) -> bool:
        """Keep a block; False when there is no room or no leave to write: it is made anew then."""
        path = self.path(key)
        plain = {name: _bytes_of(tensor) for name, tensor in buffers.items()}
        head, places = _header(key, buffers, plain, facts or {})
        size = _HEAD_BYTES + len(head)
        size = max([size, *(at + len(plain[name]) for name, at in places.items())])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._make_room(size, path):
                return False
            handle, name = tempfile.mkstemp(prefix="new-", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_MAGIC + len(head).to_bytes(8, "little") + _hash(head) + head)
                    for buffer, at in places.items():
                        file.seek(at)
                        file.write(plain[buffer])
                    file.truncate(size)
                os.replace(name, path)
            finally:
                Path(name).unlink(missing_ok=True)  # it is there only if something went wrong
        except OSError:
            return False
        return True

    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(size for _, size, _ in self._files())

    def _files(self) -> list[tuple[float, int, Path]]:
        """Of each kept block: when it was read last, its size, its path; the oldest first."""
        found = []
        for path in self._root.glob(f"*/*{_SUFFIX}"):
            with suppress(OSError):  # removed by another process
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    def _make_room(self, size: int, path: Path) -> bool:
        """Remove what was read longest ago until `size` bytes may be added. False: they may not."""
        for stale in self._root.glob("*/new-*"):
            with suppress(OSError):
                if time.time() - stale.stat().st_mtime > _STALE_S:
                    stale.unlink()
        files = [one for one in self._files() if one[2] != path]  # that one is replaced
        total = sum(one[1] for one in files)
        free = shutil.disk_usage(self._root).free - _DISK_LEFT_BYTES
        if size > self._bytes_max or size > free + total:
            return False
        for _, freed, old in files:
            if total + size <= self._bytes_max and size <= free:
                break
            old.unlink(missing_ok=True)
            total -= freed
            free += freed
        return total + size <= self._bytes_max and size <= free


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _header(
    key: Key,
    buffers: Mapping[str, Tensor],
    plain: Mapping[str, memoryview],
    facts: Mapping[str, Any],
) -> tuple[bytes, dict[str, int]]:
    """The header, and where each buffer goes, which follows from how long the header is."""
    listed: dict[str, Any] = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "sum": checksum(plain[name]),
        }
        for name, tensor in buffers.items()
    }
    head = json.dumps({"key": asdict(key), "facts": dict(facts), "buffers": listed}).encode()
    return head, _places(len(head), {name: len(one) for name, one in plain.items()})


def _places(head: int, sizes: Mapping[str, int]) -> dict[str, int]:
    places = {}
    at = _HEAD_BYTES + head
    for name, size in sizes.items():
        at += -at % _ALIGNMENT
        places[name] = at
        at += size
    return places


def _read(mapped: mmap.mmap, key: Key, pool: Pool | None) -> Kept | None:
    """What a file holds; None when it is not what was written."""
    length = int.from_bytes(mapped[len(_MAGIC) : len(_MAGIC) + 8], "little")
    if mapped[: len(_MAGIC)] != _MAGIC or length > min(len(mapped), _HEADER_BYTES_MAX):
        return None
    head = mapped[_HEAD_BYTES : _HEAD_BYTES + length]
    if mapped[len(_MAGIC) + 8 : _HEAD_BYTES] != _hash(head):
        return None
    header = json.loads(head)  # it is what we wrote: its hash says so
    if header["key"] != asdict(key):
        return None
    sizes = {
        name: math.prod(one["shape"]) * _DTYPES[one["dtype"]].itemsize
        for name, one in header["buffers"].items()
    }
    places = _places(length, sizes)
    if any(at + sizes[name] > len(mapped) for name, at in places.items()):
        return None
    view = memoryview(mapped)
    for name, at in places.items():
        if checksum(view[at : at + sizes[name]], pool) != header["buffers"][name]["sum"]:
            return None
    buffers = {}
    for name, at in places.items():
        dtype, shape = _DTYPES[header["buffers"][name]["dtype"]], header["buffers"][name]["shape"]
        if sizes[name]:
            count = sizes[name] // dtype.itemsize
            buffers[name] = torch.frombuffer(mapped, dtype=dtype, count=count, offset=at).view(
                shape
            )
        else:
            buffers[name] = torch.empty(shape, dtype=dtype)
    return Kept(header["facts"], buffers)


def _hash(head: bytes) -> bytes:
    return hashlib.blake2b(head, digest_size=32).digest()
