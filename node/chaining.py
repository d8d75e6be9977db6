"""A session's steps from hop to hop: the rules' effects (swarm/chain.py), performed on its links.

Two hops of which one is behind the other are introduced once both are open and have said that they
speak of chains: until then, and wherever anything of it fails, steps go by star.

    Opened, Opened ─▶ Lead ─▶ Led ─▶ Follow ─▶ Following ─▶ steps are pushed
                                └──────────┴─▶ Apart ─▶ they are not

That takes two round trips and a dial, in which the first steps, and so all of a prompt, go by star.
Two that speak the second version are told both at once, and steps are pushed from then on: the
first holds them until the second has come. If those two are not connected, the second says so, and
all is as above.

    Opened, Opened ─▶ Lead, Follow ─▶ steps are pushed
                               └─▶ Apart ─▶ they go by star; Lead ─▶ Led ─▶ ...
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Literal

import trio

from ..errors import RemoteError, TransportError
from ..swarm.chain import (
    AHEAD_MAX,
    EARLY_AHEAD_MAX,
    Asked,
    Await,
    Carry,
    Chain,
    Effect,
    Pushed,
    Raise,
)
from ..swarm.session import Session
from ..swarm.session_events import Event, Lost, Opened, Payload
from ..swarm.ticket import TICKET_S, Ticket, check_seal, is_sealed, sign_ticket
from ..swarm.wire import (
    CHAIN_PROTOCOL,
    EARLY_CHAIN_PROTOCOL,
    Apart,
    Fence,
    Fenced,
    Follow,
    Following,
    Lead,
    Led,
    Message,
    Output,
    Receipts,
    Taken,
)
from .link import Link
from .log import get_logger
from .net.host import Host

log = get_logger()

Chained = Literal["auto", "off"]
SPEAKS_S: Final = 10.0  # guess: for a peer that we are connected to to say what it speaks


class Chaining:
    """One session's. dispatch: takes events of its machine. wall: unix seconds."""

    def __init__(
        self,
        host: Host,
        session: bytes,
        machine: Session,
        links: Mapping[int, Link],
        nursery: trio.Nursery,
        dispatch: Callable[[Event], None],
        *,
        receipts: bool,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._session = session
        self._links = links
        self._nursery = nursery
        self._dispatch = dispatch
        self._receipts = receipts
        self._wall = wall
        self._chain = Chain(machine, receipts=receipts)
        self._peers: dict[int, str] = {}  # of every link that there was
        self._leads: dict[int, tuple[int, bytes]] = {}  # asked to lead: whom, by which ticket
        self._follows: dict[int, int] = {}  # asked to follow: whom
        self._early: set[int] = set()  # of those, told so without a consent
        self._needless: Counter[int] = Counter()  # by whom they are on their way: consents
        self._settling = False
        self._changed = False

    @property
    def steps(self) -> int:
        """How many were ordered to be pushed over one hop or more."""
        return self._chain.chained

    # ---- what happens to links

    def opens(self, link: Link) -> None:
        self._peers[link.number] = link.hop.peer
        self._chain.opens(link.number)

    def lost(self, number: int) -> None:
        self._changed = True
        self._leads.pop(number, None)
        self._follows.pop(number, None)
        self._early.discard(number)
        self._needless.pop(number, None)
        self._do(self._chain.lost(number))

    def late(self, number: int) -> None:
        self._do(self._chain.late(number))

    def post(self, what: Asked) -> None:
        """The machine sends this."""
        self._do(self._chain.post(what))

    def settle(self, event: Event) -> None:
        """After each event: hand in early answers that the machine waits for now; introduce hops
        that are new."""
        if self._settling:
            return
        self._settling = True
        try:
            self._hand_in_early()
        finally:
            self._settling = False
        if self._changed or isinstance(event, Opened):
            self._changed = False
            for leader, follower in reversed(self._chain.pairs()):  # who is pushed to leads already
                if self._speak(EARLY_CHAIN_PROTOCOL, leader, follower):
                    self._introduce_early(leader, follower)
                else:
                    self._nursery.start_soon(self._introduce, leader, follower)

    def _hand_in_early(self) -> None:
        while self._chain.ready:
            number = self._chain.ready.popleft()
            found = self._chain.early(number)
            if found is None:
                continue
            link = self._links[number]
            try:
                self._hand_in(link, *found)
            except (RemoteError, TransportError) as error:
                link.fail(str(error))

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Carry(what):
                    self._links[what.link].post(effect)
                case Await(step):
                    self._links[step.link].awaits(step)
                case Raise(number, epoch, apart):
                    if apart:
                        self._follows.pop(number, None)  # whom it was to follow, too
                    self._links[number].post(Fence(epoch, apart))

    # ---- what servers say

    def receive(self, link: Link, message: Message, payload: memoryview) -> None:
        """Raises RemoteError for what no honest server says."""
        number = link.number
        if self._links.get(number) is not link:
            return  # read with what came before it was lost
        match message:
            case Taken():
                found = self._chain.taken(number, message, payload)
                if isinstance(found, Pushed):
                    self._hand_in(link, found, message, payload)
                else:
                    self._do(found)
            case Output() | Receipts():
                self._chain.answered(number)
                if isinstance(message, Output):
                    self._chain.gave(number, message.at, payload)
                link.answer(message, payload)
                self._do(self._chain.flush(number))
            case Fenced(epoch):
                self._do(self._chain.fenced(number, epoch))
            case Apart(behind, reason):
                log.debug("no chain", peer=link.hop.peer, behind=behind, reason=reason)
                leader = 0 if behind else self._follows.get(number, 0)
                self._do(self._chain.apart(number, behind=behind))
                if leader in self._links and number in self._early:
                    self._nursery.start_soon(self._introduce, leader, number)
                if not behind:
                    self._early.discard(number)
            case Led() if self._needless[number]:
                self._needless[number] -= 1
            case Led(consent):
                follower, ticket = self._leads.pop(number, (0, b""))
                if follower in self._links:
                    self._follows[follower] = number
                    self._links[follower].post(Follow(ticket, consent, self._chain.epoch))
            case Following():  # or it was told meanwhile to follow nobody
                self._early.discard(number)
                leader = self._follows.pop(number, 0)
                self._chain.joined(leader, number, self._ahead_max(leader, number))
            case _:
                link.answer(message, payload)

    def _hand_in(self, link: Link, pushed: Pushed, told: Taken, payload: Payload) -> None:
        """The answer to a push, which the machine waits for. Raises RemoteError."""
        if self._receipts and not self._sealed(link, pushed, told):
            return
        self._chain.gave(link.number, told.at, payload)
        link.answer(told, payload)
        self._do(self._chain.flush(link.number))

    def _sealed(self, link: Link, pushed: Pushed, told: Taken) -> bool:
        """Whether it was pushed what we were given; else whoever pushed is lost. Raises RemoteError
        where it cannot show by whom it was pushed anything."""
        leader, at = self._peers[pushed.giver], pushed.at
        sealed = check_seal(told.seal, leader, self._session, pushed.number, at)
        assert pushed.payload is not None, "asked for before it was mirrored"
        if is_sealed(pushed.payload, sealed):
            return True
        self._chain.put_back(link.number, pushed)
        if pushed.giver in self._links:
            self._dispatch(Lost(pushed.giver, "it pushed other rows than it gave"))
        return False

    # ---- introductions

    def _speak(self, protocol: str, *links: int) -> bool:
        """Whether all their servers have said so."""
        found = [self._host.claims(self._peers[number]) for number in links]
        return all(claims is not None and protocol in claims.protocols for claims in found)

    def _ahead_max(self, leader: int, follower: int) -> int:
        """How many steps the second may be pushed ahead of their mirrors."""
        early = leader in self._peers and self._speak(EARLY_CHAIN_PROTOCOL, leader, follower)
        return EARLY_AHEAD_MAX if early else AHEAD_MAX

    def _introduce_early(self, leader: int, follower: int) -> None:
        """Tell both to make a chain, and take it for made."""
        raw = self._ticket(leader, follower)
        self._needless[leader] += 1
        self._early.add(follower)
        self._follows[follower] = leader
        self._links[leader].post(Lead(raw))
        self._links[follower].post(Follow(raw, b"", self._chain.epoch))
        self._chain.joined(leader, follower, EARLY_AHEAD_MAX)

    async def _introduce(self, leader: int, follower: int) -> None:
        """Ask both to make a chain, if they know of any."""
        for number in (leader, follower):
            with trio.move_on_after(SPEAKS_S):
                await self._host.identified(self._peers[number])
            if not self._speak(CHAIN_PROTOCOL, number):
                return
        links = self._links
        if leader not in links or follower not in links or leader in self._leads:
            return
        raw = self._ticket(leader, follower)
        self._leads[leader] = follower, raw
        links[leader].post(Lead(raw))

    def _ticket(self, leader: int, follower: int) -> bytes:
        ticket = Ticket(
            self._session,
            secrets.token_bytes(16),
            self._links[follower].hop.blocks.start,
            self._peers[leader],
            self._peers[follower],
            self._wall() + TICKET_S,
        )
        return sign_ticket(self._host.identity.key, ticket)
