"""Many streams over one connection: yamux, wire-compatible with libp2p, event-driven.

    sender ── transmit, or queue ──▶ flush ──▶ noise ──▶ socket       flush never waits
    socket ──▶ noise ──▶ frames ──▶ streams; what must be answered goes to `control`

py-libp2p's own (M1 to M3 of the audit) dead-locks because its reader waits for the socket to take
an answer while the other end's reader does the same. Here nobody waits to write but one task, the
pump, and it only while the socket is full; so both ends go on reading, always.

Control frames go first, then data in turn (mux_turns.py).
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ...errors import RemoteError, TransportError
from .guard import Unread
from .mux_config import MuxConfig
from .mux_frame import (
    ACK,
    FIN,
    FIRST_WINDOW_BYTES,
    GO_AWAY,
    GOOD_BYE,
    PING,
    PROTOCOL_FAULT,
    RST,
    SYN,
    WINDOW,
    Frame,
    FrameReader,
    header,
)
from .mux_inbox import Bytes
from .mux_stream import MuxStream
from .mux_turns import Turns
from .noise import BATCH_MESSAGES_MAX, PLAINTEXT_BYTES_MAX, Link

PROTOCOL = "/yamux/1.0.0"
LAZY_BYTES_MAX = 8 * 1024
FLUSH_BATCHES_MAX = 2  # half a MiB, about 1 ms, before other tasks get a turn


class Mux:
    """One connection's streams. `run` must be running; `failure` is set once it is over."""

    def __init__(
        self,
        link: Link,
        *,
        dialer: bool,
        config: MuxConfig,
        unread: Unread,
        accept: Callable[[MuxStream], None],
        rtt_s: float,
        early: bytes = b"",
    ) -> None:
        self.peer = link.peer
        self.dialer = dialer
        self.unread = unread
        unread.watch(self)
        self.unread_bytes = 0  # kept by `unread`
        self.rtt_s = rtt_s  # the shortest seen
        self.streams: dict[int, MuxStream] = {}
        self.left_unread: set[MuxStream] = set()  # over, but not read to their end
        self.lingering: set[MuxStream] = set()
        self.failure: Exception | None = None
        self.leaving = False  # the peer takes no more streams
        self.has_lazy = False
        self.payloads = 0  # frames of data that came, by which one sees whether it is used
        self._config = config
        self._link = link
        self._accept = accept
        self._early = early
        self._frames = FrameReader()
        self._next_id = 1 if dialer else 2
        self._control = bytearray()  # frames that go first
        self._lazy = bytearray()  # frames that go along with the next flush
        self._turns = Turns()
        self._fresh: list[MuxStream] = []
        self._unacked = 0
        self._inbound = 0
        self._granted_bytes = 0  # the sum of all windows that we keep granting
        self._acked = trio.lowlevel.ParkingLot()
        self._pump_idle = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self.silent_ticks = 0  # whole ones since the last sign of life, or more
        # Who listens asks a tick later, so that on a quiet connection one asks and not both.
        self._ping_ticks = config.ping_after_ticks + (0 if dialer else 1)
        self._ping_sent_at: float | None = None
        self._pings = 0

    # ---- for the host

    async def run(self) -> None:
        """Serve the connection until it ends, for whatever reason: see `failure`."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump)
                    await self._read()
        finally:
            self.fail(TransportError("connection closed here"))

    def open(self) -> MuxStream:
        """A new stream; the peer hears of it with the first bytes. Raises TransportError."""
        if self.failure or self.leaving or self._next_id >= 1 << 32:
            raise TransportError(f"the connection to {self.peer} is closing: {self.failure}")
        self._next_id += 2
        return self._add(MuxStream(self, self._next_id - 2, inbound=False))

    def close(self) -> None:
        """Say good-bye as far as that goes without waiting, and end."""
        if self.failure is None:
            self.control(GO_AWAY, 0, 0, GOOD_BYE)
            self.flush()
        self.fail(TransportError("connection closed here"))

    def fail(self, failure: Exception) -> None:
        """End the connection and all its streams."""
        if self.failure is not None:
            return
        self.failure = failure
        self._link.close()
        for stream in list(self.streams.values()):
            stream.fail(failure)
        self.lingering.clear()
        self.left_unread.clear()
        self._acked.unpark_all()
        self.unread.forget(self)
        self._scope.cancel()

    def tick(self) -> None:
        """Once a second: is the peer alive, and are closed streams over?

        Counted in ticks, not by the clock: after a second in which this process stood still, the
        peer's bytes may be here, only not read yet.
        """
        self.silent_ticks += 1
        if self.silent_ticks > self._config.dead_after_ticks:
            self.fail(TransportError(f"no sign of life for {self._config.dead_after_ticks} s"))
            return
        if self.silent_ticks == self._ping_ticks:
            self._ask_for_life()
        for stream in list(self.lingering) if self.lingering else ():
            stream.linger_ticks += 1
            if stream.linger_ticks > self._config.linger_ticks:
                stream.reset_now("the peer did not end it after our close")
        if self.leaving and not self.streams:
            self.close()
        if self._control or self._lazy or self._turns:  # seldom; a host has many connections
            self.flush_lazy()

    def doubt(self) -> None:
        """The peer may have lost this connection: it has to give a sign of life soon."""
        if self.failure is None:
            at_least = self._config.dead_after_ticks - self._config.doubted_ticks
            self.silent_ticks = max(self.silent_ticks, at_least)
            self._ask_for_life()
            self.flush()

    # ---- for its streams

    def takes_now(self, size: int) -> bool:
        """Whether a frame of this size, header included, can go straight out."""
        return (
            not self._link.blocked
            and not self._turns
            and size + len(self._control) + len(self._lazy) <= PLAINTEXT_BYTES_MAX
        )

    def transmit(self, head: bytes, parts: tuple[Bytes, ...]) -> None:
        """Send one frame at once, with what was to go before it; only if `takes_now`."""
        if self._control or self._lazy:
            head = b"".join((self._control, self._lazy, head))
            self._control.clear()
            self._lazy.clear()
            self.has_lazy = False
        self._push([b"".join((head, *parts))])

    def control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """Queue a frame that goes before all data. A peer that makes too many is cut off."""
        if self.failure is None:
            self._control += header(kind, flags, stream_id, value)
            self._bound_control()

    def announce(self, opening: bytes) -> None:
        """Queue a new stream's first frame, to leave with its first bytes."""
        self._unacked += 1
        self._control += opening

    def enqueue(self, stream: MuxStream) -> None:
        """Give a stream with something to send its place in a queue."""
        if self.failure is None:
            self._turns.add(stream)

    def flush(self) -> None:
        """Send what the socket takes now; the pump sends the rest. Never waits."""
        for _ in range(FLUSH_BATCHES_MAX):
            if self._link.blocked or self.failure or not self._has_more():
                break
            messages: list[bytes] = []
            while len(messages) < BATCH_MESSAGES_MAX and self._has_more():
                messages.append(self._next_message())
            self._push(messages)
        if self._pump_idle and (self._link.blocked or self._has_more()):
            self._pump_idle.unpark()

    def flush_lazy(self) -> None:
        if self._lazy:
            self._control += self._lazy
            self._lazy.clear()
            self._bound_control()
        self.has_lazy = False
        self.flush()

    def first_window(self) -> int:
        """The window for a new stream: more where the way is long, less when many streams hold much
        already."""
        wanted = self._config.first_window(self._link.path_rtt_s() or self.rtt_s)
        return wanted if self._may_grant(wanted) else FIRST_WINDOW_BYTES

    def holds_back(self, size: int, elapsed_s: float) -> bool:
        """Whether a window, half of which was read in so short a time, should be doubled."""
        return (
            2 * size <= self._config.largest_window_bytes
            and self._may_grant(size)
            and elapsed_s < (self._link.path_rtt_s() or self.rtt_s)
        )

    def grant(self, more: int) -> None:
        """Note that a stream's window has grown."""
        self._granted_bytes += more

    async def room_for_one_more(self) -> None:
        """Wait while too many of our streams are not acknowledged."""
        while self._unacked >= self._config.unacked_streams_max and self.failure is None:
            await self._acked.park()

    def acknowledged(self) -> None:
        self._unacked -= 1
        self.pass_room_on()

    def pass_room_on(self) -> None:
        """There is room for one more, and whoever was woken for it may not need it any more."""
        self._acked.unpark()

    def forget(self, stream: MuxStream) -> None:
        if stream.is_open:
            del self.streams[stream.stream_id]
            if stream.unread:
                self.left_unread.add(stream)
            self.lingering.discard(stream)
            self._granted_bytes -= stream.size
            self._inbound -= stream.inbound
            if stream.announced and not stream.acked:
                stream.acknowledge()

    # ---- inside

    def _ask_for_life(self) -> None:
        self._ping_sent_at = trio.current_time()
        self._pings += 1
        self.control(PING, SYN, 0, self._pings & 0xFFFFFFFF)

    def _add(self, stream: MuxStream) -> MuxStream:
        self.streams[stream.stream_id] = stream
        self._granted_bytes += stream.size
        self._inbound += stream.inbound
        return stream

    def _may_grant(self, more: int) -> bool:
        return self._granted_bytes + more <= self._config.granted_bytes_max

    def _bound_control(self) -> None:
        if len(self._control) > self._config.control_bytes_max:
            self.fail(RemoteError(f"{self.peer} asks for more answers than it reads"))

    def _has_more(self) -> bool:
        return bool(self._control or self._turns)

    def _next_message(self) -> bytes:
        """One noise message: control frames, then as many data frames as have room."""
        parts: list[Bytes] = []
        room = PLAINTEXT_BYTES_MAX
        if self._control:
            parts.append(bytes(self._control + self._lazy))
            room -= len(self._control) + len(self._lazy)
            self._control.clear()
            self._lazy.clear()
            self.has_lazy = False
        self._turns.fill(parts, room)
        return b"".join(parts)

    def _push(self, messages: list[bytes]) -> None:
        try:
            self._link.push(messages)
        except TransportError as error:
            self.fail(error)
        if self._link.blocked:
            self._pump_idle.unpark()

    async def _pump(self) -> None:
        """Wait for room in the socket, on behalf of everybody."""
        while True:
            if self._link.blocked:
                try:
                    await self._link.resume()
                except TransportError as error:
                    self.fail(error)
                    return
            elif self._has_more():
                await trio.lowlevel.checkpoint()
            else:
                await self._pump_idle.park()
            self.flush()

    async def _read(self) -> None:
        try:
            if self._early:
                self._take([self._early])
            while self.failure is None:
                self._take(await self._link.receive())
        except RemoteError as error:
            if not self._link.blocked:
                self._control += header(GO_AWAY, 0, 0, PROTOCOL_FAULT)
                self.flush()
            self.fail(error)
        except TransportError as error:
            self.fail(error)

    def _take(self, pieces: list[bytes]) -> None:
        self.silent_ticks = 0
        for piece in pieces:
            for frame in self._frames.feed(piece):
                self._handle(frame)
                if self.failure is not None:
                    return
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            for stream in fresh:
                if stream.failure is None:
                    self._accept(stream)
                else:
                    stream.close_now()  # reset in the same breath: nobody will read it
        if self._has_more():
            self.flush()

    def _handle(self, frame: Frame) -> None:
        kind, flags = frame.kind, frame.flags
        if kind == PING:
            self._on_ping(frame)
            return
        if kind == GO_AWAY:
            if frame.value != GOOD_BYE:
                raise TransportError(f"{self.peer} went away: code {frame.value}")
            self.leaving = True
            return
        if flags & SYN:
            self._on_syn(frame.stream_id)
        stream = self.streams.get(frame.stream_id)
        if stream is None:
            return  # we ended it a moment ago; the peer had not heard
        if flags & ACK:
            stream.acknowledge()
        if kind == WINDOW:
            if frame.value:
                stream.grow(frame.value)
        elif frame.payload is not None:
            self.payloads += 1
            stream.arrive(frame.payload)
        if flags & FIN:
            stream.end()
        if flags & RST:
            stream.fail(TransportError(f"{self.peer} reset the stream"))

    def _on_syn(self, stream_id: int) -> None:
        theirs = 0 if self.dialer else 1
        if stream_id == 0 or stream_id % 2 != theirs or stream_id in self.streams:
            raise RemoteError(f"{self.peer} opens stream {stream_id}, which it may not")
        if self._inbound >= self._config.inbound_streams_max or self.leaving:
            self.control(WINDOW, RST, stream_id, 0)
            return
        stream = self._add(MuxStream(self, stream_id, inbound=True))
        self._fresh.append(stream)
        self._lazy += stream.acceptance()
        self.has_lazy = True
        if len(self._lazy) > LAZY_BYTES_MAX:
            self.flush_lazy()

    def _on_ping(self, frame: Frame) -> None:
        if frame.flags & SYN:
            self.control(PING, ACK, 0, frame.value)
        elif self._ping_sent_at is not None and frame.value == self._pings & 0xFFFFFFFF:
            self.rtt_s = min(self.rtt_s, trio.current_time() - self._ping_sent_at)
            self._ping_sent_at = None
