"""How much of a busy peer others may use: what they gave, or what its helpers owe them.

No coin, and no ledger that all agree on. Each peer counts what others really did for it, and those
that helped its helpers stand in for what these are owed: a flow over one's own tallies and gossiped
ones (BarterCast's two hops; Meulpolder et al., 2009), bounded by what really came in.

    j ──gave k 80──▶ k ──gave me 50──▶ me       credit of j: 50, and it is k's: using it uses up
    j ──gave me 20────────────────────▶ me                   k's; plus 20 of its own

Whatever Sybils claim to have done for each other, all that they can use together is what one of
them really gave: credit through k is k's own credit, and is spent once. A share in the device is
proportional to credit, since anything concave would pay for splitting oneself; what is left for
those without any stands in favour.py. Credit is used up only by what others waited for; it fades,
half in a week. `now` is unix seconds; while a clock that went back catches up, nothing fades.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Final

from ..crypto.codec import Range, Size
from .flow import DUST, divide
from .tally import Tally, Work

HALF_S: Final = 7 * 24 * 3600.0  # algorithms.md 7
EDGES_MAX: Final = 1 << 16  # pairs that are remembered; the smallest claims go first
CLOCK_WEEKS: Final = 500.0


@dataclass(frozen=True, slots=True)
class Edge:
    """giver gave taker `work`, faded to the book's time; `total` is the tally's sum, unfaded."""

    giver: Annotated[str, Size(64)]
    taker: Annotated[str, Size(64)]
    work: Work
    total: Work


@dataclass(frozen=True, slots=True)
class Spent:
    """Of what `through` gave us, so much was used by `peer` (or by itself)."""

    peer: Annotated[str, Size(64)]
    through: Annotated[str, Size(64)]
    work: Work


@dataclass(frozen=True, slots=True)
class Book:
    """Everything that credit is computed from, as it is kept on disk."""

    at_s: Annotated[float, Range(0, 1e11)]
    edges: Annotated[tuple[Edge, ...], Size(EDGES_MAX)]
    spent: Annotated[tuple[Spent, ...], Size(EDGES_MAX)]


class Credit:
    """What others may use of us. The caller has checked each tally (read_tally) before."""

    def __init__(self, me: str, now: float, book: Book | None = None) -> None:
        self._me = me
        self._zero_s = now if book is None else book.at_s
        self._latest_s = self._zero_s  # of all readings of the clock
        self._gave: dict[str, dict[str, float]] = {}  # taker to giver to work, as of _zero_s
        self._total: dict[tuple[str, str], float] = {}
        self._spent: dict[str, float] = {}  # of whose credit, by anybody
        self._through: dict[tuple[str, str], float] = {}  # by whom, through whom
        for edge in book.edges if book else ():
            self._gave.setdefault(edge.taker, {})[edge.giver] = edge.work
            self._total[edge.giver, edge.taker] = edge.total
        for one in book.spent if book else ():
            self._spend(one.peer, one.through, one.work)

    def settle(self, tally: Tally, now: float) -> None:
        """A tally of ours, or one that was gossiped. An older one than is known adds nothing.

        What is first heard of counts as of when it was signed, and as of now at most.
        """
        low, high = tally.peers
        whole = self._scale(now)  # first, for it may find that the clock went back
        scale = min(self._power(tally.at_s), whole)
        for giver, taker, total in ((low, high, tally.low_gave), (high, low, tally.high_gave)):
            known = self._total.get((giver, taker), 0.0)
            if total > known:
                line = self._gave.setdefault(taker, {})
                line[giver] = line.get(giver, 0.0) + (total - known) * scale
                self._total[giver, taker] = total
        if len(self._total) > EDGES_MAX:
            self._forget()

    def matters(self, tally: Tally) -> bool:
        """Whether a tally of two others can have a part in anybody's credit here: one of them gave
        us something. The rest need not be remembered."""
        return any(self._own(peer) > DUST for peer in tally.peers)

    def credit(self, peer: str, now: float) -> float:
        """The most that may flow from `peer` to us: what it gave us and did not use, and what our
        helpers owe it, as far as they have credit here. Exact for paths of two hops, which share
        no edge."""
        through = sum(self._flow(peer, helper) for helper in self._helpers(peer))
        return (self._own(peer) + through) / self._scale(now)

    def standing(self, peer: str, now: float, usual: float) -> float:
        """In -1 .. 1, for people: BarterCast's arctangent of what it gave us or our helpers, less
        what it took. usual: an hour's work of a usual peer."""
        took = self._edge(self._me, peer) / self._scale(now)
        return 2 / math.pi * math.atan((self.credit(peer, now) - took) / usual)

    def weights(self, peers: Collection[str], now: float) -> dict[str, float]:
        """How much of the credit here each of these has, when all of them use it at once.

        What is owed to one helper is divided between all who claim it, itself among them, in
        proportion: together they never have more than it gave us.
        """
        weights = dict.fromkeys(peers, 0.0)
        claims: dict[str, dict[str, float]] = {}
        for peer in peers:
            if self._own(peer) > DUST:
                claims.setdefault(peer, {})[peer] = self._own(peer)
            for helper in self._helpers(peer):
                claims.setdefault(helper, {})[peer] = self._flow(peer, helper)
        for helper, claimed in claims.items():
            for peer, work in divide(self._own(helper), claimed).items():
                weights[peer] += work / self._scale(now)
        return weights

    def spend(self, peer: str, work: float, now: float) -> float:
        """`peer` had a turn of so much work that others waited for. Its own credit goes first,
        then, of its helpers', the largest. Returns what it had no credit for."""
        left = work * self._scale(now)
        ways = [(self._own(peer), peer)]
        ways += sorted(
            ((self._flow(peer, helper), helper) for helper in self._helpers(peer)), reverse=True
        )
        for room, through in ways:
            part = min(left, room)
            if part > 0:
                self._spend(peer, through, part)
                left -= part
        return left / self._scale(now)

    def owed(self, peer: str, now: float) -> tuple[float, float]:
        """(what it gave us, what we gave it), faded: what `potluck credit` shows."""
        scale = self._scale(now)
        return self._edge(peer, self._me) / scale, self._edge(self._me, peer) / scale

    def keep(self, now: float) -> Book:
        """What is to be written, faded to `now`, so that the numbers stay small for ever."""
        scale = self._scale(now)
        edges = [
            Edge(giver, taker, self._edge(giver, taker) / scale, total)
            for (giver, taker), total in sorted(self._total.items())
        ]
        spent = [
            Spent(peer, through, work / scale)
            for (peer, through), work in sorted(self._through.items())
            if work / scale > DUST
        ]
        return Book(now, tuple(edges[:EDGES_MAX]), tuple(spent[:EDGES_MAX]))

    def _scale(self, now: float) -> float:
        """What is worth 1 now was worth so much less at the book's time: so nothing is ever
        multiplied to fade it (forward decay, Cormode et al., 2009).

        Where the clock went back, the book's time goes back with it: what was given while it was
        ahead would be worth any multiple of itself.
        """
        if now < self._latest_s:
            self._zero_s += now - self._latest_s
        self._latest_s = now
        return self._power(now)

    def _power(self, at_s: float) -> float:
        weeks = (at_s - self._zero_s) / HALF_S
        return float(2.0 ** min(max(weeks, -CLOCK_WEEKS), CLOCK_WEEKS))  # of whatever clock

    def _edge(self, giver: str, taker: str) -> float:
        return self._gave.get(taker, {}).get(giver, 0.0)

    def _own(self, peer: str) -> float:
        """What it gave us and nobody has used."""
        return max(0.0, self._edge(peer, self._me) - self._spent.get(peer, 0.0))

    def _flow(self, peer: str, helper: str) -> float:
        net = self._edge(peer, helper) - self._edge(helper, peer)
        claim = net - self._through.get((peer, helper), 0.0)
        return max(0.0, min(claim, self._own(helper)))

    def _helpers(self, peer: str) -> list[str]:
        """Who has credit here and owes this peer, in a fixed order."""
        ours = self._gave.get(self._me, {})
        return sorted(
            helper
            for helper in ours
            if peer in self._gave.get(helper, ()) and self._flow(peer, helper) > DUST
        )

    def _spend(self, peer: str, through: str, scaled: float) -> None:
        self._spent[through] = self._spent.get(through, 0.0) + scaled
        self._through[peer, through] = self._through.get((peer, through), 0.0) + scaled
        if len(self._through) > EDGES_MAX:
            self._put_together()

    def _put_together(self) -> None:
        """The smaller half of who used what, by whose it was: that stays used up."""
        others = [(work, pair) for pair, work in self._through.items() if pair[0] != pair[1]]
        for work, (peer, through) in sorted(others)[: (len(others) + 1) // 2]:
            del self._through[peer, through]
            own = through, through
            self._through[own] = self._through.get(own, 0.0) + work

    def _forget(self) -> None:
        """The less useful half of what nobody gave us: claims are cheap to make, and worth no more
        than what one of the two gave us. What we gave ourselves is in the tallies."""

        def use(pair: tuple[str, str]) -> tuple[float, tuple[str, str]]:
            return min(self._edge(*pair), max(map(self._own, pair))), pair

        others = sorted((pair for pair in self._total if pair[1] != self._me), key=use)
        for giver, taker in others[: (len(others) + 1) // 2]:
            del self._total[giver, taker]
            del self._gave[taker][giver]
            if not self._gave[taker]:
                del self._gave[taker]
