"""What a guarded group's members share between two steps, as tensors by name, and back.

weights/NAME     the anchor
guarded/coin     u8 [32], which fixes the next batches
guarded/seats    u8 [members of the run], for how many steps in a row each was silent, or GONE
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from .average.flat import Flat
from .mixing import Vector
from .snapshot import WEIGHTS, Snapshot

GONE: Final = 255
_COIN, _SEATS = "guarded/coin", "guarded/seats"


def pack_state(
    run: bytes, epoch: int, flat: Flat, anchor: Vector, coin: bytes, seats: Sequence[int]
) -> Snapshot:
    """A copy."""
    tensors = {f"{WEIGHTS}{name}": one.clone() for name, one in flat.split(anchor).items()}
    tensors[_COIN] = torch.tensor(list(coin), dtype=torch.uint8)
    tensors[_SEATS] = torch.tensor(list(seats), dtype=torch.uint8)
    return Snapshot(run, epoch, 0, tensors)


def unpack_state(found: Snapshot, flat: Flat) -> tuple[Vector, bytes, list[int]]:
    """The anchor, the coin, the seats; of a snapshot whose shapes were checked."""
    anchor = flat.join({name: found.tensors[WEIGHTS + name] for name in flat.names})
    return anchor, bytes(found.tensors[_COIN].tolist()), found.tensors[_SEATS].tolist()
