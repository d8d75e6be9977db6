"""Answering other directories: whoever asks has two streams and a rate, and cannot keep others out.

A silent stream costs a task, never a turn (py-libp2p's own directory server stops for everybody at
twelve silent streams of one peer). Every stream is a loop of its own: read a question, wait for the
peer's allowance, answer.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from ..errors import TransportError
from .allowance import Allowances
from .calls import IDLE_S, Stream
from .message import (
    ANSWER_BYTES_MAX,
    REQUEST_BYTES_MAX,
    Answer,
    Fetch,
    FrameReader,
    Hello,
    Put,
    Reply,
    Request,
    read_request,
    to_frame,
)

PART_S: Final = 10.0  # for a question that has begun to end, and for an answer to be taken
STREAMS_PER_PEER: Final = 2  # one, and one to replace it before it is known to be dead
STREAMS_MAX: Final = 1024
RATE_S: Final = 50.0  # questions a second of one peer; keeping two records among 64 peers needs 3
BURST: Final = 200.0  # joining: some look-ups at once
PUT_RECORDS_FREE: Final = 8  # checking a signature costs 140 us: so many of them are one question


@dataclass(slots=True)
class _Open:
    peer: str
    scope: trio.CancelScope


class Answers:
    """The handler of the directory's protocol. `answer` says what to answer; it never waits."""

    def __init__(
        self, hello: Callable[[], Hello], answer: Callable[[str, Request], Answer | None]
    ) -> None:
        self._hello = hello
        self._answer = answer
        self._open: OrderedDict[int, _Open] = OrderedDict()  # the longest silent first
        self._allowances = Allowances(RATE_S, BURST)
        self._closed = False

    async def serve(self, stream: Stream) -> None:
        """One stream, to its end. Raises RemoteError at nonsense, TransportError when it breaks."""
        if self._closed:
            raise TransportError("the directory is closed")
        opened = _Open(stream.peer, trio.CancelScope())
        self._make_room(stream.peer)
        self._open[id(opened)] = opened
        try:
            with opened.scope:
                await self._talk(stream, id(opened))
        finally:
            del self._open[id(opened)]
        if opened.scope.cancelled_caught:
            await stream.reset()
        else:
            await stream.close()

    def close(self) -> None:
        """End every stream, and take no more."""
        self._closed = True
        for opened in self._open.values():
            opened.scope.cancel()

    async def _talk(self, stream: Stream, name: int) -> None:
        frames = FrameReader(REQUEST_BYTES_MAX)
        while True:
            piece: bytes | bytearray | memoryview = b""
            with trio.move_on_after(PART_S if frames.holds_part else 2 * IDLE_S):
                piece = await stream.receive()
            if not piece:
                return
            self._open.move_to_end(name)
            frames.feed(piece)
            replies: list[bytes] = []  # to all questions that came together, in one flush
            while (raw := frames.next()) is not None:
                request = read_request(raw)
                now = trio.current_time()
                wait_s = self._allowances.of(stream.peer, now).take(now, _cost(request))
                if wait_s or sum(map(len, replies)) > ANSWER_BYTES_MAX:
                    await self._send(stream, replies)
                    replies.clear()
                    await trio.sleep(wait_s)
                answer = self._answer(stream.peer, request)
                reply: Reply | None = self._hello() if isinstance(request, Hello) else answer
                if reply is not None:
                    replies.append(to_frame(reply))
            await self._send(stream, replies)

    async def _send(self, stream: Stream, replies: list[bytes]) -> None:
        if not replies:
            return
        with trio.move_on_after(PART_S):
            await stream.send(*replies)
            return
        raise TransportError(f"{stream.peer} did not take its answer within {PART_S:.0f} s")

    def _make_room(self, peer: str) -> None:
        theirs = [opened for opened in self._open.values() if opened.peer == peer]
        if len(theirs) >= STREAMS_PER_PEER:
            theirs[0].scope.cancel()
        if len(self._open) >= STREAMS_MAX:
            next(iter(self._open.values())).scope.cancel()


def _cost(request: Request) -> float:
    """In questions: what it makes us do."""
    match request:
        case Put():
            return max(1.0, len(request.records) / PUT_RECORDS_FREE)
        case Fetch():
            return max(1.0, len(request.places) / PUT_RECORDS_FREE)
    return 1.0
