"""A swarm of pretended servers, for the session machine alone.

A pretended server folds what it is fed into one number a row: its output depends on its block
range, on the sizes in which rows came, and on every row it holds. So an answer is right only when
the server was fed exactly what an undisturbed server would have been fed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from hypothesis import strategies as st

from potluck.crypto.keys import IdentityKey
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Ledger, Work
from potluck.swarm.machine import Fired
from potluck.swarm.receipt import Notary, Opening
from potluck.swarm.routing import Hop
from potluck.swarm.session import Session
from potluck.swarm.session_events import (
    Answered,
    AskSign,
    CloseLink,
    Counted,
    Deliver,
    Effect,
    Event,
    FindRoute,
    FindStandby,
    Leaving,
    Lost,
    Opened,
    OpenLink,
    Routed,
    SendStep,
    SessionConfig,
    Signed,
    StandbyFound,
    Uncounted,
)

ROW = 8
BLOCKS = BlockRange(0, 6)


def config(
    group_tokens: int = 8,
    standby_from: int | None = None,
    hedged: bool = True,
    cut_tokens: int = 0,
) -> SessionConfig:
    return SessionConfig(
        BLOCKS,
        ROW,
        group_tokens,
        lambda hop, tokens: 2.0,
        lambda hop: 5.0,
        (lambda hop, tokens: 0.5) if hedged else None,
        standby_from,
        (lambda hop: 1.0) if hedged else None,
        standby_chunk=3,
        cut_tokens=cut_tokens,
    )


CLASS = "folding"
NAME = b"session of tests"
MODEL = "ab" * 32


@cache
def key_of(number: int) -> IdentityKey:
    return IdentityKey.from_bytes(number.to_bytes(32))


def peer(number: int) -> str:
    return key_of(number).peer_id


def notary_of(hop: Hop, link: int) -> Notary:
    """That of the server at the other end of this link; `link` is its nonce."""
    number = next(one for one in itertools.count(1) if peer(one) == hop.peer)
    opening = Opening(
        NAME, link.to_bytes(16), 0.0, bytes.fromhex(MODEL), CLASS, hop.blocks.start,
        hop.blocks.stop, ROW // 4, "f32",
    )  # fmt: skip
    return Notary(key_of(number), opening, ROW)


def ledger(*, works: bool = False) -> Ledger:
    return Ledger(NAME, MODEL, BLOCKS, ROW // 4, "f32", ROW, works=works)


def fold(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"|".join(parts), digest_size=ROW).digest()


@dataclass
class Block:
    """One block's cache: a row remembers what it saw, and in which piece it came."""

    rows: list[bytes] = field(default_factory=list)

    def run(self, number: int, at: int, rows: list[bytes], salt: bytes = b"") -> list[bytes]:
        del self.rows[at:]
        assert len(self.rows) == at, "a hole in the cache"
        outputs = []
        for row in rows:
            self.rows.append(fold(row, bytes([len(rows)])))
            outputs.append(fold(bytes([number]), salt, *self.rows))
        return outputs


@dataclass
class Server:
    """What stands at the other end of one link. salt: of a class of numbers of its own."""

    blocks: BlockRange
    salt: bytes = b""
    caches: dict[int, Block] = field(default_factory=dict)

    def step(self, send: SendStep) -> bytes:
        at, whole = send.at, []
        for size, payload in zip(send.sizes, send.payloads, strict=True):
            rows = [bytes(payload[i * ROW : (i + 1) * ROW]) for i in range(size)]
            for number in range(self.blocks.start, self.blocks.stop):
                rows = self.caches.setdefault(number, Block()).run(number, at, rows, self.salt)
            whole += rows
            at += size
        return b"".join(whole[len(whole) - send.rows :])

    def truncate(self, at: int) -> None:
        for block in self.caches.values():
            del block.rows[at:]


@dataclass(frozen=True)
class Receipted:
    """Receipts on their way to the ledger."""

    link: int
    raws: tuple[bytes, ...]


