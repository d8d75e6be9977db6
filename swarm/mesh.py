"""Who sends whom all of a topic: meshes of about eight, tended each second (gossipsub 1.1).

A mesh takes few of one network (dht/network.py), nobody whose score is below zero, and always some
that we chose to dial, so that whoever dials us a lot does not surround us. Who left a mesh or was
left out does not ask again before its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ..dht.network import Part, diverse
from .gossip_events import Say
from .neighbour import Neighbour
from .score import Scores
from .topics import Rpc

D, D_LOW, D_HIGH, D_OUT = 8, 6, 12, 2  # algorithms.md 3.5
BACKOFF_S: Final = 60
BACKOFF_MOST_S: Final = 600  # whatever a neighbour says
BACKOFFS_MAX: Final = 1024
RUDE: Final = 1.0  # a nuisance (score.py): to ask before its time

Peers = dict[str, float]  # since when; in the order they came


class Meshes:
    """Of the topics that we want."""

    def __init__(
        self,
        neighbours: Mapping[str, Neighbour],
        scores: Scores,
        shuffle: Callable[[list[Any]], None],
    ) -> None:
        self._neighbours = neighbours
        self._scores = scores
        self._shuffle = shuffle
        self._of: dict[str, Peers] = {}
        self._backoff: dict[tuple[str, str], float] = {}  # (peer, topic): until when

    def topics(self) -> frozenset[str]:
        return frozenset(self._of)

    def of(self, topic: str) -> Peers:
        """Its peers; empty of a topic that we do not want."""
        return self._of.get(topic, {})

    def change(self, topics: frozenset[str]) -> None:
        """Want these from now on."""
        self._of = {topic: self._of.get(topic, {}) for topic in sorted(topics)}

    def left(self, peer: str) -> None:
        for mesh in self._of.values():
            mesh.pop(peer, None)

    def unwanted_by(self, peer: str, topic: str) -> None:
        self.of(topic).pop(peer, None)

    def pruned(self, peer: str, topic: str, wait_s: int, now: float) -> None:
        """It sends us this topic no more, and wants not to be asked for so long."""
        if topic in self._of:
            self._of[topic].pop(peer, None)
            self._back_off(peer, topic, min(wait_s or BACKOFF_S, BACKOFF_MOST_S), now)

    def grafted(self, peer: str, topics: tuple[str, ...], now: float) -> list[Say]:
        """It sends us these topics, and asks that we do."""
        one = self._neighbours[peer]
        refused: list[tuple[str, int]] = []
        for topic in dict.fromkeys(topics):
            mesh = self._of.get(topic)
            if mesh is None or peer in mesh:
                continue  # of other topics nothing is said: an answer would be worth asking for
            if self._backoff.get((peer, topic), 0.0) > now:
                self._scores.nuisance(peer, RUDE, now)
            elif self._scores.of(peer, now) >= 0 and self._may_join(one, mesh):
                one.topics.add(topic)
                mesh[peer] = now
                continue
            self._back_off(peer, topic, BACKOFF_S, now)
            refused.append((topic, BACKOFF_S))
        return [Say(peer, Rpc(prune=tuple(refused)))] if refused else []

    def tend(self, now: float) -> list[Say]:
        """Each mesh of the right size, without those whose score is bad."""
        self._backoff = {pair: at_s for pair, at_s in self._backoff.items() if at_s > now}
        return [say for topic, mesh in self._of.items() for say in self._tend(topic, mesh, now)]

    def _tend(self, topic: str, mesh: Peers, now: float) -> list[Say]:
        left = [peer for peer in mesh if self._scores.of(peer, now) >= 0]
        if len(left) > D_HIGH:
            left = self._best(left, now)
        out = [peer for peer in mesh if peer not in left]
        for peer in out:
            del mesh[peer]
            self._back_off(peer, topic, BACKOFF_S, now)
        chosen = self._take_in(topic, mesh, D - len(mesh) if len(mesh) < D_LOW else 0, now)
        ours = sum(self._neighbours[peer].dialed for peer in mesh)
        if ours < D_OUT:
            chosen += self._take_in(topic, mesh, D_OUT - ours, now, dialed=True)
        pruned = [Say(peer, Rpc(prune=((topic, BACKOFF_S),))) for peer in out]
        return pruned + [Say(peer, Rpc(graft=(topic,))) for peer in chosen]

    def _take_in(
        self, topic: str, mesh: Peers, count: int, now: float, *, dialed: bool = False
    ) -> list[str]:
        """So many more, of other networks where there are such."""
        fit = [
            peer
            for peer, one in self._neighbours.items()
            if topic in one.topics
            and peer not in mesh
            and (one.dialed or not dialed)
            and (peer, topic) not in self._backoff
            and self._scores.of(peer, now) >= 0
        ]
        self._shuffle(fit)
        ranked = ((peer, (self._neighbours[peer].where,)) for peer in [*mesh, *fit])
        wanted = len(mesh) + min(count, len(fit))
        chosen = [peer for peer in diverse(ranked, wanted) if peer not in mesh][:count]
        mesh |= dict.fromkeys(chosen, now)
        return chosen

    def _best(self, peers: list[str], now: float) -> list[str]:
        """D of them: half by score, then those that we dialed, of a network no more than its
        part."""
        self._shuffle(peers)
        good = sorted(peers, key=lambda peer: -self._scores.of(peer, now))[: D // 2]
        rest = [peer for peer in peers if peer not in good]
        rest.sort(key=lambda peer: not self._neighbours[peer].dialed)
        ranked = ((peer, (self._neighbours[peer].where,)) for peer in [*good, *rest])
        return list(diverse(ranked, D))

    def _may_join(self, one: Neighbour, mesh: Peers) -> bool:
        if len(mesh) < D_LOW:
            return True  # in a swarm of one network there is nobody else
        part = Part(D_HIGH)
        for other in mesh:
            part.take((self._neighbours[other].where,))
        return part.take((one.where,)) and (len(mesh) < D_HIGH or one.dialed)

    def _back_off(self, peer: str, topic: str, wait_s: float, now: float) -> None:
        self._backoff.pop((peer, topic), None)
        self._backoff[peer, topic] = now + wait_s
        if len(self._backoff) > BACKOFFS_MAX:
            del self._backoff[next(iter(self._backoff))]
