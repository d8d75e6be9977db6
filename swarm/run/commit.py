"""From one state of a group to the next: all of its survivors take the same one, or none does.

    idle ──Begin──▶ gathering ──a ballot──▶ data ──Held──▶ agreeing ──▶ Adopt ──▶ idle
                        ▲                     │ a member is late, or dead
                        └─── next ballot ◀────┘ without it

Averaging is an attempt (butterfly.py); what it leads to counts once it is chosen. Choosing is
single-decree Paxos for each state of the chain: whose word counts is its config (group.py), a value
is the digest of a next state, and a leader first hears from a quorum what they agreed to before. A
value is proposed for the first time only when every member of its plan holds the whole of it, so
whoever is left can take it without a byte from the dead.

What holds, whatever is lost, delayed, repeated, whoever dies or comes back:
  - one state under one config has one successor at most;
  - nobody adopts anything but it.
What holds if a quorum lives and roads work again: all who wait end at the same state. What does not
hold: a quorum of the config has to live, or `patience_s` has to pass; see group.py for the split
that can follow, and how it heals.

The caller owes: perform effects in order; `Received` and `Came` with a peer that the road vouches
for; `Lost` for a peer that nothing can be said to; a boot that is greater after each start.
`handle` raises RemoteError for what no honest peer sends, and nothing has changed then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ...errors import RemoteError
from ..machine import Fired, SetTimer, StopTimer
from .butterfly import Butterfly
from .group import Place, in_order
from .group_events import (
    Adopt,
    Begin,
    Came,
    Computed,
    Effect,
    Event,
    Fetch,
    Leave,
    Lost,
    Meet,
    Pace,
    Placed,
    Received,
    Reduced,
    Send,
    Share,
    Shared,
    Spoilt,
    Work,
)
from .group_wire import (
    Agreed,
    Ballot,
    Card,
    Commit,
    Held,
    Member,
    Message,
    Missing,
    Part,
    Plan,
    Prepare,
    Promise,
    Propose,
    Told,
    Value,
    Vote,
    card_of,
)
from .leading import Leading
from .standing import Standing

TICK: Final = "tick"


class Group:
    """The machine, of one peer in one run. sign: a card, in its domain."""

    def __init__(
        self,
        me: Member,
        run: bytes,
        place: Place,
        work: Work,
        sign: Callable[[bytes], bytes],
        pace: Pace,
    ) -> None:
        self._at = Standing(me, run, place, pace, sign)
        self._work = work
        self._me = me.peer
        self._told_s = 0.0
        self._to_me: list[Message] = []
        self._leading = Leading(self._at, work, self._say, self._take, self._leave)
        self._stand()

    def _stand(self) -> None:
        """At a state about which nothing was agreed yet."""
        self._promised: Ballot | None = None
        self._vote: Vote | None = None
        self._held: Value | None = None
        self._attempt: Butterfly | None = None
        self._leading.stop()

    @property
    def place(self) -> Place:
        return self._at.place

    @property
    def waits(self) -> bool:
        """For an exchange that began and is not over."""
        return self._at.waits

    @property
    def called(self) -> bool:
        """By others who wait where we stand, and may go on without us."""
        return self._at.is_called()

    @property
    def fetching(self) -> bool:
        """A state, to go to it."""
        return bool(self._at.fetching)

    @property
    def attempting(self) -> Ballot | None:
        """The ballot under which parts are awaited, or were."""
        return None if self._attempt is None else self._attempt.ballot

    def cards(self) -> list[Card]:
        """Of the others, as they told them last."""
        return self._at.known()

    def unheard(self, peers: Iterable[str]) -> set[str]:
        """Of these, who has neither told where it stands, nor is lost."""
        told = {card.peer for card in self._at.known()}
        return {*peers} - told - self._at.lost - {self._at.me.peer}

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = self._on(event, now)
        while self._to_me:
            effects += self._received(self._me, self._to_me.pop(0), now)
        return effects

    def awaits(self, peer: str, part: Part) -> int | None:
        """How many bytes follow; None if not now, and perhaps later. Raises RemoteError."""
        return self._attempt.expects(peer, part) if self._attempt is not None else None

    def _on(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Received(peer, message):
                return self._received(peer, message, now)
            case Begin():
                return self._begin(event, now)
            case Meet(peers):
                return self._tell(peers, ask=True)
            case Leave():
                return self._leave(now)
            case Lost(peer):
                return self._lose(peer, now)
            case Placed(place):
                return self._placed(place, now)
            case Fired("tick"):
                return self._tick(now)
            case Fired((str() as phase, Ballot() as ballot)):
                return self._late(phase, ballot, now)
            case Came(peer, part, data):
                attempt = self._attempting(part.ballot)
                return [*attempt.received(peer, part, data)] if attempt else []
            case Shared(ballot, parts):
                attempt = self._attempting(ballot)
                return [*attempt.give(parts)] if attempt else []
            case Reduced(ballot, data):
                attempt = self._attempting(ballot)
                return [*attempt.reduced(data)] if attempt else []
            case Computed(ballot, state):
                attempt = self._attempting(ballot)
                return self._computed(attempt, state) if attempt else []
            case Spoilt(ballot, peers):
                attempt = self._attempting(ballot)
                return self._complain(ballot, peers) if attempt else []
        return []

    def _received(self, peer: str, message: Message, now: float) -> list[Effect]:
        match message:
            case Told(raw, ask):
                self._at.hear(peer, raw)
                return self._tell((peer,) if ask else (), ask=False) + self._look(now)
            case _ if message.state != self.place.state:
                return self._tell((peer,), ask=False)
            case Prepare():
                return self._prepare(peer, message, now)
            case Promise():
                return self._leading.promised(peer, message, now)
            case Plan():
                return self._plan(peer, message, now)
            case Held():
                return self._leading.held(peer, message, now)
            case Missing():
                return self._leading.missing(peer, message, now)
            case Propose():
                return self._propose(peer, message, now)
            case Agreed():
                return self._leading.agreed(peer, message, now)
            case Commit(_, value):
                return self._take(value, now)

    # ---- who is here

    def _begin(self, wish: Begin, now: float) -> list[Effect]:
        self._at.begin(wish, now)
        self._told_s = now
        everybody = self._tell(self._at.companions(), ask=True)
        tick = SetTimer(TICK, now + self._at.pace.tick_s)
        return [*everybody, tick, *self._look(now)]

    def _leave(self, now: float) -> list[Effect]:
        effects: list[Effect] = [StopTimer(TICK)]
        if self._attempt is not None and self._held is None:
            effects += self._complain(self._attempt.ballot, (self._me,))
        self._attempt = None
        self._leading.stop()
        self._to_me.clear()
        self._at.leave(now)
        return effects + self._tell((one.peer for one in self._at.ready()), ask=False)

    def _placed(self, place: Place | None, now: float) -> list[Effect]:
        fetched, self._at.fetching = self._at.fetching, b""
        if place is None:
            self._at.vain_s[fetched] = now
            return self._look(now)
        if self._at.waits and not fetched:
            return []
        self._at.move(place, waits=self._at.waits)
        self._stand()
        if not self._at.waits:
            return []
        self._at.began_s = now
        if not any(one.waits for one in self._at.here()):  # they have just been here without us
            return self._leave(now)
        return self._tell(self._at.companions(), ask=True) + self._look(now)

    def _look(self, now: float) -> list[Effect]:
        """What follows from where everybody stands."""
        if self._held is not None and self._at.went(self._held):
            return self._take(self._held, now)
        if not self._at.waits or self._at.fetching:
            return []
        busy = self._attempt is not None or self._leading.now
        ahead = self._at.ahead(now, busy=busy, chained=self._work.chained)
        return self._leading.if_due(now) if ahead is None else self._fetch(*ahead)

    def _fetch(self, state: bytes, holders: tuple[str, ...]) -> list[Effect]:
        self._at.fetching = state
        self._attempt = None
        self._leading.stop()
        own_order = in_order(state + self._me.encode(), holders)  # else all would ask the same one
        return [Fetch(state, tuple(own_order))]

    def _tick(self, now: float) -> list[Effect]:
        if not self._at.waits:
            return []
        effects: list[Effect] = [SetTimer(TICK, now + self._at.pace.tick_s)]
        if now - self._told_s >= self._at.pace.step_s:
            self._told_s = now
            effects += self._tell(self._at.companions(), ask=True)
        return effects + self._look(now)

    def _lose(self, peer: str, now: float) -> list[Effect]:
        self._at.lose(peer)
        effects: list[Effect] = []
        if self._promised is not None and self._promised.leader.peer == peer:
            self._at.led_until_s = min(self._at.led_until_s, now)
        elif self._attempt is not None and peer in self._attempt.owing():
            effects += self._complain(self._attempt.ballot, (peer,))
        return effects + self._leading.lost(now) + self._look(now)

    def _late(self, phase: str, ballot: Ballot, now: float) -> list[Effect]:
        if phase != "data":
            return self._leading.late(phase, ballot, now)
        attempt = self._attempting(ballot)
        if attempt is None or self._held is not None:
            return []
        return self._complain(ballot, attempt.owing())

    # ---- following

    def _prepare(self, peer: str, message: Prepare, now: float) -> list[Effect]:
        at, ballot = self._at, message.ballot
        _lead_by(peer, ballot)
        outbid = self._promised is not None and ballot < self._promised
        if not at.waits or at.fetching or outbid or not at.takes(message.config, now):
            self._leading.hear_of(ballot)
            return self._tell((peer,), ask=False)
        self._leading.follow(ballot)
        if ballot != self._promised:
            self._promised = ballot
            self._attempt = None
        at.led_until_s = now + 2 * at.pace.step_s
        held = None if self._held is None else self._held.state
        return self._say(peer, Promise(self.place.state, ballot, at.me.boot, self._vote, held))

    def _plan(self, peer: str, message: Plan, now: float) -> list[Effect]:
        at, ballot = self._at, message.ballot
        _lead_by(peer, ballot)
        cards = [card_of(raw) for raw in message.cards]
        if len({card.peer for card in cards}) < len(cards):
            raise RemoteError("a plan with a peer twice")
        if any(one.run != at.run or one.state != self.place.state for one in cards):
            raise RemoteError("a plan for members of another run, or at another state")
        again = self._attempting(ballot) or (self._held and self._held.ballot == ballot)
        if ballot != self._promised or again or at.mine not in message.cards:
            return []
        fragment = self._work.fragment(self.place.commits)
        count = self._work.counts[fragment]
        self._held = None  # nothing of a lesser ballot can be chosen any more
        self._attempt = attempt = Butterfly(
            self._me, ballot, message.digest, cards, count, self._work.bytes_of
        )
        late_s = now + self._work.data_s(self.place.commits, cards, at.pace)
        at.led_until_s = late_s + 2 * at.pace.step_s
        return [SetTimer(("data", ballot), late_s), Share(ballot, fragment, attempt.counts)]

    def _computed(self, attempt: Butterfly, state: bytes) -> list[Effect]:
        ballot = attempt.ballot
        self._held = Value(state, ballot, attempt.members)
        held = self._say(ballot.leader.peer, Held(self.place.state, ballot, state))
        return [StopTimer(("data", ballot)), *held]

    def _propose(self, peer: str, message: Propose, now: float) -> list[Effect]:
        _lead_by(peer, message.ballot)
        if message.ballot != self._promised:
            return []
        self._vote = Vote(message.ballot, message.value)
        self._at.led_until_s = now + 2 * self._at.pace.step_s
        boot = self._at.me.boot
        return self._say(peer, Agreed(self.place.state, message.ballot, boot))

    def _take(self, value: Value, now: float) -> list[Effect]:
        """It was chosen."""
        at = self._at
        if self._held is None or self._held.state != value.state:
            holders = tuple(one.peer for one in value.members if one != at.me)
            return self._fetch(value.state, holders) if at.waits and not at.fetching else []
        old, late = self.place, [card.peer for card in at.ready()]
        place = Place(value.state, old.state, old.commits + 1, value.members)
        at.move(place, waits=False)
        self._stand()
        outside = {*late} - {one.peer for one in value.members}
        return [Adopt(value, place), StopTimer(TICK), *self._tell(sorted(outside), ask=False)]

    # ---- words

    def _attempting(self, ballot: Ballot) -> Butterfly | None:
        return self._attempt if self.attempting == ballot else None

    def _complain(self, ballot: Ballot, peers: tuple[str, ...]) -> list[Effect]:
        return self._say(ballot.leader.peer, Missing(self.place.state, ballot, peers))

    def _say(self, peer: str, message: Message) -> list[Effect]:
        if peer != self._me:
            return [Send(peer, message)]
        self._to_me.append(message)
        return []

    def _tell(self, peers: Iterable[str], *, ask: bool) -> list[Effect]:
        told = Told(self._at.mine, ask)
        return [Send(peer, told) for peer in peers if peer != self._me]


def _lead_by(peer: str, ballot: Ballot) -> None:
    """Raises RemoteError for one that another leads."""
    if ballot.leader.peer != peer:
        raise RemoteError("a ballot in another's name")
