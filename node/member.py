"""A process's membership in the swarm: a host, the directory, and the router over both."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..crypto.keys import IdentityKey
from ..dht.directory import Directory
from ..dht.kad import open_directory
from ..errors import RemoteError, TransportError, UserError
from .net.address import parse
from .net.host import Host, HostConfig, open_host
from .router import Router


@dataclass(frozen=True, slots=True)
class Member:
    """What the services of a process share."""

    host: Host
    directory: Directory
    router: Router


@asynccontextmanager
async def open_member(
    key: IdentityKey,
    *,
    listen: tuple[str, ...],
    join: Sequence[str],
    boot: int,
    serve: bool,
) -> AsyncIterator[Member]:
    """Listen and join. serve: keep records for others (a node), or only ask (a client).

    Raises UserError when a port is in use, or when nobody in `join` can be reached.
    """
    for address in join:
        _check_join(address)
    async with (
        open_host(HostConfig(seed=key.seed(), listen=listen)) as host,
        open_directory(host, key, boot=boot, serve=serve) as directory,
    ):
        if join:
            try:
                await directory.bootstrap(join)
            except TransportError as error:
                raise UserError(f"nobody answers: {error}; check that a node runs there") from error
        # SystemRandom: which peer a client prefers must not be guessable by the peers
        yield Member(host, directory, Router(host, directory, random.SystemRandom()))


def _check_join(text: str) -> None:
    """Raise UserError for what is no address of a peer, before anybody is waited for."""
    try:
        peer = parse(text).peer
    except RemoteError as error:
        raise UserError(f"cannot join by {text}: {error}; copy what a node prints") from error
    if peer is None:
        raise UserError(f"cannot join by {text}: it ends in no /p2p/ id; copy what a node prints")
