"""What a session is to be, and what it says of the hops that it lost."""

from __future__ import annotations

from dataclasses import dataclass

from ..swarm.adapter import Bundle
from ..swarm.blocks import BlockRange
from ..swarm.frame import PAYLOAD_BYTES_MAX
from ..swarm.prefix import Prompt
from ..swarm.receipt import CHUNK_TOKENS
from ..swarm.session_events import SessionConfig
from .patience import Patience

GROUP_BYTES = 4 * 1024 * 1024  # of hidden states in one replay frame: about a second at 32 Mbit/s
STANDBY_FROM = 1024  # positions from which on a session keeps standbys: algorithms.md 6.3


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
        as nobody computes it who could push it on."""
        return self.chain and self.prompt is None

    @property
    def early(self) -> bool:
        """Whether its first steps go right behind what opens it (link.py)."""
        return self.chained and not self.receipts and self.adapter is None


@dataclass(frozen=True, slots=True)
class Recovery:
    """One loss of a hop, as the session saw it. moved: it was left for the direct way to it."""

    peer: str
    blocks: BlockRange
    reason: str
    at_s: float
    moved: bool = False


def config_of(plan: SessionPlan, patience: Patience, row_size: int) -> SessionConfig:
    """How the rules of such a session are set, whose rows have so many bytes."""
    return SessionConfig(
        BlockRange(0, plan.blocks), row_size,
        max(1, min(GROUP_BYTES, PAYLOAD_BYTES_MAX) // row_size),
        patience.answer_s, patience.open_s, patience.hedge_s, STANDBY_FROM,
        patience.open_hedge_s, cut_tokens=CHUNK_TOKENS if plan.receipts else 0,
        alone=plan.chained,
    )  # fmt: skip
