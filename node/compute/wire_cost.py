"""What each codec of the wire costs: `potluck bench wire`.

Held-out prose goes through the model's blocks in as many hops as asked for, and at every boundary,
the embedding's and the last one's too, its rows are written to the wire and read again, as a
session does (tensor.py). Beside the bytes stand how far a row comes back from where it was, the
perplexity of what comes out, and how often the best next token is the one of f32.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...swarm.rows import CODECS, row_bytes
from .checkpoint import open_checkpoint
from .head import Ends
from .numerics import WINDOW, held_out, of_torch, perplexity_of
from .stage import Stage
from .tensor import pack, unpack


@dataclass(frozen=True, slots=True)
class Cost:
    """One codec's. row_bytes: of a row of this model. error: median over all rows of all boundaries
    of |read - written| / |written|; error_p99: its 99th percentile. agree: share of tokens."""

    codec: str
    row_bytes: int
    error: float
    error_p99: float
    perplexity: float
    agree: float


def measure(source: str, *, hops: int = 4, windows: int = 10) -> tuple[Cost, ...]:
    """Of every codec, f32 first. Raises UserError."""
    checkpoint = open_checkpoint(source)
    blocks, width = checkpoint.spec.blocks, checkpoint.spec.hidden
    hops = min(hops, blocks)
    cuts = [blocks * hop // hops for hop in range(hops + 1)]
    ends, ids = Ends.load(checkpoint), held_out(checkpoint, windows * WINDOW)
    run = of_torch(Stage.load(checkpoint, 0, blocks, device="cpu", dtype="fp32"))
    first: Tensor | None = None
    costs = []
    for codec in CODECS:
        apart, logits = list[Tensor](), list[Tensor]()
        for at in range(0, len(ids), WINDOW):
            hidden = _over(ends.embed(ids[at : at + WINDOW]), codec, apart)
            for start, stop in pairwise(cuts):
                hidden = _over(run(hidden, start, stop), codec, apart)
            logits += [ends.logits(row) for row in hidden]
        rows, errors = torch.stack(logits), torch.cat(apart)
        first = rows if first is None else first
        costs.append(
            Cost(
                codec,
                row_bytes(width, codec),
                float(errors.median()),
                float(errors.quantile(0.99)),
                perplexity_of(rows, ids),
                float((rows.argmax(1) == first.argmax(1)).float().mean()),
            )
        )
    return tuple(costs)


def _over(rows: Tensor, codec: str, apart: list[Tensor]) -> Tensor:
    """Rows as they come out of the wire; how far each came is added."""
    come = unpack(pack(rows, codec), rows.shape[0], rows.shape[1], codec).float()
    apart.append((come - rows).norm(dim=1) / rows.norm(dim=1))
    return come
