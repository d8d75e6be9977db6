"""One request on its way, and what a router of the simulator answers for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way. `at`: the next block."""

    number: int
    client: int
    tokens: int
    born_s: float
    deadline_s: float
    access_s: float
    place: tuple[float, float]
    at: int = 0
    stop: int = 0  # of the hop under way
    peer: int = -1
    sent_s: float = 0.0
    work_s: float = 0.0  # what its router thinks that the hop costs the device
    waited_s: float = 0.0  # for the device, as the reply tells it
    prompt: int = -1  # with which it begins, as others do; -1: with words of its own
    held: int = 0  # tokens that the peer at hand need not compute
    retries: int = 0
    hops: int = 0


class Router(Protocol):
    """All clients of one run. Control bytes are counted by whoever sends them."""

    control_bytes: float

    def choose(self, request: Request, now: float) -> tuple[int, int] | None:
        """The next peer, and the block where it stops; None when nobody serves the next block."""
        ...

    def answered(self, request: Request, queue_s: float, now: float) -> None: ...

    def failed(self, request: Request, now: float) -> None: ...

    def refused(self, request: Request, retry_after_s: float, now: float) -> None: ...

    def patience_s(self, request: Request) -> float: ...
