"""What a member does while it leads: a ballot, an attempt, a verdict on it, a commit.

Whoever is first by rank of those who wait leads as soon as all have come, or the window is over;
each of the others would a step later than the one before it. Two who lead at once do no harm: the
greater ballot is followed (leader.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..machine import SetTimer
from .group_events import Effect, Work
from .group_wire import (
    Agreed,
    Ballot,
    Card,
    Commit,
    Held,
    Member,
    Message,
    Missing,
    Plan,
    Prepare,
    Promise,
    Propose,
    Value,
)
from .leader import Leader
from .standing import Standing


class Leading:
    """say: a message to a peer, who may be ourselves. take: what was chosen. leave: the exchange,
    for want of a road that the others can use."""

    def __init__(
        self,
        standing: Standing,
        work: Work,
        say: Callable[[str, Message], list[Effect]],
        take: Callable[[Value, float], list[Effect]],
        leave: Callable[[float], list[Effect]],
    ) -> None:
        self._at = standing
        self._work = work
        self._say = say
        self._take = take
        self._leave = leave
        self._leader: Leader | None = None
        self._most = 0  # of the ballots' numbers: no two of ours are ever the same

    @property
    def now(self) -> bool:
        """Whether we lead."""
        return self._leader is not None

    def hear_of(self, ballot: Ballot) -> None:
        """Ours shall be greater."""
        self._most = max(self._most, ballot.number)

    def follow(self, ballot: Ballot) -> None:
        """Somebody leads, perhaps we."""
        self.hear_of(ballot)
        if self._leader is not None and self._leader.ballot < ballot:
            self._leader = None

    def stop(self) -> None:
        self._leader = None

    def if_due(self, now: float) -> list[Effect]:
        """Lead, if it is our turn; go on, if all who can promise have."""
        at, ready = self._at, self._at.called()
        members = [card.member for card in ready]
        if self._leader is not None:
            return self._go_on_if_all(self._leader, now)
        if now < at.led_until_s or at.me not in members:
            return []
        config = at.config
        if not at.is_quorum(config, members):
            if not at.is_tired(now):
                return []
            config = ()
        ripe_s = at.began_s + at.pace.window_s if at.missed() else at.began_s
        ripe_s = max(ripe_s, at.led_until_s) + at.pace.step_s * members.index(at.me)
        return self._lead(config or tuple(sorted(members)), ready, now) if now >= ripe_s else []

    def _lead(self, config: tuple[Member, ...], asked: list[Card], now: float) -> list[Effect]:
        at, ballot = self._at, Ballot(self._most + 1, self._at.me)
        peers = tuple(card.peer for card in asked)
        self._most = ballot.number
        self._leader = Leader(at.place.state, config, ballot, peers)
        return [
            SetTimer(("prepare", ballot), now + at.pace.step_s),
            *self._say_all(peers, Prepare(at.place.state, config, ballot)),
        ]

    def promised(self, peer: str, message: Promise, now: float) -> list[Effect]:
        leader = self._in(message.ballot, "prepare")
        if leader is None or peer not in leader.asked:
            return []
        leader.promises[peer] = message
        return self._go_on_if_all(leader, now)

    def _go_on_if_all(self, leader: Leader, now: float) -> list[Effect]:
        ready = {card.peer for card in self._at.ready()}
        if leader.phase != "prepare" or not leader.has_all_promises(ready):
            return []
        return self._go_on(leader, now)

    def _go_on(self, leader: Leader, now: float) -> list[Effect]:
        """Plan, or propose what was agreed to; with those who promised."""
        at = self._at
        if not leader.has_quorum():
            return self._give_way(now)
        value = leader.agreed_before(anew=leader.config != at.place.members)
        if value is not None:
            return self._put(leader, value, now)
        leader.roster = tuple(one for one in at.called() if leader.has_promise_of(one.member))
        members = {card.member for card in leader.roster}
        if at.me not in members or not at.is_quorum(leader.config, members):
            return self._give_way(now)
        leader.phase = "data"
        peers = [card.peer for card in leader.roster]
        cards = tuple(at.card(peer) for peer in peers)
        late_s = now + self._work.data_s(at.place.commits, leader.roster, at.pace)
        return [
            SetTimer(("judge", leader.ballot), late_s + at.pace.step_s),
            *self._say_all(peers, Plan(at.place.state, leader.ballot, cards)),
        ]

    def _put(self, leader: Leader, value: Value, now: float) -> list[Effect]:
        leader.phase, leader.value = "agree", value
        message = Propose(self._at.place.state, leader.ballot, value)
        return [
            SetTimer(("agree", leader.ballot), now + self._at.pace.step_s),
            *self._say_all(leader.promises, message),
        ]

    def held(self, peer: str, message: Held, now: float) -> list[Effect]:
        leader = self._in(message.ballot, "data")
        if leader is None or not leader.has_planned(peer):
            return []
        leader.held[peer] = message.next
        leader.missing.pop(peer, None)
        return self._judge(leader, now)

    def missing(self, peer: str, message: Missing, now: float) -> list[Effect]:
        leader = self._in(message.ballot, "data")
        if leader is None or not leader.has_planned(peer):
            return []
        if peer not in leader.held:
            leader.missing[peer] = message.peers
        return self._judge(leader, now)

    def lost(self, now: float) -> list[Effect]:
        """Somebody is."""
        leader = self._leader
        return self._judge(leader, now) if leader and leader.phase == "data" else []

    def _judge(self, leader: Leader, now: float, *, late: bool = False) -> list[Effect]:
        """Of an attempt: is it done, or has it failed, and by whom?"""
        at = self._at
        out = leader.gone(at.lost)
        if not out:
            if leader.silent() and not late:
                return []
            out = leader.outcasts()
        if not out:
            members = tuple(sorted(card.member for card in leader.roster))
            value = Value(leader.held[at.me.peer], leader.ballot, members)
            return self._put(leader, value, now)
        at.out |= out
        self._leader = None
        if at.me.peer in out:
            return self._leave(now)
        ready = at.called()
        if not at.is_quorum(leader.config, [card.member for card in ready]):
            return self._give_way(now)
        return self._lead(leader.config, ready, now)

    def agreed(self, peer: str, message: Agreed, now: float) -> list[Effect]:
        leader = self._in(message.ballot, "agree")
        if leader is None or leader.value is None:
            return []
        if not leader.agrees(Member(peer, message.boot)):
            return []
        value = leader.value
        told = {*leader.asked, *(one.peer for one in value.members)} - {self._at.me.peer}
        commits = self._say_all(sorted(told), Commit(self._at.place.state, value))
        return commits + self._take(value, now)

    def late(self, phase: str, ballot: Ballot, now: float) -> list[Effect]:
        """A time is over."""
        leader = self._leader
        if leader is None or leader.ballot != ballot:
            return []
        match phase, leader.phase:
            case "prepare", "prepare":
                return self._go_on(leader, now)
            case "judge", "data":
                return self._judge(leader, now, late=True)
            case "agree", "agree":
                return self._give_way(now)
        return []

    def _give_way(self, now: float) -> list[Effect]:
        """Lead no more for a while."""
        self._leader = None
        self._at.led_until_s = now + 2 * self._at.pace.step_s
        self._at.out.clear()
        return []

    def _in(self, ballot: Ballot, phase: str) -> Leader | None:
        leader = self._leader
        return leader if leader and (leader.ballot, leader.phase) == (ballot, phase) else None

    def _say_all(self, peers: Iterable[str], message: Message) -> list[Effect]:
        return [effect for peer in peers for effect in self._say(peer, message)]
