"""Who is in the group of this round, whose word counts in it, and whom to follow after a fall.

A run's states form a chain: each commit leads from one state to the next, and its members (the
`config` of the next state) are who may choose the one after. More than half of them must take part,
as in dynamic voting: of two parts of a swarm that was cut in two at most one goes on, and the
survivors may get fewer from commit to commit without ever losing their right. Of an even number,
half is enough if the first by rank is among them.

    config of this state ──more than half of it──▶ roster ──commit──▶ config of the next

A first state has no config; then whoever leads names one (`founding`), and each member takes part
under one such name only. So two groups can begin beside each other, or go on beside each other once
most of a config has been gone for so long that the rest founds itself anew. That is the one split
that can happen; it shows, as the cards of one run then tell of different states, and it heals:
`ahead_of` tells everybody the same state to fetch.

A swarm that is larger than a group is a grid (Moshpit): a peer's place in it has a coordinate for
each axis, the peers that differ along one axis alone are a group, and the axis turns with the
round. After as many rounds as there are axes, each of a full grid's peers has the mean of all.
There is no chain then: what a group's members have to the bit is their mean of this round.

Sources: Jajodia and Mutchler, 1990 (dynamic voting, with a linear order for ties); Ryabinin et al.,
2021 (Moshpit SGD); Diskin et al., 2021 (DeDLOC).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ...crypto.digest import DIGEST_BYTES, digest
from .group_wire import GROUP_MAX, Card, Member

NOWHERE = bytes(DIGEST_BYTES)  # before the first state
ROUND_COMMITS: Final = 2  # that a round of a grid counts as: its own, and the next one's beginning


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer stands: a state, the one before it, and how many commits led there.

    members: who made the last commit, in the order of their names; none of a first state.
    """

    state: bytes
    before: bytes = NOWHERE
    commits: int = 0
    members: tuple[Member, ...] = ()


def rank(state: bytes, peer: str) -> bytes:
    """Who comes first at this state: another one at each, and nobody chooses his place."""
    return digest("group rank", state, peer.encode())


def in_order(state: bytes, peers: Iterable[str]) -> list[str]:
    return sorted(peers, key=lambda peer: rank(state, peer))


def is_quorum(state: bytes, config: Collection[Member], present: Collection[Member]) -> bool:
    """Whether any other such set has one of `present` in it too."""
    there = len({*config} & {*present})
    if 2 * there != len({*config}):
        return 2 * there > len({*config})
    return min(config, key=lambda one: (rank(state, one.peer), one)) in present if config else True


def ahead_of(place: Place, cards: Iterable[Card]) -> tuple[bytes, tuple[str, ...]] | None:
    """The state that whoever stands here is to fetch, and who has it; None if it leads itself.

    The one that most commits led to; of several, the one with most peers; then by digest. Whoever
    stands at the state from which it came needs no fetching if it holds the next one.
    """
    told = [card for card in cards if card.commits >= place.commits and card.commits]
    if not told:
        return None
    most = max(card.commits for card in told)
    heads = Counter(card.state for card in told if card.commits == most)
    if most == place.commits:
        heads[place.state] += 1
    state = max(heads, key=lambda one: (heads[one], one))
    if state == place.state:
        return None
    holders = sorted(card.peer for card in told if card.state == state)
    return state, tuple(holders)


def round_place(run: bytes, round_: int) -> Place:
    """Where everybody in a grid stands before this round: each round begins anew, from weights that
    differ. Its commit leads to the next number, so who missed it sees that it is over."""
    state = digest("group round", run, round_.to_bytes(8))
    return Place(state, commits=ROUND_COMMITS * round_)


def axes(peers: int, side: int = GROUP_MAX) -> int:
    """Of the grid for so many peers."""
    found = 1
    while side**found < peers:
        found += 1
    return found


def companions(
    run: bytes, peers: Collection[str], me: str, round_: int, side: int = GROUP_MAX
) -> tuple[str, ...]:
    """Who is in a group with `me` in this round, itself included, in the order of their names.

    Of as many peers as fit one group: all. Otherwise those along this round's axis of the grid, in
    which peers stand by a draw; whoever knows the same peers finds the same groups. With d axes a
    side is the least that has room, so that the groups are of like size.
    """
    drawn = sorted({*peers, me}, key=lambda peer: rank(run, peer))
    count = axes(len(drawn), side)
    while count > 1 and (side - 1) ** count >= len(drawn):
        side -= 1
    step = side ** (round_ % count)
    mine = drawn.index(me)
    line = mine - mine // step % side * step
    along: Sequence[int] = range(line, min(line + step * side, len(drawn)), step)
    return tuple(sorted(drawn[at] for at in along))
