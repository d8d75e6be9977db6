"""When our own addresses change: from Wi-Fi to cable, or after a night's sleep.

The kernel keeps a connection whose address is gone, and its packets go nowhere; nobody would know
before the keep-alive's ten seconds. So the interfaces are looked at every few seconds, connections
from an address that is no more are ended, and whoever was at their other end is dialed again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final

import ifaddr
import trio

from ...errors import TransportError
from ..log import get_logger
from .host import Host

log = get_logger()

LOOK_S: Final = 3.0  # a look costs 0.2 ms
AGAIN_MAX: Final = 8  # peers that are dialed again; the directory finds the others
AGAIN_S: Final = 2.0  # between tries, for an interface that is up may have no route yet
TRIES: Final = 5


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
    host: Host, changed: Callable[[], None], *, look: Callable[[], frozenset[str]] = own_hosts
) -> None:
    """Call `changed` whenever our addresses have, for ever; end what hung on the old ones."""
    known = look()
    while True:
        await trio.sleep(LOOK_S)
        now = look()
        if now == known:
            continue
        log.info("addresses changed", gone=sorted(known - now), new=sorted(now - known))
        gone, known = known - now, now
        lost = _cut(host, gone)
        changed()
        for peer in lost[:AGAIN_MAX]:
            host.nursery.start_soon(_meet_again, host, peer)


def _cut(host: Host, gone: frozenset[str]) -> list[str]:
    """End the connections from addresses that are gone; to whom they were."""
    lost = []
    for connection in host.connections():
        if connection.local_host in gone:
            connection.mux.fail(TransportError("our address has changed"))
            lost.append(connection.mux.peer)
    return list(dict.fromkeys(lost))


async def _meet_again(host: Host, peer: str) -> None:
    for _ in range(TRIES):
        try:
            await host.dial_known(peer)
            return
        except TransportError as error:
            log.debug("not yet met again", peer=peer, reason=str(error))
        await trio.sleep(AGAIN_S)  # nothing tells when a route is there
