"""Drives one session: the machine's effects, performed on streams.

The rules stand in swarm/session.py; here is what waits. Three kinds of task live in the session's
nursery: one that reads each link, one that writes it, and one that keeps the timers. Every one of
them hands what happens to the machine by `_dispatch`, which never waits, so that the machine sees
one event after another.

    async with open_session(host, router, plan) as session:
        session.feed(payload, tokens=8, rows=1)
        hidden = await session.output()
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio

from ..errors import MissingBlocks, PotluckError, Refused, RemoteError, TransportError
from ..swarm.blocks import BlockRange
from ..swarm.frame import PAYLOAD_BYTES_MAX
from ..swarm.machine import Fired, SetTimer, StopTimer
from ..swarm.routing import Hop
from ..swarm.session import Session
from ..swarm.session_events import (
    Answered,
    CloseLink,
    Deliver,
    Effect,
    Event,
    Feed,
    FindRoute,
    FindStandby,
    Leaving,
    Lost,
    Opened,
    OpenLink,
    Payload,
    Routed,
    SendStep,
    SessionConfig,
    StandbyFound,
)
from ..swarm.wire import PROTOCOL, Busy, Fault, Open, Output, Renew, Step
from ..swarm.wire import Leaving as LeavingMessage
from ..swarm.wire import Opened as OpenedMessage
from .compute.tensor import unpack
from .frames import FrameStream
from .log import get_logger
from .net.host import Host
from .router import HURRY_S, LOOK_AGAIN_S, Router

log = get_logger()

GROUP_BYTES = 4 * 1024 * 1024  # of hidden states in one replay frame: about a second at 32 Mbit/s
OPEN_S = 5.0  # guess: a dial over a bad road; a server that answers slowly opens slowly too
OPEN_HEDGE_S = 0.5  # guess: a round trip, and a pass of the device before ours
DIAL_HEDGE_S = 1.5  # guess: a dial over a bad road; punching takes longer, but not often
LEFT_S = 60.0  # for so long nothing new goes to a server that said that it leaves
RENEW_SHARE = 1 / 3  # of a lease, after which a silent link is renewed
STANDBY_FROM = 1024  # positions from which on a session keeps standbys: algorithms.md 6.3
LEASE_LEAST_S = 3.0  # guess: whoever lends for less would have us do nothing but renew


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What a session is to be. tokens: the positions that it may grow to. width: of the model."""

    model: str
    name: str
    blocks: int
    width: int
    tokens: int
    dtype: str = "f32"
    dtype_bytes: int = 4
    wait_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Link:
    hop: Hop
    reading: trio.CancelScope = field(default_factory=trio.CancelScope)
    writing: trio.CancelScope = field(default_factory=trio.CancelScope)
    frames: FrameStream | None = None
    outbox: deque[SendStep | Renew] = field(default_factory=deque)
    pending: trio.Event = field(default_factory=trio.Event)
    sent_s: deque[tuple[float, int]] = field(default_factory=deque)  # (when, tokens), unanswered
    quiet_since_s: float = 0.0
    lease_s: float = 60.0
    blameless: bool = False
    relayed: bool = False
    moving: bool = False


@dataclass(frozen=True, slots=True)
class Recovery:
    """One loss of a hop, as the session saw it. moved: it was left for the direct way to it."""

    peer: str
    blocks: BlockRange
    reason: str
    at_s: float
    moved: bool = False


