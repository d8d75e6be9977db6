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

from ..errors import RemoteError, TransportError
from ..swarm.adapter import Bundle
from ..swarm.blocks import BlockRange
from ..swarm.history import PeerHistory
from ..swarm.ledger import Ledger, Work
from ..swarm.routing import Hop
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
    Lacking,
    Message,
    Open,
    Output,
    Receipts,
    Renew,
    Sign,
    Step,
    Truncate,
    protocol_of,
)
from ..swarm.wire import Leaving as LeavingMessage
from ..swarm.wire import Opened as OpenedMessage
from .adapters import bring
from .compute.tensor import unpack
from .frames import FrameStream
from .net.host import Host
from .router import Router

RENEW_SHARE: Final = 1 / 3  # of a lease, after which a silent link is renewed
EXAMINE_S: Final = 0.05  # guess: receipts wait so long for us to have nothing to do
LEASE_LEAST_S: Final = 3.0  # guess: whoever lends for less would have us do nothing but renew


class Link:
    """asked: what the server is opened with. width: of the model. tell: takes what happens.

    ledger: checks receipts, where they are asked for; works: takes what was signed for. worn: the
    adapter that is asked for, to be brought to a server that lacks it.
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
    ) -> None:
        self.number = number
        self.hop = hop
        self.numerics = ""  # the class that its server computes in, once it is opened
        self.relayed = False
        self.blameless = False  # its end is no fault of the peer's
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
        self._reading = trio.CancelScope()
        self._writing = trio.CancelScope()
        self._frames: FrameStream | None = None
        self._dropped = False
        self._unread = False  # receipts came that were not looked at
        self._sending = False
        self._outbox: deque[SendStep | AskSign] = deque()
        self._pending = trio.Event()
        self._sent_s: deque[tuple[float, int]] = deque()  # (when, tokens) of what is unanswered
        self._quiet_since_s = 0.0
        self._lease_s = 0.0
        self._span: BlockRange | None = None  # what its server's record told when it was opened
        self.begun_s = 0.0

    @property
    def flowing(self) -> bool:
        """True while an answer is waited for."""
        return bool(self._sent_s)

    @property
    def history(self) -> PeerHistory:
        return self._router.history(self.hop.peer)

    def post(self, what: SendStep | AskSign) -> None:
        """Have this sent behind what was posted before."""
        self._outbox.append(what)
        self._pending.set()

    def drop(self) -> None:
        """It is of no more use: nothing more is told of it, and its stream is reset."""
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
        for _, tokens in self._sent_s:
            self.history.ended(tokens, len(self.hop.blocks))
        self._sent_s.clear()

    async def _converse(self, nursery: trio.Nursery) -> str:
        """Why it has ended."""
        try:
            frames = await self._open()
            nursery.start_soon(self._write, frames)
            self._tell(Opened(self.number))
            while (received := await self._next(frames)) is not None:
                self._answer(*received)
        except (TransportError, RemoteError) as error:
            return str(error)
        return "the stream was closed"

    async def _next(self, frames: FrameStream) -> tuple[Message, memoryview] | None:
        if self._unread:
            with trio.move_on_after(EXAMINE_S):
                return await frames.receive()
            self.examine()
        return await frames.receive()

    async def _open(self) -> FrameStream:
        self.begun_s = began_s = trio.current_time()
        self._span = self._router.span(self._asked.model, self.hop.peer)
        self._router.opens(self.hop.peer)
        stream = await self._host.open_stream(self.hop.peer, protocol_of(self._asked))
        self._frames = frames = FrameStream(stream)
        self.relayed = self._host.relay_of(self.hop.peer) is not None
        await frames.send(self._asked)
        received = await frames.receive()
        if self._worn is not None and received is not None and isinstance(received[0], Lacking):
            await bring(frames, self._worn, self.hop.blocks)
            received = await frames.receive()
        match received:
            case OpenedMessage(lease_s, width, numerics, opening), _ if width == self._width:
                self._lease_s = max(lease_s, LEASE_LEAST_S)
                self.numerics = numerics
                if self._ledger is not None:
                    self._ledger.opened(self.number, self.hop, opening, numerics)
            case Busy(reason, retry_after_s), _:
                self._busy(retry_after_s)
                raise TransportError(reason)
            case Fault(reason), _:
                raise RemoteError(f"refused to open: {reason}")
            case None:
                raise TransportError("closed on opening")
            case _:
                raise RemoteError("answered Open with something else")
        self._quiet_since_s = trio.current_time()
        history = self.history
        history.rtt_s = min(self._quiet_since_s - began_s, history.rtt_s or 1e9)
        return frames

    def _answer(self, message: object, payload: memoryview) -> None:
        match message:
            case Output():
                self._output(message, payload)
            case Receipts(chunks):
                self._receipts(chunks)
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

    def _output(self, told: Output, payload: memoryview) -> None:
        if told.rows:
            unpack(payload, told.rows, self._width, self._asked.dtype)  # finite, and whole
        if not self._sent_s:
            raise RemoteError("an answer to nothing")
        sent_s, tokens = self._sent_s.popleft()
        peer, blocks = self.hop.peer, len(self.hop.blocks)
        self.history.ended(tokens, blocks)
        if told.tokens != tokens:
            raise RemoteError(f"an answer to {told.tokens} tokens, asked for {tokens}")
        elapsed_s = trio.current_time() - sent_s
        self._router.took(peer, tokens, work_of(tokens, blocks, self._width))
        self._tell(Answered(self.number, told.at, told.rows, payload))
        if not self._dropped:  # or it was a wrong answer, which must not end a ban
            self._router.answered(peer, elapsed_s, tokens, blocks, queue_s=told.queue_s)

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
            while self._outbox:
                step = self._outbox.popleft()
                if isinstance(step, AskSign):
                    if step.back is not None:
                        await self._send(frames, Truncate(step.back))
                    await self._send(frames, Sign())
                    continue
                tokens = sum(step.sizes)
                self._sent_s.append((trio.current_time(), tokens))
                self.history.sent(tokens, len(self.hop.blocks))
                behind: Message | None = None
                if self._outbox and self._outbox[0] == AskSign(self.number):
                    self._outbox.popleft()
                    behind = Sign()
                asked = Step(step.at, step.sizes, step.rows)
                await self._send(frames, asked, *step.payloads, behind=behind)
                self.examine()
            self._pending = trio.Event()
            with trio.move_on_at(self._quiet_since_s + self._lease_s * RENEW_SHARE) as quiet:
                await self._pending.wait()
            if quiet.cancelled_caught:
                await self._send(frames, Renew())

    async def _send(
        self,
        frames: FrameStream,
        message: Message,
        *payloads: Payload,
        behind: Message | None = None,
    ) -> None:
        self._quiet_since_s = trio.current_time()
        self._sending = True
        if behind is None:
            await frames.send(message, *payloads)
        else:
            await frames.send_both(message, *payloads, behind=behind)
        self._sending = False
