"""Which messages to pass on, to whom: gossipsub 1.2, bounded in all that a neighbour may cost.

Each topic has a mesh of about eight neighbours that send each other all of it (mesh.py); the others
are told each second what there is, and ask for what they missed (Vyzovitis et al., 2020; the
specifications gossipsub-v1.0 to v1.2 of github.com/libp2p/specs; numbers of algorithms.md 3.5).

    a message ─▶ the sender's budget ─▶ new? ─▶ judge ─▶ "pass"   kept, sent to the mesh
                        │                │        ├────▶ "drop"   nobody's fault, not passed on
                        │                │        ├────▶ "stale"  a nuisance
                        └─ over: ────────┴ twice  └────▶ "wrong"  what no honest peer passes on
                           nuisance        from the same: nuisance

What costs a neighbour its score is in score.py; who has too little is not read any more. Nothing is
kept or passed on that was not judged, and whatever is remembered has a bound. One's own messages go
to all who subscribed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from ..dht.network import Part, Prefixes
from .gossip_events import (
    Effect,
    Event,
    Heard,
    Joined,
    Left,
    Publish,
    Say,
    Shun,
    Subscribe,
)
from .machine import Fired, SetTimer
from .mesh import BACKOFF_S, Meshes
from .neighbour import TOPICS_MAX, Neighbour, neighbour
from .recent import WINDOW, Recent, Verdict
from .score import GOSSIP, PUBLISH, Scores
from .topics import EVIDENCE, KINDS, MESSAGE_BYTES_MAX, Message, Rpc, id_of, kind_of

BEAT_S: Final = 1.0  # py-libp2p's own is two minutes
BEAT: Final = "beat"
NEIGHBOURS_MAX: Final = 32  # guess: four meshes' worth; each holds a connection open
CAME_MAX: Final = 24  # of them may have dialed us
D_LAZY: Final = 6  # algorithms.md 3.5: outside the mesh, who are told what there is
LAZY_SHARE: Final = 0.25
IDS_MAX: Final = 64  # that a neighbour may tell of, or ask for, between two heartbeats
TOLD_MAX: Final = IDS_MAX // 2  # of all topics: two heartbeats of ours may fall into one of theirs
ASKED_MAX: Final = 1024
ASKED_S: Final = 3.0  # until what a neighbour told of and did not give counts against it
DONT_WANT_BYTES: Final = 1024  # smaller messages are not worth the word
BROUGHT_MAX: Final = 64
OVER, TWICE, STALE, UNKEPT = 0.1, 0.2, 0.5, 0.2  # nuisances (score.py)


class Gossip:
    """The machine.

    judge: called once for each message that is new, within its sender's budget and of a topic that
    we want. admits: of which topics it is remembered who has subscribed. shuffle: our dice. trust:
    in 0..1, of a peer.
    """

    def __init__(
        self,
        judge: Callable[[Message], Verdict],
        admits: Callable[[str], bool],
        shuffle: Callable[[list[Any]], None],
        trust: Callable[[str], float] = lambda peer: 0.5,
    ) -> None:
        self._judge = judge
        self._admits = admits
        self._shuffle = shuffle
        self._scores = Scores(trust)
        self._recent = {kind: Recent() for kind in KINDS}
        self._neighbours: dict[str, Neighbour] = {}
        self._meshes = Meshes(self._neighbours, self._scores, shuffle)
        self._asked: dict[bytes, tuple[str, float]] = {}  # ids: of whom, until when it is due

    # ---- what is asked

    def shunned(self, peer: str, now: float) -> bool:
        return self._scores.shunned(peer, now)

    def score(self, peer: str, now: float) -> float:
        return self._scores.of(peer, now)

    def has_room(self, where: Prefixes, *, dialed: bool) -> bool:
        """Whether one more neighbour from there may be had; some places are kept for those that
        we dial, so that whoever dials us does not have them all."""
        came = sum(not one.dialed for one in self._neighbours.values())
        if len(self._neighbours) >= NEIGHBOURS_MAX or (came >= CAME_MAX and not dialed):
            return False
        part = Part(NEIGHBOURS_MAX)
        for one in self._neighbours.values():
            part.take((one.where,))
        return part.take((where,))

    def neighbours(self) -> tuple[str, ...]:
        return tuple(self._neighbours)

    def mesh(self, topic: str) -> tuple[str, ...]:
        return tuple(self._meshes.of(topic))

    def subscribed(self, topic: str) -> tuple[str, ...]:
        return tuple(peer for peer, one in self._neighbours.items() if topic in one.topics)

    def counts(self) -> dict[str, int]:
        """What is held: each has its bound."""
        return {
            "gossips": len(self._neighbours),
            "gossip_seen": sum(map(len, self._recent.values())),
            "gossip_bytes": sum(recent.bytes_kept for recent in self._recent.values()),
        }

    # ---- what happens

    def start(self, now: float) -> list[Effect]:
        return [SetTimer(BEAT, now + BEAT_S)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Joined(peer, where, dialed):
                return self._joined(peer, neighbour(where, dialed, now), now)
            case Left(peer) if peer in self._neighbours:
                return self._left(peer, now)
            case Heard(peer, rpc) if peer in self._neighbours:
                return self._heard(peer, rpc, now)
            case Publish(message):
                return self._publish(message, now)
            case Subscribe(topics):
                return self._subscribe(topics)
            case Fired(key) if key == BEAT:
                return [*self._beat(now), SetTimer(BEAT, now + BEAT_S)]
        return []

    def _joined(self, peer: str, one: Neighbour, now: float) -> list[Effect]:
        assert peer not in self._neighbours
        self._neighbours[peer] = one
        self._scores.came(peer, one.where, now)
        wanted = tuple((topic, True) for topic in sorted(self._meshes.topics()))
        return [Say(peer, Rpc(subscriptions=wanted))]

    def _left(self, peer: str, now: float) -> list[Effect]:
        del self._neighbours[peer]
        self._scores.left(peer, now)
        self._meshes.left(peer)
        return []

    def _subscribe(self, topics: frozenset[str]) -> list[Effect]:
        gone = sorted(self._meshes.topics() - topics)
        come = sorted(topics - self._meshes.topics())
        changes = (*((topic, True) for topic in come), *((topic, False) for topic in gone))
        effects: list[Effect] = []
        for peer in self._neighbours if changes else ():
            out = tuple((topic, BACKOFF_S) for topic in gone if peer in self._meshes.of(topic))
            effects.append(Say(peer, Rpc(subscriptions=changes, prune=out)))
        self._meshes.change(topics)
        return effects

    def _publish(self, message: Message, now: float) -> list[Effect]:
        id = id_of(message.data)
        recent = self._recent[kind_of(message.topic)]
        if recent.seen(id, now) is None:
            recent.note(id, "pass", "", now)
        recent.keep(id, message)
        return self._send(id, message, self.subscribed(message.topic), now)

    def _send(self, id: bytes, message: Message, peers: Iterable[str], now: float) -> list[Effect]:
        """To those who want it, and may be sent it; who has no budget left is told of it later."""
        effects: list[Effect] = []
        kind = kind_of(message.topic)
        for peer in peers:
            one = self._neighbours[peer]
            wanted = one.wants(id) and self._scores.of(peer, now) >= PUBLISH
            if wanted and one.said[kind].take(len(message.data), now):
                effects.append(Say(peer, Rpc(messages=(message,))))
        return effects

    # ---- what is heard

    def _heard(self, peer: str, rpc: Rpc | None, now: float) -> list[Effect]:
        """rpc: None for what cannot be read."""
        if self.shunned(peer, now):
            return [Shun(peer)]
        one = self._neighbours[peer]
        effects: list[Effect] = []
        if rpc is None:
            self._scores.wrong(peer, now)
        else:
            for topic, wanted in rpc.subscriptions:
                self._subscription(peer, one, topic, wanted, now)
            for message in rpc.messages:
                effects += self._message(peer, one, message, now)
            effects += self._ihave(peer, one, rpc, now)
            effects += self._iwant(peer, one, rpc.iwant, now)
            for topic, wait_s in dict(rpc.prune).items():
                self._meshes.pruned(peer, topic, wait_s, now)
            effects += self._meshes.grafted(peer, rpc.graft, now)
            for id in rpc.idontwant[:IDS_MAX]:
                one.has(id)
        return [*effects, Shun(peer)] if self.shunned(peer, now) else effects

    def _subscription(
        self, peer: str, one: Neighbour, topic: str, wanted: bool, now: float
    ) -> None:
        if not wanted:
            one.topics.discard(topic)
            self._meshes.unwanted_by(peer, topic)
        elif topic not in one.topics and self._admits(topic):
            if len(one.topics) < TOPICS_MAX:
                one.topics.add(topic)
            else:
                self._scores.nuisance(peer, OVER, now)

    def _message(self, peer: str, one: Neighbour, message: Message, now: float) -> list[Effect]:
        wanted, kind = message.topic in self._meshes.topics(), kind_of(message.topic)
        if not one.heard[kind].take(len(message.data), now) or not wanted:
            self._scores.nuisance(peer, OVER, now)
            return []
        if len(message.data) > MESSAGE_BYTES_MAX:
            self._scores.wrong(peer, now)
            return []
        id = id_of(message.data)
        self._asked.pop(id, None)
        seen = self._recent[kind].seen(id, now)
        if seen is None:
            verdict = self._judge(message)
            self._recent[kind].note(id, verdict, peer, now)
            return self._judged(peer, id, message, verdict, now)
        if peer in seen.brought:
            self._scores.nuisance(peer, TWICE, now)
        else:
            self._blame(peer, seen.verdict, now)
        if len(seen.brought) < BROUGHT_MAX:
            seen.brought.add(peer)
        return []

    def _judged(
        self, peer: str, id: bytes, message: Message, verdict: Verdict, now: float
    ) -> list[Effect]:
        self._blame(peer, verdict, now)
        if verdict != "pass":
            return []
        kind = kind_of(message.topic)
        if kind == EVIDENCE:  # what peers can do is told by anybody, of as many as he has names
            self._scores.first(peer, now)
        self._recent[kind].keep(id, message)
        others = [other for other in self._meshes.of(message.topic) if other != peer]
        effects = self._send(id, message, others, now)
        if len(message.data) > DONT_WANT_BYTES:
            return [*(Say(other, Rpc(idontwant=(id,))) for other in others), *effects]
        return effects

    def _blame(self, peer: str, verdict: Verdict, now: float) -> None:
        if verdict == "wrong":
            self._scores.wrong(peer, now)
        elif verdict == "stale":
            self._scores.nuisance(peer, STALE, now)

    def _ihave(self, peer: str, one: Neighbour, rpc: Rpc, now: float) -> list[Effect]:
        """Ask for what is new of what it tells of."""
        if self._scores.of(peer, now) < GOSSIP:
            return []
        wanted: list[bytes] = []
        for topic, ids in rpc.ihave:
            recent = self._recent[kind_of(topic)]
            for id in ids if topic in self._meshes.topics() else ():
                one.told += 1
                if one.told > IDS_MAX:
                    self._scores.nuisance(peer, OVER, now)
                    break
                if id in self._asked or recent.seen(id, now) is not None:
                    continue
                if len(self._asked) < ASKED_MAX:
                    self._asked[id] = (peer, now + ASKED_S)
                    wanted.append(id)
        return [Say(peer, Rpc(iwant=tuple(wanted)))] if wanted else []

    def _iwant(self, peer: str, one: Neighbour, ids: tuple[bytes, ...], now: float) -> list[Effect]:
        if self._scores.of(peer, now) < GOSSIP:
            return []
        effects: list[Effect] = []
        for id in dict.fromkeys(ids):
            one.asked += 1
            if one.asked > IDS_MAX:
                self._scores.nuisance(peer, OVER, now)
                break
            for kind, recent in self._recent.items():
                message = recent.serve(id, peer)
                if message is not None and one.said[kind].take(len(message.data), now):
                    effects.append(Say(peer, Rpc(messages=(message,))))
        return effects

    # ---- each second

    def _beat(self, now: float) -> list[Effect]:
        topics = set(self._meshes.topics())
        for recent in self._recent.values():
            recent.beat(now)
            topics |= recent.topics()
        overdue = [id for id, (_, due_s) in self._asked.items() if due_s <= now]
        for peer in {self._asked.pop(id)[0] for id in overdue} & self._neighbours.keys():
            self._scores.nuisance(peer, UNKEPT, now)  # once: it may have no budget left for us
        effects: list[Effect] = [*self._meshes.tend(now)]
        told: Counter[str] = Counter()
        for topic in sorted(topics, key=lambda topic: (KINDS.index(kind_of(topic)), topic)):
            effects += self._tell(topic, told, now)
        for one in self._neighbours.values():
            one.told = one.asked = 0
        return effects + [Shun(peer) for peer in self._neighbours if self.shunned(peer, now)]

    def _tell(self, topic: str, count: Counter[str], now: float) -> list[Effect]:
        """Some of those outside the mesh hear what there is, and who has just come into it; the
        newest, where it is much. count: how many ids each was told of in this heartbeat."""
        ids = self._recent[kind_of(topic)].window(topic)
        if not ids:
            return []
        mesh = self._meshes.of(topic)
        outside = [peer for peer in self.subscribed(topic) if peer not in mesh]
        self._shuffle(outside)
        fit = [peer for peer in outside if self._scores.of(peer, now) >= GOSSIP]
        new = [peer for peer, since_s in mesh.items() if now - since_s < WINDOW * BEAT_S]
        effects: list[Effect] = []
        for peer in [*new, *fit[: max(D_LAZY, round(LAZY_SHARE * len(fit)))]]:
            if room := TOLD_MAX - count[peer]:
                effects.append(Say(peer, Rpc(ihave=((topic, tuple(ids[-room:])),))))
                count[peer] += min(room, len(ids))
        return effects
