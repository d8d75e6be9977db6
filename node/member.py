"""A process's membership in the swarm: a host, the directory, and the ways through NATs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from ..crypto.keys import IdentityKey
from ..dht.directory import Directory
from ..dht.kad import KadDirectory, open_directory
from ..dht.known import Known, to_join
from ..dht.message import PROTOCOL
from ..dht.shelf import SHELF_BYTES_MAX
from ..errors import RemoteError, TransportError, UserError
from .log import get_logger
from .net.access import Access
from .net.address import parse
from .net.clock import tell_time
from .net.host import Host, HostConfig, open_host
from .net.identify import ANSWER_S
from .net.lan import Met, tell_and_listen
from .net.nat import Nat, NatConfig, start_nat
from .net.pace import Pace
from .pins import Pin

if TYPE_CHECKING:
    from .leading import Chains

log = get_logger()

PINNED: Final = "pinned"
PINNED_S: Final = 5.0  # guess: for those pinned to answer, before others are asked as well


@dataclass(frozen=True, slots=True)
class Member:
    """What the services of a process share."""

    host: Host
    directory: KadDirectory
    nat: Nat
    key: IdentityKey
    chains: Chains | None = None  # of a node


@asynccontextmanager
async def open_member(
    key: IdentityKey,
    *,
    listen: tuple[str, ...],
    join: Sequence[str],
    boot: int,
    serve: bool,
    known: Sequence[Known] = (),
    shelf_bytes_max: int = SHELF_BYTES_MAX,
    nat: NatConfig | None = None,
    access: Access | None = None,
    pins: Sequence[Pin] = (),
    pace: Pace | None = None,
    chained: bool = False,
) -> AsyncIterator[Member]:
    """Listen and join. serve: keep records for others (a node), or only ask (a client).

    A node behind a NAT is reachable through relays when this yields, if any peer is one.

    known: peers of the last run, to join by when there is nobody in `join`, or nobody answers.
    pins: are dialled before both, and their connections are kept. pace: for all connections.
    chained: take what other hops push; it costs an entry point memory that it needs not.
    Raises UserError when a port is in use, or when nobody can be reached; a node that was not told
    to join anybody is its swarm's first then, and goes on asking those it knew.
    """
    for address in join:
        _check_join(address)
    async with (
        open_host(
            HostConfig(
                seed=key.seed(), listen=listen, access=access or Access(), pace=pace or Pace()
            )
        ) as host,
        open_directory(
            host, key, boot=boot, serve=serve, shelf_bytes_max=shelf_bytes_max
        ) as directory,
    ):
        tell_time(host)
        crossing = start_nat(host, key, nat)
        crossing.changed.append(directory.hurry)
        host.keep(PINNED, {pin.peer for pin in pins})
        pinned = await _join_pinned(directory, pins, known)
        await _join(host, directory, join, known, pinned, may_be_first=serve and not join)
        if serve:
            await crossing.settled()
            private = host.identity.swarm_key  # of which nobody else in the house is to know
            if crossing.ports.listens and (nat is None or nat.lan) and not private:
                host.nursery.start_soon(
                    tell_and_listen, key.peer_id, crossing.near_addresses, _meet(directory)
                )
        yield Member(host, directory, crossing, key, _chains(host, key) if chained else None)


def _chains(host: Host, key: IdentityKey) -> Chains:
    from .leading import Chains

    return Chains(host, key)


async def _join_pinned(
    directory: Directory, pins: Sequence[Pin], known: Sequence[Known]
) -> TransportError | None:
    """Join by those that the owner pinned, where they are said to be or were in the last run. None
    once one of them has answered, or when there is nobody to dial."""
    places = {one.peer: one.addresses for one in known}
    addresses = [
        address
        for pin in pins
        for address in ((pin.whole,) if pin.address else places.get(pin.peer, ()))
    ]
    if not addresses:
        return None
    failure = TransportError(f"no word of a pinned peer in {PINNED_S:.0f} s")
    with trio.move_on_after(PINNED_S):
        try:
            await directory.bootstrap(addresses)
            return None
        except TransportError as error:
            failure = error
    if directory.peers():
        return None  # one has answered; the rest of the look-up took too long
    log.warning("no pinned peer answers", tried=len(addresses), reason=str(failure))
    return failure


async def _join(
    host: Host,
    directory: Directory,
    join: Sequence[str],
    known: Sequence[Known],
    unpinned: TransportError | None,
    *,
    may_be_first: bool,
) -> None:
    """Join by whoever was named, else by those of the last run, unless a pinned peer answered.
    unpinned: why none did."""
    failure: TransportError | None = None
    for addresses in (tuple(join), () if directory.peers() else to_join(known)):
        if not addresses:
            continue
        try:
            await directory.bootstrap(addresses)
        except TransportError as error:
            # what the user named explains more
            failure = failure or TransportError(f"{error}{await _behind(host, addresses, error)}")
            continue
        if failure is not None:
            log.warning("joined by peers of the last run", reason=str(failure))
        return
    failure = failure or unpinned
    if failure is None:
        return
    if directory.peers():
        log.warning("joined by a pinned peer", reason=str(failure))
        return
    if may_be_first:
        log.warning("alone: no peer of the last run answers", tried=len(known))
        return
    raise UserError(f"nobody answers: {failure}; check that a node runs there")


async def _behind(host: Host, addresses: Sequence[str], error: TransportError) -> str:
    """Whether one that was reached is of another version, which its introduction tells; that may
    come a moment after its no."""
    for peer in dict.fromkeys(parse(one).peer for one in addresses):
        if peer is not None and host.best(peer) is not None:
            with trio.move_on_after(ANSWER_S):
                await host.identified(peer)
            connection = host.best(peer)
            words = "" if connection is None else connection.behind(PROTOCOL)
            if words and words not in str(error):
                return words
    return ""


def _meet(directory: Directory) -> Met:
    async def meet(addresses: Sequence[str]) -> None:
        """Know a neighbour."""
        try:
            await directory.bootstrap(addresses)
        except TransportError as error:
            log.debug("a neighbour does not answer", reason=str(error))

    return meet


def _check_join(text: str) -> None:
    """Raise UserError for what is no address of a peer, before anybody is waited for."""
    try:
        peer = parse(text).peer
    except RemoteError as error:
        raise UserError(f"cannot join by {text}: {error}; copy what a node prints") from error
    if peer is None:
        raise UserError(f"cannot join by {text}: it ends in no /p2p/ id; copy what a node prints")
