"""The port: announce what one serves, find who serves a model.

Two things implement it: `kad.open_directory` over the swarm, and `memory.MemoryDirectory` for
tests and simulations. What a directory returns has been checked: signature, signer, place, time,
order.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from .known import Known
from .message import Contact
from .record import Announcement, ModelList, ModelName, Provider

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """A model that somebody says to serve. Two offers of one name are two models."""

    model: str  # digest, hex
    name: str
    blocks: int  # of the whole model
    peers: tuple[str, ...]  # who say so, sorted


class Directory(Protocol):
    """Where announcements are kept."""

    async def announce(self, announcement: Announcement) -> int:
        """Sign, stamp and put; how many other peers hold it now. Replaces the model's last one."""

    async def withdraw(self, model: str = "") -> None:
        """Replace what is announced of this model (digest in hex; "": of each) by "gone", so that
        no reader waits for it to expire."""

    async def keep(
        self,
        make: Callable[[], Announcement],
        *,
        task_status: "TaskStatus[int]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """A service: announce what `make` returns, anew each 30 s +-20 %; started with the holders.

        Cancelled, it leaves the last announcement to expire: call `withdraw` to be gone at once.
        Raises UserError when another process announces under our key.
        """

    async def find(self, model: str) -> tuple[Announcement, ...]:
        """Who serves this model (digest in hex): each peer's newest, none expired, none gone."""

    async def models(self) -> tuple[ModelOffer, ...]:
        """The models that the swarm serves, by name."""

    async def provide(self, chunks: Sequence[bytes]) -> int:
        """Tell that we have the weights with these digests, for 30 minutes; of how many chunks at
        least one other peer keeps that in mind."""

    async def keep_providing(self, chunks: Callable[[], Sequence[bytes]]) -> None:
        """A service: provide what `chunks` returns, anew each 10 minutes +-20 %."""

    async def providers(self, chunks: Sequence[bytes]) -> Mapping[bytes, tuple[Provider, ...]]:
        """Who has each of these chunks: a key for each that was asked for, none expired."""

    async def bootstrap(self, addresses: Sequence[str]) -> int:
        """Join by these peers; how many peers are known then. TransportError if none answers."""

    async def wander(self) -> Sequence[Contact]:
        """All whom one hears of on the way to a random place: peers that nobody chose for us."""

    def size(self) -> float:
        """About how many peers the swarm has; infinite while nothing is known of it."""

    def peers(self) -> tuple[str, ...]:
        """The peers that the directory knows to be there, sorted."""

    def answered(self) -> tuple[Known, ...]:
        """The peers that answered lately, where, and when."""


def offers(lists: Iterable[ModelList]) -> tuple[ModelOffer, ...]:
    """What several peers' lists add up to, sorted by name, then digest."""
    peers: dict[ModelName, set[str]] = {}
    for told in lists:
        for model in told.models:
            peers.setdefault(model, set()).add(told.peer)
    return tuple(
        ModelOffer(about.model, about.name, about.blocks, tuple(sorted(who)))
        for about, who in sorted(peers.items(), key=lambda item: (item[0].name, item[0].model))
    )
