"""What the machine of a group (commit.py) hears and does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..machine import Fired, SetTimer, StopTimer
from .butterfly import Effect as DataEffect
from .group import ROUND_COMMITS, Place
from .group_wire import Ballot, Card, Message, Part, Value
from .shares import seconds_a_byte


@dataclass(frozen=True, slots=True)
class Pace:
    """How long is waited. All but `window_s` and `patience_s` are for roads as they are."""

    window_s: float = 5.0  # for others, from when we began; hivemind's, of its matchmaking
    step_s: float = 3.0  # for an answer; hivemind's request timeout
    tick_s: float = 1.0  # guess: how often is looked, and told anew what may have been lost
    slack: float = 3.0  # guess: of what the parts would take at the rates that were told
    data_most_s: float = 80.0  # guess: whatever was told; then there is time for another attempt
    patience_s: float = 60.0  # guess: without most of a config, until the rest founds itself anew


@dataclass(frozen=True, slots=True)
class Work:
    """What is averaged: counts, the numbers of each fragment, which take turns.

    bytes_of: so many numbers on the wire. chained: each commit leads on from the one before; or
    rounds stand beside each other, as in a grid, and whoever missed one has nothing to fetch.
    """

    counts: tuple[int, ...]
    bytes_of: Callable[[int], int]
    chained: bool = True

    def fragment(self, commits: int) -> int:
        turn = commits if self.chained else commits // ROUND_COMMITS
        return turn % len(self.counts)

    def data_s(self, commits: int, cards: Sequence[Card], pace: Pace) -> float:
        """For all parts of the fragment that is averaged after so many commits. Whoever says that
        it is slow, and then sends nothing, takes no more than `data_most_s` from the others."""
        size = self.bytes_of(self.counts[self.fragment(commits)])
        time = seconds_a_byte([card.rate for card in cards]) if len(cards) > 1 else 0
        return min(2 * pace.step_s + pace.slack * float(time * size), pace.data_most_s)


@dataclass(frozen=True, slots=True)
class Begin:
    """An event: an exchange is wished for. peers: who else may come. rate: bytes a second."""

    tokens: int
    rate: int
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Meet:
    """An event: we would know where these peers stand, and wish for nothing else."""

    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """An event: it has taken too long, or we go."""


@dataclass(frozen=True, slots=True)
class Received:
    """An event."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Came:
    """An event: a part, with its bytes."""

    peer: str
    part: Part
    data: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """An event: the road to a peer broke, or there is none."""

    peer: str


@dataclass(frozen=True, slots=True)
class Shared:
    """An event: the own vector, in the parts that were wished for."""

    ballot: Ballot
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Reduced:
    """An event: the mean of the own part, as it is sent."""

    ballot: Ballot
    data: bytes


@dataclass(frozen=True, slots=True)
class Computed:
    """An event: the state that what was gathered leads to; it is kept until it is taken or not."""

    ballot: Ballot
    state: bytes


@dataclass(frozen=True, slots=True)
class Spoilt:
    """An event: what these sent cannot be used; it counts as if it had not come."""

    ballot: Ballot
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """An event: the state was fetched; None: it could not be had. Between exchanges, any place."""

    place: Place | None


@dataclass(frozen=True, slots=True)
class Send:
    """An effect: without waiting; `Lost` if it cannot be said."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Share:
    """An effect: cut the own vector into parts of so many numbers: `Shared`.

    What was computed before under other ballots will never be taken.
    """

    ballot: Ballot
    fragment: int
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Adopt:
    """An effect: go to what was computed, of this state; `place` is where that is."""

    value: Value
    place: Place


@dataclass(frozen=True, slots=True)
class Fetch:
    """An effect: ask these for that state: `Placed`."""

    state: bytes
    holders: tuple[str, ...]


Event = (
    Begin
    | Meet
    | Leave
    | Received
    | Came
    | Lost
    | Shared
    | Reduced
    | Computed
    | Spoilt
    | Placed
    | Fired
)
Effect = Send | Share | Adopt | Fetch | DataEffect | SetTimer | StopTimer
