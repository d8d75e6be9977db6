"""Low-rank matrices in training: ordinary parameters here, a new adapter for the servers each step.

The optimizer changes them in place; what goes over the wire is their bytes, named by their digest
(parts.py). They begin as PEFT's do: A at random, B zero, so that the model is at first what it was.

Source: E. Hu et al., LoRA, 2021; PEFT 0.17, `LoraLayer.reset_lora_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...swarm.adapter import RANK_MAX, Bundle
from ...swarm.blocks import BlockRange
from .adapter import Pair, read_pairs, takes
from .layout import layout_of
from .parts import bundle_of
from .spec import ModelSpec


@dataclass(frozen=True, slots=True)
class LoRA:
    """What is to be trained. targets: the last parts of modules' names, as PEFT has them. blocks:
    which; None: all. B A is multiplied by alpha / rank."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    blocks: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pair belongs."""

    block: int
    module: str
    scale: float


class LowRank(nn.Module):
    """The pairs of all blocks, in the order in which their gradients come back."""

    def __init__(self, pairs: Iterable[tuple[int, Pair]]) -> None:
        super().__init__()
        ordered = sorted(pairs, key=lambda one: (one[0], one[1].module))
        self.places = [Place(block, pair.module, pair.scale) for block, pair in ordered]
        halves = [half for _, pair in ordered for half in (pair.down, pair.up)]
        self.halves = nn.ParameterList(nn.Parameter(one.float().clone()) for one in halves)

    @staticmethod
    def new(spec: ModelSpec, wanted: LoRA) -> LowRank:
        """Raises UserError for what this model does not have."""
        if not 1 <= wanted.rank <= RANK_MAX:
            raise UserError(f"rank {wanted.rank}: choose one of 1 to {RANK_MAX}")
        blocks = range(spec.blocks) if wanted.blocks is None else sorted(set(wanted.blocks))
        if not blocks or not 0 <= blocks[0] <= blocks[-1] < spec.blocks:
            raise UserError(
                f"LoRA on blocks {wanted.blocks}: this model has 0 to {spec.blocks - 1}"
            )
        pairs: list[tuple[int, Pair]] = []
        for index in blocks:
            layout = layout_of(spec, index)
            for tensor in sorted({part.tensor for part in layout.matrices.values()}):
                module = tensor.removesuffix(".weight")
                if module.rpartition(".")[2] in wanted.targets and takes(layout, module):
                    rows, columns = layout.shapes[tensor]
                    down = torch.empty((wanted.rank, columns))
                    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
                    up = torch.zeros((rows, wanted.rank))
                    pairs.append((index, Pair(module, down, up, wanted.alpha / wanted.rank)))
        found = {pair.module.rpartition(".")[2] for _, pair in pairs}
        if lacking := sorted(set(wanted.targets) - found):
            modules = {part.tensor for part in layout_of(spec, blocks[0]).matrices.values()}
            names = sorted({one.removesuffix(".weight").rpartition(".")[2] for one in modules})
            raise UserError(
                f"LoRA on {', '.join(lacking)}: this model has no such module to which something"
                f" may be added; it has {', '.join(names)}"
            )
        return LowRank(pairs)

    @staticmethod
    def read(spec: ModelSpec, folder: Path) -> LowRank:
        """What PEFT, or `RemoteModel.save_adapter`, saved. Raises UserError."""
        return LowRank(read_pairs(folder, spec, 0, spec.blocks))

    def bundle(self, model: str, halves: Sequence[Tensor]) -> Bundle:
        """As it is named and sent now. halves: its parameters. Raises UserError."""
        of_block: dict[int, list[Pair]] = {}
        for place, down, up in zip(self.places, halves[::2], halves[1::2], strict=True):
            for half in (down, up):
                if not bool(half.isfinite().all()):
                    raise UserError(
                        f"LoRA of {place.module}: a number is infinite or none; the training has"
                        " diverged: begin anew with a smaller learning rate"
                    )
            pair = Pair(place.module, down.detach().cpu(), up.detach().cpu(), place.scale)
            of_block.setdefault(place.block, []).append(pair)
        return bundle_of(of_block, model)

    def trained(self) -> dict[int, int]:
        """How many numbers each block has."""
        found: dict[int, int] = {}
        halves = list(self.halves)
        for place, down, up in zip(self.places, halves[::2], halves[1::2], strict=True):
            found[place.block] = found.get(place.block, 0) + down.numel() + up.numel()
        return found

    def indices(self, blocks: BlockRange) -> list[int]:
        """Which of the halves are for these blocks."""
        return [
            at
            for number, place in enumerate(self.places)
            if blocks.start <= place.block < blocks.stop
            for at in (2 * number, 2 * number + 1)
        ]
