"""A whole model in this process, greedily: what a swarm's figures are held against."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from .checkpoint import Checkpoint
from .head import Ends
from .sampling import Settings, pick
from .stage import Stage

GREEDY = Settings()


def local_seconds(checkpoint: Checkpoint, prompt: Sequence[int], tokens: int) -> list[float]:
    """Seconds for each of `tokens` new tokens, the first with the prompt's prefill. One thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stage = Stage.load(checkpoint, 0, checkpoint.spec.blocks)
        ends = Ends.load(checkpoint)
        cache = stage.open_cache(0, checkpoint.spec.blocks, len(prompt) + tokens)
        ids = list(prompt)
        hidden, at, seconds = ends.embed(ids), 0, []
        for _ in range(tokens):
            began_s = time.perf_counter()
            out = stage.forward(hidden, cache, at)
            at = cache.length
            token = pick(ends.logits(out[-1]), GREEDY, len(ids), ids)
            ids.append(token)
            hidden = ends.embed([token])
            seconds.append(time.perf_counter() - began_s)
        return seconds
    finally:
        torch.set_num_threads(threads)
