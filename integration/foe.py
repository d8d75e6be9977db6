"""One hostile identity, and how it spoils what an honest one would say."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht import message as directory
from potluck.errors import RemoteError, TransportError
from potluck.node.net import identify
from potluck.node.net.address import parse
from potluck.node.net.carrier import SocketCarrier
from potluck.node.net.dialer import connect_tcp
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.mux_stream import MuxStream
from potluck.node.net.noise import Identity, Link, Scratch
from potluck.node.net.stream import Stream
from potluck.node.net.upgrade import upgrade_dialed

from .forgery import junk_reply

ANSWER_S = 5.0  # for the node to end what cannot be served
LEFT_ALONE_S = 0.05  # what is left half-open is held so long, beside all others
HUGE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Target:
    """A node, and the model that it serves. model: its digest."""

    address: str
    model: str
    width: int
    blocks: int

    @property
    def peer(self) -> str:
        return self.address.rpartition("/")[2]


@dataclass(slots=True)
class Foe:
    """A hostile identity, connected. ended: how the node ended what it was sent."""

    target: Target
    dice: random.Random
    host: Host
    key: IdentityKey
    spent: bool = False  # it was banned: nothing of it arrives any more
    ended: Counter[str] = field(default_factory=Counter)

    async def open(self, protocol: str) -> MuxStream:
        """Raises TransportError."""
        stream = await self.host.open_stream(self.target.peer, protocol)
        assert isinstance(stream, MuxStream)
        return stream

    async def talk(self, protocol: str, data: bytes, *, finish: bool = True) -> None:
        """Send bytes on a new stream, in pieces, and wait until the node ends it."""
        await self.say(await self.open(protocol), data, finish=finish)

    async def say(self, stream: MuxStream, data: bytes, *, finish: bool = True) -> None:
        try:
            for piece in self._pieces(data):
                await stream.send(piece)
            if not finish:
                await trio.sleep(LEFT_ALONE_S)
                self.ended["left alone"] += 1
                return
            await stream.finish()
            with trio.move_on_after(ANSWER_S):
                while await stream.receive():
                    pass
                self.ended["closed"] += 1
                return
            self.ended["not ended"] += 1
        except TransportError:
            self.ended["reset"] += 1
        except RemoteError:  # the honest half of us does not like the answer
            self.ended["refused"] += 1
        finally:
            await stream.reset()

    async def link(self) -> Link:
        """A connection of its own after an honest handshake, to speak yamux by hand."""
        sock = await connect_tcp(parse(self.target.address))
        identity = Identity(self.dice.randbytes(32))
        with ExitStack() as otherwise:
            otherwise.callback(sock.close)
            up = await upgrade_dialed(SocketCarrier(sock), identity, self.target.peer, Scratch())
            otherwise.pop_all()
        return up.link

    async def socket(self) -> socket.socket:
        """A bare connection."""
        return await connect_tcp(parse(self.target.address))

    def _pieces(self, data: bytes) -> list[bytes]:
        cuts = sorted(self.dice.randrange(len(data) + 1) for _ in range(self.dice.randrange(3)))
        return [data[start:stop] for start, stop in pairwise([0, *cuts, len(data)])]


@asynccontextmanager
async def open_foe(target: Target, dice: random.Random) -> AsyncIterator[Foe]:
    """A new identity, which answers whatever the node asks it with nonsense."""
    seed = dice.randbytes(32)
    async with open_host(HostConfig(seed=seed)) as host:

        async def lie(stream: Stream) -> None:
            while await stream.receive():
                await stream.send(junk_reply(dice))

        host.handle(directory.PROTOCOL, lie)
        host.handle(identify.IDENTIFY, lie)
        await host.connect([target.address])
        yield Foe(target, dice, host, IdentityKey.from_bytes(seed))


def mutated(dice: random.Random, data: bytes) -> bytes:
    """The bytes with one to three faults."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(out) + 1)
        size = dice.randrange(1, 16)
        match dice.randrange(7):
            case 0 if out:
                out[min(at, len(out) - 1)] ^= 1 << dice.randrange(8)
            case 1:
                del out[at : at + size]
            case 2:
                out[at:at] = dice.randbytes(size)
            case 3:
                out[at:at] = out[at : at + size]
            case 4:
                del out[at:]
            case 5:
                out[at : at + 4] = HUGE.to_bytes(4)
            case _:
                out[at : at + size] = dice.randbytes(size)
    return bytes(out)
