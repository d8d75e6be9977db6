"""One attempt to average: parts to who reduces them, their means to all; whoever is late is named.

    mine ──give──▶ reducer of each part ──▶ Reduce ──▶ mean ──▶ everybody: Gathered

Every member reduces one part (shares.py). What is given is summed in the order of the plan,
whenever it came, and everybody takes the mean as its reducer rounded it: so all have the same bits.
The rule of who is out, and whether the result counts, is not here (commit.py).

A machine: `handle` is split into one method for each thing that happens, since its caller is a
machine too. Raises RemoteError for what no honest member sends; nothing has changed then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import RemoteError
from .group_wire import Ballot, Card, Member, Part
from .shares import split


@dataclass(frozen=True, slots=True)
class SendPart:
    """An effect."""

    peer: str
    part: Part
    data: bytes


@dataclass(frozen=True, slots=True)
class Reduce:
    """An effect: the mean of these, weighted, begins at `start` of the vector. None: gave nothing.

    Its bytes are to be handed in as they are sent.
    """

    ballot: Ballot
    start: int
    count: int
    peers: tuple[str, ...]
    gifts: tuple[bytes | None, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Gathered:
    """An effect: the mean, part by part."""

    ballot: Ballot
    peers: tuple[str, ...]
    counts: tuple[int, ...]
    parts: tuple[bytes, ...]
    members: tuple[Member, ...]


Effect = SendPart | Reduce | Gathered


class Butterfly:
    """Of one member. cards: of all, in the order of the plan. bytes_of: so many numbers."""

    def __init__(
        self,
        me: str,
        ballot: Ballot,
        plan: bytes,
        cards: Sequence[Card],
        count: int,
        bytes_of: Callable[[int], int],
    ) -> None:
        """plan: its digest. count: numbers in the vector."""
        self.ballot = ballot
        self.plan = plan
        self.peers = tuple(card.peer for card in cards)
        self.members = tuple(sorted(card.member for card in cards))
        self.counts = split(count, [card.rate for card in cards])
        self.tokens = weights(cards)
        self._sizes = tuple(bytes_of(one) for one in self.counts)
        self._state = cards[0].state
        self._me = self.peers.index(me)
        self._gifts: dict[int, bytes] = {}
        self._means: dict[int, bytes] = {at: b"" for at, one in enumerate(self.counts) if not one}
        self._reducing = False

    @property
    def done(self) -> bool:
        return len(self._means) == len(self.peers)

    def expects(self, peer: str, part: Part) -> int | None:
        """How many bytes come with this part; None if it was there, or belongs to another attempt.

        Raises RemoteError.
        """
        if (part.state, part.ballot, part.plan) != (self._state, self.ballot, self.plan):
            return None
        if peer not in self.peers or part.index >= len(self.peers):
            raise RemoteError("a part of who is not in the plan")
        sender = self.peers.index(peer)
        if part.kind == "give":
            due = part.index == self._me and self.tokens[sender] > 0
            there = sender in self._gifts
        else:
            due = part.index == sender
            there = sender in self._means
        size = self._sizes[part.index]
        if not due or part.size != size or not size:
            raise RemoteError(f"a part of {part.size} bytes, where {size if due else 0} are due")
        return None if there else size

    def give(self, parts: Sequence[bytes]) -> list[Effect]:
        """The own vector, cut as `counts` says. Nothing is sent of one that is made of nothing."""
        effects: list[Effect] = []
        if self.tokens[self._me]:
            for at in self._others():
                if self.counts[at]:
                    effects.append(self._sent(at, "give", at, parts[at]))
            self._gifts[self._me] = parts[self._me]
        return effects + self._reduce_if_all()

    def received(self, peer: str, part: Part, data: bytes) -> list[Effect]:
        if self.expects(peer, part) is None:
            return []
        if len(data) != part.size:
            raise RemoteError(f"{len(data)} bytes of {part.size}")
        sender = self.peers.index(peer)
        if part.kind == "give":
            self._gifts[sender] = data
            return self._reduce_if_all()
        self._means[sender] = data
        return self._gathered_if_all()

    def reduced(self, data: bytes) -> list[Effect]:
        """The mean of the own part."""
        self._means[self._me] = data
        sent = [self._sent(at, "mean", self._me, data) for at in self._others()]
        return [*sent, *self._gathered_if_all()]

    def owing(self) -> tuple[str, ...]:
        """Whose parts are waited for. While gifts are, means are not: others wait for these too."""
        gifts = {*self._givers()} - self._gifts.keys() if self._mine else set()
        means = {at for at in range(len(self.peers)) if at not in self._means}
        return tuple(self.peers[at] for at in sorted((gifts or means) - {self._me}))

    # ---- what follows

    @property
    def _mine(self) -> bool:
        """Whether there is anything to reduce here."""
        return self.counts[self._me] > 0

    def _givers(self) -> list[int]:
        return [at for at, tokens in enumerate(self.tokens) if tokens]

    def _others(self) -> list[int]:
        """From the next one on, so that not all send to the first at first."""
        count = len(self.peers)
        return [(self._me + step) % count for step in range(1, count)]

    def _sent(self, to: int, kind: Literal["give", "mean"], index: int, data: bytes) -> SendPart:
        part = Part(self._state, self.ballot, self.plan, kind, index, len(data))
        return SendPart(self.peers[to], part, data)

    def _reduce_if_all(self) -> list[Effect]:
        if self._reducing or not self._mine or {*self._givers()} - self._gifts.keys():
            return []
        self._reducing = True
        gifts = tuple(self._gifts.get(at) for at in range(len(self.peers)))
        self._gifts = dict.fromkeys(self._gifts, b"")  # who gave is remembered, what is not
        start = sum(self.counts[: self._me])
        count = self.counts[self._me]
        return [Reduce(self.ballot, start, count, self.peers, gifts, self.tokens)]

    def _gathered_if_all(self) -> list[Effect]:
        if not self.done:
            return []
        means = tuple(self._means[at] for at in range(len(self.peers)))
        return [Gathered(self.ballot, self.peers, self.counts, means, self.members)]


def weights(cards: Sequence[Card]) -> tuple[int, ...]:
    """By tokens; all alike where nobody has any."""
    tokens = tuple(card.tokens for card in cards)
    return tokens if any(tokens) else (1,) * len(cards)
