"""The weights of a block out of a checkpoint, in the format in which they are to be served."""

import math

import torch

from ...errors import UserError
from .checkpoint import Checkpoint
from .layout import BlockWeights, Layout
from .quant.formats import Quantization
from .quant.quantizers import NotFinite
from .weight import Weight


def read_block(checkpoint: Checkpoint, layout: Layout, coding: Quantization) -> BlockWeights:
    """The weights of one block, whatever the checkpoint stores. Raises UserError."""
    exact = layout.exact
    plain = checkpoint.tensors(exact)
    matrices: dict[str, Weight] = {}
    for name, shape in layout.shapes.items():
        if name in exact:
            if len(shape) == 2:
                matrices[name] = Weight.plain(plain[name])
            continue
        try:
            matrices[name] = coding.take(checkpoint.weight(name))
        except NotFinite as error:
            raise UserError(
                f"{checkpoint.path_of(name)}: tensor {name} is not finite; download it again"
            ) from error
    return BlockWeights.of(layout, matrices, plain)


def block_bytes(layout: Layout, coding: Quantization, dtype: torch.dtype) -> int:
    """Bytes of a block in a format, its plain numbers as `dtype`."""
    total = 0
    for name, shape in layout.shapes.items():
        if len(shape) == 1 or name in layout.exact:
            total += math.prod(shape) * dtype.itemsize
        else:
            total += coding.bytes_of(shape[0], shape[1], stored_bytes=dtype.itemsize)
    return total
