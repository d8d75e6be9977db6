"""Who we are and who they are: said when asked, asked of each new peer, and kept up to date.

Source: github.com/libp2p/specs, identify. What a peer is asked once per connection (identify) it
tells unasked whenever it changes (identify push): a protocol more, an address behind a relay. So do
we, once a second at most, each peer that has asked us and that listens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from ... import __version__
from ...errors import RemoteError, TransportError
from ..log import get_logger
from . import identify
from .address import Address, address_of
from .peers import Connection
from .stream import Stream

if TYPE_CHECKING:
    from .host import Host

AGENT = f"potluck/{__version__}"

log = get_logger()


class Introductions:
    """Ours to peers, and theirs to us; part of the host.

    protocols: what is served here by now. heard: takes what a peer has said on a connection.
    """

    def __init__(
        self,
        host: Host,
        public: bytes,
        *,
        protocols: Callable[[], list[str]],
        heard: Callable[[Connection, identify.Claims], None],
    ) -> None:
        self._host = host
        self._public = public
        self._protocols = protocols
        self._heard = heard

    async def say(self, stream: Stream) -> None:
        """The handler of identify."""
        connection = self._under(stream)
        if connection is not None:
            connection.told = self._words(None)
        await stream.send(self._words(connection))

    async def ask(self, connection: Connection) -> None:
        """Ask a new peer. Sets `asked` in the end, whatever it says."""
        try:
            stream = self._host.open_on(connection, identify.IDENTIFY)
            try:
                with trio.move_on_after(identify.ANSWER_S):
                    self._heard(connection, await identify.ask(stream))
            finally:
                stream.close_now()
        except (RemoteError, TransportError) as error:
            log.debug("not identified", peer=connection.mux.peer, reason=str(error))
        connection.asked.set()

    async def hear(self, stream: Stream) -> None:
        """The handler of identify push. What a message leaves out is as it was."""
        with trio.move_on_after(identify.ANSWER_S):
            said = await identify.ask(stream)
            connection = self._under(stream)
            if connection is None:
                return
            before = connection.claims
            if before is not None:
                said = replace(
                    said,
                    agent=said.agent or before.agent,
                    protocols=said.protocols or before.protocols,
                    addresses=said.addresses or before.addresses,
                    observed=said.observed or before.observed,
                    work=said.work or before.work,
                )
            self._heard(connection, said)

    def tick(self) -> None:
        """Tell those who know something else of us than is true by now."""
        words = self._words(None)
        for connection in self._host.connections():
            claims = connection.claims
            outdated = connection.told and connection.told != words
            if outdated and claims is not None and identify.PUSH in claims.protocols:
                connection.told = words
                self._host.nursery.start_soon(self._tell, connection)

    async def _tell(self, connection: Connection) -> None:
        try:
            stream = self._host.open_on(connection, identify.PUSH)
            try:
                with trio.move_on_after(identify.ANSWER_S):
                    await stream.send(self._words(connection))
                    await stream.finish()
                    while await stream.receive():
                        pass  # it has nothing to say; but it is done when it ends
            finally:
                stream.close_now()
        except (RemoteError, TransportError) as error:
            log.debug("not told", peer=connection.mux.peer, reason=str(error))

    def _words(self, connection: Connection | None) -> bytes:
        """What we say of ourselves, and on a connection where we see its other end."""
        observed: Address | None = None
        if connection is not None and connection.relay is None:  # else it is the relay's address
            observed = address_of(connection.remote)
        return identify.describe(
            self._public,
            agent=AGENT,
            protocols=self._protocols(),
            addresses=self._host.places(),
            observed=observed,
            work=self._host.work,
        )

    def _under(self, stream: Stream) -> Connection | None:
        """The connection that a stream is on."""
        for connection in self._host.connections(stream.peer):
            if stream in connection.mux.streams.values():
                return connection
        return None