class LiveSession:
    """A session and its links. Made by `open_session`."""

    def __init__(
        self, host: Host, router: Router, plan: SessionPlan, nursery: trio.Nursery
    ) -> None:
        self._host = host
        self._router = router
        self._plan = plan
        self._nursery = nursery
        self._name = secrets.token_bytes(16)
        row_bytes = plan.width * plan.dtype_bytes
        self._machine = Session(
            SessionConfig(
                BlockRange(0, plan.blocks),
                row_bytes,
                max(1, min(GROUP_BYTES, PAYLOAD_BYTES_MAX) // row_bytes),
                self._patience_s,
                lambda hop: max(OPEN_S, 2 * self._patience_s(hop, 1)),
                self._hedge_s,
                STANDBY_FROM,
                self._open_hedge_s,
            )
        )
        self._links: dict[int, _Link] = {}
        self._timers: dict[object, float] = {}
        self._next_timer_s = float("inf")
        self._timer_set = trio.Event()
        self._outputs: deque[Payload] = deque()
        self._arrived = trio.Event()
        self._failure: PotluckError | None = None
        self._classes: dict[int, str] = {}  # the numerics class that each block began in
        self.exact = True
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
        return any(link.sent_s for link in self._links.values())

    def feed(self, payload: Payload, tokens: int, rows: int, at: int | None = None) -> None:
        """Hand in the next step: `tokens` rows of hidden states, of which the last `rows` outputs
        are wanted. at: its position, by default behind the last; an earlier one takes back."""
        place = self._machine.length if at is None else at
        if place + tokens > self._plan.tokens:
            raise ValueError(f"the session was opened for {self._plan.tokens} positions")
        self._dispatch(Feed(place, tokens, rows, payload))

    async def output(self) -> Payload:
        """The next output in order. Raises MissingBlocks or Refused when it cannot be had."""
        while not self._outputs:
            if self._failure is not None:
                raise self._failure
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._outputs.popleft()

    def start(self) -> None:
        self._host.on_direct.append(self._move)
        self._nursery.start_soon(self._keep_time)
        self._perform(self._machine.start(trio.current_time()))

    async def close(self) -> None:
        """Close every stream, so that the servers free their caches at once."""
        self._host.on_direct.remove(self._move)
        for link in self._links.values():
            link.reading.cancel()  # an end that we make is no loss
            link.writing.cancel()
        for link in list(self._links.values()):
            if link.frames is not None:
                await link.frames.close()

    def _dispatch(self, event: Event) -> None:
        self._perform(self._machine.handle(event, trio.current_time()))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendStep(number):
                    self._post(self._links[number], effect)
                case SetTimer(key, at_s):
                    self._timers[key] = at_s
                    if at_s < self._next_timer_s:
                        self._timer_set.set()
                case StopTimer(key):
                    self._timers.pop(key, None)
                case Deliver(_, payload):
                    self._outputs.append(payload)
                    self._arrived.set()
                case FindRoute(gap, blocks):
                    self._nursery.start_soon(self._find_route, gap, blocks)
                case FindStandby():
                    self._nursery.start_soon(self._find_standby, effect)
                case OpenLink(number, hop):
                    link = _Link(hop)
                    self._links[number] = link
                    self._nursery.start_soon(self._read, number, link)
                case CloseLink(number, peer, reason):
                    self._drop(self._links.pop(number), peer, reason)

    def _post(self, link: _Link, item: SendStep | Renew) -> None:
        link.outbox.append(item)
        link.pending.set()

    def _drop(self, link: _Link, peer: str, reason: str) -> None:
        now = trio.current_time()
        if reason:
            if not link.blameless:
                self._router.history(peer).failed(now)
            self.recoveries.append(Recovery(peer, link.hop.blocks, reason, now, link.moving))
            log.debug("hop lost", peer=peer, blocks=str(link.hop.blocks), reason=reason)
        link.reading.cancel()
        link.writing.cancel()
        if link.frames is not None:
            self._nursery.start_soon(link.frames.reset)

    def _move(self, peer: str) -> None:
        """A relayed peer can be reached directly: leave the relay, without blame.

        What is lost is its cache, which is replayed from here as after any loss; a relay's latency
        and the end of its patience cost more (DECISIONS.md).
        """
        for number, link in list(self._links.items()):
            if link.hop.peer == peer and link.relayed:
                link.blameless = link.moving = True
                self._dispatch(Lost(number, "the way to it is direct now"))

    def _patience_s(self, hop: Hop, tokens: int) -> float:
        return self._router.history(hop.peer).patience_s(tokens, len(hop.blocks))

    def _hedge_s(self, hop: Hop, tokens: int) -> float:
        return self._router.history(hop.peer).hedge_s(tokens, len(hop.blocks))

    def _open_hedge_s(self, hop: Hop) -> float:
        rtt_s = self._host.rtt_s(hop.peer)
        return DIAL_HEDGE_S if rtt_s is None else max(OPEN_HEDGE_S, 4 * rtt_s)

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
                    numerics=self._classes.get(asked.blocks.start, ""),
                    beside=link.hop.peer,
                    avoid=asked.avoid,
                    within_s=within_s,
                )
            may, within_s = asked.why == "leaving", LOOK_AGAIN_S
            if may and peer is None:
                await trio.sleep(LOOK_AGAIN_S)
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
                numerics=self._classes.get(blocks.start, ""),
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

    async def _read(self, number: int, link: _Link) -> None:
        """Open the link's stream, then hand in its answers until it ends."""
        with link.reading:
            try:
                await self._open(number, link)
                assert link.frames is not None
                while (received := await link.frames.receive()) is not None:
                    self._answer(number, link, *received)
                reason = "the stream was closed"
            except (TransportError, RemoteError) as error:
                reason = str(error)
            self._dispatch(Lost(number, reason))

    async def _open(self, number: int, link: _Link) -> None:
        plan, hop = self._plan, link.hop
        began_s = trio.current_time()
        stream = await self._host.open_stream(hop.peer, PROTOCOL)
        link.relayed = self._host.relay_of(hop.peer) is not None
        link.frames = FrameStream(stream)
        blocks = hop.blocks
        await link.frames.send(
            Open(self._name, plan.model, blocks.start, blocks.stop, plan.tokens, plan.dtype)
        )
        received = await link.frames.receive()
        match received:
            case OpenedMessage(lease_s, width, numerics), _ if width == plan.width:
                link.lease_s = max(lease_s, LEASE_LEAST_S)
                for block in range(hop.blocks.start, hop.blocks.stop):
                    if self._classes.setdefault(block, numerics) != numerics:
                        self.exact = False
            case Busy(reason, retry_after_s), _:
                self._busy(link, retry_after_s)
                raise TransportError(reason)
            case Fault(reason), _:
                raise RemoteError(f"refused to open: {reason}")
            case None:
                raise TransportError("closed on opening")
            case _:
                raise RemoteError("answered Open with something else")
        now = trio.current_time()
        history = self._router.history(hop.peer)
        history.rtt_s = min(now - began_s, history.rtt_s or 1e9)
        link.quiet_since_s = now
        self._timers[("renew", number)] = now + link.lease_s * RENEW_SHARE
        self._timer_set.set()
        self._nursery.start_soon(self._write, number, link)
        self._dispatch(Opened(number))

    def _answer(self, number: int, link: _Link, message: object, payload: memoryview) -> None:
        match message:
            case Output(at, tokens, rows):
                if rows:
                    unpack(payload, rows, self._plan.width, self._plan.dtype)  # finite, and whole
                if not link.sent_s:
                    raise RemoteError("an answer to nothing")
                sent_s, asked = link.sent_s.popleft()
                if tokens != asked:
                    raise RemoteError(f"an answer to {tokens} tokens, asked for {asked}")
                elapsed_s = trio.current_time() - sent_s
                self._dispatch(Answered(number, at, rows, payload))
                if number in self._links:  # or it was a wrong answer, which must not end a ban
                    history = self._router.history(link.hop.peer)
                    history.answered(elapsed_s, tokens, len(link.hop.blocks))
                    self._router.hedges.earn()
            case LeavingMessage():
                self._router.history(link.hop.peer).refused(trio.current_time(), LEFT_S)
                self._dispatch(Leaving(number))
            case Busy(reason, retry_after_s):
                self._busy(link, retry_after_s)
                raise TransportError(reason)
            case Fault(reason):
                raise RemoteError(f"the peer says: {reason}")
            case other:
                raise RemoteError(f"{type(other).__name__} from a server")

    def _busy(self, link: _Link, retry_after_s: float) -> None:
        link.blameless = True
        self._router.history(link.hop.peer).refused(trio.current_time(), retry_after_s)

    async def _write(self, number: int, link: _Link) -> None:
        """Send what the machine posts to this link, in order."""
        assert link.frames is not None
        with link.writing:
            try:
                while True:
                    while link.outbox:
                        item = link.outbox.popleft()
                        link.quiet_since_s = trio.current_time()
                        if isinstance(item, Renew):
                            await link.frames.send(item)
                            continue
                        link.sent_s.append((link.quiet_since_s, sum(item.sizes)))
                        step = Step(item.at, item.sizes, item.rows)
                        await link.frames.send(step, *item.payloads)
                    link.pending = trio.Event()
                    await link.pending.wait()
            except TransportError as error:
                self._dispatch(Lost(number, str(error)))

    async def _keep_time(self) -> None:
        while True:
            self._timer_set = trio.Event()
            self._next_timer_s = min(self._timers.values(), default=float("inf"))
            with trio.move_on_at(self._next_timer_s):
                await self._timer_set.wait()
            now = trio.current_time()
            for key in [key for key, at_s in self._timers.items() if at_s <= now]:
                del self._timers[key]
                match key:
                    case ("renew", int(number)):
                        self._renew(number, now)
                    case _:
                        self._dispatch(Fired(key))

    def _renew(self, number: int, now: float) -> None:
        link = self._links.get(number)
        if link is None:
            return
        every_s = link.lease_s * RENEW_SHARE
        if now >= link.quiet_since_s + every_s:  # the sum the timer was set by, to the last bit
            self._post(link, Renew())
            link.quiet_since_s = now
        self._timers[("renew", number)] = link.quiet_since_s + every_s


@asynccontextmanager
async def open_session(host: Host, router: Router, plan: SessionPlan) -> AsyncIterator[LiveSession]:
    """A session through the swarm. Leaving it, by whatever road, closes its streams."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        session = LiveSession(host, router, plan, nursery)
        session.start()
        try:
            yield session
        except Exception as error:  # the caller's own: the nursery would wrap it in a group
            failure = error
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await session.close()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
