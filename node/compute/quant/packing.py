"""Checkpoints that come quantized: which tensors of the file make one matrix, and what it is.

    bitsandbytes int8   x.weight int8, x.SCB                        taken as stored
    bitsandbytes nf4    x.weight, x.weight.absmax, ...              taken as stored
    GPTQ, AWQ           x.qweight, x.qzeros, x.scales (x.g_idx)     turned back to numbers, exactly

What is read here is the layout of the bytes; which of them a checkpoint has is settings.py's.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ....errors import UserError
from ..shards import Entry, broken
from ..weight import Format, Weight


class Stored(Protocol):
    """The tensors of a checkpoint under the names that its files have."""

    def stored(self, name: str) -> bool:
        """Whether there is such a tensor."""
        ...

    def entry(self, name: str) -> Entry:
        """Its dtype and shape, from the file's header."""
        ...

    def read(self, name: str) -> Tensor:
        """The tensor, mapped from disk."""
        ...

    def file_of(self, name: str) -> Path:
        """The file that holds it."""
        ...


class Packing(Protocol):
    """How one kind of quantized checkpoint keeps its matrices."""

    @property
    def format(self) -> Format:
        """What its matrices are served as when nobody asks for another format."""
        ...

    @property
    def verbatim(self) -> bool:
        """Whether its matrices are in that format as they are stored."""
        ...

    def parts(self, files: Stored, name: str) -> tuple[str, ...]:
        """The stored tensors that make the matrix `x.weight`; () when it is stored plainly."""
        ...

    def shape(self, files: Stored, name: str) -> tuple[int, int]:
        """Rows and columns of a matrix that has parts. Raises UserError."""
        ...

    def weight(self, files: Stored, name: str) -> Weight:
        """A matrix that has parts. Raises UserError naming the file that is damaged."""
        ...

    def whole(self, stored: str) -> str | None:
        """What a stored tensor is to those who ask: `x.weight`, itself, or None for a part."""
        ...


def need(files: Stored, name: str, part: str) -> None:
    """Raise UserError unless `part`, without which `name` is nothing, is stored."""
    if not files.stored(part):
        raise broken(files.file_of(name), f"has {name} but lacks {part}")


def expect(files: Stored, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
    """A stored tensor of one of these dtypes and this shape. Raises UserError."""
    entry = files.entry(name)
    if entry.dtype not in dtypes or entry.shape != shape:
        raise broken(
            files.file_of(name),
            f"has {name} of shape {list(entry.shape)} {entry.dtype},"
            f" not {list(shape)} {' or '.join(dtypes)}",
        )
    return files.read(name)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The numbers of each int32, the lowest bits first, along a new last dimension: int16."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (packed[..., None] >> shifts).bitwise_and_((1 << bits) - 1).to(torch.int16)


def refuse_extra_bias(files: Stored, name: str, bias: Tensor) -> None:
    """Raise UserError for a bias that the packer added and the model's arithmetic has no place for.

    GPTQ's packer writes one of zeros for each matrix; any other would change the numbers.
    """
    if bias.any():
        raise UserError(
            f"{files.file_of(name)}: {name} has a bias that this architecture does not add;"
            " give the model's unquantized checkpoint"
        )
