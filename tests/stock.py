"""A stock py-libp2p host, to talk with: noise and yamux as they come, and nothing else offered."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport


@asynccontextmanager
async def stock_host(
    letter: str, *, listen: bool = True, only_noise: bool = True, muxers: Any = None
) -> AsyncIterator[Any]:
    logging.disable(logging.CRITICAL)  # it logs each of its own faults
    keys = create_new_key_pair(letter.encode() * 32)
    static = create_new_x25519_key_pair().private_key
    security = {NOISE: Transport(keys, noise_privkey=static)} if only_noise else None
    host = new_host(key_pair=keys, sec_opt=security, muxer_opt=muxers)
    where = [multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")] if listen else []
    async with host.run(where):
        yield host
        with trio.CancelScope(shield=True):
            await host.close()
    logging.disable(logging.NOTSET)


def at(address: str) -> Any:
    """A peer at an address, as py-libp2p wants it."""
    return info_from_p2p_addr(multiaddr.Multiaddr(address))
