"""The matrices of one block in the format that is served: from the larder, or made and kept."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..checkpoint import Checkpoint
from ..weight import Weight
from .formats import Quantization
from .larder import Kept, Key, Larder
from .reading import weights_of

LAYOUT = (
    "rows1"  # codes and scales as in Weight, of quantizers.py's bytes; count up when they change
)


def block_weights(
    checkpoint: Checkpoint,
    index: int,
    names: Sequence[str],
    quantization: Quantization,
    *,
    digest: str,
    larder: Larder | None = None,
) -> dict[str, Weight]:
    """These matrices of block `index`. Raises UserError.

    digest: the model's (`checkpoint.digest()`). What the checkpoint stores in this format already
    is mapped from it and not kept again.
    """
    key = Key(digest, index, quantization.format, LAYOUT)
    stored = checkpoint.verbatim and quantization.format == checkpoint.stored_format
    if larder is None or stored:
        return dict(weights_of(checkpoint, names, quantization))
    kept = larder.get(key)
    if kept is not None:
        found = unpack_weights(kept)
        if found.keys() == set(names):
            return found
    found = dict(weights_of(checkpoint, names, quantization))
    buffers, facts = pack_weights(found)
    larder.put(key, buffers, facts)
    return found


def pack_weights(weights: Mapping[str, Weight]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Weights as buffers and facts, for a larder."""
    buffers: dict[str, Tensor] = {}
    facts: dict[str, object] = {}
    for name, weight in weights.items():
        facts[name] = [weight.format, weight.rows, weight.columns]
        buffers[name + ":codes"] = weight.codes
        if weight.scales is not None:
            buffers[name + ":scales"] = weight.scales
    return buffers, facts


def unpack_weights(kept: Kept) -> dict[str, Weight]:
    """The weights that `pack_weights` turned into this."""
    return {
        name: Weight(
            format,
            rows,
            columns,
            kept.buffers[name + ":codes"],
            kept.buffers.get(name + ":scales"),
        )
        for name, (format, rows, columns) in kept.facts.items()
    }
