"""Asking the router at home to forward our port: UPnP's internet gateway device, and NAT-PMP.

UPnP is miniupnpc's, which blocks: it runs in a thread, with a deadline. NAT-PMP (RFC 6886) is two
datagrams. Whichever answers is renewed at half its lease, and taken back at the end. That a router
says yes does not make us public: another NAT may follow, so strangers are asked (reach.py).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import miniupnpc  # type: ignore[import-not-found]  # no types in it
import trio

from ..log import get_logger
from .address import Address
from .aside import aside
from .observed import is_public

log = get_logger()

LEASE_S: Final = 3600  # RFC 6886's own; a crash leaves no mapping for long
DISCOVER_MS: Final = 2000  # UPnP's devices answer within the MX of 2 s
UPNP_S: Final = 15.0  # discovery, and three SOAP calls to a slow router
PMP_PORT: Final = 5351
PMP_FIRST_S: Final = 0.25  # RFC 6886 3.1: doubled each time; a router on the LAN answers or is none
PMP_TRIES: Final = 4
NONE_AGAIN_S: Final = 600.0  # guess: a router that has no UPnP will have none tomorrow
PMP_TCP, PMP_ADDRESS = 2, 0
DESCRIPTION: Final = "potluck"


@dataclass(frozen=True, slots=True)
class Mapping:
    """The router's word: what comes to `place` is sent to us. by: the protocol."""

    place: Address
    by: Literal["nat-pmp", "upnp"]
    lease_s: float


async def keep_mapped(port: int, told: Callable[[Mapping | None], None]) -> None:
    """Have our port forwarded, for ever. Cancelled, it is undone.

    told: hears of the first answer, and of each change; None when no router forwards.
    """
    mapping: Mapping | None = None
    first = True
    try:
        while True:
            found = await _map(port)
            if (found and found.place) != (mapping and mapping.place):
                log.info("port mapping", place=str(found.place) if found else "none")
                told(found)
            elif first:
                told(found)
            mapping, first = found, False
            await trio.sleep(mapping.lease_s / 2 if mapping else NONE_AGAIN_S)
    finally:
        if mapping is not None:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await _unmap(mapping, port)


async def _map(port: int) -> Mapping | None:
    found = await map_by_pmp(port)
    if found is not None:
        return found
    with trio.move_on_after(UPNP_S):
        return await aside(_map_by_upnp, port)
    return None


async def _unmap(mapping: Mapping, port: int) -> None:
    if mapping.by == "nat-pmp":
        await map_by_pmp(port, lease_s=0)
    else:
        await aside(_unmap_by_upnp, mapping.place.port)


# ---- UPnP: these block


def _gateway() -> Any:
    """The router, found and chosen; None when there is none."""
    device = miniupnpc.UPnP()
    device.discoverdelay = DISCOVER_MS
    try:
        device.discover()
        device.selectigd()
    except Exception as error:  # miniupnpc raises Exception itself: "No UPnP device discovered"
        log.debug("no UPnP", reason=str(error))
        return None
    return device


def _map_by_upnp(port: int) -> Mapping | None:
    device = _gateway()
    if device is None:
        return None
    lease_s = LEASE_S
    for lease in (LEASE_S, 0):  # some routers know only mappings without an end: error 725
        try:
            outside = str(device.externalipaddress())
            if not is_public(outside):
                log.debug("the router is behind another NAT", outside=outside)
            done = device.addportmapping(port, "TCP", device.lanaddr, port, DESCRIPTION, "", lease)
        except Exception as error:  # miniupnpc's own, or ipaddress's over its nonsense
            log.debug("UPnP refused", reason=str(error), lease=lease)
            continue
        if done:
            return Mapping(Address("ip4", outside, port), "upnp", float(lease or lease_s))
    return None


def _unmap_by_upnp(port: int) -> None:
    device = _gateway()
    if device is not None:
        try:
            device.deleteportmapping(port, "TCP")
        except Exception as error:  # as above; the lease ends by itself
            log.debug("UPnP kept the mapping", reason=str(error))


# ---- NAT-PMP


async def map_by_pmp(
    port: int, *, lease_s: int = LEASE_S, gateway: str | None = None
) -> Mapping | None:
    """A mapping by NAT-PMP; None when the gateway does not speak it, or refuses."""
    router = gateway or default_gateway()
    if router is None:
        return None
    asked = struct.pack("!BBHHHI", 0, PMP_TCP, 0, port, port if lease_s else 0, lease_s)
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            await sock.connect((router, PMP_PORT))
            where = await _exchange(sock, struct.pack("!BB", 0, PMP_ADDRESS), 12)
            if where is None:
                return None
            answer = await _exchange(sock, asked, 16)
        except OSError as error:
            log.debug("no NAT-PMP", reason=str(error))
            return None
    if answer is None or not lease_s:
        return None
    outside = str(ipaddress.IPv4Address(where[8:12]))
    _, mapped, lease = struct.unpack("!HHI", answer[8:16])
    return Mapping(Address("ip4", outside, mapped), "nat-pmp", float(max(lease, 120)))


async def _exchange(
    sock: trio.socket.SocketType, question: bytes, answer_bytes: int
) -> bytes | None:
    """The answer to one question, asked a few times. Raises OSError."""
    wait_s = PMP_FIRST_S
    for _ in range(PMP_TRIES):
        await sock.send(question)
        with trio.move_on_after(wait_s):
            while True:
                answer = await sock.recv(64)
                if len(answer) >= answer_bytes and answer[1] == question[1] | 0x80:
                    return answer if answer[2:4] == b"\0\0" else None
        wait_s *= 2
    return None


def default_gateway(table: Path = Path("/proc/net/route")) -> str | None:
    """The IPv4 router of this machine, where the system tells it as Linux does."""
    if sys.platform != "linux":
        return None
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        _, destination, gateway, *_ = line.split()
        if destination == "00000000" and gateway != "00000000":
            return str(ipaddress.IPv4Address(int(gateway, 16).to_bytes(4, "little")))
    return None
