"""One stream of a multiplexed connection: who may send how much, and who waits for what.

    send ──▶ outbox (the caller's own buffers) ──▶ frames, as window and turn allow
    frames ──▶ inbox (at most the window that we granted) ──▶ receive

A small send on an idle connection goes straight into the socket, without a task switch; everything
else waits its turn in `Mux`. A window doubles when half of it is read within one round trip of the
path: only then is it the window that holds the peer back. go-yamux doubles within four, which on a
short path fills buffers and delays small messages for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from ...errors import LocalError, RemoteError, TransportError
from .mux_frame import ACK, DATA, FIN, FIRST_WINDOW_BYTES, HEADER_BYTES, RST, SYN, WINDOW, header
from .mux_inbox import Bytes, Inbox
from .mux_outbox import Outbox
from .negotiate import Answer

if TYPE_CHECKING:
    from .mux import Mux

LAZY_UNREAD_BYTES = 16 * 1024  # beyond it, a new stream's window is not left to the answer
DISCARDED_BYTES_MAX = 64 * 1024  # after our close: an answer to a negotiation passes, bulk does not


class MuxStream:
    """A two-way byte stream; see `stream.Stream` for what its methods promise."""

    def __init__(self, mux: Mux, stream_id: int, *, inbound: bool) -> None:
        self.peer = mux.peer
        self.stream_id = stream_id
        self.inbound = inbound
        self.mux = mux
        self.failure: Exception | None = None
        self.queued = False  # stands in one of the connection's queues
        self.closed = False  # forgotten by its owner
        self.acked = inbound
        self.announced = inbound  # the peer has heard of it, or will with the next flush
        self.answer: Answer | None = None  # the peer's yes to our protocol, not yet seen
        self.preface = b""  # goes out before anything else
        self.linger_ticks = 0
        self.window = FIRST_WINDOW_BYTES  # bytes that the peer lets us send
        self._finished = False  # FIN sent, or to be sent after what is pending
        self._fin_wanted = False
        self._remote_done = False
        self._outbox = Outbox()
        self._inbox = Inbox()
        self.size = FIRST_WINDOW_BYTES  # the window we keep granting
        self._granted = FIRST_WINDOW_BYTES  # bytes that the peer may still send
        self._consumed = 0  # bytes read since the last grant
        self._granted_at = 0.0
        self._discarded = 0
        self._receiver: trio.lowlevel.Task | None = None
        self._over: trio.Event | None = None  # set by `fail`, if anybody waits for that
        self._lost = False  # bytes came that nobody will read: the end of them would be a lie

    @property
    def unread(self) -> int:
        """Bytes that have come and are not read."""
        return self._inbox.size

    @property
    def pending(self) -> int:
        """Bytes that wait for their turn, or for leave to be sent."""
        return self._outbox.size

    @property
    def is_open(self) -> bool:
        """Whether its connection knows it. An id may be the peer's next stream's by now."""
        return self.mux.streams.get(self.stream_id) is self

    # ---- the owner's side

    async def send(self, *parts: Bytes) -> None:
        """Send all parts in one run. Raises TransportError.

        Cancelled before the first byte has left, nothing is sent; later, the stream is reset.
        """
        if self._finished:
            raise self._broken("send on")
        if not self.announced:
            await self._announce()
        if self.failure or self._finished:
            raise self._broken("send on")
        size = len(self.preface)
        for part in parts:
            size += len(part) if type(part) is bytes else memoryview(part).nbytes
        mux = self.mux
        if size <= self.window and not self.pending and mux.takes_now(HEADER_BYTES + size):
            if self.preface:
                parts = (self.preface, *parts)
                self.preface = b""
            if not size:
                mux.flush()
                return
            self.window -= size
            mux.transmit(header(DATA, 0, self.stream_id, size), parts)
            if self.failure:
                raise self._broken("send on")
            return
        size -= len(self.preface)
        self._propose()
        await self._send_in_turn(parts, size)

    def offer(self, data: bytes) -> None:
        """Queue bytes without waiting; only on an announced stream, with nothing `pending`."""
        self._enqueue((data,), len(data))
        self.mux.flush()

    async def drained(self) -> None:
        """Wait until all that was offered has left. Raises TransportError."""
        if self.pending and self.failure is None:
            await self._outbox.left(self._outbox.last)
        if self.failure is not None:
            raise self._broken("send on")

    async def broken(self) -> None:
        """Wait until it was reset, or its connection is over, though bytes may be left to read."""
        if self.failure is None:
            if self._over is None:
                self._over = trio.Event()
            await self._over.wait()

    async def receive(self, max_bytes: int = 65536) -> Bytes:
        """Return 1 to `max_bytes` bytes, b"" at the end. Raises TransportError.

        Not a checkpoint when bytes are there already.
        """
        if self.answer is not None:
            await self._settle()
        inbox = self._inbox
        while not inbox.size:
            if not await self._wait():
                return b""
        piece = inbox.take(max_bytes)
        self._consume(len(piece))
        return piece

    async def finish(self) -> None:
        """End writing; reading goes on. Never raises or waits."""
        self.finish_now()

    async def close(self) -> None:
        """End writing and forget the stream. Never raises or waits; may be called twice."""
        self.close_now()

    async def reset(self) -> None:
        """Drop the stream both ways. Never raises or waits; may be called twice."""
        self.reset_now("reset here")

    def finish_now(self) -> None:
        if self._finished or self.failure:
            return
        self._finished = True
        if self.announced:  # else the peer hears of its beginning and end with the first receive
            self._say_end()

    def close_now(self) -> None:
        if self.closed:
            return
        self.finish_now()
        self.closed = True
        self._drop_incoming()
        self._wake_receiver()
        if not self.announced:
            self.mux.forget(self)
        elif self.is_open:
            self.mux.lingering.add(self)  # until the peer ends its side too

    def reset_now(self, why: str) -> None:
        self.closed = True
        self._drop_incoming()
        if self.failure is None:
            if self.announced and self.is_open:
                self.mux.control(WINDOW, RST, self.stream_id, 0)
            self.fail(TransportError(f"stream with {self.peer}: {why}"))
            self.mux.flush()

    def push_back(self, rest: Bytes) -> None:
        """Give back bytes that were received but not meant for the receiver."""
        self._inbox.put_back(rest)
        self._count(len(rest))
        self._consumed -= len(rest)

    # ---- the connection's side

    def arrive(self, payload: memoryview) -> None:
        """Take bytes from the peer. Raises RemoteError when it had no leave to send them."""
        size = len(payload)
        self._granted -= size
        if self._granted < 0 or self._remote_done:
            raise RemoteError(f"{self.peer} sent more than the window of stream {self.stream_id}")
        if self.closed:
            self._discarded += size
            if self._discarded > DISCARDED_BYTES_MAX:
                self.reset_now("the peer went on after our close")
            return
        self._inbox.put(payload)
        self._wake_receiver()
        self._count(size)
        if self.mux.has_lazy and self._inbox.size > LAZY_UNREAD_BYTES:
            self.mux.flush_lazy()  # a sender of much needs the window that came with our yes

    def acknowledge(self) -> None:
        if not self.acked:
            self.acked = True
            self.mux.acknowledged()

    def grow(self, more: int) -> None:
        """The peer lets us send `more` bytes."""
        self.window += more
        if self.pending:
            self.mux.enqueue(self)

    def end(self) -> None:
        """The peer has finished writing."""
        self._remote_done = True
        self._wake_receiver()
        self._leave_if_done()

    def fail(self, failure: Exception) -> None:
        """The stream is dead; what has arrived can still be read."""
        self.failure = failure
        self.mux.forget(self)
        self._wake_receiver()
        if self._over is not None:
            self._over.set()
        self._outbox.clear()

    def put_frame(self, parts: list[Bytes], room: int) -> int:
        """Append one data frame of at most `room` payload bytes; return the bytes appended."""
        pending = self._outbox.size
        size = min(room, pending, self.window)
        self.window -= size
        flags = FIN if self._fin_wanted and size == pending else 0
        parts.append(header(DATA, flags, self.stream_id, size))
        self._outbox.take(parts, size)
        if flags:
            self._leave_if_done()
        return HEADER_BYTES + size

    def acceptance(self) -> bytes:
        """The frame that tells the peer that we take its stream, and how much it may send."""
        return self._opening(ACK)

    # ---- inside

    def _opening(self, flag: int) -> bytes:
        more = self.mux.first_window() - FIRST_WINDOW_BYTES
        self.size += more
        self.mux.grant(more)
        self._granted += more
        return header(WINDOW, flag, self.stream_id, more)

    async def _announce(self) -> None:
        await self.mux.room_for_one_more()
        if self.announced or self.failure or self.closed:
            self.mux.pass_room_on()
        else:
            self.announced = True
            self.mux.announce(self._opening(SYN))

    def _propose(self) -> None:
        """Queue the preface; nobody waits for it, and nobody takes it back."""
        if self.preface:
            self._enqueue((self.preface,), len(self.preface))
            self.preface = b""

    def _say_end(self) -> None:
        self._propose()
        if self.pending:
            self._fin_wanted = True
        else:
            self.mux.control(DATA, FIN, self.stream_id, 0)
        self.mux.flush()
        self._leave_if_done()

    async def _send_in_turn(self, parts: tuple[Bytes, ...], size: int) -> None:
        ticket = self._enqueue(parts, size)
        self.mux.flush()

        def withdraw() -> None:
            if not self._outbox.withdraw(ticket, size):
                self.reset_now("a send was cancelled half way")

        if not self._outbox.has_left(ticket) and not self.failure:
            await self._outbox.left(ticket, cancelled=withdraw)
        if self.failure and not self._outbox.has_left(ticket):
            raise self._broken("send on")

    def _enqueue(self, parts: tuple[Bytes, ...], size: int) -> int:
        ticket = self._outbox.put(parts, size)
        if self.window:
            self.mux.enqueue(self)
        return ticket

    async def _settle(self) -> None:
        """Wait for the peer's answer to our protocol. Raises TransportError, RemoteError."""
        answer = self.answer
        while answer is not None and not answer.agreed:
            while not self._inbox.size:
                if not await self._wait():
                    raise TransportError(f"{self.peer} closed the stream without an answer")
            piece = self._inbox.take(answer.missing)
            self._consume(len(piece))
            try:
                answer.feed(piece)
            except (RemoteError, TransportError) as error:
                self.reset_now(str(error))
                raise
        self.answer = None

    async def _wait(self) -> bool:
        """Wait until bytes are there; False at the end. Raises TransportError."""
        if self._remote_done and not self._lost:
            return False
        if self.failure or self.closed:
            raise self._broken("receive from")
        if not self.announced:
            await self._announce()
            if self._finished:
                self._say_end()
            return True
        if self.preface:
            self._propose()
            self.mux.flush()
        elif self.mux.has_lazy:
            self.mux.flush_lazy()
        if self._receiver is not None:
            raise LocalError("two tasks receive from one stream")
        self._receiver = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort_receive)
        return True

    def _abort_receive(self, _: Any) -> trio.lowlevel.Abort:
        self._receiver = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake_receiver(self) -> None:
        task = self._receiver
        if task is not None:
            self._receiver = None
            trio.lowlevel.reschedule(task)

    def _consume(self, size: int) -> None:
        """Bytes have been read: let the peer send more once half a window is."""
        self._count(-size)
        self._consumed += size
        if 2 * self._consumed < self.size or self._remote_done or self.failure:
            return
        now = trio.current_time()
        more = self._consumed
        if self.mux.holds_back(self.size, now - self._granted_at):
            more += self.size
            self.mux.grant(self.size)
            self.size *= 2
        self._granted_at = now
        self._consumed = 0
        self._granted += more
        self.mux.control(WINDOW, 0, self.stream_id, more)
        self.mux.flush()

    def _drop_incoming(self) -> None:
        if size := self._inbox.clear():
            self._lost = True
            self._count(-size)

    def _count(self, size: int) -> None:
        """Unread bytes have come or, below zero, gone."""
        if not self._inbox.size:
            self.mux.left_unread.discard(self)
        elif not self.is_open:
            self.mux.left_unread.add(self)
        self.mux.unread.add(self.mux, size)

    def _leave_if_done(self) -> None:
        if self._finished and self._remote_done and not self.pending:
            self.mux.forget(self)

    def _broken(self, doing: str) -> TransportError:
        why = self.failure or "it is closed"
        return TransportError(f"cannot {doing} a stream with {self.peer}: {why}")
