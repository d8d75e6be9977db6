"""A stage as the server sees it: payloads in, payloads out, timed.

The server knows frames and positions, the stage knows tensors; between them stand only these
calls. All of them run on the worker's thread.
"""

import time

from ...swarm.blocks import BlockRange
from ...swarm.wire import Step
from .cache import Cache
from .stage import Stage
from .tensor import pack, unpack

NOTHING = memoryview(b"")


class StageEngine:
    """What a server runs for its sessions."""

    def __init__(self, stage: Stage) -> None:
        self.blocks = BlockRange(stage.start, stage.stop)
        self.width = stage.spec.hidden
        self.context = stage.spec.context  # positions that a session may have
        self.numerics = stage.numerics
        self._stage = stage

    def open_cache(self, blocks: BlockRange, tokens: int) -> Cache:
        """The memory of a session. Raises RemoteError for blocks or sizes not served."""
        return self._stage.open_cache(blocks.start, blocks.stop, tokens)

    def run(
        self, cache: Cache, payload: memoryview, step: Step, dtype: str
    ) -> tuple[memoryview, float]:
        """The last `step.rows` rows that come out, packed as `dtype`, and the blocks' own seconds.

        Raises RemoteError for a payload or position that no honest client sends.
        """
        hidden = unpack(payload, sum(step.sizes), self.width, dtype)
        began = time.perf_counter()
        out = self._stage.forward_steps(hidden, cache, step.at, step.sizes)
        spent = time.perf_counter() - began
        return (pack(out[len(out) - step.rows :], dtype) if step.rows else NOTHING), spent

    def truncate(self, cache: Cache, at: int) -> None:
        """Forget positions from `at` on. Raises RemoteError when there are not that many."""
        cache.truncate(at)
