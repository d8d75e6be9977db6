"""Hosts of one test, each by a letter, and a word with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import trio
from net_pairs import echo, receive_exactly

from potluck.crypto.keys import IdentityKey
from potluck.node.net.guard import Limits
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.nat import Nat, NatConfig, start_nat

ECHO = "/potluck/echo/1"
HERE = "/ip4/127.0.0.1/tcp/0"


def seeded(letter: str, *listen: str, **limits: Any) -> HostConfig:
    """Whose identity is the letter's. It listens on this machine, if nothing else is said."""
    limited = replace(Limits(), **limits)
    return HostConfig(seed=letter.encode() * 32, listen=listen or (HERE,), limits=limited)


@asynccontextmanager
async def echoing(letter: str, *listen: str) -> AsyncIterator[Host]:
    """It listens there, or nowhere, and says back what it hears."""
    async with open_host(HostConfig(seed=letter.encode() * 32, listen=listen)) as made:
        made.handle(ECHO, echo)
        yield made


@asynccontextmanager
async def crossing(letter: str, *listen: str, relay: str = "no") -> AsyncIterator[tuple[Host, Nat]]:
    """The same with all that crosses NATs, for which this machine is the internet."""
    async with echoing(letter, *listen) as host:
        config = NatConfig(relay=relay, local=True)  # type: ignore[arg-type]
        yield host, start_nat(host, IdentityKey.from_bytes(letter.encode() * 32), config)


async def talk(dialer: Host, peer: str, body: bytes = b"hello") -> None:
    """A word there and back."""
    stream = await dialer.open_stream(peer, ECHO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send, body)
        assert await receive_exactly(stream, len(body)) == body
    await stream.close()


async def until(holds: Callable[[], object]) -> None:
    """What nothing tells: it will hold soon."""
    with trio.fail_after(10):
        while not holds():  # noqa: ASYNC110  # what is waited for has no event
            await trio.sleep(0.005)
