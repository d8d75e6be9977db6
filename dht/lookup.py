"""Finding the peers closest to a place, along paths that share nobody.

Kademlia's iterative look-up (Maymounkov and Mazières, 2002), run as S/Kademlia's disjoint paths
(Baumgart and Mies, 2007): what we know at first is dealt out to `paths` paths, each asks ever
closer peers, and a peer belongs to the path that found it first. A liar leads one path astray, not
all.

    seeds ──▶ path 0: ask alpha of the closest ──▶ closer ones ──▶ ... until its `width` closest
          ──▶ path 1: ...                                          have answered
          ──▶ ...

A peer that has not answered within `patience_s` no longer holds a path up, though its answer still
counts when it comes. A machine: the driver asks whom `next(now)` names and says how it went.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from .keyspace import distance, peer_point
from .message import Contact
from .network import diverse_first, networks_of

PATHS: Final = 4  # algorithms 3.5: d = 4 disjoint paths
WIDTH: Final = 5  # of each path; four of five are Kademlia's k = 20
ALPHA: Final = 3  # Kademlia's alpha, for each path
PATIENCE_S: Final = 0.4  # a round trip across the world, while nothing has been measured
ASKS_MAX: Final = 24  # of one path: no liar can lead it on for ever; 64 honest peers need 8
CANDIDATES_MAX: Final = 64  # of one path

State = Literal["new", "asked", "slow", "answered", "failed"]


@dataclass(slots=True)
class _Candidate:
    contact: Contact
    distance: int
    networks: frozenset[str]
    state: State = "new"
    asked_s: float = 0.0


@dataclass(slots=True)
class _Path:
    candidates: dict[str, _Candidate] = field(default_factory=dict)
    asks: int = 0

    def count(self, state: State) -> int:
        return sum(candidate.state == state for candidate in self.candidates.values())

    def front(self) -> list[_Candidate]:
        """The closest that may still count."""
        living = [c for c in self.candidates.values() if c.state not in ("failed", "slow")]
        living.sort(key=lambda candidate: candidate.distance)
        return list(diverse_first(((c, c.networks) for c in living), WIDTH))

    def finished(self) -> bool:
        if self.count("asked"):
            return False
        return self.asks >= ASKS_MAX or all(c.state == "answered" for c in self.front())


class Lookup:
    """One search for the peers closest to `place`."""

    def __init__(
        self, place: bytes, seeds: Iterable[Contact], *, me: str, shunned: Iterable[str] = (),
        patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        self._place = place
        self._patience_s = patience_s
        self._paths = [_Path() for _ in range(PATHS)]
        self._owner: dict[str, _Path] = {}
        self._never = {me, *shunned}
        self._dealt = 0  # how many peers were dealt out
        for seed in seeds:
            self._deal(seed)

    def next(self, now: float) -> list[Contact]:
        """Whom to ask now. Each is named once; `answered` or `failed` must follow for each."""
        asking = []
        for path in self._paths:
            for candidate in path.candidates.values():
                if candidate.state == "asked" and now >= candidate.asked_s + self._patience_s:
                    candidate.state = "slow"
            for candidate in path.front():
                if path.count("asked") >= ALPHA or path.asks >= ASKS_MAX:
                    break
                if candidate.state == "new":
                    candidate.state, candidate.asked_s = "asked", now
                    path.asks += 1
                    asking.append(candidate.contact)
        return asking

    def answered(self, peer: str, closer: Iterable[Contact]) -> None:
        path = self._owner[peer]
        path.candidates[peer].state = "answered"
        for contact in closer:
            if self._dealt < PATHS * WIDTH:  # a newcomer, who knows too few to start four paths
                self._deal(contact)
            else:
                self._add(path, contact)

    def failed(self, peer: str) -> None:
        self._owner[peer].candidates[peer].state = "failed"

    def done(self) -> bool:
        if not all(path.finished() for path in self._paths):
            return False
        # When everybody is slow, somebody is waited for.
        return self._count("answered") > 0 or self._count("slow") == 0

    def wake_s(self) -> float:
        """When the next peer that was asked becomes slow; infinity when none will."""
        asked = (c for path in self._paths for c in path.candidates.values() if c.state == "asked")
        return min((c.asked_s + self._patience_s for c in asked), default=float("inf"))

    def closest(self, count: int) -> list[Contact]:
        """Those who answered, closest first."""
        answered = [
            candidate
            for path in self._paths
            for candidate in path.candidates.values()
            if candidate.state == "answered"
        ]
        answered.sort(key=lambda candidate: candidate.distance)
        return list(diverse_first(((c.contact, c.networks) for c in answered), count))

    def _count(self, state: State) -> int:
        return sum(path.count(state) for path in self._paths)

    def _deal(self, contact: Contact) -> None:
        if contact.peer not in self._never and contact.peer not in self._owner:
            self._add(self._paths[self._dealt % PATHS], contact)
            self._dealt += 1

    def _add(self, path: _Path, contact: Contact) -> None:
        peer = contact.peer
        if peer in self._never or peer in self._owner:
            return
        away = distance(peer_point(peer), self._place)
        if len(path.candidates) >= CANDIDATES_MAX:
            new = (c for c in path.candidates.values() if c.state == "new")
            farthest = max(new, key=lambda c: c.distance, default=None)
            if farthest is None or farthest.distance <= away:
                return
            del path.candidates[farthest.contact.peer], self._owner[farthest.contact.peer]
        path.candidates[peer] = _Candidate(contact, away, networks_of(contact.addresses))
        self._owner[peer] = path
