"""One hop of a live session: its stream, from `Open` to its end.

One task opens and reads, another writes. What happens is told to the session, as events of its
machine (swarm/session.py), by a call that never waits. However the reading task ends, the stream
ends with it, so that no server keeps a cache for nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from ..errors import RemoteError, TransportError, Unspoken
from ..swarm.adapter import Bundle
from ..swarm.blocks import BlockRange
from ..swarm.chain import Carry
from ..swarm.history import PeerHistory
from ..swarm.ledger import Ledger, Work
from ..swarm.routing import Hop
from ..swarm.rows import is_coded, row_bytes
from ..swarm.session_events import (
    Answered,
    AskSign,
    Event,
    Leaving,
    Lost,
    Opened,
    Payload,
    SendStep,
    Signed,
)
from ..swarm.tally import work_of
from ..swarm.wire import (
    Busy,
    Fault,
    Held,
    Message,
    Onward,
    Open,
    Output,
    Receipts,
    Renew,
    Sign,
    Taken,
    Truncate,
    protocol_of,
)
from ..swarm.wire import Leaving as LeavingMessage
from .compute.tensor import unpack
from .frames import FrameStream
from .net.host import Host
from .opened import hear_opened
from .recalls import Halves, Part, Prompts, plain, without
from .router import Router

RENEW_SHARE: Final = 1 / 3  # of a lease, after which a silent link is renewed
EXAMINE_S: Final = 0.05  # guess: receipts wait so long for us to have nothing to do
LEASE_LEAST_S: Final = 3.0  # guess: whoever lends for less would have us do nothing but renew


class Link:
    """asked: what the server is opened with. width: of the model. tell: takes what happens.

    ledger: checks receipts, where they are asked for; works: takes what was signed for. worn: the
    adapter that is asked for, to be brought to a server that lacks it. prompts: what the session
    begins with, where that is remembered. through: takes what the server says, before `answer`
    does (chaining.py). early: steps may go right behind `Open`, before it is answered, where the
    server's record tells its class; not with a ledger, an adapter or prompts.
    """

    def __init__(
        self,
        number: int,
        hop: Hop,
        asked: Open,
        width: int,
        *,
        host: Host,
        router: Router,
        tell: Callable[[Event], None],
        ledger: Ledger | None = None,
        works: Callable[[Work], None] = lambda work: None,
        worn: Bundle | None = None,
        prompts: Prompts | None = None,
        through: Callable[[Link, Message, memoryview], None] | None = None,
        early: bool = False,
    ) -> None:
        self.number = number
        self.hop = hop
        self.numerics = ""  # the class that its server computes in, once it is opened
        self.relayed = False
        self.blameless = False  # its end is no fault of the peer's
        self.unspoken = False  # it does not know how these rows lie on the wire
        self.moving = False  # it is left for the direct way to the same peer
        self.false = ""  # what is wrong with its receipts
        self._asked = asked
        self._width = width
        self._host = host
        self._router = router
        self._tell = tell
        self._ledger = ledger
        self._works = works
        self._worn = worn
        self._through = through
        self._early = early
        self._reading = trio.CancelScope()
        self._writing = trio.CancelScope()
        self._frames: FrameStream | None = None
        self._dropped = False
        self._unread = False  # receipts came that were not looked at
        self._sending = False
        self._outbox: deque[Carry | Message] = deque()
        self._pending = trio.Event()
        # of what is unanswered: when it was sent, what, and whether nothing was before it
        self._sent_s: deque[tuple[float, Part, bool]] = deque()
        self._halves = Halves()
        self._quiet_since_s = 0.0
        self._lease_s = LEASE_LEAST_S
        self._recalls = None if prompts is None else prompts.at(hop, lambda: self._pending.set())
        if self._recalls is not None:
            self._asked = self._recalls.opening(asked)
        self._span: BlockRange | None = None  # what its server's record told when it was opened
        self.begun_s = 0.0

    @property
    def flowing(self) -> bool:
        """True while an answer is waited for."""
        return bool(self._sent_s)

    @property
    def history(self) -> PeerHistory:
        return self._router.history(self.hop.peer)

    def post(self, what: Carry | Message) -> None:
        """Have this sent behind what was posted before."""
        self._outbox.append(what)
        self._pending.set()

    def awaits(self, step: SendStep) -> None:
        """The hop before sends this step: only its answer is waited for."""
        self._sent(plain(step), alone=False)

    def fail(self, reason: str) -> None:
        """What its server said is not right."""
        self._tell(Lost(self.number, reason))

    def drop(self) -> None:
        """Nothing more is told of it, and its stream is reset."""
        self._dropped = True
        self._writing.cancel()
        self._reading.cancel()

    async def run(self, nursery: trio.Nursery) -> None:
        """Open the stream, then hand in its answers until it ends. Cancelled, it closes it."""
        with self._reading:
            lost: Lost | None = None
            try:
                lost = Lost(self.number, await self._converse(nursery))
            finally:
                self._writing.cancel()
                self._give_up()
                if self._frames is not None:  # what is half sent, or broken, is not closed in order
                    broken = self._dropped or self._sending or self.false or lost is not None
                    await (self._frames.reset() if broken else self._frames.close())
            self._tell(lost)
        if self.false and not self._dropped:
            self._tell(Lost(self.number, self.false))

    def _give_up(self) -> None:
        """Nobody waits for what is unanswered any more."""
        for _, part, _ in self._sent_s:
            self.history.ended(part.tokens, len(self.hop.blocks))
        self._sent_s.clear()

    async def _converse(self, nursery: trio.Nursery) -> str:
        """Why it has ended."""
        try:
            early = self._told()
            frames = await (self._ask() if early else self._open())
            self.numerics = early or self.numerics
            nursery.start_soon(self._write, frames)
            self._tell(Opened(self.number))
            if early:
                await self._answered(frames)
                if self.numerics != early:
                    self.blameless = self.history.misled = True
                    return "it computes in another class than its record tells"
            while (received := await self._next(frames)) is not None:
                if self._through is None:
                    self.answer(*received)
                else:
                    self._through(self, *received)
        except (TransportError, RemoteError) as error:
            if isinstance(error, Unspoken) and is_coded(self._asked.dtype):
                self.unspoken = self.blameless = True
            return str(error)
        return "the stream was closed"

    def _told(self) -> str:
        """The class that its record tells, where steps may go before its own word; or empty."""
        told = self._router.told(self._asked.model, self.hop.peer) if self._early else None
        return "" if told is None or self.history.misled else told.numerics

    async def _next(self, frames: FrameStream) -> tuple[Message, memoryview] | None:
        if self._unread:
            with trio.move_on_after(EXAMINE_S):
                return await frames.receive()
            self.examine()
        return await frames.receive()

    async def _open(self) -> FrameStream:
        while True:
            try:
                frames = await self._ask()
                await self._answered(frames)
                return frames
            except Unspoken:
                if self._recalls is None:
                    raise
                self._recalls.mute()
                self._recalls, self._asked = None, without(self._asked)

    async def _ask(self) -> FrameStream:
        self.begun_s = self._quiet_since_s = trio.current_time()
        self._span = self._router.span(self._asked.model, self.hop.peer)
        self._router.opens(self.hop.peer)
        stream = await self._host.open_stream(self.hop.peer, protocol_of(self._asked))
        self._frames = frames = FrameStream(stream)
        self.relayed = self._host.relay_of(self.hop.peer) is not None
        ask = None if self._recalls is None else self._recalls.ask()
        await frames.send_both(self._asked, behind=ask)
        return frames

    async def _answered(self, frames: FrameStream) -> None:
        opened = await hear_opened(frames, self._width, self.hop.blocks, self._worn)
        if isinstance(opened, Busy):
            self._busy(opened.retry_after_s)
            raise TransportError(opened.reason)
        self._lease_s = max(opened.lease_s, LEASE_LEAST_S)
        self.numerics = opened.numerics
        if self._ledger is not None:
            self._ledger.opened(self.number, self.hop, opened.opening, opened.numerics)
        self._quiet_since_s = trio.current_time()
        history = self.history
        history.rtt_s = min(self._quiet_since_s - self.begun_s, history.rtt_s or 1e9)

    def answer(self, message: object, payload: Payload) -> None:
        """Take what the server says. Raises RemoteError, TransportError."""
        match message:
            case Output():
                self._output(message, payload)
            case Receipts(chunks):
                self._receipts(chunks)
            case Held() if self._recalls is not None:
                self._recalls.held(message)
            case LeavingMessage():
                self._router.left(self._asked.model, self.hop.peer, self._span)
                self._tell(Leaving(self.number))
            case Busy(reason, retry_after_s):
                self._busy(retry_after_s)
                raise TransportError(reason)
            case Fault(reason):
                raise RemoteError(f"the peer says: {reason}")
            case other:
                raise RemoteError(f"{type(other).__name__} from a server")

    def _output(self, told: Output, payload: Payload) -> None:
        if not self._sent_s:
            raise RemoteError("an answer to nothing")
        sent_s, part, alone = self._sent_s[0]
        if part.recalled is not None and self._recalls is not None:
            payload = memoryview(self._recalls.rows(part.recalled, payload))
        if told.rows:
            unpack(payload, told.rows, self._width, self._asked.dtype)  # finite, and whole
        self._sent_s.popleft()
        peer, blocks, tokens = self.hop.peer, len(self.hop.blocks), part.tokens
        self.history.ended(tokens, blocks)
        if told.tokens != tokens:
            raise RemoteError(f"an answer to {told.tokens} tokens, asked for {tokens}")
        elapsed_s = trio.current_time() - sent_s
        if isinstance(told, Taken):  # since the hop before answered; as if we had sent it
            elapsed_s = max(elapsed_s, told.compute_s + told.queue_s) + (self.history.rtt_s or 0.0)
        if part.recalled is None:
            self._router.took(peer, tokens, work_of(tokens, blocks, self._width))
        if (whole := self._halves.join(told, payload, last=part.last)) is not None:
            self._tell(Answered(self.number, *whole))
        if part.recalled is not None:
            return  # it tells nothing of how fast the peer computes
        if not self._dropped:  # or it was a wrong answer, which must not end a ban
            self._router.answered(peer, elapsed_s, tokens, blocks, queue_s=told.queue_s)
            self.history.served(min(told.compute_s, elapsed_s), tokens, blocks)
            if alone:
                size = row_bytes(self._width, self._asked.dtype) * (tokens + told.rows)
                self.history.carried(size, elapsed_s - told.compute_s - told.queue_s)

    def _receipts(self, chunks: tuple[bytes, ...]) -> None:
        if self._ledger is None:
            raise RemoteError("receipts that nobody asked for")
        if self._dropped:  # this was read with what came before: the ledger knows the link no more
            return
        self._ledger.come(self.number, chunks)
        self._unread = True
        self._tell(Signed(self.number))

    def examine(self) -> None:
        """Look at the receipts that have come; who signs what is not so is left. When its server
        has work, that is, and we have none: to check a signature takes a tenth of a token's time.
        """
        if not self._unread or self._ledger is None or self._dropped:
            return
        self._unread = False
        try:
            works = self._ledger.examine(self.number)
        except RemoteError as error:
            self.false = str(error)
            self._reading.cancel()
            return
        for work in works:
            self._works(work)

    def _busy(self, retry_after_s: float) -> None:
        self.blameless = True
        self.history.refused(trio.current_time(), retry_after_s)

    async def _write(self, frames: FrameStream) -> None:
        try:
            with self._writing:
                await self._send_posted(frames)
        except TransportError as error:
            if not self._writing.cancel_called:  # else it is we who ended the stream
                self._tell(Lost(self.number, str(error)))
        finally:
            if self._writing.cancel_called:  # begun after the end, it has sent a step for nobody
                self._give_up()

    async def _send_posted(self, frames: FrameStream) -> None:
        """Send what is posted, in order; when nothing was for long, renew the lease."""
        while True:
            if self._recalls is not None and (ask := self._recalls.ask()) is not None:
                await self._send(frames, ask)
            while self._outbox:
                posted = self._outbox.popleft()
                if isinstance(posted, Carry):
                    await self._carry(frames, posted)
                else:
                    await self._send(frames, posted)
            if self._recalls is not None and self._recalls.due:
                continue  # it became so while something was sent
            self._pending = trio.Event()
            with trio.move_on_at(self._quiet_since_s + self._lease_s * RENEW_SHARE) as quiet:
                await self._pending.wait()
            if quiet.cancelled_caught:
                await self._send(frames, Renew())

    async def _carry(self, frames: FrameStream, posted: Carry) -> None:
        what, road = posted.what, posted.road
        if isinstance(what, AskSign):
            backs = [at for at in (what.back, posted.back) if at is not None]
            if backs:
                await self._send(frames, Truncate(min(backs)))
            await self._send(frames, Sign())
            return
        parts = [plain(what)] if self._recalls is None else await self._recalls.take(what)
        behind: Message | None = None
        if self._outbox and self._outbox[0] == Carry(AskSign(self.number)):
            self._outbox.popleft()
            behind = Sign()
        for part in parts:
            if not posted.again:
                self._sent(part, alone=not self._sent_s)
            asked: Message = part.message
            if road is not None:  # of a session that recalls nothing: it is the whole step
                asked = Onward(
                    what.at, what.sizes, road.rows,
                    number=road.number, epoch=road.epoch, hops=road.hops,
                )  # fmt: skip
            sign = behind if part.last else None
            await self._send(frames, asked, *part.payloads, behind=sign)
        self.examine()

    def _sent(self, part: Part, *, alone: bool) -> None:
        """Its answer is waited for from now on. alone: it goes over our road, and nothing else."""
        self._sent_s.append((trio.current_time(), part, alone))
        self.history.sent(part.tokens, len(self.hop.blocks))

    async def _send(
        self,
        frames: FrameStream,
        message: Message,
        *payloads: Payload,
        behind: Message | None = None,
    ) -> None:
        self._quiet_since_s = trio.current_time()
        self._sending = True
        await frames.send_both(message, *payloads, behind=behind)
        self._sending = False
