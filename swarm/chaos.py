"""Which faults to make, when and to whom: chaos planned from a seed, so that it can be repeated.

Kinds are dealt like cards, so that a short run has each of them; times between two faults are
exponential, as those of failures that know nothing of each other; for how long a fault lasts is
drawn so that most are short. A victim is chosen among the nodes without which every block still has
another one, which is out neither then nor before it has surely come back: the rules speak of
capacity that exists, so the plan leaves some. (The shape follows Netflix's and Jepsen's nemeses;
TigerBeetle's rule that a seed repeats any failure.)

    kill       SIGKILL, and a start anew later          stall      SIGSTOP, and SIGCONT later
    slow       stopped for three quarters of the time   partition  no packet to it or from it
    join       a new node comes, and leaves later       leave      SIGTERM: it drains; it comes back
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from .blocks import BlockRange

Kind = Literal["kill", "stall", "slow", "partition", "join", "leave"]
KINDS: tuple[Kind, ...] = ("kill", "stall", "slow", "partition", "join", "leave")

Some = TypeVar("Some")


class Dice(Protocol):
    """What is used of random.Random."""

    def random(self) -> float: ...
    def choice(self, among: Sequence[Some], /) -> Some: ...
    def shuffle(self, cards: list[Kind], /) -> None: ...
    def expovariate(self, rate: float, /) -> float: ...


FIRST_S = 2.0  # sessions are on their way by then
BETWEEN_S = 4.0  # the mean: 28 faults in two minutes, several of them at once
BETWEEN_LEAST_S = 0.3
RETURN_S = 15.0  # guess: a process starts, loads, joins and is found, on a busy machine
LASTS_S: Mapping[Kind, tuple[float, float]] = {  # guesses, around the deadlines that they try
    "kill": (0.5, 6.0),
    "stall": (0.3, 12.0),
    "slow": (4.0, 15.0),
    "partition": (1.0, 12.0),
    "join": (8.0, 25.0),
    "leave": (0.5, 6.0),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done at `at_s`, and undone `for_s` later. node: whose; of a join, a new name."""

    at_s: float
    kind: Kind
    node: str
    blocks: BlockRange
    for_s: float


def uncovered(spans: Iterable[BlockRange], total: int) -> tuple[int, ...]:
    """The blocks that none of these spans holds."""
    held = {block for span in spans for block in range(span.start, span.stop)}
    return tuple(block for block in range(total) if block not in held)


def plan_faults(
    rng: Dice,
    nodes: Mapping[str, BlockRange],
    *,
    kinds: Sequence[Kind] = KINDS,
    within_s: float,
    uncover: bool = False,
) -> tuple[Fault, ...]:
    """Faults that begin before `within_s`, in order, and hardly last beyond it.

    uncover: blocks may be left without a node.
    """
    total = max(blocks.stop for blocks in nodes.values())
    faults: list[Fault] = []
    back_s: dict[str, float] = {}  # when each node that was a victim is surely well again
    cards: list[Kind] = []
    joined = 0
    now = FIRST_S
    while (at_s := round(now, 2)) < within_s:
        if not cards:
            cards = sorted(set(kinds))
            rng.shuffle(cards)
        kind = cards.pop()
        least_s, most_s = LASTS_S[kind]
        for_s = least_s * (most_s / least_s) ** rng.random()
        for_s = round(min(for_s, max(least_s, within_s - now)), 2)
        if kind == "join":
            joined += 1
            blocks = nodes[rng.choice(sorted(nodes))]
            faults.append(Fault(at_s, kind, f"x{joined}", blocks, for_s))
        elif victims := _victims(nodes, back_s, now, total, uncover=uncover):
            name = rng.choice(victims)
            faults.append(Fault(at_s, kind, name, nodes[name], for_s))
            back_s[name] = now + for_s + RETURN_S
        now += max(BETWEEN_LEAST_S, rng.expovariate(1.0 / BETWEEN_S))
    return tuple(faults)


def _victims(
    nodes: Mapping[str, BlockRange],
    back_s: Mapping[str, float],
    now: float,
    total: int,
    *,
    uncover: bool,
) -> list[str]:
    """Who is well, and can be spared."""
    well = [name for name in sorted(nodes) if back_s.get(name, 0.0) <= now]
    return [
        name
        for name in well
        if uncover or not uncovered([nodes[one] for one in well if one != name], total)
    ]
