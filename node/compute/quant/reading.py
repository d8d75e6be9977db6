"""The matrices of a checkpoint in the format that is served, one after another.

Never the whole model in memory: a matrix is mapped, quantized and handed over before the next one,
and while the processor is at one the disk is asked for what follows.
"""

from collections.abc import Iterator, Sequence

from ..checkpoint import Checkpoint
from ..shards import broken
from ..weight import Weight
from .formats import Quantization
from .quantizers import NotFinite


def weights_of(
    checkpoint: Checkpoint, names: Sequence[str], quantization: Quantization
) -> Iterator[tuple[str, Weight]]:
    """Each of these matrices, in this order. Raises UserError naming a file that is damaged.

    A weight that is stored in the format asked for is a view of the file; others are new. Beside
    what is yielded, memory holds one matrix at most.
    """
    for at, name in enumerate(names):
        for following in names[at + 1 : at + 2]:
            for part in checkpoint.stored_names(following):
                checkpoint.read(part)  # mapped, and the system begins to read
        try:
            weight = quantization.take(checkpoint.weight(name))
        except NotFinite as error:
            why = f"has {name}, of which a number is infinite or none"
            raise broken(checkpoint.path_of(name), why) from error
        yield name, weight
