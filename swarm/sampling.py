"""Whom to know of a swarm with liars in it: BASALT, a peer sampling that a flood cannot capture.

Auvolat, Bromberg, Frey, Mvondo and Taïani, "BASALT: A Rock-Solid Byzantine-Tolerant Peer Sampling
for Very Large Decentralized Networks" (2023). A view is `slots.Slots`: each keeps the peer that its
own secret draw likes best of all it has heard of. Each round the view goes to one contact and
another is asked for its own; now and then a slot is drawn anew, and who stood there is a sample.

    Fired(round) ─▶ Pull ──▶ contact ──▶ View     taken in: one answer to one question
                 └▶ View ──▶ contact              taken in: one of a peer, so many in all, a round
    a slot's turn ─▶ Sample                       a peer that has answered under its address

Who was met and is lost is asked again now and then, one of them a round: when a swarm that was cut
in two is whole again, no view of either half names the other, and somebody has to remember it.

    lost ─▶ gone ── a Pull a round, to the next of them ──▶ it answers ─▶ Back

A peer that the owner has pinned is known beside the slots, whatever these keep: it has its turn to
be asked each PIN_EVERY rounds, so that a view which liars hold hears again and again from somebody
whom they did not choose. Only evidence against it, or the owner, takes it out.

Who only watches, as a client does, is nobody to know: it asks and tells nothing, after some rounds
in WATCH_S at a time, and walks seldom. Its view is as good as a node's of so many rounds.

Gossip alone does not save a newcomer among thousands of liars who shout: they are known at once,
the honest one by one. So it also walks through the directory, whose look-ups withstand liars in
another way (dht/reading.py), and hears of peers that no gossip chose. Once enough honest ones are
known, views of honest peers do the rest.

How often slots are drawn anew decides whether liars win: a slot must live long enough to hear of
everybody, or what it keeps is who shouts (`resets_a_round`; measured in integration/sampling_sim).

The caller owes: perform effects in order; hand in `Received` with a peer that the road vouches for
and the address at which it can be dialled, once it has been seen to be there; `Lost` for a contact
that could not be reached; `Shunned` when a peer is banned; `Size` when the directory counts the
swarm anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from ..dht.network import Prefixes, diverse, prefixes_of
from .machine import Fired, SetTimer
from .sampling_events import (
    VIEW_MAX,
    Back,
    Effect,
    Event,
    Heard,
    Lost,
    Member,
    Pull,
    Received,
    Sample,
    Send,
    Shunned,
    Size,
    View,
    Walk,
)
from .slots import EMPTY, Ints, Slots, key_of, keys_of

ROUND_S: Final = 5.0
SLOTS: Final = 160  # for 10,000 peers; 100 will do below 1,000 (algorithms 3.5)
LIARS: Final = 0.3  # of all peers, that we want to withstand
PIN_EVERY: Final = 4  # guess: rounds; pinned peers are few, and shall not choose our view either
WATCH_SOON: Final = 12  # rounds of a watcher, until it asks at leisure
WATCH_S: Final = 60.0  # guess: a hundred clients of one node ask it twice a second then
QUIET_ROUNDS: Final = 60  # at the start, in which no slot is drawn anew
WALK_EVERY: Final = 3  # rounds, of the first WALKING_ROUNDS
WALK_SELDOM: Final = 12  # rounds, later
WALKING_ROUNDS: Final = 120
RESETS_CAUTION: Final = 0.25  # of what the rule allows: see `resets_a_round`
RESETS_SHARE_MAX: Final = 0.1  # of the slots a round; guess: a small swarm needs no more samples
VIEWS_MAX: Final = 16  # unasked for, a round: 1 is expected, 16 happen once in 10^14 rounds
PULLS_MAX: Final = 16  # answered in a round; likewise
SILENT_S: Final = 300.0  # guess: for so long a peer that could not be reached is not tried again
SILENT_MAX: Final = 1024
MET_MAX: Final = 4 * SLOTS
GONE_MAX: Final = 256  # peers that were met and lost, and are asked again, one a round
GONE_S: Final = 86_400.0  # guess: a swarm that was cut in two for longer needs its bootstrap peers


def resets_a_round(slots: int, peers: int, liars: float = LIARS) -> float:
    """How many slots may be drawn anew each round, in a swarm of so many peers.

    Below 2 (1 - liars)^2 slots^2 / (3 peers) a slot lives to hear of the whole swarm (algorithms
    3.5). That is the most; measured with 600 peers, 30 % of them liars, 80 slots, 160 rounds
    (integration/sampling_sim): with all of it liars held 0.43 of the views and one honest peer was
    surrounded; with half of it 0.37 and at most 0.61 of one view; with a quarter 0.34 and 0.50.
    """
    most = 2 * (1 - liars) ** 2 * slots**2 / (3 * max(peers, 1))
    return min(RESETS_CAUTION * most, RESETS_SHARE_MAX * slots)


class Sampling:
    """The machine. seed: draws 64 bits; shunned: whom never to know, asked whenever one is named;
    pinned: by the owner, with the address it gave, or ""; watches: see above.

    Memory: SLOTS members, those pinned, SILENT_MAX, MET_MAX and GONE_MAX ids, and of a round the
    ids of VIEWS_MAX senders and PULLS_MAX askers; never more, whatever comes.
    """

    def __init__(
        self, me: str, seed: Callable[[], int], *,
        slots: int = SLOTS, shunned: Callable[[str], bool] = lambda peer: False,
        pinned: Iterable[Member] = (), watches: bool = False,
    ) -> None:  # fmt: skip
        self._me = me
        self._watches = watches
        self._pinned = {one.peer: one for one in pinned if one.peer != me}  # as the owner said
        self._pinned_at = dict(self._pinned)  # where each was met, or heard of, last
        self._seed = seed
        self._shunned = shunned
        self._slots = Slots(np.array([seed() for _ in range(slots)], dtype=np.uint64))
        self._members: dict[int, Member] = {}  # of the slots' numbers
        self._names = 0
        self._peers = 1
        self._rounds = 0
        self._due = 0.0  # resets, in parts
        self._turn = 0
        self._asked: str | None = None
        self._viewed: set[str] = set()
        self._pulled: set[str] = set()
        self._met: dict[str, Prefixes] = {}
        self._silent: dict[Member, float] = {}
        self._gone: dict[str, tuple[Member, float]] = {}  # since when; asked longest ago first

    def members(self, count: int = SLOTS) -> Sequence[Member]:
        """Those pinned, then distinct peers of the view, in slot order: of these no network has
        more than its part."""
        first = self.pinned()[:count]
        named = {one.peer for one in first}
        seen = (one for one in dict.fromkeys(self._kept()) if one.peer not in named)
        ranked = ((one, (prefixes_of(one.address),)) for one in seen)
        return [*first, *diverse(ranked, count - len(first))]

    def pinned(self) -> list[Member]:
        """Whom the owner pinned, as far as it is known where they are."""
        return [
            one for one in self._pinned_at.values() if one.address and not self._shunned(one.peer)
        ]

    def met(self, peer: str) -> bool:
        """Whether it has spoken to us, under the address that it is ranked by, of late."""
        return peer in self._met

    def start(self, now: float) -> list[Effect]:
        return [SetTimer("round", now + ROUND_S)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Fired("round"):
                return self._round(now)
            case Received(member, Pull()):
                return self._pull(member, now)
            case Received(member, View(members)):
                return self._view(member, members, now)
            case Heard(members):
                self._offer(members, now)
            case Lost(member):
                self._lose(member, now)
            case Shunned(peer):
                self._met.pop(peer, None)
                self._gone.pop(peer, None)
                self._pinned_at.pop(peer, None)
                self._drop(lambda one: one.peer == peer)
            case Size(peers):
                self._peers = peers
        return []

    # ---- rounds

    def _round(self, now: float) -> list[Effect]:
        self._viewed.clear()
        self._pulled.clear()
        self._rounds += 1
        self._silent = {one: until_s for one, until_s in self._silent.items() if until_s > now}
        at_leisure = self._watches and self._rounds >= WATCH_SOON
        effects: list[Effect] = [SetTimer("round", now + (WATCH_S if at_leisure else ROUND_S))]
        effects += self._resets(now)
        often = self._rounds <= WALKING_ROUNDS and not self._watches
        if self._rounds % (WALK_EVERY if often else WALK_SELDOM) == 0:
            effects.append(Walk())
        self._asked = None
        asked, told = self._next_pinned() or self._choose(), self._choose()
        if asked is not None:
            self._asked = asked.peer
            effects.append(Send(asked, Pull()))
        if told is not None and not self._watches:
            effects.append(Send(told, self._mine()))
        again = self._next_gone(now)
        if again is not None:
            effects.append(Send(again, Pull()))
        return effects

    def _next_pinned(self) -> Member | None:
        turn, others = divmod(self._rounds - 1, PIN_EVERY)
        there = self.pinned()
        return there[turn % len(there)] if there and not others else None

    def _next_gone(self, now: float) -> Member | None:
        self._gone = {p: one for p, one in self._gone.items() if now - one[1] < GONE_S}
        if not self._gone:
            return None
        peer = next(iter(self._gone))
        self._gone[peer] = self._gone.pop(peer)  # to the end
        return self._gone[peer][0]

    def _choose(self) -> Member | None:
        slot = self._slots.choose()
        return None if slot is None else self._members[int(self._slots.kept[slot])]

    def _resets(self, now: float) -> list[Effect]:
        if self._rounds <= QUIET_ROUNDS:
            return []
        self._due += resets_a_round(len(self._slots), max(self._peers, len(self._members)))
        samples: list[Effect] = []
        while self._due >= 1:
            self._due -= 1
            before = self._slots.reseed(self._turn, self._seed())
            self._turn = (self._turn + 1) % len(self._slots)
            member = self._members.get(before)
            if member is None:
                continue
            if member.peer in self._met:
                samples.append(Sample(member))
            self._refill(member)
        self._forget()
        return samples

    # ---- what others say

    def _pull(self, member: Member, now: float) -> list[Effect]:
        if member.peer in self._pulled or len(self._pulled) >= PULLS_MAX:
            return []
        self._pulled.add(member.peer)
        effects = self._meet(member)
        self._offer((member,), now)
        return [Send(member, self._mine()), *effects]

    def _view(self, member: Member, members: tuple[Member, ...], now: float) -> list[Effect]:
        if member.peer == self._asked:
            self._asked = None
        elif member.peer not in self._viewed and len(self._viewed) < VIEWS_MAX:
            self._viewed.add(member.peer)
        else:
            return []
        effects = self._meet(member)
        self._offer((member, *members), now)
        return effects

    def _meet(self, member: Member) -> list[Effect]:
        """It has spoken: it is there, and where its address says."""
        if not member.address or self._shunned(member.peer) or member.peer == self._me:
            return []
        where = prefixes_of(member.address)
        if member.peer in self._pinned_at:
            self._pinned_at[member.peer] = member
        self._silent.pop(member, None)
        self._met.pop(member.peer, None)
        self._met[member.peer] = where
        while len(self._met) > MET_MAX:
            del self._met[next(iter(self._met))]  # the longest unheard
        self._drop(  # somebody named it under a network in which it is not
            lambda one: one.peer == member.peer and prefixes_of(one.address) != where
        )
        if self._gone.pop(member.peer, None) is None:
            return []
        self._silent.clear()  # perhaps it was our own road that was cut: the others may be back too
        return [Back(member)]

    def _offer(self, members: Iterable[Member], now: float) -> None:
        """Let the slots look at these peers: who is named more than once counts once."""
        some = [one for one in dict.fromkeys(members) if self._may(one, now)]
        for one in some:
            pinned = self._pinned_at.get(one.peer)
            if pinned is not None and not pinned.address:
                self._pinned_at[one.peer] = one
        self._take(some)

    def _may(self, member: Member, now: float) -> bool:
        if not member.address or member.peer == self._me or self._silent.get(member, 0.0) > now:
            return False
        known = self._met.get(member.peer)
        if known is not None and known != prefixes_of(member.address):
            return False  # it answered us from elsewhere
        return not self._shunned(member.peer)

    def _take(self, members: list[Member], slots: Ints | None = None) -> None:
        numbers = np.arange(self._names, self._names + len(members), dtype=np.int64)
        self._names += len(members)
        keys = keys_of([key_of(one.peer, prefixes_of(one.address)) for one in members])
        self._slots.offer(numbers, keys, slots)
        self._members.update(zip(numbers.tolist(), members, strict=True))
        self._forget()

    # ---- who is gone

    def _lose(self, member: Member, now: float) -> None:
        """Only this address of it: whoever names it under a wrong one shall not silence it."""
        if self._pinned_at.get(member.peer) == member:
            self._pinned_at[member.peer] = self._pinned[member.peer]
        if self._met.get(member.peer) == prefixes_of(member.address):
            del self._met[member.peer]
            self._gone[member.peer] = (member, now)
            while len(self._gone) > GONE_MAX:
                del self._gone[min(self._gone, key=lambda peer: self._gone[peer][1])]
        if len(self._silent) < SILENT_MAX:
            self._silent[member] = now + SILENT_S
        self._drop(lambda one: one == member)

    def _drop(self, is_bad: Callable[[Member], bool]) -> None:
        bad = [number for number, one in self._members.items() if is_bad(one)]
        if not bad:
            return
        for number in bad:
            self._slots.drop(number)
        self._forget()
        self._refill()

    def _refill(self, *more: Member) -> None:
        """Empty slots draw from whom we know: the view itself."""
        empty = np.flatnonzero(self._slots.kept == EMPTY)
        known = list(dict.fromkeys((*self._kept(), *more)))
        self._take(known, empty)

    def _kept(self) -> list[Member]:
        kept = self._slots.kept
        return [self._members[number] for number in kept.tolist() if number != EMPTY]

    def _forget(self) -> None:
        """Keep nobody but those in slots."""
        kept = set(self._slots.kept.tolist())
        self._members = {number: one for number, one in self._members.items() if number in kept}

    def _mine(self) -> View:
        return View(tuple(dict.fromkeys(self._kept()))[:VIEW_MAX])
