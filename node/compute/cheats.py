"""Stages that do not compute what they say: of a testnet's liars, and to measure audits against.

    weights   a checkpoint whose tensors are changed before they are packed. Its format, its class
              of numbers and its digest are those of an honest peer
    rows      an engine whose answers are changed on their way out

A block that adds nothing is one that was left out: the matrices by which it adds to the residual
stream are zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import UserError
from ...swarm.blocks import BlockRange
from ...swarm.receipt import CHUNK_TOKENS
from ...swarm.wire import Step
from .checkpoint import Checkpoint
from .engine import Engine, Work
from .layout import layout_of
from .weight import Weight

GROUP = 64  # columns that share a scale, as in nf4
LEVELS = 7  # of 4 bits, either side of zero
SWOLLEN = 1.0625  # whose product with any number is rounded alike everywhere

Cheat = Callable[[Tensor], Tensor]


class FalseCheckpoint(Checkpoint):
    """A checkpoint of which some blocks add nothing, or whose matrices are 4 bits wide."""

    def __init__(
        self, honest: Checkpoint, *, left_out: Iterable[int] = (), four_bit: bool = False
    ) -> None:
        """Raises UserError for a model that is served by other code than ours."""
        super().__init__(honest.name, honest._source)
        if self.spec.general is not None:
            raise UserError(f"models of {self.spec.family} have no false weights: tell another lie")
        self._coarse = frozenset(
            part.tensor
            for index in range(self.spec.blocks if four_bit else 0)
            for part in layout_of(self.spec, index).matrices.values()
        )
        self._noughts = frozenset(
            part.tensor
            for index in left_out
            for parts in (layout_of(self.spec, index).matrices, layout_of(self.spec, index).vectors)
            for name, part in parts.items()
            if name.rpartition(".")[2] in ("out", "down", "out_bias", "down_bias")
        )

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """As numbers: our kernels quantize what they pack themselves."""
        return {name: self._false(name, one) for name, one in super().tensors(names).items()}

    def _false(self, name: str, honest: Tensor) -> Tensor:
        if name in self._noughts:
            return torch.zeros_like(honest)
        return to_four_bits(honest) if name in self._coarse else honest

    def weight(self, name: str) -> Weight:
        honest = super().weight(name)
        if name in self._noughts:
            return Weight.plain(torch.zeros(honest.rows, honest.columns))
        if name not in self._coarse:
            return honest
        plain = honest.codes if honest.format == "none" else honest.dequantize()
        return Weight.plain(to_four_bits(plain))


def skipped(blocks: BlockRange) -> tuple[int, ...]:
    """The block that is left out of a span, and would be missed least: its middle."""
    return ((blocks.start + blocks.stop) // 2,)


def halved(blocks: BlockRange) -> tuple[int, ...]:
    """Every second block of a span: a model of half the depth, as pruning makes them."""
    return tuple(range(blocks.start, blocks.stop, 2))


def to_four_bits(matrix: Tensor) -> Tensor:
    """The numbers that 15 even levels for each group of columns can stand for, as they came."""
    rows, columns = matrix.shape
    group = GROUP if columns % GROUP == 0 else columns
    grouped = matrix.float().reshape(rows, columns // group, group)
    step = grouped.abs().amax(dim=2, keepdim=True).clamp(min=1e-12) / LEVELS
    return ((grouped / step).round() * step).reshape(rows, columns).to(matrix.dtype)


class RowCheat(Protocol):
    """What becomes of a session's rows. One for each session, told of all its steps in order."""

    def begin(self, tokens: int) -> None:
        """The next step has so many."""

    def change(self, out: Tensor) -> Tensor:
        """Of this step's rows, the next. Returns as many."""


class RandomRows:
    """Noise as large as the rows, in a share of the chunks: a step of a prompt, or 32 tokens."""

    def __init__(self, share: float, dice: Random) -> None:
        self._share = share
        self._dice = dice
        self._noise = torch.Generator().manual_seed(dice.getrandbits(63))
        self._decoded = 0  # since the last step of a prompt
        self.false = False

    def begin(self, tokens: int) -> None:
        prompt = tokens > 1
        if prompt or self._decoded % CHUNK_TOKENS == 0:
            self.false = self._dice.random() < self._share
        self._decoded = 0 if prompt else self._decoded + 1

    def change(self, out: Tensor) -> Tensor:
        if not self.false:
            return out
        noise = torch.randn(out.shape, generator=self._noise)
        return noise.to(out.device, out.dtype) * out.std()


class ColludingRows:
    """All of it a little too large, by the same rule in every session and at every peer: who
    computes it again and tells the same lie, agrees bit for bit."""

    def begin(self, tokens: int) -> None:
        pass

    def change(self, out: Tensor) -> Tensor:
        return out * SWOLLEN


class ReplayedRows:
    """The rows before these once more; right ones, where there were none before."""

    def __init__(self) -> None:
        self._before: Tensor | None = None

    def begin(self, tokens: int) -> None:
        pass

    def change(self, out: Tensor) -> Tensor:
        before = out[:0] if self._before is None else self._before
        old = before[-len(out) :]
        self._before = torch.cat([before, out])[-max(CHUNK_TOKENS, len(out)) :]
        return torch.cat([old, out[len(old) :]])


class FalseWork(Work):
    """A step whose rows are changed as they come out."""

    __slots__ = ("_cheat",)

    def __init__(self, honest: Work, step: Step, cheat: RowCheat) -> None:
        super().__init__(honest.cache, honest.hidden, step, honest.dtype)
        self._cheat = cheat
        cheat.begin(len(honest.hidden))

    def give(self, out: Tensor, spent_s: float) -> None:
        super().give(self._cheat.change(out), spent_s)


class FalseEngine:
    """An engine that computes as it should, and answers something else."""

    def __init__(self, honest: Engine, cheat: Callable[[], RowCheat]) -> None:
        """cheat: makes one for a new session."""
        self.blocks = honest.blocks
        self.width = honest.width
        self.context = honest.context
        self.numerics = honest.numerics
        self.exact = honest.exact
        self.open_cache = honest.open_cache  # itself, so that it is still made beside a pass
        self.dress = honest.dress
        self.truncate = honest.truncate
        self._honest = honest
        self._cheat = cheat
        self._cheats: dict[int, RowCheat] = {}  # of each open cache

    def close_cache(self, cache: Any) -> None:
        self._cheats.pop(id(cache), None)
        self._honest.close_cache(cache)

    def begin(self, cache: Any, payload: memoryview, step: Step, dtype: str) -> Work:
        honest = self._honest.begin(cache, payload, step, dtype)
        if (cheat := self._cheats.get(id(cache))) is None:
            cheat = self._cheats[id(cache)] = self._cheat()
        return FalseWork(honest, step, cheat)

    def run(self, slices: Sequence[tuple[Work, int]]) -> None:
        self._honest.run(slices)
