"""What a session is to be, and what it says of the hops that it lost."""

from __future__ import annotations

from dataclasses import dataclass

from ..swarm.adapter import Bundle
from ..swarm.blocks import BlockRange


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What a session is to be. tokens: the positions that it may grow to. width: of the model.
    receipts: whether its servers shall sign. adapter: that it wears."""

    model: str
    name: str
    blocks: int
    width: int
    tokens: int
    dtype: str = "f32"
    dtype_bytes: int = 4
    wait_s: float = 0.0
    receipts: bool = False
    adapter: Bundle | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """One loss of a hop, as the session saw it. moved: it was left for the direct way to it."""

    peer: str
    blocks: BlockRange
    reason: str
    at_s: float
    moved: bool = False
