"""A stage as the server sees it: payload in, payload out. Runs on the worker's thread."""

from __future__ import annotations

import time

import torch

from ...swarm.blocks import BlockRange
from ...swarm.wire import Step
from .cache import Cache
from .stage import Stage
from .tensor import pack, unpack

NOTHING = memoryview(b"")


class StageEngine:
    """The server's Engine over a Stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.blocks = BlockRange(stage.start, stage.stop)
        self.width = stage.spec.hidden
        self.context = stage.spec.context
        dtype = str(stage.dtype).removeprefix("torch.")
        # One thread count for a class: a product split among threads may round otherwise.
        self.numerics = (
            f"none/{dtype}/torch{torch.__version__}/{stage.device.type}/{torch.get_num_threads()}"
        )

    def open_cache(self, blocks: BlockRange, tokens: int) -> Cache:
        return self._stage.open_cache(blocks.start, blocks.stop, tokens)

    def run(
        self, cache: Cache, payload: memoryview, step: Step, dtype: str
    ) -> tuple[memoryview, float]:
        """The last `step.rows` rows that come out, as bytes, and the seconds it took."""
        began_s = time.perf_counter()
        hidden = unpack(payload, sum(step.sizes), self.width, dtype)
        if len(step.sizes) == 1:
            out = self._stage.forward(hidden, cache, step.at)
        else:
            out = self._stage.forward_steps(hidden, cache, step.at, step.sizes)
        answer = pack(out[len(out) - step.rows :], dtype) if step.rows else NOTHING
        return answer, time.perf_counter() - began_s

    def truncate(self, cache: Cache, at: int) -> None:
        cache.truncate(at)
