"""Who of the peers beside us is alive: SWIM with Lifeguard, among the peers of one model segment.

Das, Gupta and Motivala, "SWIM" (2002); Dadgar, Phillips and Currey, "Lifeguard" (2017); constants
as in HashiCorp's memberlist for wide networks (algorithms.md 6.1). Each period one peer is probed,
in an order that is shuffled anew each round; if it is silent, others are asked to probe it; if none
of them hears it, it is suspected, and it is dead when nobody, itself above all, objects in time.

    Ping ──▶ Ack                    every PROBE_S, piggybacking the latest rumours
      └ silent ─▶ PingReq to 3 ──▶ Ping ──▶ Ack, passed on; or Nack: I hear you, but not it
           └ silent ─▶ suspect ──── refuted by a higher incarnation ──▶ alive
                          └ the time is up ─▶ dead

Rumours are passed on (news.py); who is slow itself (late acks, missing nacks) waits longer with
everybody. Unlike SWIM's, a rumour of death is but one more suspicion: who is dead is everybody's
own finding, so that a liar kills nobody whom the others can still hear. Whoever hears that another
is gone probes it at once, within bounds (hearsay.py).

A finding needs a witness, for to hear nobody is to be cut off: another who answers us meanwhile or,
where nobody is left to be asked, the road, which says that the peer is not there. Who is only
silent, with nobody to ask, stays suspect until no record of it is left.

The caller owes: perform effects in order; hand in `Received` with the peer that the road vouches
for; hand in `Known` when the directory's picture of the segment changes; hand in `Unreached` when
the road knows without waiting that a peer is not there: a killed process is missed within seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .hearsay import CONFIRMED, Hearsay, wait_periods
from .machine import Fired, SetTimer, StopTimer
from .membership_events import Effect, Event, Known, Received, Send, Tell, Unreached
from .news import News
from .rumour import INCARNATION_MAX, NEWS_MAX, Ack, Message, Nack, Ping, PingReq, Rumour, State

PROBE_S = 5.0  # memberlist's WAN settings, as are the next two
TIMEOUT_S = 3.0
INDIRECT = 3
HEALTH_MAX = 8  # Lifeguard: how much slower than others we may take ourselves to be
NACK_SHARE = 0.8  # of the time to answer, after which whoever probes for another says Nack
MEMBERS_MAX = 4096  # of a segment; strangers can make up as many as they like

_RANK = {"alive": 0, "suspect": 1, "dead": 2}


@dataclass(slots=True)
class _Member:
    incarnation: int = 0
    state: State = "alive"
    since_s: float = 0.0
    by: set[str] = field(default_factory=set)  # who suspects it
    found: bool = False  # gone, by our own finding
    looked: set[str] = field(default_factory=set)  # by whose word we looked, in this incarnation


@dataclass(slots=True)
class _Probe:
    peer: str
    told: bool = False  # the road says that it is not there
    heard: bool = False  # another has answered us meanwhile
    asked: frozenset[str] = frozenset()  # to probe it for us; others' words count for nothing
    nacks: set[str] = field(default_factory=set)  # who of them cannot hear it


@dataclass(slots=True)
class _Errand:
    """A probe on behalf of another."""

    asker: str
    number: int
    target: str


class Membership:
    """The machine. dice: shuffles a list in place, and draws what is asked of it."""

    def __init__(self, me: str, shuffle: Callable[[list[str]], None], incarnation: int = 0) -> None:
        self._me = me
        self._shuffle = shuffle
        self._incarnation = incarnation
        self._members: dict[str, _Member] = {}
        self._round: list[str] = []
        self._numbers = 0
        self._probes: dict[int, _Probe] = {}
        self._errands: dict[int, _Errand] = {}
        self._news = News()
        self._hearsay = Hearsay()
        self._health = 0

    @property
    def health(self) -> int:
        """0: as quick as others; more: we are late ourselves, and wait longer."""
        return self._health

    def alive(self) -> tuple[str, ...]:
        """Who is not known to be dead, sorted."""
        return tuple(sorted(p for p, one in self._members.items() if one.state != "dead"))

    def missed(self) -> frozenset[str]:
        """Who is gone by our own finding: neither we nor those we asked can hear it.

        A word of others alone puts nobody here.
        """
        return frozenset(peer for peer, one in self._members.items() if one.found)

    def hears(self) -> bool:
        """Whether anybody is not even suspected: who hears nobody may be cut off itself."""
        return any(one.state == "alive" for one in self._members.values())

    def state(self, peer: str) -> State | None:
        return self._members[peer].state if peer in self._members else None

    def start(self, now: float) -> list[Effect]:
        return [SetTimer("probe", now + PROBE_S)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Known(peers, boots):
                return self._known(peers, boots, now)
            case Unreached(peer):
                return self._unreached(peer, now)
            case Received(peer, message):
                return self._received(peer, message, now)
            case Fired("probe"):
                return self._probe(now)
            case Fired(("silent", int(number))):
                return self._ask_others(number, now)
            case Fired(("over", int(number))):
                return self._over(number, now)
            case Fired(("nack", int(number))) if number in self._errands:
                errand = self._errands[number]
                return [Send(errand.asker, Nack(errand.number))]
            case Fired(("errand", int(number))):
                self._errands.pop(number, None)
            case Fired(("suspect", str(peer), int(incarnation))):
                return self._time_is_up(peer, incarnation, now)
        return []

    # ---- who there is

    def _known(self, peers: Sequence[str], boots: Sequence[int], now: float) -> list[Effect]:
        """Newcomers are alive until they are silent; who is in no record any more is forgotten.

        A boot is an incarnation, too: whoever began anew since it was suspected is alive.
        """
        told = set(peers) - {self._me}
        effects: list[Effect] = []
        for peer in [peer for peer in self._members if peer not in told]:
            member = self._members.pop(peer)
            self._news.drop(peer)
            if member.state == "suspect":
                effects.append(StopTimer(("suspect", peer, member.incarnation)))
        for peer in sorted(told - self._members.keys()):
            if len(self._members) < MEMBERS_MAX:
                self._members[peer] = _Member(since_s=now)
                effects.append(Tell(peer, "alive"))
        for peer, boot in zip(peers, boots, strict=False):
            if peer in self._members and boot > self._members[peer].incarnation:
                effects += self._heard(Rumour(peer, "alive", boot, peer), now, passed_on=False)
        return effects

    def _unreached(self, peer: str, now: float) -> list[Effect]:
        """Silence need not be waited for: on to the next step of whatever was to reach it."""
        effects: list[Effect] = []
        for number, errand in [one for one in self._errands.items() if one[1].target == peer]:
            del self._errands[number]
            effects += [StopTimer(("nack", number)), StopTimer(("errand", number))]
            effects.append(Send(errand.asker, Nack(errand.number)))
        member = self._members.get(peer)
        if (probe := self._probes.get(number := self._probe_of(peer))) is not None:
            probe.told = True
            if not probe.asked:
                effects += [StopTimer(("silent", number)), *self._ask_others(number, now)]
                effects += self._if_nobody_hears(number, now)
        elif member is not None and member.state == "alive":
            effects += self._probe_peer(peer, now, told=True)
        return effects

    # ---- probing

    def _probe(self, now: float) -> list[Effect]:
        """Begin to probe the next in turn."""
        effects: list[Effect] = [SetTimer("probe", now + PROBE_S * (self._health + 1))]
        self._hearsay.period()
        peer = self._next()
        return effects if peer is None else [*effects, *self._probe_peer(peer, now)]

    def _probe_peer(self, peer: str, now: float, *, told: bool = False) -> list[Effect]:
        slower = self._health + 1
        number = self._number()
        self._probes[number] = _Probe(peer, told)
        return [
            Send(peer, Ping(number, self._gossip(peer))),
            SetTimer(("silent", number), now + TIMEOUT_S * slower),
            SetTimer(("over", number), now + PROBE_S * slower),
        ]

    def _next(self) -> str | None:
        """Each once a round: so a death is noticed within two rounds, whatever the dice."""
        for _ in range(2):
            while self._round:
                peer = self._round.pop()
                member = self._members.get(peer)
                if member is not None and member.state != "dead":
                    return peer
            self._round = sorted(self._members)
            self._shuffle(self._round)
        return None

    def _ask_others(self, number: int, now: float) -> list[Effect]:
        probe = self._probes.get(number)
        if probe is None:
            return []
        others = [p for p in sorted(self._members) if self.state(p) == "alive" and p != probe.peer]
        self._shuffle(others)
        asked = others[:INDIRECT]
        probe.asked = frozenset(asked)
        return [Send(peer, PingReq(number, probe.peer, self._gossip(peer))) for peer in asked]

    def _if_nobody_hears(self, number: int, now: float) -> list[Effect]:
        """All who were asked have said that they cannot: that is soon enough."""
        probe = self._probes.get(number)
        if probe is None or len(probe.nacks) < len(probe.asked):
            return []
        return [StopTimer(("over", number)), *self._over(number, now)]

    def _over(self, number: int, now: float) -> list[Effect]:
        """Nobody has heard it. Who was asked and said not even Nack shows that we are late."""
        probe = self._probes.pop(number, None)
        if probe is None or probe.peer not in self._members:
            return []
        self._feel(len(probe.asked) - len(probe.nacks) if probe.asked else 1)
        member = self._members[probe.peer]
        effects = self._heard(Rumour(probe.peer, "suspect", member.incarnation, self._me), now)
        member.found = member.found or probe.heard or (probe.told and not probe.asked)
        return effects

    def _received(self, peer: str, message: Message, now: float) -> list[Effect]:
        if peer not in self._members:
            return _greet(peer, message)
        effects: list[Effect] = []
        for rumour in () if isinstance(message, Nack) else message.news[:NEWS_MAX]:
            if rumour.by != self._me:  # what we said we know
                effects += [*self._heard(rumour, now), *self._look_into(rumour, now)]
        match message:
            case Ping(number):
                effects.append(Send(peer, Ack(number, self._gossip(peer))))
            case PingReq(number, target) if target not in self._members:
                effects.append(Send(peer, Nack(number)))
            case PingReq(number, target):
                mine = self._number()
                self._errands[mine] = _Errand(peer, number, target)
                effects.append(Send(target, Ping(mine, self._gossip(target))))
                effects.append(SetTimer(("nack", mine), now + NACK_SHARE * (PROBE_S - TIMEOUT_S)))
                effects.append(SetTimer(("errand", mine), now + PROBE_S))
            case Ack(number):
                effects += self._acked(peer, number)
            case Nack(number) if (probe := self._probes.get(number)) and peer in probe.asked:
                probe.nacks.add(peer)
                self._answered()
                effects += self._if_nobody_hears(number, now)
        return effects

    def _acked(self, peer: str, number: int) -> list[Effect]:
        errand = self._errands.get(number)
        if errand is not None and errand.target == peer:
            del self._errands[number]
            done = [StopTimer(("nack", number)), StopTimer(("errand", number))]
            return [*done, Send(errand.asker, Ack(errand.number))]
        probe = self._probes.get(number)
        if probe is None or (peer != probe.peer and peer not in probe.asked):
            return []
        del self._probes[number]
        self._answered()
        self._feel(-1)
        return [StopTimer(("silent", number)), StopTimer(("over", number))]

    def _answered(self) -> None:
        """Somebody heard us, and we him: it is not we who are cut off."""
        for probe in self._probes.values():
            probe.heard = True

    def _feel(self, worse: int) -> None:
        self._health = min(max(self._health + worse, 0), HEALTH_MAX)

    # ---- rumours

    def _heard(self, rumour: Rumour, now: float, *, passed_on: bool = True) -> list[Effect]:
        """What we take a peer for, after this rumour."""
        if not 0 <= rumour.incarnation <= INCARNATION_MAX:
            return []
        if rumour.state == "alive" and rumour.by != rumour.peer:
            return []  # who can speak for another could raise the dead
        if rumour.peer == self._me:
            return self._refute(rumour)
        member = self._members.get(rumour.peer)
        if member is None:
            return []
        if rumour.state == "dead" and rumour.by != self._me:
            rumour = replace(rumour, state="suspect")
        newer = rumour.incarnation > member.incarnation
        same = rumour.incarnation == member.incarnation
        if same and rumour.state == "suspect" == member.state:
            return self._confirmed(rumour, member, now)
        if not newer and not (same and _RANK[rumour.state] > _RANK[member.state]):
            return []
        if member.state == "dead" and rumour.state == "suspect":
            return []
        effects: list[Effect] = []
        if member.state == "suspect":
            effects.append(StopTimer(("suspect", rumour.peer, member.incarnation)))
        changed = member.state != rumour.state
        member.incarnation, member.state, member.since_s = rumour.incarnation, rumour.state, now
        member.by = {rumour.by} if rumour.state == "suspect" else set()
        if newer:
            member.found, member.looked = False, set()
        self._news.drop(rumour.peer)
        if passed_on:
            self._news.put(rumour)
        if rumour.state == "suspect":
            effects.append(self._deadline(rumour.peer, member))
        if changed:
            effects.append(Tell(rumour.peer, rumour.state))
        return effects

    def _confirmed(self, rumour: Rumour, member: _Member, now: float) -> list[Effect]:
        """One more suspects it: the wait is shorter, and whoever it is shall be heard of."""
        if rumour.by in member.by or len(member.by) > CONFIRMED:
            return []
        if rumour.by not in {self._me, *self._members}:
            return []  # made-up names shall not hurry a death
        member.by.add(rumour.by)
        self._news.put(rumour)
        return [self._deadline(rumour.peer, member)]

    def _look_into(self, rumour: Rumour, now: float) -> list[Effect]:
        """Who is said to be gone is probed now: it objects, or is missed by our own finding."""
        member = self._members.get(rumour.peer)
        if member is None or rumour.state == "alive" or rumour.incarnation < member.incarnation:
            return []
        if member.found or rumour.by in member.looked or self._probe_of(rumour.peer):
            return []
        if rumour.by not in self._members or not self._hearsay.look(rumour.by):
            return []
        member.looked.add(rumour.by)
        return self._probe_peer(rumour.peer, now)

    def _probe_of(self, peer: str) -> int:
        """The number of the probe of it that is under way; 0 when there is none."""
        return next((n for n, probe in self._probes.items() if probe.peer == peer), 0)

    def _refute(self, rumour: Rumour) -> list[Effect]:
        if rumour.state == "alive":
            return []
        if rumour.incarnation >= self._incarnation:  # or it is of an earlier life of ours
            self._incarnation = min(rumour.incarnation + 1, INCARNATION_MAX)
            self._feel(1)  # somebody could not hear us
        self._news.put(Rumour(self._me, "alive", self._incarnation, self._me))
        return []

    def _deadline(self, peer: str, member: _Member) -> SetTimer:
        """When a suspect is dead."""
        wait_s = PROBE_S * wait_periods(len(member.by) - 1, len(self._members))
        return SetTimer(("suspect", peer, member.incarnation), member.since_s + wait_s)

    def _time_is_up(self, peer: str, incarnation: int, now: float) -> list[Effect]:
        member = self._members.get(peer)
        if member is None or member.state != "suspect" or member.incarnation != incarnation:
            return []
        if member.found:
            return self._heard(Rumour(peer, "dead", incarnation, self._me), now)
        member.since_s = now  # nobody dies of hearsay, nor of our being cut off: look again
        probing = [] if self._probe_of(peer) else self._probe_peer(peer, now)
        return [self._deadline(peer, member), *probing]

    def _gossip(self, peer: str) -> tuple[Rumour, ...]:
        """The rumours told least so far. A suspect is always told of its suspicion first."""
        about = self._members.get(peer)
        found: list[Rumour] = []
        if about is not None and about.state != "alive":
            found.append(Rumour(peer, about.state, about.incarnation, self._me))
        most = NEWS_MAX - len(found)
        return (*found, *self._news.take(most, members=len(self._members), but=peer))

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


def _greet(peer: str, message: Message) -> list[Effect]:
    """Who is in no record that we have read hears that we are here, and is not listened to."""
    match message:
        case Ping(number):
            return [Send(peer, Ack(number))]
        case PingReq(number):
            return [Send(peer, Nack(number))]
    return []
