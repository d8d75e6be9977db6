"""Machines of one group in a world without time: an adversary delivers, drops, repeats, kills."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from potluck.crypto.digest import digest
from potluck.crypto.envelope import sign
from potluck.crypto.keys import IdentityKey
from potluck.swarm.machine import Fired, SetTimer, StopTimer
from potluck.swarm.run.butterfly import Gathered, Reduce, SendPart
from potluck.swarm.run.commit import Group
from potluck.swarm.run.group import Place, is_quorum
from potluck.swarm.run.group_events import (
    Adopt,
    Begin,
    Came,
    Computed,
    Effect,
    Event,
    Fetch,
    Leave,
    Lost,
    Pace,
    Placed,
    Received,
    Reduced,
    Send,
    Share,
    Shared,
    Work,
)
from potluck.swarm.run.group_wire import DOMAIN, Card, Member

RUN = digest("test run", b"a run")
FIRST = digest("test state", b"the first")
KEYS = [IdentityKey.from_bytes(bytes([number]) * 32) for number in range(1, 21)]
COUNT = 1000
PATIENCE_S = 1e6  # no adversary waits so long, but who waits for the end of one does
RATE = 1_000_000


@dataclass
class Peer:
    """One machine, and what its driver would keep."""

    machine: Group
    key: IdentityKey
    boot: int
    timers: dict[object, float] = field(default_factory=dict)
    begun: int = 0
    dead: bool = False


@dataclass
class World:
    """`peers` machines; the first `founders` of them made the first state, if any did."""

    peers_count: int
    dice: Random
    founders: int = 0
    now: float = 100.0
    peers: dict[str, Peer] = field(default_factory=dict)
    flying: list[tuple[str, Member, Event]] = field(default_factory=list)  # from, to whom
    successors: dict[object, bytes] = field(default_factory=dict)
    adopted: int = 0
    deaths: int = 0  # that may still be
    patient: bool = True  # nobody has founded itself anew: the one split that can be
    far: set[str] = field(default_factory=set)  # on the other side of a cut

    def __post_init__(self) -> None:
        members = tuple(sorted(Member(key.peer_id, 1) for key in KEYS[: self.founders]))
        for key in KEYS[: self.peers_count]:
            self.start(key, 1, Place(FIRST, members=members))

    def start(self, key: IdentityKey, boot: int, place: Place) -> None:
        me = Member(key.peer_id, boot)
        work = Work((COUNT,), lambda count: count)
        pace = Pace(patience_s=PATIENCE_S)
        machine = Group(me, RUN, place, work, lambda body: sign(key, DOMAIN, body), pace)
        self.peers[key.peer_id] = Peer(machine, key, boot)

    @property
    def alive(self) -> list[Peer]:
        return [one for one in self.peers.values() if not one.dead]

    def begin(self, peer: Peer) -> None:
        peer.begun += 1
        others = tuple(one for one in self.peers if one != peer.key.peer_id)
        self.give(peer, Begin(peer.begun, RATE, others))

    def give(self, peer: Peer, event: Event) -> None:
        before = peer.machine.place, peer.machine._at.config
        for effect in peer.machine.handle(event, self.now):
            self._do(peer, effect, before)

    def _do(self, peer: Peer, effect: Effect, before: tuple[Place, object]) -> None:
        me = peer.key.peer_id
        own = Member(me, peer.boot)
        match effect:
            case Send(other, message):
                self._fly(me, other, Received(me, message))
            case SendPart(other, part, data):
                self._fly(me, other, Came(me, part, data))
            case Share(ballot, _, counts):
                mark = f"{me}{peer.boot}{peer.begun}".encode()
                parts = tuple((mark * count)[:count] for count in counts)
                self.flying.append((me, own, Shared(ballot, parts)))
            case Reduce(ballot, _, count, _, gifts, tokens):
                told = b"".join(gift or b"" for gift in gifts) + repr(tokens).encode()
                data = (digest("test mean", told) * count)[:count]
                self.flying.append((me, own, Reduced(ballot, data)))
            case Gathered(ballot, _, _, parts, members):
                state = digest("test state", before[0].state, *parts, repr(members).encode())
                self.flying.append((me, own, Computed(ballot, state)))
            case Adopt(value, place):
                self.adopted += 1
                assert place.state == value.state and place.before == before[0].state
                chosen = self.successors.setdefault((before[0].state, before[1]), value.state)
                assert chosen == value.state or not self.patient, "one state has two successors"
                if self.dice.random() < 0.15:  # the worst moment: others have not heard of it
                    self.kill(peer)
            case Fetch(state, _):
                have = [one for one in self.alive if one.machine.place.state == state]
                found = have[0].machine.place if have else None
                self.flying.append((me, own, Placed(found)))
            case SetTimer(key, at_s):
                peer.timers[key] = at_s
            case StopTimer(key):
                peer.timers.pop(key, None)

    def _fly(self, sender: str, to: str, event: Event) -> None:
        other = self.peers.get(to)
        if other is None or other.dead:
            self.flying.append((to, Member(sender, self.peers[sender].boot), Lost(to)))
        else:
            self.flying.append((sender, Member(to, other.boot), event))

    def land(self, at: int, *, keep: bool = False) -> None:
        """Deliver what flies there; what comes to who has died since is nobody's."""
        _, to, event = self.flying[at] if keep else self.flying.pop(at)
        peer = self.peers[to.peer]
        if not peer.dead and peer.boot == to.boot:
            self.give(peer, event)

    def fire(self, peer: Peer, key: object) -> None:
        del peer.timers[key]
        self.give(peer, Fired(key))  # type: ignore[arg-type]

    def harm(self, steps: int, *, deaths: int, returns: bool, drops: float) -> None:
        """So many steps of whatever can happen, in any order; but for a time most of what is sent
        comes, or nothing would ever get so far that harm could be done to it. Now and then the
        roads between two parts are cut: what is sent there comes later, or the sender hears of it.
        """
        calm = 0.0
        self.deaths = deaths
        for step in range(steps):
            if step % 50 == 0:
                calm = self.dice.choice((0.3, 0.8, 0.97))
                cut = self.dice.random() < 0.4
                self.far = {one for one in self.peers if cut and self.dice.random() < 0.5}
            if not self.flying or self.dice.random() >= calm:
                self._harm_once(drops, returns=returns)
            elif (at := self._next_flying()) is not None:
                self.land(at)
        self.far = set()

    def _harm_once(self, drops: float, *, returns: bool) -> None:
        what = self.dice.random()
        peer = self.dice.choice(self.alive)
        me = peer.key.peer_id
        self.now += self.dice.choice((0.0, 0.0, 0.01, 0.5, 4.0))
        if what < 0.7:
            at = self._some_flying()
            if at is not None and self.dice.random() < drops and self._is_on_the_road(at):
                self.flying.pop(at)
            elif at is not None:
                self.land(at, keep=self._is_on_the_road(at) and self.dice.random() < 0.05)
        elif what < 0.85 and peer.timers:
            self.fire(peer, self.dice.choice(list(peer.timers)))
        elif what < 0.94:
            if not peer.machine.waits:
                self.begin(peer)
        elif what < 0.96:
            self.give(peer, Lost(self.dice.choice([one for one in self.peers if one != me])))
        elif what < 0.965:
            self.give(peer, Leave())
        elif what < 0.985:
            self.kill(peer)
        elif returns:
            self._return()

    def kill(self, peer: Peer) -> None:
        """If one may still die, and is not the last. What it sent may come, or not."""
        if self.deaths and len(self.alive) > 1:
            self.deaths -= 1
            peer.dead = True
            peer.timers.clear()
            keeps = self.dice.random()
            sent = [one for one in self.flying if one[0] == peer.key.peer_id]
            gone = [one for one in sent if self.dice.random() >= keeps]
            self.flying = [one for one in self.flying if not any(one is old for old in gone)]

    def _is_on_the_road(self, at: int) -> bool:
        return isinstance(self.flying[at][2], Received | Came)

    def _is_cut(self, at: int) -> bool:
        sender, to, _ = self.flying[at]
        return self._is_on_the_road(at) and (sender in self.far) != (to.peer in self.far)

    def _next_flying(self) -> int | None:
        """What was sent first, of what can come. Of what cannot, its sender may hear."""
        for at in range(len(self.flying)):
            if not self._is_cut(at):
                return at
            if self.dice.random() < 0.05:
                sender, to, _ = self.flying[at]
                self.give(self.peers[sender], Lost(to.peer))
                return None
        return None

    def _some_flying(self) -> int | None:
        able = [at for at in range(len(self.flying)) if not self._is_cut(at)]
        if not able:
            return None
        return able[0] if self.dice.random() < 0.7 else self.dice.choice(able)

    def _return(self) -> None:
        """One who was killed comes back, and remembers nothing."""
        gone = [one for one in self.peers.values() if one.dead]
        if gone:
            one = self.dice.choice(gone)
            place = self.dice.choice(self.alive).machine.place
            self.start(one.key, one.boot + 1, place)

    def heal(self, within_s: float, wanted: int) -> bool:
        """Roads work, clocks go right, everybody wishes for exchanges: does everybody alive come
        to the same state, after so many commits?"""
        end_s = self.now + within_s
        while self.now < end_s:
            for peer in self.alive:
                if not peer.machine.waits and peer.machine.place.commits < wanted:
                    self.begin(peer)
            while self.flying:
                self.land(0)
            places = {one.machine.place for one in self.alive}
            if len(places) == 1 and places.pop().commits >= wanted:
                return True
            if not self._tick():
                self.now += 1.0
        return False

    def lose_patience(self) -> None:
        self.now += PATIENCE_S
        self.patient = False

    def has_quorum(self) -> bool:
        """Whether those who live can choose what comes after the last state of all."""
        place = max((one.machine.place for one in self.alive), key=lambda one: one.commits)
        here = [Member(one.key.peer_id, one.boot) for one in self.alive]
        return is_quorum(place.state, place.members, here)

    def _tick(self) -> bool:
        """The next timer of all."""
        due = [(at_s, i, k) for i, p in enumerate(self.alive) for k, at_s in p.timers.items()]
        if not due:
            return False
        at_s, which, key = min(due, key=lambda one: one[:2])
        self.now = max(self.now, at_s)
        self.fire(self.alive[which], key)
        return True


def card_at(key: IdentityKey, place: Place, *, tokens: int = 1, rate: int = RATE) -> Card:
    """Of one who waits there."""
    return Card(
        RUN, key.peer_id, 1, 1, place.state, place.before, place.commits, tokens, rate, True
    )
