"""How well a model foresees a text, as one number: what a format costs, in the end.

    perplexity = exp(mean over tokens of -log p(token | those before it in its window))

The text is cut into windows, each read from its own beginning, so that no figure depends on how a
long text is carried over. The head stays as it is stored: only what is between it and the
embedding is in a format.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..head import Ends
from ..stage import Stage

Blocks = Callable[[Tensor], Tensor]  # hidden states from position 0 on, through all blocks


def perplexity(ends: Ends, blocks: Blocks, ids: Sequence[int], *, window: int = 256) -> float:
    """Of the text `ids`; every token but the first of each window is foreseen."""
    total, count = 0.0, 0
    for at in range(0, len(ids) - 1, window):
        part = list(ids[at : at + window])
        if len(part) < 2:
            continue
        hidden = blocks(ends.embed(part))
        for row, following in zip(hidden, part[1:], strict=False):
            logits = ends.logits(row).double()
            total += float(torch.logsumexp(logits, 0) - logits[following])
            count += 1
    if not count:
        raise ValueError("a text of fewer than two tokens foresees nothing")
    return math.exp(total / count)


def torch_blocks(stage: Stage) -> Blocks:
    """All blocks of a model by a stage that holds them, each call in a session of its own."""

    def run(hidden: Tensor) -> Tensor:
        cache = stage.open_cache(stage.start, stage.stop, len(hidden))
        return stage.forward(hidden, cache, 0).float()

    return run
