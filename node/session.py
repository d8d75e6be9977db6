"""Drives one session: the machine's effects, performed on streams.

The rules stand in swarm/session.py; here is what waits. Tasks of the session's nursery look for
routes, keep the timers (timers.py), and read and write each link (link.py). Every one of them hands
what happens to the machine by `_dispatch`, which never waits, so that the machine sees one event
after another.

    async with open_session(host, router, plan) as session:
        session.feed(payload, tokens=8, rows=1)
        hidden = await session.output()
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import trio

from ..errors import MissingBlocks, PotluckError, Refused, TransportError
from ..swarm.blocks import BlockRange
from ..swarm.chain import Carry
from ..swarm.classes import Classes
from ..swarm.ledger import Ledger, Work
from ..swarm.machine import Fired, SetTimer, StopTimer
from ..swarm.routing import Hop
from ..swarm.rows import row_bytes
from ..swarm.session import Session
from ..swarm.session_events import (
    Answered,
    AskSign,
    CloseLink,
    Counted,
    Deliver,
    Effect,
    Event,
    Feed,
    FindRoute,
    FindStandby,
    Lost,
    Opened,
    OpenLink,
    Payload,
    Routed,
    SendStep,
    Settle,
    StandbyFound,
    TakeBack,
    Uncounted,
)
from .adapters import question
from .chaining import Chaining
from .link import Link
from .log import get_logger
from .net.host import Host
from .patience import Patience
from .recalls import prompts_of
from .router import HURRY_S, LOOK_AGAIN_S, Router
from .session_plan import Recovery as Recovery
from .session_plan import SessionPlan as SessionPlan
from .session_plan import config_of
from .timers import Timers

log = get_logger()

SETTLE_S = 10.0  # guess: for the last receipts; a hop that gives none is replaced within it


class LiveSession:
    """A session and its links. Made by `open_session`."""

    def __init__(
        self,
        host: Host,
        router: Router,
        plan: SessionPlan,
        nursery: trio.Nursery,
        on_signed: Callable[[Work], None] | None = None,
    ) -> None:
        self._host = host
        self._router = router
        self._plan = plan
        self._nursery = nursery
        self._name = secrets.token_bytes(16)
        row_size = row_bytes(plan.width, plan.dtype)
        self._machine = Session(config_of(plan, Patience(host, router, plan.adapter), row_size))
        self.ledger: Ledger | None = None
        if plan.receipts:
            self.ledger = Ledger(
                self._name, plan.model, BlockRange(0, plan.blocks), plan.width, plan.dtype,
                row_size, works=on_signed is not None,
                adapter=b"" if plan.adapter is None else plan.adapter.name,
            )  # fmt: skip
            self.ledger.examines = self._examine
        self._prompts = prompts_of(plan.prompt, plan.adapter, router.homing.known, row_size)
        self._on_signed = on_signed
        self._settling: trio.Event | None = None
        self._convicted: set[str] = set()
        self._links: dict[int, Link] = {}
        self._chaining: Chaining | None = None
        if plan.chained:
            ends = (host, self._name, self._machine, self._links, nursery, self._dispatch)
            self._chaining = Chaining(*ends, receipts=plan.receipts)
        self._timers = Timers(lambda key: self._dispatch(Fired(key)))
        self._outputs: deque[tuple[Payload, float]] = deque()  # and when it came
        self.answered_s = 0.0  # when the output came that was taken last
        self._arrived = trio.Event()
        self._failure: PotluckError | None = None
        self._classes = Classes(plan.blocks)
        self.recoveries: list[Recovery] = []

    @property
    def length(self) -> int:
        """Positions fed so far."""
        return self._machine.length

    @property
    def route(self) -> tuple[Hop, ...]:
        return self._machine.route

    @property
    def flowing(self) -> bool:
        """True once a step was sent on the way."""
        return any(link.flowing for link in self._links.values())

    @property
    def chained(self) -> int | None:
        """How many steps were pushed from hop to hop, over one at least; None: none is to be."""
        return None if self._chaining is None else self._chaining.steps

    @property
    def exact(self) -> bool:
        """Whether every block has stayed in the class of numbers that it began in."""
        return self._classes.exact

    @property
    def rows_alike(self) -> int:
        """Of how many rows a step may be that splits (swarm/classes.py)."""
        return self._classes.rows_alike

    def feed(
        self,
        payload: Payload,
        tokens: int,
        rows: int,
        at: int | None = None,
        *,
        splits: bool = False,
    ) -> None:
        """Hand in the next step: `tokens` rows of hidden states, of which the last `rows` outputs
        are wanted. at: its position, by default behind the last; an earlier one takes back. splits:
        its rows are such as `rows_alike` means, and may be taken back one by one."""
        place = self._machine.length if at is None else at
        if place + tokens > self._plan.tokens:
            raise ValueError(f"the session was opened for {self._plan.tokens} positions")
        back = place < self._machine.length
        self._dispatch(Feed(place, tokens, rows, payload, splits))
        if back and self.ledger is not None:
            self.ledger.taken_back(place)

    def take_back(self, at: int) -> None:
        """What was fed from position `at` on is not wanted. Only at rest."""
        self._dispatch(TakeBack(at))
        if self.ledger is not None:
            self.ledger.taken_back(at)

    async def opened(self) -> None:
        """Until a hop of every block has opened, or none is to be had."""
        while not self._classes.known and self._failure is None:
            await self._news()

    async def _news(self) -> None:
        self._arrived = trio.Event()
        await self._arrived.wait()

    async def output(self) -> Payload:
        """The next output in order. Raises MissingBlocks or Refused when it cannot be had."""
        while not self._outputs:
            if self._failure is not None:
                raise self._failure
            await self._news()
        payload, self.answered_s = self._outputs.popleft()
        return payload

    async def settle(self, within_s: float = SETTLE_S) -> bool:
        """Have all that was fed signed for, once it is answered: nothing is fed any more. False
        when some of it was not in time. Only where receipts are asked for."""
        assert self.ledger is not None, "a session without receipts"
        self._settling = trio.Event()
        self._dispatch(Settle())
        if self._failure is not None:
            return False
        with trio.move_on_after(within_s):
            await self._settling.wait()
        return self._settling.is_set()

    def convicted(self, peer: str, reason: str) -> None:
        """It was found lying: its links are lost now, with blame, and it gets no other."""
        self._convicted.add(peer)
        for number, link in list(self._links.items()):
            if link.hop.peer == peer:
                self._dispatch(Lost(number, reason))

    def start(self) -> None:
        self._host.on_direct.append(self._move)
        self._nursery.start_soon(self._timers.run)
        self._perform(self._machine.start(trio.current_time()))

    def end(self) -> None:
        """Cancel all that it does: each link closes its stream, its server frees its cache."""
        self._host.on_direct.remove(self._move)
        self._nursery.cancel_scope.cancel()

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, Opened) and (link := self._links.get(event.link)) is not None:
            self._classes.note(link.hop.blocks, link.numerics)
            self._arrived.set()
        self._perform(self._machine.handle(event, trio.current_time()))
        if self.ledger is not None:
            self._write_down(self.ledger, event)
        if self._chaining is not None:
            self._chaining.settle(event)

    def _write_down(self, ledger: Ledger, event: Event) -> None:
        if isinstance(event, Answered) and event.link in self._links:  # it was of the right shape
            ledger.got(event.link, event.payload)
        if self._settling is not None and self._machine.settled and self._examined():
            self._settling.set()

    def _examined(self) -> bool:
        """Look at all receipts that have come; whether they are right."""
        for number in list(self._links):
            self._examine(number)
        return not any(link.false for link in self._links.values())

    def _examine(self, number: int) -> None:
        if (link := self._links.get(number)) is not None:
            link.examine()

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendStep():
                    self._post(effect)
                    if self.ledger is not None:
                        self.ledger.sent(effect)
                case AskSign(number, back):
                    self._post(effect)
                    if back is not None and self.ledger is not None:
                        self.ledger.asked(number, back)
                case Counted(number, first, until) if self.ledger is not None:
                    self.ledger.counted(number, first, until)
                case Uncounted(block, at) if self.ledger is not None:
                    self.ledger.uncounted(block, at)
                case SetTimer(key, at_s):
                    self._timers.set(key, at_s)
                case StopTimer(key):
                    self._timers.stop(key)
                case Deliver(_, payload):
                    self._outputs.append((payload, trio.current_time()))
                    self._arrived.set()
                case FindRoute(gap, blocks):
                    self._nursery.start_soon(self._find_route, gap, blocks)
                case FindStandby(number, why=why):
                    if why == "late" and self._chaining is not None:
                        self._chaining.late(number)
                    self._nursery.start_soon(self._find_standby, effect)
                case OpenLink(number, hop):
                    self._links[number] = link = self._link(number, hop)
                    if self._chaining is not None:
                        self._chaining.opens(link)
                    self._nursery.start_soon(link.run, self._nursery)
                case CloseLink(number, _, reason):
                    self._drop(self._links.pop(number), reason)

    def _post(self, what: SendStep | AskSign) -> None:
        if self._chaining is None:
            self._links[what.link].post(Carry(what))
        else:
            self._chaining.post(what)

    def _link(self, number: int, hop: Hop) -> Link:
        plan, blocks = self._plan, hop.blocks
        asked = question(
            plan.adapter, self._name, plan.model, blocks, plan.tokens, plan.dtype, plan.receipts
        )
        return Link(
            number, hop, asked, plan.width,
            host=self._host, router=self._router, tell=self._dispatch, ledger=self.ledger,
            works=self._on_signed or (lambda work: None), worn=plan.adapter, prompts=self._prompts,
            through=None if self._chaining is None else self._chaining.receive,
            early=plan.early,
        )  # fmt: skip

    def _drop(self, link: Link, reason: str) -> None:
        if reason:
            peer, blocks, now = link.hop.peer, link.hop.blocks, trio.current_time()
            if not link.blameless:
                link.history.failed(now, link.begun_s)
            self.recoveries.append(Recovery(peer, blocks, reason, now, link.moving))
            if link.unspoken:
                self._convicted.add(peer)  # of nothing: it cannot be asked for this
            log.debug("hop lost", peer=peer, blocks=str(blocks), reason=reason)
        link.examine()
        if self.ledger is not None:
            self.ledger.lost(link.number)
        if self._chaining is not None:
            self._chaining.lost(link.number)
        link.drop()

    def _move(self, peer: str) -> None:
        """A relayed peer can be reached directly: leave the relay, without blame.

        What is lost is its cache, which is replayed from here as after any loss; a relay's latency
        and the end of its patience cost more (DECISIONS.md).
        """
        for number, link in list(self._links.items()):
            if link.hop.peer == peer and link.relayed:
                link.blameless = link.moving = True
                self._dispatch(Lost(number, "the way to it is direct now"))

    async def _find_standby(self, asked: FindStandby) -> None:
        """One peer for the blocks of a link, in the same class, or none: nobody waits for it.

        For a server that leaves somebody is looked for until it has gone.
        """
        peer: str | None = None
        within_s = HURRY_S
        may = asked.why != "late" or self._router.hedges.take()
        while may and peer is None and (link := self._links.get(asked.link)) is not None:
            with suppress(TransportError):  # of the directory: then nobody stands by
                peer = await self._router.standby(
                    self._plan.model,
                    self._plan.blocks,
                    asked.blocks,
                    cache_tokens=self._plan.tokens,
                    numerics=self._classes.of(asked.blocks.start),
                    beside=link.hop.peer,
                    avoid={*asked.avoid, *self._convicted},
                    within_s=within_s,
                )
            may, within_s = asked.why == "leaving", LOOK_AGAIN_S
            if may and peer is None:
                await trio.sleep(LOOK_AGAIN_S)
        if peer in self._convicted:  # meanwhile
            peer = None
        self._dispatch(StandbyFound(asked.link, peer))

    async def _find_route(self, gap: int, blocks: BlockRange) -> None:
        try:
            route = await self._router.route(
                self._plan.model,
                self._plan.blocks,
                blocks,
                cache_tokens=self._plan.tokens,
                wait_s=self._plan.wait_s,
                hurry=bool(self.recoveries),
                numerics=self._classes.of(blocks.start),
                avoid=self._convicted,
                prompt=self._plan.prompt,
            )
        except MissingBlocks as missing:
            self._fail(MissingBlocks(self._plan.name, missing.missing))
        except (Refused, TransportError) as error:
            self._fail(error)
        else:
            self._dispatch(Routed(gap, route.hops))

    def _fail(self, error: PotluckError) -> None:
        self._failure = error
        self._arrived.set()
        if self._settling is not None:
            self._settling.set()


@asynccontextmanager
async def open_session(
    host: Host,
    router: Router,
    plan: SessionPlan,
    on_signed: Callable[[Work], None] | None = None,
) -> AsyncIterator[LiveSession]:
    """A session through the swarm. Leaving it, by whatever road, closes its streams.

    on_signed: takes each chunk that a server signed for; it must not wait.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        session = LiveSession(host, router, plan, nursery, on_signed)
        session.start()
        try:
            yield session
        except Exception as error:  # the caller's own: the nursery would wrap it in a group
            failure = error
        finally:
            session.end()
    if failure is not None:
        raise failure
