"""What one member of a group adds up, and where that leads: its half of the arithmetic.

    weights ──hold──▶ share ──▶ parts          gifts ──reduce──▶ a mean, as it is sent
    means ──gather──▶ the state they lead to ──adopt──▶ a landing ──take_in──▶ weights

Nothing of an attempt counts before it is adopted: not the state, nor what rounding owes. Rounding
loses nothing then: what it takes from the own numbers is added to those that are sent next, what it
takes from a mean to the next mean of the same numbers that is made here.

share, reduce and gather may block, and are for a thread; the others are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...crypto.digest import digest
from ...errors import RemoteError, UserError
from ...swarm.run.butterfly import Gathered, Reduce
from ...swarm.run.group import Place
from ...swarm.run.group_events import Share
from ...swarm.run.group_wire import Ballot, Given, Member, pack, unpack
from ..compute.average.codec import Bits
from ..compute.average.nesterov import (
    Landing,
    Nesterov,
    Vector,
    bytes_of,
    concatenated,
    cut,
    cuts,
    joined,
    mean_of,
    parted,
    vector_of,
)


@dataclass(slots=True)
class Attempt:
    """What came of one ballot, until it is adopted or another one begins.

    sent: the own weights, [f]. owed: of what was sent, by rounding; mean_owed: of the mean that was
    made here, beside what other means were owed.
    """

    ballot: Ballot
    fragment: int
    sent: Vector
    owed: Vector | None = None
    mean_owed: Vector | None = None
    next: Nesterov | None = None


class Sums:
    """weights: [d], those that the run begins with. mix: of the own weights, when a mean lands.

    grid: what is shared are the weights themselves, and not how far they are from an anchor, since
    each member has another one; what all members of a group have after it is the mean.
    """

    def __init__(
        self, weights: Vector, *, fragments: int, bits: Bits, mix: float, grid: bool
    ) -> None:
        self.counts = cuts(len(weights), fragments)
        self.at = Nesterov.begin(weights, self.counts)
        self.attempt: Attempt | None = None
        self._bits = bits
        self._mix = mix
        self._grid = grid
        self._weights = list(self.at.anchors)  # as they were held last, [f] each
        self._landings: list[Landing] = []  # that the caller's weights have not seen
        self._doubted: int | None = None  # a fragment, of which what is held may be in a mean
        self.unseen: set[int] = set()  # fragments of a grid, in whose place we have our own start
        self._owed: dict[int, Vector] = {}
        self._mean_owed: dict[int, Vector] = {}

    # ---- the caller's weights

    def hold(self, weights: Vector) -> None:
        """These are shared from now on; a copy is kept."""
        self._weights = [part.clone() for part in parted(weights, self.counts)]

    def take_in(self, weights: Vector) -> Vector:
        """What has landed since this was called last. A copy."""
        parts = list(parted(weights, self.counts))
        for landing in self._landings:
            parts[landing.fragment] = landing.on(parts[landing.fragment])
        self._landings.clear()
        return concatenated(parts)

    # ---- an attempt

    def begin(self, wanted: Share) -> Attempt:
        self.attempt = Attempt(wanted.ballot, wanted.fragment, self._weights[wanted.fragment])
        return self.attempt

    def attempted(self, ballot: Ballot) -> Attempt | None:
        """The attempt, if it is still that one."""
        return self.attempt if self.attempt and self.attempt.ballot == ballot else None

    def share(self, wanted: Share, attempt: Attempt) -> tuple[bytes, ...]:
        wished = attempt.sent if self._grid else attempt.sent - self.at.anchors[wanted.fragment]
        if wanted.fragment in self._owed:
            wished = wished + self._owed[wanted.fragment]
        parts, read = cut(wished, wanted.counts, self._bits)
        attempt.owed = wished - read
        return parts

    def reduce(self, wanted: Reduce, attempt: Attempt) -> bytes:
        """Raises Unreadable."""
        owed = self._mean_owed.get(attempt.fragment)
        owed = attempt.sent * 0 if owed is None else owed.clone()
        place = slice(wanted.start, wanted.start + wanted.count)
        mean = mean_of(wanted.gifts, wanted.tokens, wanted.count, self._bits) + owed[place]
        (part,), read = cut(mean, (wanted.count,), self._bits)
        owed[place] = mean - read
        attempt.mean_owed = owed
        return part

    def gather(self, found: Gathered, attempt: Attempt, place: Place) -> bytes:
        """The digest of the next state. Raises Unreadable."""
        motion = joined(found.parts, found.counts, self._bits)
        if self._grid:
            if attempt.fragment in self.unseen:
                attempt.next = self.at.at(attempt.fragment, motion)
            else:
                motion = motion - self.at.anchors[attempt.fragment]
                attempt.next = self.at.after(attempt.fragment, motion)
            return digest("group mean", place.state, *found.parts)
        attempt.next = self.at.after(attempt.fragment, motion)
        next_place = Place(b"", place.state, place.commits + 1, found.members)
        return digest_of(attempt.next, next_place)

    def adopt(self) -> int:
        """What was gathered last; the fragment."""
        attempt, before = self.attempt, self.at
        assert attempt and attempt.next and attempt.owed is not None, "it was gathered before"
        self.attempt, self.at, at = None, attempt.next, attempt.fragment
        self._doubted = None
        self.unseen.discard(at)
        self._owed[at] = attempt.owed
        if attempt.mean_owed is not None:
            self._mean_owed[at] = attempt.mean_owed
        anchors = before.anchors[at], self.at.anchors[at]
        self._land(Landing(at, *anchors, attempt.sent, self._mix))
        return at

    # ---- another's state

    def go_to(self, at: Nesterov) -> int | None:
        """What the own steps did that is in no mean yet goes on from there.

        What was gathered, and may have been chosen without us, counts as in it: no step is counted
        twice, though one may be lost. Returns the fragment of which that is so.
        """
        counted, sent = self._doubted, None
        if self.attempt is not None and self.attempt.next is not None:
            counted, sent = self.attempt.fragment, self.attempt.sent
        elif counted is not None:
            sent = self._weights[counted]
        pairs = enumerate(zip(self.at.anchors, at.anchors, strict=True))
        self.attempt, self.at, self._doubted = None, at, None
        for fragment, pair in pairs:
            self._land(Landing(fragment, *pair, sent if fragment == counted else None))
        return counted

    # ---- over a stop

    def carried(self) -> dict[str, Vector]:
        """What a checkpoint holds of it."""
        return {"anchor": concatenated(self.at.anchors), "momentum": concatenated(self.at.momenta)}

    def carry_on(self, kept: dict[str, Vector], fragment: int) -> None:
        """fragment: the one that was to be averaged next. Perhaps it was, with our weights in it,
        and we were stopped before we had written that down. Raises UserError."""
        anchor, momentum = kept.get("anchor"), kept.get("momentum")
        count = sum(self.counts)
        if anchor is None or momentum is None or {len(anchor), len(momentum)} != {count}:
            raise UserError("a checkpoint of another adapter")
        self.at = Nesterov.of(parted(anchor, self.counts), parted(momentum, self.counts))
        self._weights = list(self.at.anchors)
        self._landings.clear()
        self._doubted = fragment

    def _land(self, landing: Landing) -> None:
        self._weights[landing.fragment] = landing.on(self._weights[landing.fragment])
        self._landings.append(landing)


def digest_of(at: Nesterov, place: Place) -> bytes:
    """Of a state: what it consists of, and how it came about."""
    members = (f"{one.peer} {one.boot}\n".encode() for one in place.members)
    return digest("group state", place.before, place.commits.to_bytes(8), *members, *at.digests)


def checked(at: Nesterov, place: Place) -> Nesterov:
    """Raises RemoteError for another state than that of the place."""
    if digest_of(at, place) != place.state:
        raise RemoteError("another state than was asked for")
    return at


def first_place(at: Nesterov) -> Place:
    """Where a run begins."""
    return Place(digest_of(at, Place(b"")))


def kept_place(place: Place) -> Vector:
    """How a place came about, as a checkpoint keeps it: a number for each byte."""
    raw = pack(Given(place.before, place.commits, place.members, 0))
    return vector_of(raw)


def read_place(kept: dict[str, Vector]) -> tuple[bytes, int, tuple[Member, ...]]:
    """The state before, how many commits, and who made the last. Raises UserError."""
    try:
        given = unpack(bytes_of(kept["place"]))
    except (KeyError, RemoteError) as error:
        raise UserError("a checkpoint of another kind of exchange") from error
    if not isinstance(given, Given):
        raise UserError("a checkpoint that says no place")
    return given.before, given.commits, given.members
