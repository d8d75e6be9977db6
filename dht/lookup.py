"""Finding the peers closest to a place, along paths that share nobody.

Kademlia's iterative look-up (Maymounkov and Mazières, 2002), run as S/Kademlia's disjoint paths
(Baumgart and Mies, 2007): what we know at first is dealt out to `paths` paths, each asks ever
closer peers, and no peer is asked by two. A liar leads one path astray, not all.

    seeds ──▶ path 0: ask alpha of the closest ──▶ closer ones ──▶ ... until its `width` closest
          ──▶ path 1: ...                                          have answered
          ──▶ ...

A liar who has filled the table that they start from leads them all. So one path more starts at none
of it, but at a few peers that the peer sampling drew (`sampled`; node/gossip/lookouts.py), whom
nobody chose for us. While there are none, as in the first minutes, there is no such path.

A peer that has not answered within our `patience` no longer holds a path up, though its answer
still counts when it comes; to whom a stream has to be opened first has longer. A machine: the
driver asks whom `next(now)` names and says how it went.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .keyspace import distance, peer_point
from .message import Contact
from .network import NOWHERE, Prefixes, diverse, networks_of

PATHS: Final = 4  # algorithms 3.5: d = 4 disjoint paths
WIDTH: Final = 5  # of each path; four of five are Kademlia's k = 20
ALPHA: Final = 3  # Kademlia's alpha, for each path
PATIENCE_S: Final = 0.4  # a round trip across the world, while nothing has been measured
ASKS_MAX: Final = 24  # of one path: no liar can lead it on for ever; 64 honest peers need 8
CANDIDATES_MAX: Final = 64  # of one path

State = Literal["new", "asked", "slow", "answered", "failed"]


@dataclass(slots=True, eq=False)
class _Candidate:
    contact: Contact
    distance: int
    networks: frozenset[Prefixes]
    state: State = "new"
    slow_s: float = 0.0  # when it will have taken too long
    path: int | None = None  # the one path that asked it


class _Path:
    """One way towards the place: whom it has heard of, closest first."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ranked: list[_Candidate] = []
        self.asked: list[_Candidate] = []

    def hear(self, candidate: _Candidate) -> None:
        if candidate in self.ranked:
            return
        insort(self.ranked, candidate, key=lambda member: member.distance)
        if len(self.ranked) > CANDIDATES_MAX:
            del self.ranked[-1]

    def front(self) -> Sequence[_Candidate]:
        """The closest that this path asked, or may still ask."""
        living = (
            (member, member.networks)
            for member in self.ranked
            if member.path in (None, self.number) and member.state not in ("failed", "slow")
        )
        return diverse(living, WIDTH)

    def in_flight(self) -> int:
        return sum(member.state == "asked" for member in self.asked)

    def finished(self) -> bool:
        if self.in_flight():
            return False
        if len(self.asked) >= ASKS_MAX:
            return True
        return all(member.state == "answered" for member in self.front())


class Lookup:
    """One search for the peers closest to `place`."""

    def __init__(
        self, place: bytes, seeds: Iterable[Contact], *, me: str, shunned: Iterable[str] = (),
        patience: Callable[[str], float] = lambda peer: PATIENCE_S,
        sampled: Iterable[Contact] = (),
    ) -> None:  # fmt: skip
        self._place = place
        self._patience = patience
        self._never = {me, *shunned}
        self._paths = [_Path(number) for number in range(PATHS)]
        self._candidates: dict[str, _Candidate] = {}
        apart = _Path(PATHS)
        for contact in sampled:
            self._hear(apart, contact)
        for seed in seeds:
            self._deal(seed)
        if apart.ranked:
            self._paths.append(apart)

    def next(self, now: float) -> list[Contact]:
        """Whom to ask now. Each is named once; `answered` or `failed` must follow for each."""
        asking = []
        # whom the apart path starts from may be in the table too: it asks first
        for path in (*self._paths[PATHS:], *self._paths[:PATHS]):
            for member in path.asked:
                if member.state == "asked" and now >= member.slow_s:
                    member.state = "slow"
            for member in path.front():
                if path.in_flight() >= ALPHA or len(path.asked) >= ASKS_MAX:
                    break
                if member.state == "new":
                    member.state, member.path = "asked", path.number
                    member.slow_s = now + self._patience(member.contact.peer)
                    path.asked.append(member)
                    asking.append(member.contact)
        return asking

    def answered(self, peer: str, closer: Iterable[Contact], *, seen: Prefixes = NOWHERE) -> None:
        """seen: the network that the road shows this peer in."""
        member = self._candidates[peer]
        assert member.path is not None, "an answer from one who was not asked"
        member.state = "answered"
        if seen != NOWHERE:
            member.networks = frozenset({seen})
        for contact in closer:
            if len(self._candidates) < PATHS * WIDTH:  # who knows too few cannot start four paths
                self._deal(contact)
            self._hear(self._paths[member.path], contact)

    def failed(self, peer: str) -> None:
        self._candidates[peer].state = "failed"

    def done(self) -> bool:
        if not all(path.finished() for path in self._paths):
            return False
        states = {member.state for path in self._paths for member in path.asked}
        return "answered" in states or "slow" not in states  # if all are slow, wait for one

    def wake_s(self) -> float:
        """When the next peer that was asked becomes slow; infinity when none will."""
        waits = (m.slow_s for path in self._paths for m in path.asked if m.state == "asked")
        return min(waits, default=float("inf"))

    def closest(self, count: int) -> list[Contact]:
        """Those who answered, closest first."""
        answered = [m for path in self._paths for m in path.asked if m.state == "answered"]
        answered.sort(key=lambda member: member.distance)
        return list(diverse(((m.contact, m.networks) for m in answered), count))

    def heard(self) -> list[Contact]:
        """All that were named and did not fail to answer: most of them were not asked."""
        return [m.contact for m in self._candidates.values() if m.state != "failed"]

    def _deal(self, contact: Contact) -> None:
        """Give a newly heard contact to the next path in turn."""
        if contact.peer not in self._candidates:
            self._hear(self._paths[len(self._candidates) % PATHS], contact)

    def _hear(self, path: _Path, contact: Contact) -> None:
        peer = contact.peer
        if peer in self._never:
            return
        member = self._candidates.get(peer)
        if member is None:
            away = distance(peer_point(peer), self._place)
            member = _Candidate(contact, away, networks_of(contact.addresses))
            self._candidates[peer] = member
        path.hear(member)
