"""What a run asks of every kind of exchange: weights in, the next weights out.

Between two exchanges a peer takes its own steps (compute/average/outer.py). Gossip pulls and judges
what it pulled; a group averages all of its members to the bit; a guarded group convicts liars
besides. A run does not know which it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import trio

from ..compute.mixing import Vector
from .checkpoint import Progress

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

T = TypeVar("T")


class Computes(Protocol):
    """What blocks, in a thread (runner.py: again for a while, if nobody computes it)."""

    async def __call__(self, work: Callable[[], T], /) -> T: ...


@dataclass(frozen=True, slots=True)
class Exchanged:
    """weights: [d], where the next steps begin. peers: whose weights are in it, by id.
    sent_bytes, received_bytes: on the wire, for this exchange. next: the epoch to go on with, where
    it is not the one behind. lead: by how many epochs we are ahead of the others."""

    weights: Vector
    peers: tuple[str, ...]
    sent_bytes: int
    received_bytes: int
    next: int | None = None
    lead: int = 0


@dataclass(frozen=True, slots=True)
class Worked:
    """The steps of an epoch. loss: the mean, before each."""

    steps: int
    tokens: int
    loss: float
    seconds: float


class Exchange(Protocol):
    """One kind, for one run, on one peer."""

    async def exchange(self, epoch: int, weights: Vector, tokens: int) -> Exchanged:
        """epoch: how many exchanges came before. weights: [d] fp32, after the own steps. tokens:
        what they were made of, which is their weight in an average. Ends within its deadline,
        whoever answers; with nobody else there, the weights are the own ones after the outer step.
        """


@runtime_checkable
class Carries(Protocol):
    """An exchange with something of its own to keep between two starts of a process."""

    def carried(self) -> dict[str, Vector]:
        """What a checkpoint holds of it, at any time."""

    def carry_on(self, kept: dict[str, Vector], epoch: int) -> None:
        """Go on from what `carried` gave when this epoch's steps were done. Raises UserError."""


@runtime_checkable
class Signs(Carries, Protocol):
    """One that signs what it gives out. Before that it has a checkpoint written itself."""

    @property
    def signed(self) -> tuple[bytes, bytes] | None:
        """The last statement, and the bytes that it is of."""

    def resign(self, statement: bytes, weights: bytes) -> None:
        """What `signed` was. Raises RemoteError for what is not our own."""


@runtime_checkable
class Works(Protocol):
    """An exchange that says what the own steps are, so that others can take the same ones."""

    async def work(self, epoch: int) -> Worked:
        """All of them, from where the last exchange ended."""


@runtime_checkable
class Overlaps(Protocol):
    """One that only begins an exchange, and is on its way while the next steps are taken."""

    @property
    def overlap(self) -> int:
        """So many inner steps; 0: it is waited for."""

    async def settle(self, weights: Vector) -> Exchanged:
        """What it has brought, in the weights as they are now. Ends within its deadline."""


@runtime_checkable
class Calls(Protocol):
    """One whose members wait for each other, but not for long."""

    def called(self, left_s: float) -> bool:
        """Whether the others wait for us, and would not for as long as our steps still take."""


@runtime_checkable
class Joins(Protocol):
    """An exchange that a newcomer may begin with."""

    async def join(self) -> tuple[int, Vector] | None:
        """The epoch and the weights to begin with; None: at the start."""


@runtime_checkable
class Trains(Protocol):
    """A kind of run that takes no inner steps, and so goes its own way from first to last."""

    async def train(self, tell: Callable[[Progress], None]) -> list[Progress]:
        """To the end: then the adapter has the weights. tell: hears of each epoch. Raises
        UserError, TransportError."""


@runtime_checkable
class Amends(Protocol):
    """A kind of run whose weights can change after its end, by what others then say."""

    async def amended(self) -> bool:
        """Whether the adapter has others than at the end, or than at the last call."""


@runtime_checkable
class Serves(Protocol):
    """An exchange that others speak to."""

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service, without which nothing is exchanged."""

    async def pulled(self) -> None:
        """Until somebody wants something of us again."""
