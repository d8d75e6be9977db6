"""Whoever connects to us: admitted, given a time to shake hands, or turned away.

    listener ──▶ Gate, room for one more? ──▶ WebSocket, if it asks for one ──▶ Host.adopt

Accepting never waits for a peer: who says nothing costs a task and a socket, for some seconds.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from ...errors import RemoteError, TransportError
from ..log import get_logger
from .carrier import Carrier, SocketCarrier
from .dialer import First, tune
from .guard import Gate, Limits
from .peers import Connection, Peers
from .websocket import accept_websocket, speaks_first

if TYPE_CHECKING:
    from .host import Host

Yielding = Callable[[Carrier, str], Awaitable[tuple[str, First] | None]]

PAUSE_S = 0.1  # after the system had no descriptor for another connection
OUT_OF_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

log = get_logger()


class Door:
    """Where connections come in; part of the host."""

    def __init__(self, host: Host, limits: Limits, gate: Gate, peers: Peers) -> None:
        self._host = host
        self._limits = limits
        self._gate = gate
        self._peers = peers
        self.shaking: dict[socket.socket, trio.CancelScope] = {}  # handshakes, the oldest first

    async def accept_forever(self, listener: socket.socket) -> None:
        """Welcome whoever connects to this listener."""
        while True:
            await trio.lowlevel.wait_readable(listener.fileno())
            try:
                sock, remote = listener.accept()
            except OSError as error:
                if error.errno in OUT_OF_DESCRIPTORS:
                    log.warning("no descriptor for another connection", reason=error.strerror)
                    await trio.sleep(PAUSE_S)  # nothing tells when one is free again
                continue  # or the peer had left already
            if self._gate.admits(remote[0]) and self._may_have_room(remote[0]):
                self._gate.handshake_began(remote[0])
                self._give_up_silent()
                scope = self.shaking[sock] = trio.CancelScope()
                self._host.nursery.start_soon(self._welcome, sock, (remote[0], remote[1]), scope)
            else:
                sock.close()

    def turn_out(self) -> list[Connection]:
        """End the connections of whoever is not welcome any more, and return them."""
        now = trio.current_time()
        leaving = [one for one in self._peers.all() if self._gate.refuses(*one.who, now)]
        for connection in leaving:
            connection.mux.close()
        return leaving

    def _give_up_silent(self) -> None:
        """Of too many handshakes the oldest goes: who says nothing cannot keep others out."""
        if len(self.shaking) >= self._limits.handshakes_max:
            oldest = next(iter(self.shaking))
            self.shaking.pop(oldest).cancel()

    async def _welcome(
        self, sock: socket.socket, remote: tuple[str, int], scope: trio.CancelScope
    ) -> None:
        """Shake hands with whoever has connected."""
        bare = SocketCarrier(sock)
        taken_up = False
        try:
            sock.setblocking(False)
            tune(sock)
            scope.deadline = trio.current_time() + self._limits.handshake_s
            with scope:
                yields_to = self._host.yields_to
                yielding = await yields_to(bare, remote[0]) if yields_to else None
                dialed, first = yielding or (None, None)
                carrier: Carrier = bare
                if dialed is None and await speaks_first(bare):
                    carrier = await accept_websocket(bare)
                newcomer = await self._host.adopt(carrier, remote, dialed=dialed, first=first)
                taken_up = True
                self._make_room(newcomer)
        except (RemoteError, TransportError, OSError) as error:
            log.debug("handshake failed", remote=remote[0], reason=str(error))
        finally:
            if not taken_up:
                bare.close()
            self.shaking.pop(sock, None)
            self._gate.handshake_over(remote[0])

    def _may_have_room(self, host: str) -> bool:
        """Whether one more connection may come from there, if need be in the place of another."""
        return self._gate.left > 0 or self._peers.least_worth(host) is not None

    def _make_room(self, newcomer: Connection) -> None:
        """Nobody has to go before the newcomer has shown who it is: to connect alone is cheap."""
        if self._gate.left < 0:
            leaving = self._peers.least_worth(newcomer.remote[0]) or newcomer
            log.debug("gives way to a newcomer", peer=leaving.mux.peer)
            leaving.mux.close()
