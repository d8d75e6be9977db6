"""All blocks of a model in this process, for whoever trains and has the checkpoint on disk.

What `RemoteModel` asks of a swarm (remote.py), answered by the same frozen blocks that servers
have (gradients.py), without a socket in between: so a step gives the same numbers wherever it is
computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from ...swarm.adapter import Bundle
from ...swarm.blocks import BlockRange
from ...swarm.microbatch import Brought, Microbatch
from .checkpoint import Checkpoint
from .gradients import Gradients
from .lesson import Dressed, Lesson, Shape


class Nearby:
    """A remote.Network that is here. Every call computes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises UserError. Blocks."""
        self._blocks = BlockRange(0, checkpoint.spec.blocks)
        self._gradients = Gradients.load(checkpoint, self._blocks)
        self._open: dict[int, Microbatch] = {}
        self._numbers = count(1)
        self._dressed: tuple[bytes, Dressed] | None = None  # the adapter of the step at hand

    def forward(self, batches: Sequence[Microbatch]) -> list[tuple[int, memoryview]]:
        found = []
        for batch in batches:
            worn = self._wear(batch.worn)
            payload = memoryview(b"".join((batch.hidden, batch.deep)))
            lesson = self._gradients.forward(payload, _shape(batch), self._blocks, worn)
            (rows,) = _run(lesson)
            number = next(self._numbers)
            self._open[number] = batch
            found.append((number, rows))
        return found

    def backward(self, grads: Sequence[tuple[int, memoryview]]) -> list[Brought]:
        found = []
        for number, grad in grads:
            batch = self._open.pop(number)
            worn = self._wear(batch.worn)
            payload = memoryview(b"".join((batch.hidden, grad, batch.deep)))
            rows, *rest = _run(self._gradients.backward(payload, _shape(batch), self._blocks, worn))
            found.append(Brought(rows, ((self._blocks, memoryview(b"".join(rest))),)))
        return found

    def drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._open.pop(number, None)

    def _wear(self, worn: Bundle | None) -> Dressed | None:
        if worn is None:
            return None
        if self._dressed is None or self._dressed[0] != worn.name:
            self._dressed = worn.name, self._gradients.dress(worn.hex, worn.parts)
        return self._dressed[1]


def _run(lesson: Lesson) -> list[memoryview]:
    for _ in lesson.slices():
        pass
    return lesson.answer


def _shape(batch: Microbatch) -> Shape:
    return Shape(batch.batch, batch.tokens, batch.prompts, batch.dtype)
