"""When our own network changes: from Wi-Fi to cable, after a night's sleep, or an hour without.

The kernel keeps a connection whose address is gone, and its packets go nowhere; nobody would know
before the keep-alive's ten seconds. And who has slept was given up by everybody meanwhile, and does
not know it. So every few seconds:

    an address of ours is gone        connections from there are ended
    we slept, for ASLEEP_S or more    all are
    nobody is left                    the network was away

and whoever was at the other end is dialed again, by relays first: through them others find us.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from typing import Final

import ifaddr
import trio

from ...errors import TransportError
from ..log import get_logger
from .host import Host

log = get_logger()

LOOK_S: Final = 3.0  # a look costs 0.2 ms
ASLEEP_S: Final = 10.0  # a peer that was silent for so long has been given up (mux.py)
AGAIN_MAX: Final = 8  # peers that are dialed again; the directory finds the others
AGAIN_S: Final = 2.0  # between tries, for an interface that is up may have no route yet
TRIES: Final = 5
EAGER_LOOKS: Final = 4  # alone, everybody is tried at each of the first looks
PATIENT_LOOKS: Final = 4  # and then at every fourth: a network may be away for days


def own_hosts() -> frozenset[str]:
    """The addresses of this machine's interfaces, those excepted that lead nowhere else."""
    hosts = set()
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            address = ipaddress.ip_address(host)
            if not address.is_loopback and not address.is_link_local:
                hosts.add(host)
    return frozenset(hosts)


async def watch(
    host: Host,
    changed: Callable[[], None],
    *,
    look: Callable[[], frozenset[str]] = own_hosts,
    wall: Callable[[], float] = time.time,
) -> None:
    """Call `changed` whenever our network has, for ever; end what hung on the old one.

    wall: a clock that goes on while this machine sleeps, as trio's may not.
    """
    known, looked_at = look(), wall()
    met: list[str] = []  # whom we were connected to when last we were to anybody
    alone_looks = 0
    while True:
        met = host.acquaintances() or met
        await trio.sleep(LOOK_S)
        now, slept_s = look(), wall() - looked_at - LOOK_S
        looked_at = wall()
        gone, new = known - now, now - known
        known = now
        if gone or new or slept_s >= ASLEEP_S:
            log.info("network changed", gone=sorted(gone), new=sorted(new), slept_s=int(slept_s))
            met = [*host.acquaintances(), *met]
            _cut(host, gone if slept_s < ASLEEP_S else None)
            host.forgive()
            changed()
            _meet_again(host, met, TRIES)
            alone_looks = 0
        elif met and not host.acquaintances():
            if alone_looks < EAGER_LOOKS or alone_looks % PATIENT_LOOKS == 0:
                _meet_again(host, met, 1)
            alone_looks += 1
        elif alone_looks:
            log.info("the network is back", after_s=int(alone_looks * LOOK_S))
            alone_looks = 0
            host.forgive()
            changed()
            _meet_again(host, met, TRIES)


def _cut(host: Host, gone: frozenset[str] | None) -> None:
    """End the connections from addresses that are gone, and what relays passed on over them.

    None: all connections.
    """
    why = TransportError("our network has changed")
    relays = set()
    for connection in host.connections():
        if gone is None or connection.local_host in gone:
            relays.add(connection.mux.peer)
            connection.mux.fail(why)
    for connection in host.connections():
        if connection.relay in relays:
            connection.mux.fail(why)


def _meet_again(host: Host, peers: Sequence[str], tries: int) -> None:
    """Dial those of these that we are not connected to."""
    lost = [peer for peer in dict.fromkeys(peers) if host.best(peer) is None]
    for peer in lost[:AGAIN_MAX]:
        host.nursery.start_soon(_meet, host, peer, tries)


async def _meet(host: Host, peer: str, tries: int) -> None:
    for number in range(tries):
        if number:
            await trio.sleep(AGAIN_S)  # nothing tells when a route is there
        host.forgive(peer)
        try:
            await host.dial_known(peer)
            return
        except TransportError as error:
            log.debug("not yet met again", peer=peer, reason=str(error))
