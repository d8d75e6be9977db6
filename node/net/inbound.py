"""Streams that peers open: negotiated, and handed to the handler of their protocol.

    Mux ──▶ take ──▶ negotiate ──▶ a handler of ours, or py-libp2p's for that protocol; a task each

A handler's RemoteError, TransportError or Refused ends its stream, and RemoteError counts against
the peer; any other exception is our own fault and ends the host.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from ...errors import Refused, RemoteError, TransportError
from ..log import get_logger
from .guard import Limits
from .mux_stream import MuxStream
from .negotiate import Listener
from .peers import Peers
from .stream import Stream

if TYPE_CHECKING:
    from .host import Host

Handler = Callable[[Stream], Awaitable[None]]

log = get_logger()


class Inbound:
    """What is served here, and to whom by now; part of the host."""

    def __init__(self, host: Host, limits: Limits, peers: Peers) -> None:
        self._host = host
        self._limits = limits
        self._peers = peers
        self.handlers: dict[str, Handler] = {}
        self.count = 0  # streams under way

    def protocols(self) -> list[str]:
        """All that is spoken here."""
        return sorted({*self.handlers, *self._host.libp2p.protocols})

    def take(self, stream: MuxStream) -> None:
        """Serve a new stream. Never waits."""
        if self.count >= self._limits.inbound_streams_max:
            crowd = max((one.mux for one in self._peers.all()), key=lambda mux: len(mux.streams))
            if crowd is stream.mux:
                stream.reset_now("too many streams")
                return
            crowd.shed("others want a stream too")
        self.count += 1
        self._host.nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: MuxStream) -> None:
        """Negotiate a peer's stream, and run its handler."""
        done = False
        try:
            handler: Handler | None = None
            with trio.move_on_after(self._limits.negotiation_s):
                handler = await self._negotiate(stream)
            if handler is not None:
                await handler(stream)
                done = True
        except (RemoteError, TransportError, Refused) as error:
            self._blame(stream, error)
        except BaseExceptionGroup as group:
            theirs, ours = group.split((RemoteError, TransportError, Refused))
            if ours is not None:
                raise
            for fault in theirs.exceptions if theirs else ():
                self._blame(stream, fault)
        finally:
            self.count -= 1
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
        plugged = self._host.plugged[stream.mux]
        return lambda _: self._host.libp2p.serve(plugged, stream, protocol)

    def _blame(self, stream: MuxStream, error: BaseException) -> None:
        log.debug("stream failed", peer=stream.peer, reason=str(error))
        if isinstance(error, RemoteError):
            self._host.blame(stream.peer, error)
