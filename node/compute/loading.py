"""The weights of blocks out of a checkpoint, in the format in which they are to be served."""

import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch

from ...swarm.blocks import BlockRange
from .checkpoint import Checkpoint
from .layout import BlockWeights, Layout, layout_of
from .native.library import is_available
from .native.linear import Pool
from .quant.blocks import block_weights
from .quant.formats import Quantization
from .quant.larder import Larder
from .weight import Weight

# told how many of how many blocks are loaded, on the thread that loads: a terminal's bar
LISTENERS: list[Callable[[int, int], None]] = []


class Loader:
    """Reads blocks one after another, from the checkpoint or from what was kept of it."""

    def __init__(
        self, checkpoint: Checkpoint, coding: Quantization, cache_dir: Path | None = None
    ) -> None:
        """cache_dir: where quantized blocks are kept; None: they are made anew."""
        self._checkpoint = checkpoint
        self._coding = coding
        self._larder = None
        if cache_dir is not None:
            pool = Pool(torch.get_num_threads()) if is_available() else None
            self._larder = Larder(cache_dir, pool=pool)
        self._digest = "unkept" if cache_dir is None else checkpoint.digest()

    def block(self, index: int) -> BlockWeights:
        """The weights of block `index`. Raises UserError."""
        layout = layout_of(self._checkpoint.spec, index)
        matrices = block_weights(
            self._checkpoint,
            index,
            [name for name in layout.shapes if name not in layout.exact],
            self._coding,
            digest=self._digest,
            larder=self._larder,
        )
        exact = self._checkpoint.tensors(layout.exact)
        matrices |= {name: Weight.plain(one) for name, one in exact.items() if one.ndim == 2}
        return BlockWeights.of(layout, matrices, exact)


def counted(indices: Collection[int]) -> Iterator[int]:
    """These, and word to whoever listens as each is done with."""
    for done, index in enumerate(indices, start=1):
        yield index
        for listen in LISTENERS:
            listen(done, len(indices))


def fetch_block(checkpoint: Checkpoint, index: int) -> None:
    """Have the files of block `index` here. Of a model that is not of our families nothing is
    known to belong to one block, and nothing is fetched. Raises UserError."""
    if checkpoint.spec.general is None:
        checkpoint.fetch(layout_of(checkpoint.spec, index).shapes)


def fetch_blocks(checkpoint: Checkpoint, blocks: BlockRange) -> None:
    """The same for all of these, at once. Raises UserError."""
    if checkpoint.spec.general is None:
        checkpoint.fetch(
            name
            for index in range(blocks.start, blocks.stop)
            for name in layout_of(checkpoint.spec, index).shapes
        )


def block_bytes(layout: Layout, coding: Quantization, dtype: torch.dtype) -> int:
    """Bytes of a block in a format, its plain numbers as `dtype`."""
    exact = layout.exact
    total = 0
    for name, shape in layout.shapes.items():
        if name in exact:
            total += math.prod(shape) * dtype.itemsize
        else:
            total += coding.bytes_of(shape[0], shape[1], stored_bytes=dtype.itemsize)
    return total
