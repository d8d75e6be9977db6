"""From a bare carrier to a secured one that speaks yamux: the first second of a connection.

    dialer                                            listener
    multistream /noise, noise message 1     ──▶
                                            ◀──       multistream /noise, noise message 2
    noise message 3, multistream /yamux     ──▶
                                            ◀──       multistream /yamux

Two round trips after TCP's one; py-libp2p takes seven, for it waits for each word. Stock peers on
either end are served: they only read more slowly.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from ...errors import RemoteError
from . import mux, noise
from .carrier import Carrier
from .dialer import First
from .negotiate import Answer, Listener, proposal
from .noise import Identity, Link, Scratch, Wire


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A connection that is ready for its streams."""

    link: Link
    early: bytes  # the first bytes of yamux, if some came already
    rtt_s: float  # seconds for the last round trip of the handshake


async def upgrade(
    carrier: Carrier, identity: Identity, dialed: str | None, scratch: Scratch, first: First | None
) -> Upgraded:
    """Secure a carrier, as the dialer of a peer or, with None, as the dialed.

    first: shared by the dialer's handshakes of which only one is to be finished.
    Raises RemoteError, TransportError; the carrier stays.
    """
    if dialed is None:
        return await upgrade_accepted(carrier, identity, scratch)
    claim = partial(first.claim, carrier) if first else None
    return await upgrade_dialed(carrier, identity, dialed, scratch, proved=claim)


async def upgrade_dialed(
    carrier: Carrier,
    identity: Identity,
    peer: str,
    scratch: Scratch,
    *,
    proved: Callable[[], Awaitable[None]] | None = None,
) -> Upgraded:
    """Secure a connection that we dialed. Raises RemoteError, TransportError; the carrier stays.

    proved: awaited when the peer has shown who it is; whatever it raises ends the handshake, and
    the peer has not taken the connection up.
    """
    wire = _ExpectingWire(carrier, Answer(identity.protocol))
    await wire.write(proposal(identity.protocol))
    session = await noise.shake_hands(wire, identity, peer, proved=proved)
    await wire.flush()
    link = Link(wire, session, scratch)
    asked_at = trio.current_time()
    await _say(link, proposal(mux.PROTOCOL))
    answer = Answer(mux.PROTOCOL)
    while not answer.agreed:
        for piece in await link.receive():
            answer.feed(piece)
    return Upgraded(link, bytes(answer.data), trio.current_time() - asked_at)


async def upgrade_accepted(carrier: Carrier, identity: Identity, scratch: Scratch) -> Upgraded:
    """Secure a connection that a peer dialed. Raises RemoteError, TransportError."""
    wire = Wire(carrier)
    listener = Listener(identity.protocol.__eq__)
    while listener.chosen is None:
        await wire.more()
        await wire.write(listener.feed(wire.arrived))
        wire.arrived.clear()
    wire.arrived += listener.data
    answered_at = trio.current_time()
    session = await noise.shake_hands(wire, identity, None)
    rtt_s = trio.current_time() - answered_at
    link = Link(wire, session, scratch)
    listener = Listener(mux.PROTOCOL.__eq__)
    while listener.chosen is None:
        for piece in await link.receive():
            reply = listener.feed(piece)
            if reply:
                await _say(link, reply)
    return Upgraded(link, bytes(listener.data), rtt_s)


class _ExpectingWire(Wire):
    """The dialer's: takes the answer to its proposal out of what arrives first."""

    def __init__(self, carrier: Carrier, answer: Answer) -> None:
        super().__init__(carrier)
        self._answer = answer

    async def read(self, size: int) -> bytes:
        while not self._answer.agreed:
            await self.more()
            self._answer.feed(self.arrived)
            self.arrived.clear()
            if self._answer.agreed:
                self.arrived += self._answer.data
        return await super().read(size)


async def _say(link: Link, words: bytes) -> None:
    if link.blocked:
        raise RemoteError("a peer that does not read our handshake")
    link.push([words])
