"""What a run trains, as one vector: named tensors one after another, in the order of their names.

    {"b": (2, 3), "a": (4,)}  ──▶  a a a a │ b b b b b b     sizes (4, 6)

Whoever trains the same adapter lays it out in the same way, so that vectors are compared, averaged
and hashed without names. Each tensor is a group that is judged by its own distances (rules.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ....errors import UserError


@dataclass(frozen=True, slots=True)
class Flat:
    """names and shapes: in order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Flat:
        """Raises UserError where there is nothing, or what is not made of real numbers."""
        if not any(tensor.numel() for tensor in tensors.values()):
            raise UserError("nothing to train: no tensor has a number in it")
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise UserError(f"{name} cannot be trained: it is of {tensor.dtype}")
        names = tuple(sorted(tensors))
        return cls(names, tuple(tuple(tensors[name].shape) for name in names))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of each tensor, in numbers."""
        return tuple(map(prod, self.shapes))

    @property
    def count(self) -> int:
        return sum(self.sizes)

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """One vector, fp32: a copy. Raises UserError for other names or shapes, and for a number
        that is not finite, by its tensor's name."""
        if Flat.of(tensors) != self:
            raise UserError("these tensors are not the run's: other names or shapes")
        parts = [tensors[name].detach().flatten().float() for name in self.names]
        for name, part in zip(self.names, parts, strict=True):
            if not bool(torch.isfinite(part).all()):
                raise UserError(f"{name} has numbers that are not finite: the training diverged")
        return torch.cat(parts)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of the vector. Raises ValueError for one of another length."""
        if vector.shape != (self.count,):
            raise ValueError(f"{tuple(vector.shape)} where ({self.count},) is wanted")
        parts = torch.split(vector, list(self.sizes))
        named = zip(self.names, parts, self.shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in named}
