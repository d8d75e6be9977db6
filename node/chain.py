"""A server's ends of chains: what it pushes on to the next hop, and what it is pushed.

The client of a session names who stands before and behind (swarm/ticket.py). Whoever is to follow
dials; the other has consented to that, and takes nobody else. Pushes go one way on that stream.

    session of the leader                               session of the follower
      its output ─▶ Leading ─ queue ─▶ stream ─▶ Seat ─ queue ─▶ what it computes

Neither end is trusted. The leader (leading.py) queues no more than a session's own length, or
QUEUE_MAX steps, for a follower that does not read or has not come yet. The follower checks rows
before they are queued, reads no further while as many wait, and computes what is in the epoch that
its client told of. What is wrong with a push
is the pusher's fault and ends the chain, never the session: the client is told (`Apart`), and goes
on by star.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from ..errors import RemoteError, TransportError
from ..swarm.ticket import (
    Ticket,
    check_seal,
    is_sealed,
    name_of,
    read_consent,
    read_ticket,
    seal_of,
    sign_consent,
)
from ..swarm.wire import (
    CHAIN_PROTOCOL,
    EARLY_CHAIN_PROTOCOL,
    Apart,
    Fault,
    Fence,
    Fenced,
    Follow,
    Following,
    Join,
    Joined,
    Lead,
    Led,
    Message,
    Onward,
    Open,
    Output,
    Push,
    Step,
    Taken,
)
from .frames import FrameStream
from .leading import JOIN_S, QUEUE_MAX, TICKETS_MAX, Chains, Leading


class Seat:
    """One session's place in a chain. tell: sends its client a message, whole."""

    def __init__(
        self,
        chains: Chains,
        client: str,
        asked: Open,
        width: int,
        bytes_max: int,
        tell: Callable[[Message], Awaitable[None]],
    ) -> None:
        self._chains = chains
        self._client = client
        self._asked = asked
        self._width = width
        self._bytes_max = bytes_max
        self._tell = tell
        self._epoch = 0
        self._tickets: set[bytes] = set()
        self._leading: Leading | None = None
        self._following = trio.CancelScope()
        self._queue: deque[tuple[Push, memoryview]] = deque()
        self._room = trio.Event()
        self._listening = trio.CancelScope()

    # ---- what its client says

    async def hear(self, told: Lead | Follow | Fence) -> None:
        """Raises RemoteError for a forged ticket, or one that was shown before."""
        match told:
            case Lead(raw):
                await self._lead(raw)
            case Follow(raw, consent, epoch):
                self._epoch = max(self._epoch, epoch)
                await self._follow(raw, consent)
            case Fence(epoch, apart):
                self._epoch = max(self._epoch, epoch)
                self._queue.clear()
                self._room.set()
                if apart:
                    self._following.cancel()
                await self._tell(Fenced(epoch))

    def _read(self, raw: bytes) -> Ticket:
        name = name_of(raw)
        if name in self._tickets or len(self._tickets) >= TICKETS_MAX:
            raise RemoteError("a ticket that was shown before, or too many of them")
        self._tickets.add(name)
        return read_ticket(raw, self._client, self._asked.session)

    def _stale(self, ticket: Ticket) -> str:
        """Why it is of no use; a clock that is wrong is nobody's fault."""
        return ticket.stale(self._chains.wall())

    async def _lead(self, raw: bytes) -> None:
        ticket, me = self._read(raw), self._chains.host.peer_id
        if (ticket.leader, ticket.block) != (me, self._asked.stop) or ticket.follower == me:
            raise RemoteError("a ticket for another server")
        if why := self._stale(ticket):
            await self._tell(Apart(True, why))
            return
        self._end_leading()

        async def ended(why: str) -> None:
            await self._tell(Apart(True, why[:250]))

        self._leading = Leading(name_of(raw), ticket.follower, self._bytes_max, ended)
        self._chains.awaits(self._leading)
        self._chains.host.nursery.start_soon(self._leading.expire, self._chains)
        addresses = self._chains.host.addresses()
        await self._tell(Led(sign_consent(self._chains.key, raw, addresses)))

    async def _follow(self, raw: bytes, consent: bytes) -> None:
        ticket, me = self._read(raw), self._chains.host.peer_id
        if (ticket.follower, ticket.block) != (me, self._asked.start) or ticket.leader == me:
            raise RemoteError("a ticket for another server")
        host = self._chains.host
        addresses = read_consent(consent, raw, ticket.leader) if consent else ()
        why = self._stale(ticket)
        if not consent and ticket.leader not in host.connected():
            why = "not connected to it: it has to consent to being dialed"
        if why:
            await self._tell(Apart(False, why))
            return
        self._following.cancel()
        self._following = scope = trio.CancelScope()
        if addresses:
            host.learn(ticket.leader, addresses)
        protocol = CHAIN_PROTOCOL if consent else EARLY_CHAIN_PROTOCOL
        host.nursery.start_soon(self._take_from, scope, ticket.leader, raw, protocol)

    # ---- pushed by whoever is before

    async def receive(self, frames: FrameStream) -> tuple[Message, memoryview] | None:
        """The next step that was pushed, or what the client sends next."""
        while not self._queue:
            with trio.CancelScope() as self._listening:
                return await frames.receive()
        self._room.set()
        return self._queue.popleft()

    @property
    def pushed(self) -> bool:
        """Whether more steps wait that were pushed."""
        return bool(self._queue)

    async def refuse(self, why: str) -> None:
        """What was pushed is of no use: take no more of it."""
        self._queue.clear()
        self._room.set()
        self._following.cancel()
        await self._tell(Apart(False, why[:250]))

    async def _take_from(
        self, scope: trio.CancelScope, leader: str, raw: bytes, protocol: str
    ) -> None:
        """Dial the leader and take what it pushes, until either has enough of it."""
        why, host = "the leader closed the stream", self._chains.host
        frames: FrameStream | None = None
        with scope:
            try:
                with trio.fail_after(JOIN_S):
                    stream = await host.open_stream(leader, protocol)
                    frames = FrameStream(stream, payload_bytes_max=0)
                    await frames.send(Join(raw))
                    received = await frames.receive()
                match received:
                    case (Joined(), _):
                        frames.allow(self._bytes_max)
                        await self._tell(Following())
                        await self._read_pushes(frames)
                    case (Fault(reason), _):
                        why = reason
                    case None:
                        raise TransportError("the leader closed the stream on joining")
                    case _:
                        raise RemoteError("answered Join with something else")
            except RemoteError as error:
                host.blame(leader, error)
                why = str(error)
            except TransportError as error:
                why = str(error)
            except trio.TooSlowError:
                why = f"no word of the leader in {JOIN_S:.0f} s"
        with trio.CancelScope(shield=True):
            if frames is not None:
                await frames.reset()
        if not scope.cancel_called:
            with suppress(TransportError):
                await self._tell(Apart(False, why[:250]))

    async def _read_pushes(self, frames: FrameStream) -> None:
        """Raises RemoteError for whatever an honest leader would not push."""
        while (received := await frames.receive()) is not None:
            push, payload = received
            if not isinstance(push, Push):
                raise RemoteError(f"{type(push).__name__} in a chain")
            self._check(push, payload, frames.peer)
            while push.epoch >= self._epoch and self._full(payload):
                self._room = trio.Event()
                await self._room.wait()
            if push.epoch >= self._epoch:
                self._queue.append((push, payload))
                self._listening.cancel()

    def _full(self, payload: memoryview) -> bool:
        held = sum(len(one) for _, one in self._queue)
        return len(self._queue) >= QUEUE_MAX or (
            bool(self._queue) and held + len(payload) > self._bytes_max
        )

    def _check(self, push: Push, payload: memoryview, leader: str) -> None:
        from .compute.tensor import unpack  # an entry point has no torch, and no seat

        if len(push.sizes) != 1 or push.sizes[0] < 1 or push.rows > push.sizes[0]:
            raise RemoteError(f"a push of sizes {push.sizes} that wants {push.rows} rows")
        unpack(payload, push.sizes[0], self._width, self._asked.dtype)  # finite, and whole
        if self._asked.receipts:
            sealed = check_seal(push.seal, leader, self._asked.session, push.number, push.at)
            if not is_sealed(payload, sealed):
                raise RemoteError("a push of other rows than its seal is on")

    # ---- pushed on

    def push(self, step: Onward, rows: memoryview) -> bool:
        """Have what came out go on; whether there is who takes it."""
        if self._leading is None:
            return False
        seal = b""
        if self._asked.receipts:
            key, session = self._chains.key, self._asked.session
            seal = seal_of(key, session, step.number, step.at, rows)
        push = Push(
            step.at, step.sizes, step.rows,
            number=step.number, epoch=step.epoch, hops=step.hops - 1, seal=seal,
        )  # fmt: skip
        return self._leading.push(push, rows)

    def _end_leading(self) -> None:
        if self._leading is not None:
            self._chains.forget(self._leading)
            self._leading.end()
            self._leading = None

    def end(self) -> None:
        """The session is over."""
        self._end_leading()
        self._following.cancel()


def answer_to(step: Step, output: Output) -> Output:
    """The answer, which says so if the step was pushed."""
    if not isinstance(step, Push):
        return output
    return Taken(
        output.at, output.tokens, output.rows, output.compute_s, output.queue_s, output.waiting,
        number=step.number, seal=step.seal,
    )  # fmt: skip
