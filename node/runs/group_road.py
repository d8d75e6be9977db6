"""The streams between members of a group: letters to each peer in order, every part by itself.

    say ──▶ a queue for each peer ──▶ one stream, kept open ──▶ hear
    carry ──▶ a stream for each part ──▶ is it awaited? ──▶ came

A part that comes before the plan that it belongs to waits unread, on its sender's side of the
window. What a peer can make us do is bounded: streams and letters of each, the bytes of what is
awaited, once, within a time for its size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

import trio

from ...dht.allowance import Intake
from ...errors import Refused, RemoteError, TransportError
from ...swarm.run.group_wire import (
    LETTER_BYTES_MAX,
    Ask,
    Given,
    Message,
    Part,
    pack,
    unpack,
)
from ..letters import LENGTH_BYTES, receive_letter, receive_up_to, send_letter
from ..log import get_logger
from ..net.identify import Claims
from ..net.stream import Stream

log = get_logger()

OUTBOX_MAX: Final = 64  # letters to a peer; an attempt is less than ten
STREAMS_MAX: Final = 16  # of a peer, at once: letters, a question, two parts to an attempt
LETTERS: Final = (20.0, 200.0)  # of a peer, a second and at once
LETTERS_OF_ALL: Final = (200.0, 2000.0)
SAY_S: Final = 10.0  # a dial across the world, and a letter
IDLE_S: Final = 900.0  # guess: without a letter, after which its stream is closed
QUIET_S: Final = 2 * IDLE_S  # for which a stream is read on which nothing comes
EARLY_S: Final = 10.0  # for which a part waits for its plan
BYTES_S: Final = 64 * 1024  # half a Mbit/s: whoever is slower is not waited for
CHUNK_BYTES: Final = 256 * 1024


def seconds_for(size: int) -> float:
    """To carry so many bytes, at most."""
    return SAY_S + size / BYTES_S


class Opens(Protocol):
    """What is needed of node.net.host.Host."""

    peer_id: str

    def handle(self, protocol: str, handler: Callable[[Stream], Awaitable[None]]) -> None: ...
    def unhandle(self, protocol: str) -> None: ...
    async def dial_known(self, peer: str) -> None: ...
    async def identified(self, peer: str) -> None: ...
    def claims(self, peer: str) -> Claims | None: ...
    async def open_stream(self, peer: str, protocol: str) -> Stream: ...


class Hears(Protocol):
    """Who is told of what comes."""

    changed: trio.Event  # replaced, and set, whenever anything has happened

    def heard(self, peer: str, message: Message) -> None:
        """Raises RemoteError."""

    def awaits(self, peer: str, part: Part) -> int | None:
        """How many bytes; None if not now. Raises RemoteError."""

    def came(self, peer: str, part: Part, data: bytes) -> None:
        """Raises RemoteError."""

    def lost(self, peer: str) -> None: ...

    async def given(self, peer: str, ask: Ask) -> tuple[Given, bytes] | None:
        """The state that is asked for; None if it is not ours."""


class Roads:
    """Of one run. The nursery outlives it no more than the streams do."""

    def __init__(self, host: Opens, protocol: str, hears: Hears, nursery: trio.Nursery) -> None:
        self._host = host
        self._protocol = protocol
        self._hears = hears
        self._nursery = nursery
        self._outboxes: dict[str, trio.MemorySendChannel[Message]] = {}
        self._streams: Counter[str] = Counter()
        self._reading: set[tuple[str, Part]] = set()
        self._carrying: set[trio.CancelScope] = set()
        self._serving: set[trio.CancelScope] = set()
        self._closed = False
        self._intake = Intake(LETTERS, LETTERS_OF_ALL)
        self.sent_bytes = 0
        self.received_bytes = 0

    # ---- out

    def say(self, peer: str, message: Message) -> None:
        """Without waiting. The peer counts as lost where it cannot be said."""
        outbox = self._outboxes.get(peer)
        if outbox is None:
            outbox, letters = trio.open_memory_channel[Message](OUTBOX_MAX)
            self._outboxes[peer] = outbox
            self._nursery.start_soon(self._speak, peer, letters)
        try:
            outbox.send_nowait(message)
        except trio.WouldBlock:
            self._hears.lost(peer)

    async def _speak(self, peer: str, letters: trio.MemoryReceiveChannel[Message]) -> None:
        """Until there was nothing to say for long."""
        while True:
            message = await _next(letters)
            if message is None:
                if letters.statistics().current_buffer_used:
                    continue  # it came in the moment in which we stopped waiting
                break
            try:
                await self._speak_on(peer, message, letters)
            except TransportError as error:
                log.debug("cannot speak", to=peer, reason=str(error))
                with suppress(trio.WouldBlock):
                    while True:
                        letters.receive_nowait()  # of no use any more, each with a dial of its own
                self._hears.lost(peer)
        del self._outboxes[peer]

    async def _speak_on(
        self, peer: str, first: Message, letters: trio.MemoryReceiveChannel[Message]
    ) -> None:
        """On one stream, while there is something to say. Raises TransportError."""
        stream = await self.open_stream(peer, self._protocol)
        message: Message | None = first
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_broken, stream, nursery.cancel_scope)
                while message is not None and await self._say_on(stream, message):
                    message = await _next(letters)
                nursery.cancel_scope.cancel()
        except* TransportError:
            pass  # it broke while we spoke: said below, as when it broke between
        finally:
            with trio.CancelScope(shield=True):
                await (stream.close() if message is None else stream.reset())
        if message is not None:
            raise TransportError(f"the stream to {peer} broke, or takes nothing")

    async def _say_on(self, stream: Stream, message: Message) -> bool:
        """Whether it was said in time. Raises TransportError."""
        raw = pack(message)
        with trio.move_on_after(SAY_S):
            await send_letter(stream, raw)
            self.sent_bytes += LENGTH_BYTES + len(raw)
            return True
        return False

    def carry(self, peer: str, part: Part, data: bytes) -> None:
        """A part, on a stream of its own. Whoever lacks it says so: nothing comes of a failure."""
        scope = trio.CancelScope()
        self._carrying.add(scope)
        self._nursery.start_soon(self._carry, peer, part, data, scope)

    def drop(self) -> None:
        """Carry nothing more of what is on its way."""
        for scope in self._carrying:
            scope.cancel()

    async def _carry(self, peer: str, part: Part, data: bytes, scope: trio.CancelScope) -> None:
        try:
            with scope, trio.move_on_after(seconds_for(len(data))):
                stream = await self.open_stream(peer, self._protocol)
                done = False
                try:
                    await self._pour(stream, pack(part), data)
                    done = True
                finally:
                    with trio.CancelScope(shield=True):
                        await (stream.close() if done else stream.reset())
        except TransportError as error:
            log.debug("a part was not taken", by=peer, reason=str(error))
        finally:
            self._carrying.discard(scope)

    async def _pour(self, stream: Stream, head: bytes, data: bytes) -> None:
        """A letter, and what comes behind it. Raises TransportError."""
        await send_letter(stream, head)
        self.sent_bytes += LENGTH_BYTES + len(head)
        view = memoryview(data)
        for at in range(0, len(view), CHUNK_BYTES):
            chunk = view[at : at + CHUNK_BYTES]
            await stream.send(chunk)
            self.sent_bytes += len(chunk)

    async def ask(self, peer: str, ask: Ask, size: int) -> tuple[Given, bytes]:
        """A state of so many bytes. Raises RemoteError, TransportError."""
        with trio.move_on_after(seconds_for(size)):
            stream = await self.open_stream(peer, self._protocol)
            try:
                await send_letter(stream, pack(ask))
                raw = await receive_letter(stream, LETTER_BYTES_MAX)
                if raw is None:
                    raise TransportError(f"{peer} does not have that state")
                given = unpack(raw)
                if not isinstance(given, Given) or given.size != size:
                    raise RemoteError(f"no state of {size} bytes for an answer")
                data = await receive_up_to(stream, size)
                self.received_bytes += len(raw) + len(data)
                if len(data) < size:
                    raise TransportError(f"{peer} left in the middle of a state")
                return given, data
            finally:
                with trio.CancelScope(shield=True):
                    await stream.reset()
        raise TransportError(f"{peer} took too long to send a state")

    async def open_stream(self, peer: str, protocol: str) -> Stream:
        """To propose what it does not speak would look like a fault. Raises TransportError."""
        with trio.move_on_after(SAY_S):
            await self._host.dial_known(peer)
            await self._host.identified(peer)
            claims = self._host.claims(peer)
            if claims is None or protocol not in claims.protocols:
                raise TransportError(f"{peer} does not take part")
            return await self._host.open_stream(peer, protocol)
        raise TransportError(f"{peer} cannot be reached in {SAY_S:.0f} s")

    # ---- in

    async def serve(self, stream: Stream) -> None:
        """The handler. Raises RemoteError, TransportError, Refused."""
        peer = stream.peer
        if self._closed:
            raise TransportError("it takes part no more")
        if self._streams[peer] >= STREAMS_MAX:
            raise Refused("more streams than a member needs", retry_after_s=EARLY_S)
        scope = trio.CancelScope()
        self._streams[peer] += 1
        self._serving.add(scope)
        try:
            with scope:
                await self._serve(stream)
        finally:
            self._serving.discard(scope)
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]
        await (stream.reset() if scope.cancelled_caught else stream.close())

    def close(self) -> None:
        """Serve nothing any more. Handlers run in tasks of the host, and would outlive us."""
        self._closed = True
        for scope in self._serving:
            scope.cancel()

    async def _serve(self, stream: Stream) -> None:
        while (message := await self._letter(stream)) is not None:
            match message:
                case Part():
                    await self._take(stream, message)
                    break
                case Ask():
                    await self._give(stream, message)
                    break
                case Given():
                    raise RemoteError("an answer to nothing")
                case _:
                    self._hears.heard(stream.peer, message)

    async def _letter(self, stream: Stream) -> Message | Part | Ask | Given | None:
        with trio.move_on_after(QUIET_S):
            raw = await receive_letter(stream, LETTER_BYTES_MAX)
            if raw is None:
                return None
            if not self._intake.takes(stream.peer, trio.current_time()):
                raise RemoteError("more letters than a member needs")
            self.received_bytes += LENGTH_BYTES + len(raw)
            return unpack(raw)
        return None

    async def _take(self, stream: Stream, part: Part) -> None:
        size = await self._awaited(stream.peer, part)
        key = (stream.peer, part)
        if size is None or key in self._reading:
            return  # of an attempt that is over, or the same again
        self._reading.add(key)
        try:
            with trio.move_on_after(seconds_for(size)) as slow:
                data = await receive_up_to(stream, size)
            if slow.cancelled_caught or len(data) < size:
                raise TransportError("a part that does not come")
            self.received_bytes += size
        finally:
            self._reading.discard(key)
        self._hears.came(stream.peer, part, data)

    async def _awaited(self, peer: str, part: Part) -> int | None:
        with trio.move_on_after(EARLY_S):
            while (size := self._hears.awaits(peer, part)) is None:
                await self._hears.changed.wait()
            return size
        return None

    async def _give(self, stream: Stream, ask: Ask) -> None:
        found = await self._hears.given(stream.peer, ask)
        if found is None:
            return
        given, data = found
        with trio.move_on_after(seconds_for(len(data))) as slow:
            await self._pour(stream, pack(given), data)
        if slow.cancelled_caught:
            raise TransportError("a state that is not taken")


async def _next(letters: trio.MemoryReceiveChannel[Message]) -> Message | None:
    """None when there is none for long."""
    with trio.move_on_after(IDLE_S):
        return await letters.receive()
    return None


async def _until_broken(stream: Stream, scope: trio.CancelScope) -> None:
    await stream.broken()
    scope.cancel()
