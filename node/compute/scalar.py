"""Weights that follow from bytes: a base, and whole numbers added along directions of signs.

    weights = base + unit * total            base: [d] fp32, of the run; total: [d] int64

`total` is what the bytes of all peers add up to (swarm/run/seeds.py). Whole numbers have no
rounding and no order, so peers that know the same bytes have the same weights to the bit, and a
snapshot of `total` is what a newcomer begins with. A direction is a sign for each weight, from
ChaCha20's stream under the direction's seed (crypto/stream.py): the same on every machine, in every
version, and a bit a weight to make.

Sources: Spall, 1992; Malladi et al., 2023 (MeZO: two forward passes, in place of gradients).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...crypto.stream import stream
from ...errors import RemoteError, UserError
from ...swarm.run.checkpoint import Shapes
from ...swarm.run.seeds import GRAINS, RATE_ONE, Change, Rules
from .average.flat import Flat
from .snapshot import Snapshot

TOTAL = "weights/total"  # in a snapshot; the base is the run's, and everybody has it
Loss = Callable[[Tensor], float]  # of weights [d]: of whatever serves the blocks, here or elsewhere


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes that a run's peers have in common. step: how far along a direction a slope of 1
    moves the weights. probe: how far away the loss is measured. grain: the smallest slope that is
    told from none; 55,000 of them are the greatest."""

    step: float = 1e-3
    probe: float = 1e-3  # MeZO's epsilon
    grain: float = 1e-3

    @property
    def unit(self) -> float:
        """What one of `total` moves a weight by."""
        return self.step * self.grain / (GRAINS * RATE_ONE)


def loss_over(
    model: Callable[[Tensor], Tensor], parameters: Mapping[str, nn.Parameter], ids: Tensor
) -> Loss:
    """Of the next token, of a model that gives logits for ids (batch, tokens): one that is here, or
    a RemoteModel, whose blocks are served by others.

    parameters: the model's own, which are set to whatever weights are measured, in the order of
    their names (average/flat.py).
    """
    flat = Flat.of(parameters)

    def loss(weights: Tensor) -> float:
        with torch.no_grad():
            for name, part in flat.split(weights).items():
                parameters[name].copy_(part)
            logits = model(ids)[:, :-1]
            return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))

    return loss


def signs(seed: bytes, count: int) -> Tensor:
    """[count] int8, each -1 or 1."""
    raw = np.frombuffer(stream(seed, -(-count // 8)), dtype=np.uint8)
    bits = np.unpackbits(raw, bitorder="little", count=count).astype(np.int8)
    return torch.from_numpy(2 * bits - 1)


class ScalarWeights:
    """Of one run, at one peer."""

    def __init__(self, base: Tensor, rules: Rules, scale: Scale) -> None:
        """base: [d] fp32, on the processor; it is not changed."""
        self._base = base
        self._rules = rules
        self._scale = scale
        self.total = torch.zeros(len(base), dtype=torch.int64)

    def apply(self, changes: Iterable[Change]) -> None:
        """Go along directions, in any order. Blocks: each direction is made anew."""
        self._go(self.total, changes, 1)

    def weights(self) -> Tensor:
        """[d] fp32. Each operation rounds once, as IEEE 754 has it, so it is the same everywhere:
        none of them is fused with the next."""
        moved = (self.total.double() * self._scale.unit).float()
        return self._base + moved

    def slope(self, here: Tensor, loss: Loss, round_: int, direction: int) -> float:
        """How much the loss rises from `here` along a direction, by a step of 1; nan where it is no
        number. Reads nothing that `apply` changes."""
        probe = self._scale.probe * signs(self._rules.seed(round_, direction), len(self._base))
        rise = loss(here + probe) - loss(here - probe)
        return rise / (2 * self._scale.probe) if math.isfinite(rise) else math.nan

    def snapshot(self, floor: int, above: Iterable[Change]) -> Snapshot:
        """Of what was said of the rounds before `floor`; above: what it added up to since."""
        total = self.total.clone()
        self._go(total, above, -1)
        return Snapshot(self._rules.run, floor // self._rules.epoch_rounds, 0, {TOTAL: total})

    @property
    def shapes(self) -> Shapes:
        """Of its snapshots."""
        return {TOTAL: ("i64", tuple(self.total.shape))}

    def begin(self, snapshot: Snapshot) -> None:
        """With this one. Raises RemoteError for what is none of these weights."""
        total = snapshot.tensors.get(TOTAL)
        if total is None or total.dtype != torch.int64 or total.shape != self.total.shape:
            raise RemoteError("a snapshot of other weights than the run's")
        self.total = total.clone()

    def _go(self, total: Tensor, changes: Iterable[Change], times: int) -> None:
        added: Counter[tuple[int, int]] = Counter()
        for change in changes:
            added[change.round, change.direction] += times * change.delta
        for (round_, direction), delta in added.items():
            if delta:
                total.add_(signs(self._rules.seed(round_, direction), len(total)), alpha=delta)


def check_base(base: Tensor) -> Tensor:
    """Raises UserError unless it is one vector of finite fp32 numbers."""
    if base.ndim != 1 or base.dtype != torch.float32 or not bool(base.isfinite().all()):
        raise UserError("a run's weights are one row of finite fp32 numbers")
    return base
