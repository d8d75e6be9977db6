"""Steps of a training that nobody wants: how long they take over a swarm, and in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ...swarm.blocks import BlockRange
from .checkpoint import Checkpoint
from .gradients import Gradients
from .lesson import Lesson, Shape
from .remote import Connected, RemoteModel
from .tensor import pack

PROMPTS = 16


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of one step."""

    forward_s: float
    backward_s: float

    @property
    def both_s(self) -> float:
        return self.forward_s + self.backward_s


class Rehearsal:
    """The same batch of random tokens again and again, through soft prompts of no use."""

    def __init__(self, swarm: Connected, model: str, *, batch: int, tokens: int) -> None:
        """tokens: of a sequence, the prompts among them."""
        prompts = min(PROMPTS, tokens - 1)
        self._remote = RemoteModel(swarm, model, prompts=prompts)
        vocabulary = swarm.voice(model).ends.spec.vocab
        self._ids = torch.randint(vocabulary, (batch, tokens - prompts))

    def blocks(self) -> Took:
        """Forward and backward over the blocks alone: what Petals' figure is of."""
        began_s = time.perf_counter()
        hidden = self._remote.hidden(self._ids)
        above = torch.ones_like(hidden)
        turned_s = time.perf_counter()
        torch.autograd.backward([hidden], [above])
        return Took(turned_s - began_s, time.perf_counter() - turned_s)

    def whole(self) -> Took:
        """The same with the head and a loss."""
        began_s = time.perf_counter()
        logits = self._remote(self._ids)
        flat, next_ids = logits[:, :-1].flatten(0, 1), self._ids[:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(flat, next_ids)
        turned_s = time.perf_counter()
        torch.autograd.backward([loss])
        return Took(turned_s - began_s, time.perf_counter() - turned_s)


class Alone:
    """The blocks in this process, with one thread: what the swarm's figure is held against."""

    def __init__(self, checkpoint: Checkpoint, *, batch: int, tokens: int) -> None:
        self._blocks = BlockRange(0, checkpoint.spec.blocks)
        self._gradients = Gradients.load(checkpoint, self._blocks)
        self._shape = Shape(batch, tokens, 0, "f32")
        self._hidden = torch.randn(batch * tokens, checkpoint.spec.hidden)

    def step(self) -> Took:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            began_s = time.perf_counter()
            there = self._gradients.forward(
                pack(self._hidden), self._shape, self._blocks, None, kept_bytes=1
            )
            _finish(there)
            turned_s = time.perf_counter()
            both = pack(torch.cat([self._hidden, self._hidden]))
            back = self._gradients.backward(both, self._shape, self._blocks, None)
            back.kept = there.kept  # as servers do that have room
            _finish(back)
            return Took(turned_s - began_s, time.perf_counter() - turned_s)
        finally:
            torch.set_num_threads(threads)


def _finish(lesson: Lesson) -> None:
    for _ in lesson.slices():
        pass
