"""One safetensors file: its header read strictly, its tensors mapped and never copied.

    8 bytes: n, little-endian │ n bytes: JSON {name: {dtype, shape, data_offsets}} │ the data

Nothing is executed and nothing is trusted: a truncated file, a hole, an overlap or a shape that
does not fill its bytes is named before any weight is used.

Source: the safetensors format, https://github.com/huggingface/safetensors#format.
"""

import json
import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I8": torch.int8, "U8": torch.uint8, "I32": torch.int32}  # of quantized checkpoints
_KNOWN = DTYPES | INTEGERS
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1}
_SIZES |= {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1} | {k: d.itemsize for k, d in DTYPES.items()}
_HEADER_BYTES_MAX = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A checked file of tensors."""

    path: Path
    entries: dict[str, Entry]

    @staticmethod
    def open(path: Path) -> "Shard":
        """Read and check the header. Raises UserError naming the file."""
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > min(_HEADER_BYTES_MAX, size - 8):
                    raise broken(path, "is truncated or not a safetensors file")
                raw = file.read(length)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check it") from error
        try:
            header = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise broken(path, "has a header that is not JSON") from error
        if not isinstance(header, dict):
            raise broken(path, "has a header that is not an object")
        header.pop("__metadata__", None)
        data = 8 + length
        entries = {name: _entry(path, name, fact, data) for name, fact in header.items()}
        reached = data
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if entry.start != reached:
                raise broken(path, f"has a hole or an overlap before {name}")
            reached = entry.stop
        if reached != size:
            raise broken(path, f"is {size} bytes long, but its header describes {reached}")
        return Shard(path, entries)

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Map the file and return views of it; the mapping lives as long as they do."""
        with self.path.open("rb") as file:
            # private copy on write: never written, but torch warns about memory it may not write
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        found = {}
        for name in names:
            entry = self.entries[name]
            if entry.dtype not in _KNOWN:
                raise UserError(
                    f"{self.path}: tensor {name} has dtype {entry.dtype}, which is not served"
                )
            _ahead(mapped, entry)
            count = math.prod(entry.shape)
            if count:
                flat = torch.frombuffer(
                    mapped, dtype=_KNOWN[entry.dtype], count=count, offset=entry.start
                )
                found[name] = flat.view(entry.shape)
            else:
                found[name] = torch.empty(entry.shape, dtype=_KNOWN[entry.dtype])
        return found


def _ahead(mapped: mmap.mmap, entry: Entry) -> None:
    """Ask the system to read what will be used soon, where it can be asked."""
    if hasattr(mmap, "MADV_WILLNEED") and entry.stop > entry.start:
        start = entry.start - entry.start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, start, entry.stop - start)


def broken(path: Path, why: str) -> UserError:
    """The error for a damaged file."""
    return UserError(f"{path}: {why}; delete it and download it again")


def _entry(path: Path, name: str, fact: Any, data: int) -> Entry:
    try:
        dtype, shape = fact["dtype"], tuple(fact["shape"])
        start, stop = fact["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise broken(path, f"has a malformed entry for {name!r}") from error
    numbers = (*shape, start, stop)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise broken(path, f"has a malformed entry for {name!r}")
    size = _SIZES.get(dtype) if isinstance(dtype, str) else None
    if size is None:
        raise UserError(f"{path}: tensor {name} has dtype {dtype!r}, which is not served")
    if stop - start != math.prod(shape) * size:
        raise broken(path, f"has {stop - start} bytes for {name} of shape {list(shape)} {dtype}")
    return Entry(dtype, shape, data + start, data + stop)
