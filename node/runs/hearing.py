"""Two logs of a run by scalars, made equal: what each lacks of the other's goes over one stream.

    asker                              other
    Sync ────────────────────────────▶           how far we know whom, on `/potluck/scalars/1`
            ◀──────────────── Pages, Sync        what you lack; and how far we know whom
    Pages ───────────────────────────▶           what you lack

Each is a letter. One talk at a time carries as much as letters hold; what is left comes with the
next (Demers et al., 1987: push and pull).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import trio

from ...crypto.codec import decode_any, encode
from ...errors import Refused, RemoteError, TransportError
from ...swarm.run.scalars import LETTER_BYTES_MAX, PROTOCOL, Log, Merged, Pages, Sync
from ...swarm.run.seeds import Change
from ..chunks.deadline import within
from ..chunks.fetch import Host
from ..letters import receive_letter, send_letter
from ..net.stream import Stream

TALK_S: Final = 15.0  # guess: a dial across the world, and three letters of 64 KB
TALKS_MAX: Final = 16  # guess: that others began, at a time
TALKS_OF_EACH: Final = 2  # one that ends while the next begins: nobody takes all places

Message = TypeVar("Message", Pages, Sync)
Took = Callable[[Iterable[Change]], None]


class Hearing:
    """Of one log. took: is told what became of the weights by what others said."""

    def __init__(self, log: Log, took: Took) -> None:
        self.log = log
        self._took = took
        self._talks: Counter[str] = Counter()  # that others began
        self.sent_bytes = 0  # of letters, since the start
        self.received_bytes = 0

    async def serve(self, stream: Stream) -> None:
        """One talk that another began. Raises Refused, RemoteError, TransportError."""
        peer = stream.peer
        if self._talks.total() >= TALKS_MAX or self._talks[peer] >= TALKS_OF_EACH:
            raise Refused("others talk", retry_after_s=1.0)
        self._talks[peer] += 1
        try:
            with within(peer, TALK_S):
                asked = await self._receive(stream, Sync)
                await self._send(stream, self.log.answer(asked), self.log.ask())
                self._take(await self._receive(stream, Pages))
        finally:
            self._talks[peer] -= 1
            if not self._talks[peer]:
                del self._talks[peer]
        await stream.close()

    async def talk(self, host: Host, peer: str) -> Sync:
        """One talk, begun here; how far the other had come, before it heard what it lacked. Raises
        Refused, RemoteError or TransportError."""
        with within(peer, TALK_S):
            stream = await host.open_stream(peer, PROTOCOL)
            finished = False
            try:
                await self._send(stream, self.log.ask())
                told = await self._receive(stream, Pages)
                lacking = await self._receive(stream, Sync)
                self._take(told)
                await self._send(stream, self.log.answer(lacking))
                finished = True
            finally:
                with trio.CancelScope(shield=True):
                    await (stream.close() if finished else stream.reset())
        return lacking

    def _take(self, told: Pages) -> None:
        """Raises RemoteError; what came before the fault is known, and counts, all the same."""
        merged: list[Merged] = []
        try:
            for raw in told.pages:
                merged.append(self.log.merge(raw))
            for fork in told.forks:
                merged.append(self.log.merge_fork(fork))
        finally:
            if any(one.new for one in merged):
                self._took([change for one in merged for change in one.changes])

    async def _send(self, stream: Stream, *messages: Pages | Sync) -> None:
        letters = [encode(message) for message in messages]
        self.sent_bytes += sum(map(len, letters))
        await send_letter(stream, *letters)

    async def _receive(self, stream: Stream, kind: type[Message]) -> Message:
        raw = await receive_letter(stream, LETTER_BYTES_MAX)
        if raw is None:
            raise TransportError(f"{stream.peer} has left")
        self.received_bytes += len(raw)
        message: Message = decode_any(raw, (kind,), max_bytes=LETTER_BYTES_MAX)
        if isinstance(message, Sync) and message.run != self.log.rules.run:
            raise RemoteError("asked about another run")
        return message
