"""Asking other directories: one long-lived stream to each peer that we ask.

Opening a stream costs milliseconds, so each is kept while there is something to ask and closed
after a minute of silence. Many questions are in flight on one, told apart by number; each has a
deadline.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, Protocol

import trio

from ..errors import RemoteError, TransportError
from .message import (
    ANSWER_BYTES_MAX,
    PROTOCOL,
    Answer,
    FrameReader,
    Hello,
    Question,
    read_reply,
    to_frame,
)
from .network import Prefixes

OPEN_S: Final = 5.0  # a dial across the world, tried at several addresses
ASK_S: Final = 3.0  # the deadline of a question
IDLE_S: Final = 60.0  # then the opener closes; the other side waits twice as long
LINKS_MAX: Final = 256  # streams that we keep open; the longest unused is closed first
QUEUE: Final = 64  # questions to one peer, not yet sent


class Stream(Protocol):
    """What a directory needs of a stream; node/net/stream.py."""

    peer: str

    async def send(self, *parts: bytes | bytearray | memoryview) -> None: ...
    async def receive(self, max_bytes: int = 65536) -> bytes | bytearray | memoryview: ...
    async def close(self) -> None: ...
    async def reset(self) -> None: ...


class Host(Protocol):
    """What a directory needs of a host; node/net/host.py."""

    peer_id: str

    def addresses(self) -> tuple[str, ...]: ...
    async def connect(self, addresses: Sequence[str]) -> str: ...
    async def open_stream(self, peer: str, protocol: str) -> Stream: ...
    def learn(self, peer: str, addresses: Sequence[str]) -> None: ...
    def where(self, peer: str) -> Prefixes: ...
    def handle(self, protocol: str, handler: Callable[[Stream], Awaitable[None]]) -> None: ...


Met = Callable[[str, Hello], None]


@dataclass(slots=True)
class _Waiting:
    answered: trio.Event
    answer: Answer | None = None  # None: the stream ended first


class _Link:
    """Our stream to one peer: one task writes questions, one reads answers."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.waiting: dict[int, _Waiting] = {}
        self.used = False  # whether it ever answered
        self.ended: TransportError | RemoteError | None = None
        self.scope = trio.CancelScope()
        self._numbers = count(1)
        self._questions: tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes]] = (
            trio.open_memory_channel(QUEUE)
        )

    async def ask(self, question: Question) -> Answer:
        """Raises TransportError or RemoteError, whichever the stream ended with."""
        number, waiting = next(self._numbers), _Waiting(trio.Event())
        try:
            self._questions[0].send_nowait(to_frame(replace(question, id=number)))
        except trio.WouldBlock:
            raise TransportError(f"{self.peer} takes no more questions") from None
        self.waiting[number] = waiting
        self.scope.deadline = trio.current_time() + IDLE_S
        try:
            await waiting.answered.wait()
        finally:
            self.waiting.pop(number, None)
        if waiting.answer is not None:
            return waiting.answer
        assert self.ended is not None
        raise type(self.ended)(str(self.ended))

    async def run(self, host: Host, hello: Callable[[], Hello], met: Met) -> None:
        """Until the stream ends, idles or errs; then everybody who waits is told."""
        self.scope.deadline = trio.current_time() + IDLE_S
        self.ended = None
        stream: Stream | None = None
        ended: TransportError | RemoteError = TransportError(f"{self.peer} ended the stream")
        try:
            with self.scope:
                with trio.move_on_after(OPEN_S):
                    stream = await host.open_stream(self.peer, PROTOCOL)
                if stream is None:
                    raise TransportError(f"{self.peer} cannot be reached within {OPEN_S:.0f} s")
                async with trio.open_nursery() as writing:
                    writing.start_soon(self._write, stream, hello)
                    ended = await self._read(stream, met) or ended
                    writing.cancel_scope.cancel()
        except TransportError as error:
            ended = error
        finally:
            self.ended = ended
            for waiting in self.waiting.values():
                waiting.answered.set()
            if stream is not None:
                with trio.move_on_after(1.0) as scope:
                    scope.shield = True
                    await stream.reset()  # every answer that anybody waited for has been read

    async def _write(self, stream: Stream, hello: Callable[[], Hello]) -> None:
        said: Hello | None = None
        async for frame in self._questions[1]:
            frames = [frame]
            now = hello()
            if now != said:
                frames.insert(0, to_frame(now))
                said = now
            with suppress(trio.WouldBlock):
                while True:  # all that waits goes in one flush
                    frames.append(self._questions[1].receive_nowait())
            try:
                await stream.send(*frames)
            except TransportError:
                self.scope.cancel()  # the reader may not have noticed yet
                return

    async def _read(self, stream: Stream, met: Met) -> TransportError | RemoteError | None:
        """Hand out answers until the end. Returns what went wrong, or None."""
        frames = FrameReader(ANSWER_BYTES_MAX)
        try:
            while piece := await stream.receive():
                frames.feed(piece)
                while (raw := frames.next()) is not None:
                    reply = read_reply(raw)
                    if isinstance(reply, Hello):
                        met(self.peer, reply)
                        continue
                    waiting = self.waiting.pop(reply.id, None)
                    if waiting is not None:  # else its deadline has passed
                        self.used = True
                        waiting.answer = reply
                        waiting.answered.set()
        except (TransportError, RemoteError) as error:
            return error
        return None


class Calls:
    """Asks peers. Streams live in `nursery`; what one peer does wrong ends its own stream only."""

    def __init__(
        self, host: Host, nursery: trio.Nursery, hello: Callable[[], Hello], met: Met
    ) -> None:
        self._host = host
        self._nursery = nursery
        self._hello = hello
        self._met = met
        self._links: OrderedDict[str, _Link] = OrderedDict()
        self._closed = False

    def close(self) -> None:
        """From here on nobody new is asked: the nursery ends before some who look things up."""
        self._closed = True

    async def ask(self, peer: str, question: Question, *, deadline_s: float = ASK_S) -> Answer:
        """The peer's answer. TransportError when none comes in time, RemoteError at nonsense."""
        with trio.move_on_after(deadline_s):
            link = self._link(peer)
            kept = link.used
            try:
                return await link.ask(question)
            except TransportError:
                if not kept or link.ended is None:
                    raise
            return await self._link(peer).ask(question)  # it was an old stream, perhaps reaped
        raise TransportError(f"{peer} gave no answer within {deadline_s:.1f} s")

    def linked(self, peer: str) -> bool:
        """Whether a stream to this peer has carried an answer already."""
        link = self._links.get(peer)
        return link is not None and link.used and link.ended is None

    def _link(self, peer: str) -> _Link:
        link = self._links.get(peer)
        if link is None or link.ended is not None:
            if self._closed:
                raise TransportError("the directory is closed")
            link = self._links[peer] = _Link(peer)
            self._nursery.start_soon(self._run, link)
        self._links.move_to_end(peer)
        if len(self._links) > LINKS_MAX:
            idle = (other for other in self._links.values() if not other.waiting)
            oldest = next(idle, None)
            if oldest is not None and oldest is not link:
                oldest.scope.cancel()
        return link

    async def _run(self, link: _Link) -> None:
        try:
            await link.run(self._host, self._hello, self._met)
        finally:
            if self._links.get(link.peer) is link:
                del self._links[link.peer]
