"""The pretended servers of folding_swarm.py, one behind the other: hops push to hops.

What drives a session from hop to hop (node/chaining.py) is the real thing; pretended are links and
servers. Each road keeps its own order, and any order may come of several: what we send to a server,
what it is pushed by the one before it, and what it says to us.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from potluck.crypto.codec import decode
from potluck.crypto.envelope import open_
from potluck.crypto.keys import IdentityKey
from potluck.node.chaining import Chaining
from potluck.swarm.chain import Carry
from potluck.swarm.ledger import Ledger
from potluck.swarm.machine import Fired
from potluck.swarm.routing import Hop
from potluck.swarm.session import Session
from potluck.swarm.session_events import (
    Answered,
    AskSign,
    CloseLink,
    Effect,
    Event,
    FindStandby,
    Leaving,
    Lost,
    OpenLink,
    SendStep,
    Signed,
)
from potluck.swarm.ticket import TICKET, Ticket, seal_of
from potluck.swarm.wire import (
    CHAIN_PROTOCOL,
    EARLY_CHAIN_PROTOCOL,
    TICKET_BYTES_MAX,
    Apart,
    Fence,
    Fenced,
    Follow,
    Following,
    Lead,
    Led,
    Message,
    Onward,
    Output,
    Push,
    Receipts,
    Taken,
)

from .folding_swarm import NAME, Receipted, Swarm, key_of, peer

Told = tuple[Message, bytes]
CONSENT = b"come"


@dataclass
class PretendedLink:
    """What Chaining uses of a link."""

    number: int
    hop: Hop
    swarm: ChainedSwarm

    def post(self, what: Carry | Message) -> None:
        self.swarm.servers_of[self.number].box.append(what)

    def awaits(self, step: SendStep) -> None:
        self.swarm.awaited += 1

    def answer(self, message: Message, payload: Any) -> None:
        self.swarm.answered(self, message, payload)

    def fail(self, reason: str) -> None:
        self.swarm.blamed.append((self.number, reason))
        self.swarm.dispatch(Lost(self.number, reason))


@dataclass
class Road:
    """One server's: what waits there from us, from the server before it, and for us."""

    key: IdentityKey
    box: deque[Carry | Message] = field(default_factory=deque)
    pushes: deque[tuple[Push, bytes]] = field(default_factory=deque)
    out: deque[Told] = field(default_factory=deque)
    epoch: int = 0
    follower: int = 0
    follows: bool = False
    twists: bool = False  # it pushes other rows than it gives


