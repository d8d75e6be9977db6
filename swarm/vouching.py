"""What vouches are worth here: trust flows out of whom we know, and never more than flows in.

SybilQuorum's idea (Danezis and Sonnino, 2019): whoever makes up a thousand names has few honest
peers that vouch for any of them, so trust is let flow along vouches, each of which carries no more
than so much, and a thousand names share what crosses those few. It begins at anchors: those that
the owner pinned, and those that our own audits have found right for long enough. What a stranger
says of a stranger counts for nothing.

    anchor ── VOUCHED each, PASSED together ──▶ newcomer ── half of what it got ──▶ whom it knows

Unit: audits. A newcomer is on probation until PROBATION_VALID audits in a row found it right
(reputation.py); one that is vouched for starts with at most VOUCHED of them done, which is half. It
helps nobody's word against others (evidence.py asks for audits of our own), and ends with the first
mark against it. Whoever vouches gives of its own: what it passes on it lacks. And it answers for
it: while one whom it vouched for is banned on evidence, and for LIABLE_S after it took that back or
let it run out, nothing flows through it, and to it.

All peers that k edges lead to get at most k times VOUCHED together, however many they are and
whatever they say of each other (tests/test_vouching.py). Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Annotated, Final

from ..crypto.codec import Range, Size
from .flow import divide
from .reputation import PROBATION_VALID
from .vouch import DAY_S, LIFE_MAX_S, Given, Raw, Vouch, newer

VOUCHED: Final = 0.5 * PROBATION_VALID  # guess: the other half of probation is its own to pass
PASSED: Final = 4 * VOUCHED  # guess: of one anchor, so that one that was bought brings in so much
PASSED_ON: Final = 0.5  # guess: of what a newcomer has
LIABLE_S: Final = 30 * DAY_S  # as long as a ban of class B lasts: algorithms.md 4.5
STATEMENTS_MAX: Final = 32  # of one voucher; a revocation takes the place of what it takes back
VOUCHERS_MAX: Final = 512  # whose words are kept: 5 MB
NEVER: Final = 1e11

Seconds = Annotated[float, Range(0, NEVER)]


@dataclass(frozen=True, slots=True)
class Kept:
    """A statement as it is written down. ended_s: when we heard that it was taken back."""

    raw: Raw
    ended_s: Seconds = NEVER


@dataclass(frozen=True, slots=True)
class Book:
    """All that is kept on disk, by the one codec."""

    kept: Annotated[tuple[Kept, ...], Size(STATEMENTS_MAX * VOUCHERS_MAX)]


@dataclass(frozen=True, slots=True)
class _Word:
    """The newest of a pair. ended_s: since when it is taken back, by our clock; NEVER: it is not,
    as far as we know."""

    given: Given
    ended_s: float = NEVER

    @property
    def told(self) -> Vouch:
        return self.given.told

    def holds(self, now: float) -> bool:
        return not self.told.revoked and now < self.told.expires_s

    def binds(self, now: float) -> bool:
        """Whether the voucher answers for that peer."""
        return now < min(self.ended_s, self.told.expires_s) + LIABLE_S

    def matters(self, now: float) -> bool:
        """A revocation: for as long as what it takes back could be shown again."""
        last_s = self.told.issued_s + LIFE_MAX_S if self.told.revoked else 0.0
        return self.binds(now) or now < last_s


class Vouches:
    """The newest word of each pair, of vouchers that matter; `now` is unix seconds."""

    def __init__(self) -> None:
        self._said: dict[str, dict[str, _Word]] = {}  # of a voucher, by whom it is about

    def __len__(self) -> int:
        return sum(map(len, self._said.values()))

    def put(self, given: Given, now: float, *, ended_s: float = NEVER) -> bool:
        """Take in a checked statement; whether it was news. ended_s: as it was kept on disk.

        Of a voucher with too many, and of too many vouchers, what came first stays: nobody gets rid
        of a word that binds him by saying others."""
        said, told = self._said.get(given.voucher, {}), given.told
        before = said.get(told.peer)
        if before is not None and newer(before.given, given) is before.given:
            return False
        if before is None:
            said = {peer: word for peer, word in said.items() if word.matters(now)}
            crowded = given.voucher not in self._said and len(self._said) >= VOUCHERS_MAX
            if len(said) >= STATEMENTS_MAX or crowded:
                return False
        if told.revoked and ended_s == NEVER:
            # by our own clock, where we knew what it takes back: whoever dates it earlier gains
            # nothing; else it has never counted here
            ended_s = min(now, told.issued_s) if before is None else min(now, before.ended_s)
        word = _Word(given, ended_s if told.revoked else NEVER)
        if not word.matters(now):
            return False
        self._said[given.voucher] = {**said, told.peer: word}
        return True

    def of(self, voucher: str) -> tuple[Given, ...]:
        """All that is known of its words, to be passed on."""
        return tuple(word.given for word in self._said.get(voucher, {}).values())

    def links(self, voucher: str, now: float) -> list[str]:
        """For whom it vouches now."""
        said = self._said.get(voucher, {})
        return sorted(peer for peer, word in said.items() if word.holds(now))

    def fallen(self, voucher: str, now: float, banned: Callable[[str], bool]) -> bool:
        """Whether one whom it vouches for, or did of late, is banned on evidence."""
        said = self._said.get(voucher, {})
        return any(word.binds(now) and banned(peer) for peer, word in said.items())

    def vouchers_of(self, peer: str, now: float) -> list[str]:
        """Who answers for it."""
        return sorted(
            voucher
            for voucher, said in self._said.items()
            if peer in said and said[peer].binds(now)
        )

    def forget(self, now: float, but: Sequence[str]) -> None:
        """Keep what matters, of these vouchers alone."""
        kept = {one: self._said[one] for one in but if one in self._said}
        self._said = {
            voucher: left
            for voucher, said in kept.items()
            if (left := {peer: word for peer, word in said.items() if word.matters(now)})
        }

    def keep(self) -> Book:
        """What is to be written."""
        words = (word for said in self._said.values() for word in said.values())
        return Book(tuple(Kept(word.given.raw, word.ended_s) for word in words))

    def reached(self, anchors: Sequence[str], now: float) -> list[str]:
        """Whose words count here: anchors, and for whom they vouch; one of each anchor in turn,
        so that who vouches for many takes no place from others."""
        turns = zip_longest(*(self.links(anchor, now) for anchor in anchors))
        next_ = (peer for turn in turns for peer in turn if peer is not None)
        return list(dict.fromkeys((*anchors, *next_)))[:VOUCHERS_MAX]

    def standings(
        self, anchors: Mapping[str, float], now: float, banned: Callable[[str], bool]
    ) -> dict[str, float]:
        """How many audits each newcomer is taken to have passed, at most VOUCHED.

        anchors: with how far each is trusted, 0..1.
        """

        @cache
        def falls(peer: str) -> bool:
            return banned(peer) or self.fallen(peer, now, banned)

        room = {one: PASSED * trust for one, trust in anchors.items() if not falls(one)}
        known = set(anchors)
        first = self._flow(room, known, now, falls)
        known |= first.keys()
        passed = {
            peer: PASSED_ON * flow
            for peer, flow in first.items()
            if any(True for _ in self._next(peer, known, now, falls))
        }
        second = self._flow(passed, known, now, falls)
        return {peer: flow - passed.get(peer, 0.0) for peer, flow in first.items()} | second

    def _flow(
        self,
        room: Mapping[str, float],
        known: set[str],
        now: float,
        falls: Callable[[str], bool],
    ) -> dict[str, float]:
        """What comes out of these vouchers, which have so much to pass on; `known` get nothing."""
        came: dict[str, float] = {}
        for voucher in sorted(room):
            claims = dict.fromkeys(self._next(voucher, known, now, falls), VOUCHED)
            for peer, part in divide(room[voucher], claims).items():
                came[peer] = min(VOUCHED, came.get(peer, 0.0) + part)
        return came

    def _next(
        self, voucher: str, known: set[str], now: float, falls: Callable[[str], bool]
    ) -> Iterator[str]:
        return (peer for peer in self.links(voucher, now) if peer not in known and not falls(peer))
