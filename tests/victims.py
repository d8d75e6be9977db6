"""A host to attack, an honest peer that it must go on serving, and what an attacker needs."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
import trio.testing
from net_hosts import ECHO, seeded
from net_pairs import echo

from potluck.node.net import noise
from potluck.node.net.address import parse
from potluck.node.net.carrier import SocketCarrier
from potluck.node.net.dialer import connect_tcp
from potluck.node.net.host import Host, open_host
from potluck.node.net.noise import Identity, Scratch
from potluck.node.net.upgrade import upgrade_dialed


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Host]:
    async with open_host(seeded("v", **limits)) as victim:
        victim.handle(ECHO, echo)
        yield victim


async def still_serves(victim: Host, letter: str = "h") -> None:
    """An honest peer, who has never been here, gets its answer."""
    with trio.fail_after(5):
        async with open_host(seeded(letter)) as honest:
            peer = await honest.connect(victim.addresses())
            stream = await honest.open_stream(peer, ECHO)
            await stream.send(b"honest")
            assert bytes(await stream.receive()) == b"honest"
            await stream.close()


async def tcp(victim: Host) -> socket.socket:
    return await connect_tcp(parse(victim.addresses()[0]))


async def heard(sock: socket.socket, size: int = 4096) -> bytes:
    """What comes next; b"" when the other end closed."""
    with suppress(ConnectionError), trio.fail_after(5):
        await trio.lowlevel.wait_readable(sock.fileno())
        return sock.recv(size)
    return b""


@asynccontextmanager
async def raw_peer(victim: Host, letter: str = "m") -> AsyncIterator[noise.Link]:
    """Somebody who has shaken hands, and now sends what it likes."""
    sock = await tcp(victim)
    with sock:
        identity = Identity(letter.encode() * 32)
        upgraded = await upgrade_dialed(SocketCarrier(sock), identity, victim.peer_id, Scratch())
        yield upgraded.link
        upgraded.link.close()
