"""What the leader of one ballot has heard, and what follows from it.

    prepare ── all promised, or most in time ──▶ data ── all hold the same ──▶ agree ──▶ chosen
        └── somebody had agreed to a value before ─────────────────────────────▶┘

A new plan is made only where a quorum of promises names no vote: then nothing was chosen, and
nothing under a lesser ballot ever will be. Otherwise the vote of the greatest ballot is proposed
again, as in any Paxos. So one state has at most one successor, whoever dies and whatever is lost.

Who is out after a failed attempt: who said nothing; if all spoke, who is named by most of the
others, the last in the plan among several. One who names more than half of the others is out too:
rather it is cut off than they.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal

from .group import is_quorum
from .group_wire import Ballot, Card, Member, Promise, Value


class Leader:
    """asked: the peers that this ballot was told to, the leader among them."""

    def __init__(
        self, state: bytes, config: tuple[Member, ...], ballot: Ballot, asked: tuple[str, ...]
    ) -> None:
        self.config = config
        self.ballot = ballot
        self.asked = asked
        self.phase: Literal["prepare", "data", "agree"] = "prepare"
        self.promises: dict[str, Promise] = {}
        self.roster: tuple[Card, ...] = ()
        self.held: dict[str, bytes] = {}
        self.missing: dict[str, tuple[str, ...]] = {}
        self.value: Value | None = None
        self._state = state
        self._agreed: set[Member] = set()

    def has_all_promises(self, ready: Collection[str]) -> bool:
        """Of those who can still promise."""
        return not {*self.asked} & {*ready} - self.promises.keys()

    def has_quorum(self) -> bool:
        present = {Member(peer, one.boot) for peer, one in self.promises.items()}
        return is_quorum(self._state, self.config, present)

    def agreed_before(self, *, anew: bool) -> Value | None:
        """What has to be proposed again, if anything.

        anew: this config founds itself; what nobody of it holds is given up then.
        """
        votes = [one.vote for one in self.promises.values() if one.vote is not None]
        if not votes:
            return None
        value = max(votes, key=lambda vote: vote.ballot).value
        if anew and all(one.held != value.state for one in self.promises.values()):
            return None
        return value

    def has_promise_of(self, member: Member) -> bool:
        promise = self.promises.get(member.peer)
        return promise is not None and promise.boot == member.boot

    def has_planned(self, peer: str) -> bool:
        """Whether it is in the plan."""
        return any(card.peer == peer for card in self.roster)

    def silent(self) -> set[str]:
        """Who has said neither that it holds the mean nor what it lacks."""
        return {card.peer for card in self.roster} - self.held.keys() - self.missing.keys()

    def gone(self, lost: Collection[str]) -> set[str]:
        """Who will certainly not hold it: dead before it did, or leaving."""
        leaving = {peer for peer, named in self.missing.items() if peer in named}
        dead = {card.peer for card in self.roster if card.peer in lost} - self.held.keys()
        return leaving | dead

    def outcasts(self) -> set[str]:
        """Who is to be left out of the next attempt. None if all hold the same."""
        if self.silent():
            return self.silent()
        if self.missing:
            return _accused([card.peer for card in self.roster], self.missing)
        states = Counter(self.held.values())
        if len(states) == 1:
            return set()
        most = max(states, key=lambda state: (states[state], state))
        return {peer for peer, state in self.held.items() if state != most}

    def agrees(self, member: Member) -> bool:
        """Whether enough have agreed now."""
        self._agreed.add(member)
        return is_quorum(self._state, self.config, self._agreed)


def _accused(peers: list[str], missing: Mapping[str, tuple[str, ...]]) -> set[str]:
    named = Counter(one for peer in missing for one in {*missing[peer]} if one in peers)
    cut_off = {peer for peer in missing if 2 * len({*missing[peer]}) > len(peers)}
    if cut_off or not named:
        return cut_off or set(missing)
    return {max(named, key=lambda peer: (named[peer], peers.index(peer)))}
