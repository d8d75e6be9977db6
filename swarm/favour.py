"""For whom the device's next pass is: for who gave, before all others; and a share for newcomers.

Credit (credit.py) says how much of a busy device each peer may use. Here it is used up, pass by
pass; within a pass the order is the schedule's (schedule.py).

    nobody with credit waits      as if there were no credit
    somebody does                 a pass of theirs, prompts in proportion to credit; whoever makes
                                  it hardly longer may ride along
    newcomers are behind, too     a pass of theirs, up to 15 of 100 seconds

Behind is who had less than its even part of the commons, of 5 % of the last ten minutes, counted
with what it had while nobody with credit waited: who asks all the time has had enough in the
pauses, who has just come has had nothing, and of these whoever had least is first. The commons is
one, however many come: one more makes the parts of all smaller. The parts are even between
networks, not identities, from the widest to the narrowest, so that a network with many names in it
gains nothing; and what is used on credit counts for its network, or it would pay to send newcomers
of one's own beside it.

So long a window is what keeps free riders from delaying a contributor: over a minute the pauses of
one who uses most of the device come and go by chance, and the commons took its part just when the
queue was longest (integration/credit_sim.py). And 5 of 100 fit beside one who fills 93: with 15 of
100 its queue grows for as long as riders ask (integration/fairness.py).

Costs are the schedule's: rows. Nothing here reads a clock: `now` is seconds on the caller's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

COMMONS: Final = 0.05  # of a busy device, for whoever comes: measured (DECISIONS.md)
PACE: Final = 0.15  # algorithms.md 7: of the passes, for newcomers, until they had that
WINDOW_S: Final = 600.0  # measured: of 60, 300, 600 and 1800 (DECISIONS.md)
PURSE_S: Final = 0.1  # guess: what newcomers may have at once, two passes
PLACES_MAX: Final = 1 << 14  # networks that are remembered; who had least goes first
AGES: Final = ((7 * 86_400.0, "a week"), (86_400.0, "a day"), (3600.0, "an hour"))  # guess
FORGOTTEN_S: Final = 14 * 86_400.0
_PEERS_MAX: Final = 1 << 14
_DUST: Final = 1e-9

Place = tuple[str, ...]  # how long it is known, then networks, the widest first


@dataclass(frozen=True, slots=True)
class Lead:
    """Whom a pass is for. by_credit: those who have some, or those who have none. shares: of each
    in prompts, 1 the largest; none: all the same. had: what each of these had for its share;
    whoever had least is next."""

    peers: Collection[str]
    by_credit: bool
    shares: Mapping[str, float] = field(default_factory=dict)
    had: dict[str, float] = field(default_factory=dict)

    def pay(self, peer: str, cost: float) -> None:
        if peer in self.shares:
            self.had[peer] = self.had.get(peer, 0.0) + cost / self.shares[peer]


class Favour:
    """Ask for the `lead` of a pass, then say what it `took`. One thread's."""

    def __init__(
        self, commons: float = COMMONS, window_s: float = WINDOW_S, pace: float = PACE
    ) -> None:
        self._commons = commons
        self._pace = pace
        self._window_s = window_s
        self._left: dict[str, float] = {}  # cost that each may still use on its credit
        self._used: dict[str, float] = {}  # since it was last asked for
        self._shared: dict[str, float] = {}  # what each had on its credit, for its share
        self._sharing: Collection[str] = ()
        self._places: dict[str, Place] = {}
        self._had: dict[Place, float] = {}  # seconds without credit; fading, as of _zero_s
        self._on_credit: dict[Place, float] = {}  # seconds, the same
        self._children: Counter[Place] = Counter()  # of each in _had, without what has credit
        self._all = 0.0  # seconds, but for those with credit that nobody else wanted
        self._zero_s = -math.inf
        self._purse_s = 0.0
        self._turn_s = 0.0  # of who had no credit, the last
        self._last: Lead | None = None
        self._contended = False

    @property
    def rules(self) -> bool:
        """Whether anybody has credit here."""
        return bool(self._left)

    def used(self) -> dict[str, float]:
        """What each used of its credit since this was asked last."""
        used, self._used = self._used, {}
        return used

    def fund(self, credit: Mapping[str, float]) -> None:
        """What each may use, of all that was told by `used` before."""
        left = ((peer, cost - self._used.get(peer, 0.0)) for peer, cost in credit.items())
        self._left = {peer: cost for peer, cost in left if cost > _DUST}
        self._shared = {peer: had for peer, had in self._shared.items() if peer in self._left}
        self._sharing = [peer for peer in self._sharing if peer in self._left]

    def place(self, peer: str, place: Place) -> None:
        """Where a peer comes from; who was not placed is a network of its own."""
        self._places.pop(peer, None)
        self._places[peer] = place
        if len(self._places) > _PEERS_MAX:
            del self._places[next(iter(self._places))]

    def lead(self, waiting: Collection[str], now: float) -> Lead | None:
        """Whom the next pass is for; None: for all who wait, as if there were no credit."""
        self._contended = len(waiting) > 1
        funded = {peer: self._left[peer] for peer in waiting if peer in self._left}
        self._last = None
        if funded:
            scale = self._fade(now)
            others = [peer for peer in waiting if peer not in funded] if self._purse_s > 0 else ()
            behind = {
                peer: had for peer in others if (had := self._behind(peer, scale)) is not None
            }
            if behind:
                most = min(behind.values()) + self._turn_s * scale
                self._last = Lead({peer for peer, had in behind.items() if had <= most}, False)
            else:
                self._last = self._by_credit(funded)
        return self._last

    def _by_credit(self, funded: Mapping[str, float]) -> Lead:
        """In proportion to credit; who comes back is not behind those who were there meanwhile."""
        least = min((self._shared.get(peer, 0.0) for peer in self._sharing), default=0.0)
        for peer in funded.keys() - set(self._sharing):
            self._shared[peer] = max(least, self._shared.get(peer, 0.0))
        self._sharing = funded.keys()
        most = max(funded.values())
        shares = {peer: left / most for peer, left in funded.items()}
        return Lead(funded.keys(), True, shares=shares, had=self._shared)

    def took(self, costs: Mapping[str, float], seconds: float, now: float) -> None:
        """The pass whose lead was asked for last took so long, for these."""
        whole = sum(costs.values())
        if not whole:
            return
        scale = self._fade(now)
        for peer, cost in costs.items():
            own_s = seconds * cost / whole
            if peer in self._left:
                self._use(peer, cost, own_s * scale)
                continue
            self._all += own_s * scale
            self._turn_s = own_s
            for network in self._networks(peer):
                self._had[network] += own_s * scale
        if self._last is not None:
            gain_s = self._pace / (1 - self._pace) * seconds
            more_s = gain_s if self._last.by_credit else -seconds
            self._purse_s = min(PURSE_S, self._purse_s + more_s)

    def _use(self, peer: str, cost: float, scaled_s: float) -> None:
        if not self._contended:
            return  # what nobody else wanted costs nobody anything
        self._all += scaled_s
        for network in self._path(peer):
            if network not in self._on_credit and self._has_part(network):
                self._children[network[:-1]] -= len(network) > 1
            self._on_credit[network] = self._on_credit.get(network, 0.0) + scaled_s
        self._used[peer] = self._used.get(peer, 0.0) + cost
        self._left[peer] -= cost
        if self._left[peer] <= _DUST:
            del self._left[peer]

    def _behind(self, peer: str, scale: float) -> float | None:
        """What its network had; None when one of its two had more than its part. Of how long it is
        known only the number of such classes matters: who came when free riders did is no rider.

        Turns are whole, so that the last goes beyond the part; counted to the nearest, fifty
        networks have no fifty halves of a turn more than one has.
        """
        part = self._commons * self._all
        half_s = self._turn_s * scale / 2
        networks = self._networks(peer)
        for network in networks:
            part /= max(1, self._children[network[:-1]])
            had_s = self._had[network] + self._on_credit.get(network, 0.0)
            if len(network) > len(networks) - 2 and had_s > max(0.0, part - half_s):
                return None
        return had_s

    def _networks(self, peer: str) -> list[Place]:
        """As `_path`, each remembered."""
        found = self._path(peer)
        for network in found:
            if network not in self._had:
                self._had[network] = 0.0
                self._children[network[:-1]] += self._has_part(network)
        return found

    def _has_part(self, network: Place) -> bool:
        """Of the commons: what is used on credit there is more than its part, as a rule."""
        return network in self._had and (len(network) == 1 or network not in self._on_credit)

    def _path(self, peer: str) -> list[Place]:
        """The networks that contain it, the widest first."""
        place = self._places.get(peer) or (peer,)
        return [place[:depth] for depth in range(1, len(place) + 1)]

    def _fade(self, now: float) -> float:
        """What a second of now is worth, beside those of the book's time (forward decay)."""
        elapsed = (now - self._zero_s) / self._window_s
        if elapsed > 1 or len(self._had) > PLACES_MAX:
            self._bring_down(math.exp(-elapsed))
            self._zero_s, elapsed = now, 0.0
        return math.exp(elapsed)

    def _bring_down(self, fade: float) -> None:
        """Fade what is remembered, and forget who had next to nothing."""
        kept = sorted(((had * fade, place) for place, had in self._had.items()), reverse=True)
        least_s = kept[PLACES_MAX // 2][0] if len(kept) > PLACES_MAX else 0.001
        self._had = {place: had for had, place in kept if had > least_s}
        faded = ((place, used * fade) for place, used in self._on_credit.items())
        self._on_credit = {place: used for place, used in faded if used > max(0.001, least_s)}
        self._children = Counter(place[:-1] for place in self._had if self._has_part(place))
        self._all *= fade


class Ages:
    """How long networks have been seen here, in classes: the widest part of a place.

    The commons is even between the classes, so that those who come today, however many networks
    they have, leave to those of yesterday what is theirs. Who stays away for two weeks is new.
    """

    def __init__(self, seen: Mapping[str, tuple[float, float]] | None = None) -> None:
        """seen: what `keep` told. Unix seconds."""
        self._seen = dict(seen or {})

    def age(self, network: str, now: float) -> str:
        """Its class, from new to a week; it was seen now."""
        first_s, last_s = self._seen.get(network, (now, now))
        if now - last_s > FORGOTTEN_S or now < first_s:  # or the clock was ahead then
            first_s = now
        self._seen[network] = first_s, now
        if len(self._seen) > PLACES_MAX:
            oldest_first = sorted(self._seen.items(), key=lambda item: item[1])
            self._seen = dict(oldest_first[: PLACES_MAX // 4 * 3])
        return next((name for least_s, name in AGES if now - first_s >= least_s), "new")

    def keep(self) -> dict[str, tuple[float, float]]:
        return dict(self._seen)
