"""Asks the members of a guarded group in which life of a step they are, and says where we are.

The rule is swarm/run/lives.py's. An answer counts for whoever gives it, over its own stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

import trio

from ...crypto.codec import decode, encode
from ...crypto.keys import IdentityKey
from ...dht.allowance import Intake
from ...errors import Refused, RemoteError, TransportError
from ...swarm.run.lives import LETTER_BYTES_MAX, PROTOCOL, Stands, Where
from ..chunks.deadline import within
from ..letters import receive_letter, send_letter
from ..net.identify import Claims
from ..net.stream import Stream

ASK_S: Final = 10.0  # guess: a dial across the world, and one answer
OF_EACH: Final = (2.0, 16.0)  # questions a second, and at once: one is due
OF_ALL: Final = (64.0, 256.0)

Handler = Callable[[Stream], Awaitable[None]]


class Roads(Protocol):
    """What is needed of node/net/host.py's Host."""

    def claims(self, peer: str) -> Claims | None: ...
    async def open_stream(self, peer: str, protocol: str) -> Stream: ...
    def handle(self, protocol: str, handler: Handler) -> None: ...
    def unhandle(self, protocol: str) -> None: ...


class Lives:
    """Of one member. place, life: what it says, to whoever asks about that place."""

    def __init__(
        self, host: Roads, key: IdentityKey, blame: Callable[[str, RemoteError], None]
    ) -> None:
        self._host = host
        self._me = key.peer_id
        self._blame = blame
        self._intake = Intake(OF_EACH, OF_ALL)
        self.place = b""
        self.life = 0

    def open(self) -> None:
        """From now on others are answered."""
        self._host.handle(PROTOCOL, self.serve)

    def close(self) -> None:
        self._host.unhandle(PROTOCOL)

    def stand(self, place: bytes, life: int) -> None:
        """There, from now on."""
        self.place, self.life = place, life

    async def serve(self, stream: Stream) -> None:
        """One question. Raises Refused, RemoteError, TransportError."""
        if not self._intake.takes(stream.peer, trio.current_time()):
            raise Refused("too many questions", retry_after_s=1.0)
        with within(stream.peer, ASK_S):
            raw = await receive_letter(stream, LETTER_BYTES_MAX)
            if raw is None:
                raise TransportError(f"{stream.peer} opened a stream and asked nothing")
            asked = decode(raw, Where, max_bytes=LETTER_BYTES_MAX)
            life = self.life if asked.place == self.place else 0
            await send_letter(stream, encode(Stands(life)))
            await stream.close()

    async def ask(self, peers: Iterable[str]) -> dict[str, int]:
        """In which life of our place each is that answers in time; ourselves with them."""
        place, found = self.place, {self._me: self.life}

        async def ask(peer: str) -> None:
            try:
                with within(peer, ASK_S):
                    found[peer] = await self._ask(peer, place)
            except RemoteError as error:
                self._blame(peer, error)
            except (TransportError, Refused):
                return  # it is nowhere

        async with trio.open_nursery() as nursery:
            for peer in peers:
                if peer != self._me:
                    nursery.start_soon(ask, peer)
        return found

    async def _ask(self, peer: str, place: bytes) -> int:
        claims = self._host.claims(peer)
        if claims is None or PROTOCOL not in claims.protocols:  # an older version
            raise TransportError(f"{peer} does not speak {PROTOCOL}")
        stream = await self._host.open_stream(peer, PROTOCOL)
        try:
            await send_letter(stream, encode(Where(place)))
            raw = await receive_letter(stream, LETTER_BYTES_MAX)
            if raw is None:
                raise TransportError(f"{peer} has left")
            return decode(raw, Stands, max_bytes=LETTER_BYTES_MAX).life
        finally:
            with trio.CancelScope(shield=True):
                await stream.close()