class Swarm:
    """Performs effects. `choose` splits a gap into hops; `dies` says when a link is lost.

    ledger: checks what the servers sign, where receipts are asked for. salted: no two servers
    give the same.
    """

    def __init__(
        self,
        session: Session,
        data: st.DataObject | None = None,
        ledger: Ledger | None = None,
        *,
        salted: bool = False,
    ) -> None:
        self.session = session
        self.data = data
        self.ledger = ledger
        self.salted = salted
        self.servers: dict[int, Server] = {}
        self.notaries: dict[int, Notary] = {}
        self.works: list[Work] = []
        self.inbox: list[tuple[int, Event | Receipted]] = []  # (link, event), in each link's order
        self.delivered: list[tuple[int, bytes]] = []
        self.deaths_left = 0
        self.names = 0
        if ledger is not None:
            ledger.examines = self.look
        self.perform(session.start(0.0))

    def look(self, link: int) -> None:
        assert self.ledger is not None
        self.works += self.ledger.examine(link)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case FindRoute(gap, blocks):
                    self.inbox.append((-gap, Routed(gap, tuple(self.split(blocks)))))
                case FindStandby(link):
                    found = self.data is None or self.data.draw(st.booleans())
                    self.inbox.append((-link, StandbyFound(link, self.name() if found else None)))
                case OpenLink(link, hop):
                    self.servers[link] = Server(hop.blocks, bytes([link]) if self.salted else b"")
                    self.inbox.append((link, Opened(link)))
                    if self.ledger is not None:
                        self.notaries[link] = notary = notary_of(hop, link)
                        self.ledger.opened(link, hop, notary.opening, CLASS)
                case SendStep(link, at, _, rows):
                    answer = self.servers[link].step(effect)
                    self.inbox.append((link, Answered(link, at, rows, answer)))
                    if self.ledger is not None:
                        self.ledger.sent(effect)
                        self.notaries[link].took(at, b"".join(effect.payloads))
                        self.notaries[link].gave(answer)
                case AskSign(link, back):
                    if back is not None:
                        self.servers[link].truncate(back)
                        self.notaries[link].truncate(back)
                        if self.ledger is not None:
                            self.ledger.asked(link, back)
                    self.inbox.append((link, Receipted(link, self.notaries[link].sign())))
                case Counted(link, first, until) if self.ledger is not None:
                    self.ledger.counted(link, first, until)
                case Uncounted(block, at) if self.ledger is not None:
                    self.ledger.uncounted(block, at)
                case CloseLink(link):
                    del self.servers[link]
                    self.inbox = [entry for entry in self.inbox if entry[0] != link]
                    if self.ledger is not None:
                        self.look(link)
                        self.ledger.lost(link)
                case Deliver(index, payload):
                    self.delivered.append((index, bytes(payload)))

    def name(self) -> str:
        self.names += 1
        return peer(self.names) if self.ledger is not None else f"peer{self.names}"

    def split(self, blocks: BlockRange) -> Iterator[Hop]:
        cuts = list(range(blocks.start + 1, blocks.stop))
        chosen = [cut for cut in cuts if self.data is not None and self.data.draw(st.booleans())]
        if self.data is None:
            chosen = [cut for cut in (2, 4) if cut in cuts]
        edges = [blocks.start, *chosen, blocks.stop]
        for start, stop in itertools.pairwise(edges):
            yield Hop(self.name(), BlockRange(start, stop))

    def run(self) -> None:
        """Hand in what waits, in any order that keeps each link's own, and kill on the way."""
        while self.inbox:
            if self.data is not None and self.death_comes(self.data):
                continue
            senders = sorted({sender for sender, _ in self.inbox})
            sender = senders[0] if self.data is None else self.data.draw(st.sampled_from(senders))
            place = next(i for i, entry in enumerate(self.inbox) if entry[0] == sender)
            self.hand_in(self.inbox.pop(place)[1])

    def hand_in(self, event: Event | Receipted) -> None:
        if isinstance(event, Receipted):
            assert self.ledger is not None
            self.ledger.come(event.link, event.raws)
            if self.data is None or self.data.draw(st.booleans()):  # else when they are asked for
                self.look(event.link)
            event = Signed(event.link)
        self.perform(self.session.handle(event, 0.0))
        answered = isinstance(event, Answered) and event.link in self.servers
        if answered and self.ledger is not None:
            self.ledger.got(event.link, event.payload)

    def death_comes(self, data: st.DataObject) -> bool:
        if not self.deaths_left or not self.servers or data.draw(st.integers(0, 3)):
            return False
        self.deaths_left -= 1
        link = data.draw(st.sampled_from(sorted(self.servers)))
        ends: list[Event] = [
            Lost(link, "killed"),
            Fired(link),
            Leaving(link),
            Answered(link, 99, 1, b"rubbish"),
        ]
        self.perform(self.session.handle(data.draw(st.sampled_from(ends)), 0.0))
        return True


def rows_of(seed: int, tokens: int) -> bytes:
    return b"".join(fold(bytes([seed % 251]), bytes([i])) for i in range(tokens))


def opened(session: Session) -> tuple[Swarm, int]:
    """A session with one link for all blocks, and the link."""
    swarm = Swarm(session)
    swarm.split = lambda blocks: iter([Hop("a", blocks)])  # type: ignore[method-assign]
    swarm.inbox.clear()
    swarm.perform([FindRoute(1, BLOCKS, ())])
    swarm.run()
    (link,) = swarm.servers
    return swarm, link


def sent_to(effects: list[Effect], link: int) -> list[SendStep]:
    return [effect for effect in effects if isinstance(effect, SendStep) and effect.link == link]
