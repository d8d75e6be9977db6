"""What a session is to be, and what it says of the hops that it lost."""

from __future__ import annotations

from dataclasses import dataclass

from ..swarm.adapter import Bundle
from ..swarm.blocks import BlockRange
from ..swarm.prefix import Prompt
from ..swarm.rows import is_coded


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What a session is to be. tokens: the positions that it may grow to. width: of the model.
    receipts: whether its servers shall sign. adapter: that it wears. prompt: what it begins with,
    where servers may remember that; what wears an adapter is not remembered. chain: whether its
    steps go from hop to hop (chaining.py)."""

    model: str
    name: str
    blocks: int
    width: int
    tokens: int
    dtype: str = "f32"
    wait_s: float = 0.0
    receipts: bool = False
    adapter: Bundle | None = None
    prompt: Prompt | None = None
    chain: bool = False

    @property
    def chained(self) -> bool:
        """Whether its steps go from hop to hop where they can. By star goes what may be recalled,
        as nobody computes it who could push it on; and rows in groups of 8 or 4 bits."""
        return self.chain and self.prompt is None and not is_coded(self.dtype)


@dataclass(frozen=True, slots=True)
class Recovery:
    """One loss of a hop, as the session saw it. moved: it was left for the direct way to it."""

    peer: str
    blocks: BlockRange
    reason: str
    at_s: float
    moved: bool = False