class ChainedSwarm(Swarm):
    """blamed: links that were lost for what their servers said."""

    def __init__(
        self,
        session: Session,
        data: st.DataObject | None = None,
        ledger: Ledger | None = None,
        *,
        joins: bool = True,
        early: bool = False,
    ) -> None:
        """joins: two that are introduced make a chain. early: they speak the second version; with
        `data` each two are connected or not as it comes."""
        self.early = early
        self.identity = SimpleNamespace(key=key_of(0))  # the client's
        self.links: dict[int, Any] = {}
        self.servers_of: dict[int, Road] = {}
        self.joins: deque[tuple[int, int]] = deque()
        self.blamed: list[tuple[int, str]] = []
        self.awaited = 0
        self.chaining = Chaining(
            self, NAME, session, self.links, self, self.dispatch, receipts=ledger is not None  # type: ignore[arg-type]
        )  # fmt: skip
        self.may_join = joins
        super().__init__(session, data, ledger)

    def start_soon(self, introduce: object, leader: int, follower: int) -> None:
        if self.may_join:
            self.joins.append((leader, follower))

    def claims(self, name: str) -> SimpleNamespace:
        """What a server says that it speaks; `self` is the host of what is tested."""
        return SimpleNamespace(protocols=(CHAIN_PROTOCOL, EARLY_CHAIN_PROTOCOL)[: 1 + self.early])

    # ---- us

    def dispatch(self, event: Event) -> None:
        self.perform(self.session.handle(event, 0.0))
        if isinstance(event, Answered) and event.link in self.servers and self.ledger is not None:
            self.ledger.got(event.link, event.payload)
        self.chaining.settle(event)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendStep():
                    self.chaining.post(effect)
                    if self.ledger is not None:
                        self.ledger.sent(effect)
                case AskSign(link, back):
                    self.chaining.post(effect)
                    if back is not None and self.ledger is not None:
                        self.ledger.asked(link, back)
                case OpenLink(link, hop):
                    super().perform([effect])
                    number = int(hop.peer.removeprefix("peer")) if self.ledger is None else next(
                        one for one in range(1, 10_000) if peer(one) == hop.peer
                    )  # fmt: skip
                    self.servers_of[link] = Road(key_of(number))
                    self.links[link] = made = PretendedLink(link, hop, self)
                    self.chaining.opens(made)  # type: ignore[arg-type]
                case CloseLink(link):
                    del self.links[link], self.servers_of[link]
                    super().perform([effect])
                    self.chaining.lost(link)
                case FindStandby(link, why=why):
                    if why == "late":
                        self.chaining.late(link)
                    super().perform([effect])
                case _:
                    super().perform([effect])

    def answered(self, link: PretendedLink, message: Message, payload: Any) -> None:
        match message:
            case Output(at, _, rows):
                self.dispatch(Answered(link.number, at, rows, payload))
            case Receipts(chunks):
                assert self.ledger is not None
                self.ledger.come(link.number, chunks)
                if self.data is None or self.data.draw(st.booleans()):
                    self.look(link.number)  # else when they are asked for
                self.dispatch(Signed(link.number))

    # ---- servers

    def serve_box(self, number: int) -> None:
        road, server = self.servers_of[number], self.servers[number]
        match road.box.popleft():
            case Carry(AskSign() as what, back=back):
                backs = [at for at in (what.back, back) if at is not None]
                if backs:
                    server.truncate(min(backs))
                    self.notaries[number].truncate(min(backs))
                road.out.append((Receipts(self.notaries[number].sign()), b""))
            case Carry(SendStep(_, at, sizes, rows, payloads), told):
                step: Onward | None = None
                if told is not None:
                    step = Onward(
                        at, sizes, told.rows, number=told.number, epoch=told.epoch, hops=told.hops
                    )
                answer = self.compute(number, at, sizes, rows, payloads, step)
                road.out.append((Output(at, sum(sizes), rows, 0.0, 0.0, 0), answer))
            case Lead(ticket):
                road.follower = self.named(ticket)
                road.out.append((Led(CONSENT), b""))
            case Follow(_, consent, epoch):
                road.epoch = max(epoch, road.epoch)
                road.follows = bool(consent) or self.met()
                told = Following() if road.follows else Apart(False, "not connected")
                road.out.append((told, b""))
            case Fence(epoch, apart):
                road.epoch, road.follows = max(epoch, road.epoch), road.follows and not apart
                road.out.append((Fenced(epoch), b""))

    def named(self, ticket: bytes) -> int:
        """The link of the follower of this ticket, as `move` or the client itself has made it."""
        if ticket.isdigit():
            return int(ticket)
        told = decode(open_(ticket, TICKET, max_bytes=TICKET_BYTES_MAX)[1], Ticket)
        found = [one.number for one in self.links.values() if one.hop.peer == told.follower]
        return found[0] if found else 0

    def met(self) -> bool:
        """Whether two are connected."""
        return self.data is None or self.data.draw(st.booleans())

    def serve_push(self, number: int) -> None:
        road = self.servers_of[number]
        push, payload = road.pushes.popleft()
        if push.epoch < road.epoch or not road.follows:
            return
        rows = sum(push.sizes) if push.hops else push.rows
        answer = self.compute(number, push.at, push.sizes, rows, (payload,), push)
        taken = Taken(
            push.at, sum(push.sizes), rows, 0.0, 0.0, 0, number=push.number, seal=push.seal
        )
        road.out.append((taken, answer))

    def compute(
        self,
        number: int,
        at: int,
        sizes: tuple[int, ...],
        rows: int,
        payloads: tuple[Any, ...],
        step: Onward | None,
    ) -> bytes:
        answer = self.servers[number].step(SendStep(number, at, sizes, rows, payloads))
        if self.ledger is not None:
            self.notaries[number].took(at, b"".join(payloads))
            self.notaries[number].gave(answer)
        road = self.servers_of[number]
        if step is not None and step.hops:
            follower = self.servers_of.get(road.follower)
            if follower is None:
                road.out.append((Apart(True, "nobody follows"), b""))
            else:
                follower.pushes.append(self.pushed(road, step, answer))
        return answer

    def pushed(self, road: Road, step: Onward, rows: bytes) -> tuple[Push, bytes]:
        if road.twists:
            rows = bytes([rows[0] ^ 1]) + rows[1:]
        seal = seal_of(road.key, NAME, step.number, step.at, rows) if self.ledger else b""
        return Push(
            step.at, step.sizes, step.rows,
            number=step.number, epoch=step.epoch, hops=step.hops - 1, seal=seal,
        ), rows  # fmt: skip

    # ---- in any order

    def moves(self) -> list[tuple[str, int]]:
        found = [("inbox", sender) for sender in sorted({sender for sender, _ in self.inbox})]
        for number, road in sorted(self.servers_of.items()):
            for name, waiting in (("box", road.box), ("pushes", road.pushes), ("out", road.out)):
                comes = any(isinstance(one, Follow) for one in road.box)  # then pushes wait for it
                if waiting and not (name == "pushes" and comes):
                    found.append((name, number))
        return found + ([("join", 0)] if self.joins else [])

    def run(self) -> None:
        while moves := self.moves():
            if self.data is not None and self.death_comes(self.data):
                continue
            self.move(*(moves[0] if self.data is None else self.data.draw(st.sampled_from(moves))))

    def move(self, name: str, number: int) -> None:
        match name:
            case "inbox":
                place = next(i for i, entry in enumerate(self.inbox) if entry[0] == number)
                event = self.inbox.pop(place)[1]
                assert not isinstance(event, Receipted)
                self.dispatch(event)
            case "box":
                self.serve_box(number)
            case "pushes":
                self.serve_push(number)
            case "out":
                self.chaining.receive(
                    self.links[number],
                    *self.servers_of[number].out.popleft(),  # type: ignore[arg-type]
                )
            case "join":
                leader, follower = self.joins.popleft()
                if leader in self.links and follower in self.links:
                    ticket = str(follower).encode()
                    self.chaining._leads[leader] = follower, ticket
                    self.links[leader].post(Lead(ticket))

    def death_comes(self, data: st.DataObject) -> bool:
        if not self.deaths_left or not self.servers or data.draw(st.integers(0, 3)):
            return False
        self.deaths_left -= 1
        link = data.draw(st.sampled_from(sorted(self.servers)))
        ends: list[Event] = [Lost(link, "killed"), Fired(link), Leaving(link)]
        chosen = data.draw(st.sampled_from([*ends, None]))
        if chosen is not None:
            self.dispatch(chosen)
        else:  # the two are parted, by either of them
            told = Apart(data.draw(st.booleans()), "no more")
            self.servers_of[link].out.append((told, b""))
        return True
