"""Where a member stands, and where the others do, as far as their cards tell.

Facts, and what follows from them at once; what is done about it is in commit.py and leading.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from ...crypto.codec import encode
from ...errors import RemoteError
from .group import Place, ahead_of, in_order, is_quorum
from .group_events import Begin, Pace
from .group_wire import GROUP_MAX, Card, Member, Value, card_of

CARDS_MAX: Final = 256  # of peers that told where they stand
VAIN_S: Final = 10.0  # guess: before a state is asked for again that nobody gave us


class Standing:
    """sign: a card, in its domain. Written to by the machine of the same member alone."""

    def __init__(
        self, me: Member, run: bytes, place: Place, pace: Pace, sign: Callable[[bytes], bytes]
    ) -> None:
        self.me = me
        self.run = run
        self.place = place
        self.pace = pace
        self.config = place.members  # whose word counts; of a first state, once somebody founded it
        self.waits = False  # for an exchange
        self.fetching = b""  # a state, to go to it
        self.began_s = 0.0
        self.led_until_s = 0.0  # others wait so long for who leads now
        self.lost: set[str] = set()
        self._asked_anew: set[str] = set()  # of the lost: there may be a road again by now
        self._told: set[str] = set()  # who has said where it stands, since this exchange began
        self.out: set[str] = set()  # of the attempts of this exchange
        self.vain_s: dict[bytes, float] = {}  # states that nobody gave us, and when that was
        self._sign = sign
        self._wish = Begin(0, 1, ())
        self._waited_s = 0.0  # here, in exchanges that are over
        self._number = 0
        self._cards: dict[str, bytes] = {}
        self.mine = self._made()

    # ---- where we stand

    def begin(self, wish: Begin, now: float) -> None:
        self._wish = wish
        self.waits = True
        self.fetching = b""
        self.began_s = now
        self.out.clear()
        self.vain_s.clear()
        self._asked_anew = {*self.lost}
        self._told.clear()
        self.mine = self._made()

    def leave(self, now: float) -> None:
        self._waited_s += now - self.began_s if self.waits else 0.0
        self.waits = False
        self.mine = self._made()

    def move(self, place: Place, *, waits: bool) -> None:
        self.place = place
        self.config = place.members
        self.waits = waits
        self.fetching = b""
        self.led_until_s = 0.0
        self.out.clear()
        self._waited_s = 0.0
        self.mine = self._made()

    def _made(self) -> bytes:
        """A card."""
        self._number += 1
        place, me = self.place, self.me
        card = Card(
            self.run,
            me.peer,
            me.boot,
            self._number,
            place.state,
            place.before,
            place.commits,
            self._wish.tokens,
            self._wish.rate,
            self.waits,
        )
        return self._sign(encode(card))

    def is_tired(self, now: float) -> bool:
        """Of waiting for a quorum of who made the last commit; who is there can be waited for."""
        waited_s = self._waited_s + now - self.began_s
        there = [self.me, *(one.member for one in self.here())]
        return waited_s >= self.pace.patience_s and not self.is_quorum(self.config, there)

    def takes(self, config: tuple[Member, ...], now: float) -> bool:
        """Whether that is whose word counts. Else a first state takes the first that comes, and
        one who has waited too long any other."""
        if config != self.config:
            if self.me not in config or (self.config and not self.is_tired(now)):
                return False
            self.config = config
        return True

    # ---- where others do

    def hear(self, peer: str, raw: bytes) -> None:
        """A card of this peer; an old one is passed over. Raises RemoteError."""
        card = card_of(raw)
        if card.peer != peer or card.run != self.run:
            raise RemoteError("a card of another peer, or of another run")
        known = self._cards.get(peer)
        if known is None and len(self._cards) >= CARDS_MAX and peer not in self.companions():
            return
        if known is None or _age(card_of(known)) <= _age(card):
            self._cards[peer] = raw
            self._told.add(peer)
            self.lost.discard(peer)
            self._asked_anew.discard(peer)

    def lose(self, peer: str) -> None:
        """Nothing can be said to it."""
        self.lost.add(peer)
        self._asked_anew.discard(peer)

    def card(self, peer: str) -> bytes:
        """As it was signed."""
        return self.mine if peer == self.me.peer else self._cards[peer]

    def companions(self) -> tuple[str, ...]:
        """Who may come to an exchange, ourselves not included."""
        peers = {*self._wish.peers, *(one.peer for one in self.config)}
        return tuple(sorted(peers - {self.me.peer}))

    def here(self) -> list[Card]:
        """The others who stand where we do."""
        return [one for one in self.known() if one.state == self.place.state]

    def ready(self) -> list[Card]:
        """Who waits where we stand, ourselves included, by rank."""
        ready = {one.peer: one for one in (*self.here(), card_of(self.mine)) if one.waits}
        return [ready[peer] for peer in in_order(self.place.state, ready) if peer not in self.out]

    def called(self) -> list[Card]:
        """Who of those fits a group: first those whose word counts, or it could come to nothing."""
        ready = self.ready()
        return sorted(ready, key=lambda one: one.member not in self.config)[:GROUP_MAX]

    def missed(self) -> set[str]:
        """Who may still come, and is not ready. Whoever was lost before this exchange is waited for
        until that is so again: else one whose road has just come back would go on alone."""
        ready = {one.peer for one in self.ready()}
        lost = self.lost - self._asked_anew
        return {*self.companions()} - lost - self.out - ready - self._on_its_way()

    def _on_its_way(self) -> set[str]:
        """Who has told that it neither stands here nor waits, and had no part in the last commit:
        it is about to join, and first fetches a state and takes steps."""
        if not (members := self.place.members):
            return set()
        told = [one for one in self.known() if one.peer in self._told and not one.waits]
        away = [one for one in told if one.state != self.place.state]
        return {one.peer for one in away if one.member not in members}

    def is_called(self) -> bool:
        """Whether others wait here, and are enough to go on without us, who do not wait."""
        there = [one.member for one in self.here() if one.waits]
        return bool(there) and not self.waits and self.is_quorum(self.config, there)

    def is_quorum(self, config: Collection[Member], present: Collection[Member]) -> bool:
        return is_quorum(self.place.state, config, present)

    def went(self, held: Value) -> bool:
        """Whether another has taken what we hold: then it was chosen."""
        cards = map(card_of, self._cards.values())
        return any(one.state == held.state and one.before == self.place.state for one in cards)

    def ahead(
        self, now: float, *, busy: bool, chained: bool
    ) -> tuple[bytes, tuple[str, ...]] | None:
        """What is to be fetched, and from whom. busy: only what more commits led to. chained: or
        only what came from where we stand."""
        since_s = now - VAIN_S
        vain = {state for state, tried_s in self.vain_s.items() if tried_s > since_s}
        known = [one for one in self.known() if one.state not in vain]
        known = [one for one in known if chained or one.before == self.place.state]
        if busy and not any(one.commits > self.place.commits for one in known):
            return None
        return ahead_of(self.place, known)

    def known(self) -> list[Card]:
        """Of all who are not lost."""
        return [card_of(raw) for peer, raw in self._cards.items() if peer not in self.lost]


def _age(card: Card) -> tuple[int, int]:
    return card.boot, card.number
