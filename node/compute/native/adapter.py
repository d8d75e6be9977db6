"""An adapter packed for our C: what its sessions' rows get added in a pass (adapt.c)."""

from __future__ import annotations

import ctypes

import torch

from ..adapter import SITES, Adapter
from ..layout import layout_of
from ..spec import ModelSpec
from .linear import Linear, Packed


class _Addend(ctypes.Structure):
    """potluck_addend."""

    _fields_ = [("down", Linear), ("up", Linear)]


class _Adapter(ctypes.Structure):
    """potluck_adapter; its sites are in SITES' order."""

    _fields_ = [("at", _Addend * len(SITES))]


class PackedAdapter:
    """An adapter over the blocks start..stop of a stage."""

    def __init__(self, spec: ModelSpec, adapter: Adapter, start: int, stop: int) -> None:
        """By the caller's thread alone: that of the device computes meanwhile."""
        self.name = adapter.name
        self.rank = 0  # of the widest product
        self.bytes = 0
        self._start = start
        self._held: list[Packed] = []
        self._facts = (_Adapter * (stop - start))()
        for index in range(start, stop):
            parts = layout_of(spec, index).matrices
            rows = {name: part.stop - part.start for name, part in parts.items()}
            for at, site in enumerate(SITES):
                joined = adapter.joined(index, site, rows)
                if joined is None:
                    continue
                make = Packed.in_turns if site == "gate_up" else Packed.below
                ups = joined.ups if site == "gate_up" else [torch.cat(list(joined.ups))]
                addend = self._facts[index - start].at[at]
                addend.down = self._linear(Packed("none", joined.down))
                addend.up = self._linear(make("none", [(up, None) for up in ups]))
                self.rank = max(self.rank, len(joined.down))

    def address(self, block: int) -> int:
        """Where C finds what is for this block and those behind it."""
        return ctypes.addressof(self._facts) + (block - self._start) * ctypes.sizeof(_Adapter)

    def _linear(self, packed: Packed) -> Linear:
        self._held.append(packed)
        self.bytes += packed.nbytes
        return Linear.from_buffer_copy(packed.linear)
