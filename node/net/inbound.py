"""Streams that peers open: negotiated, and handed to the handler of their protocol.

    Mux ──▶ take ──▶ negotiate ──▶ a handler of ours, or py-libp2p's for that protocol; a task each

A handler's RemoteError, TransportError or Refused ends its stream, and RemoteError counts against
the peer; any other exception is our own fault and ends the host.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import trio

from ...errors import Refused, RemoteError, TransportError
from ..log import get_logger
from .guard import Limits
from .mux import Mux
from .mux_stream import MuxStream
from .negotiate import Listener
from .stream import Stream

if TYPE_CHECKING:
    from .host import Host

Handler = Callable[[Stream], Awaitable[None]]

log = get_logger()


class Inbound:
    """What is served here, and to whom by now; part of the host."""

    def __init__(self, host: Host, limits: Limits) -> None:
        self._host = host
        self._limits = limits
        self.handlers: dict[str, Handler] = {}
        self.count = 0  # streams under way
        self._serving: dict[Mux, dict[MuxStream, trio.CancelScope]] = {}  # the oldest first

    def protocols(self) -> list[str]:
        """All that is spoken here."""
        return sorted({*self.handlers, *self._host.libp2p.protocols})

    def take(self, stream: MuxStream) -> None:
        """Serve a new stream. Never waits."""
        if self.count >= self._limits.inbound_streams_max:
            crowd = max(self._serving, key=lambda mux: len(self._serving[mux]))
            if crowd is stream.mux:
                stream.reset_now("too many streams")
                return
            self._shed(crowd)
        self.count += 1
        scope = self._serving.setdefault(stream.mux, {})[stream] = trio.CancelScope()
        self._host.nursery.start_soon(self._serve, stream, scope)

    def _shed(self, mux: Mux) -> None:
        """End the oldest that is served on a connection, also when its handler outlives it."""
        oldest, scope = next(iter(self._serving[mux].items()))
        oldest.reset_now("others want a stream too")
        scope.cancel()
        self._over(oldest)

    def _over(self, stream: MuxStream) -> None:
        served = self._serving.get(stream.mux, {})
        if served.pop(stream, None) is not None:
            self.count -= 1
            if not served:
                del self._serving[stream.mux]

    async def _serve(self, stream: MuxStream, scope: trio.CancelScope) -> None:
        """Negotiate a peer's stream, and run its handler."""
        done = False
        try:
            with scope:
                handler: Handler | None = None
                with trio.move_on_after(self._limits.negotiation_s):
                    handler = await self._negotiate(stream)
                if handler is not None:
                    await handler(stream)
                    done = True
        except* (RemoteError, TransportError, Refused) as group:
            for error in _leaves(group):
                self._blame(stream, error)
        finally:
            self._over(stream)
            if done:
                stream.close_now()
            else:
                stream.reset_now("its handler failed")

    async def _negotiate(self, stream: MuxStream) -> Handler:
        listener = Listener(self._speaks)
        while True:
            piece = await stream.receive()
            if not piece:
                raise TransportError("the peer left before it said what it wanted")
            reply = listener.feed(piece)
            if listener.chosen is not None:
                break
            if reply:
                await stream.send(reply)
        if listener.data:  # the dialer did not wait for our yes, so it may go with the answer
            stream.push_back(bytes(listener.data))
            stream.preface = reply
        else:
            await stream.send(reply)
        return self.handlers.get(listener.chosen) or self._libp2p_handler(stream, listener.chosen)

    def _speaks(self, protocol: str) -> bool:
        return protocol in self.handlers or protocol in self._host.libp2p.protocols

    def _libp2p_handler(self, stream: MuxStream, protocol: str) -> Handler:
        plugged = self._host.plugged.get(stream.mux)
        if plugged is None:
            raise TransportError("its connection is over")
        return lambda _: self._host.libp2p.serve(plugged, stream, protocol)

    def _blame(self, stream: MuxStream, error: Exception) -> None:
        log.debug("stream failed", peer=stream.peer, reason=str(error))
        if isinstance(error, RemoteError):
            self._host.blame(stream.peer, error)


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    """Every exception in a group, and in the groups in it."""
    for one in group.exceptions:
        if isinstance(one, ExceptionGroup):
            yield from _leaves(one)
        else:
            yield one
