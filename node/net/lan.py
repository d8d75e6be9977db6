"""Neighbours on the same network, found without anybody's help: multicast DNS.

Source: github.com/libp2p/specs/blob/master/discovery/mdns.md, under a service name of our own, for
other libp2p programs of the house are no peers of a swarm. The protocol is zeroconf's, which runs
in a thread of its own.

    PTR _potluck._udp.local ──▶ RANDOM._potluck._udp.local ──▶ TXT dnsaddr=/ip4/.../p2p/...
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import trio
from zeroconf import Error as ZeroconfError
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from ..log import get_logger
from .address import parse
from .aside import aside

log = get_logger()

SERVICE: Final = "_potluck._udp.local."
DNSADDR: Final = b"dnsaddr="
ADDRESSES_MAX: Final = 8
STRING_BYTES_MAX: Final = 255  # of one string in a TXT record
HEARD_MAX: Final = 64  # neighbours that wait to be asked for their addresses
ASKED_AT_ONCE: Final = 8  # each may take a thread for ASK_MS
NEIGHBOURS_MAX: Final = 256  # addresses met in one run: a house, or an office
ASK_MS: Final = 3000
SAY_AGAIN_S: Final = 10.0  # how soon a change of our addresses is told

Met = Callable[[Sequence[str]], Awaitable[None]]


async def tell_and_listen(peer: str, addresses: Callable[[], Sequence[str]], met: Met) -> None:
    """Tell the neighbours where we are, and give `met` the addresses of each of them, for ever."""
    token = trio.lowlevel.current_trio_token()
    send, heard = trio.open_memory_channel[str](HEARD_MAX)

    def on_change(  # these names are zeroconf's keywords
        zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        def pass_on() -> None:
            try:
                send.send_nowait(name)
            except trio.WouldBlock:
                return  # so many neighbours are known by others too

        if state_change is not ServiceStateChange.Removed:
            token.run_sync_soon(pass_on)

    known: set[str] = set()
    try:
        network = await aside(Zeroconf)
    except (OSError, ZeroconfError) as error:
        log.info("no multicast here", reason=str(error))
        return
    try:
        browser = ServiceBrowser(network, SERVICE, handlers=[on_change])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell, network, addresses)
            for _ in range(ASKED_AT_ONCE):
                nursery.start_soon(_meet_each, heard, network, peer, met, known)
        browser.cancel()
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(2), suppress(ZeroconfError):
            await aside(network.close)


async def _tell(network: Zeroconf, addresses: Callable[[], Sequence[str]]) -> None:
    """Say it, and say it anew under another name when that failed: a machine that sleeps in the
    middle of it leaves zeroconf's thread behind its time."""
    name, said = _name(), b""
    while True:
        text = to_text(addresses())
        if text != said:
            info = ServiceInfo(
                SERVICE,
                name,
                port=1,  # zeroconf wants one, and an address; those that count are in the text
                properties=text,
                server=f"{name[:32]}.local.",
                parsed_addresses=sorted({parse(one).host for one in addresses()}),
            )
            speak = network.update_service if said else network.register_service
            try:
                await aside(speak, info)
                said = text
            except (OSError, ZeroconfError) as error:
                log.debug("the neighbours were not told", reason=repr(error))
                name, said = _name(), b""
        await trio.sleep(SAY_AGAIN_S)


def _name() -> str:
    return f"{secrets.token_hex(16)}.{SERVICE}"


async def _meet_each(
    heard: trio.MemoryReceiveChannel[str], network: Zeroconf, me: str, met: Met, known: set[str]
) -> None:
    async for name in heard:
        await _meet(network, name, me, met, known)


async def _meet(network: Zeroconf, name: str, me: str, met: Met, known: set[str]) -> None:
    try:
        info = await aside(network.get_service_info, SERVICE, name, ASK_MS)
    except (OSError, ZeroconfError) as error:
        log.debug("a neighbour cannot be asked", name=name, reason=repr(error))
        return
    if info is None or info.text is None:
        log.debug("a neighbour says no more than its name", name=name)
        return
    found = [
        one for one in from_text(info.text) if one not in known and not one.endswith(f"/p2p/{me}")
    ]
    if found and len(known) < NEIGHBOURS_MAX:
        known.update(found)
        await met(found)


def to_text(addresses: Sequence[str]) -> bytes:
    """A TXT record: strings of up to 255 bytes, each behind its length."""
    strings = [DNSADDR + address.encode() for address in addresses]
    fit = [one for one in strings if len(one) <= STRING_BYTES_MAX][:ADDRESSES_MAX]
    return b"".join(len(one).to_bytes(1) + one for one in fit)


def from_text(text: bytes) -> list[str]:
    """The addresses in a TXT record; what is none of them is passed over."""
    found: list[str] = []
    at = 0
    while at < len(text) and len(found) < ADDRESSES_MAX:
        string = text[at + 1 : at + 1 + text[at]]
        at += 1 + text[at]
        if string.startswith(DNSADDR) and string.isascii():
            found.append(string[len(DNSADDR) :].decode())
    return found
