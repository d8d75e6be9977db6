"""Circuit relay v2 with js-libp2p: it reserves at us, we at it, and others come through."""

from __future__ import annotations

import os
from typing import Final

from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.relay import Relay, RelayLimits
from potluck.node.net.reservations import Reservations

from .interop_lab import ECHO, KIB, SIZES, Figures, Lab, Watch, echo, echo_of, p50
from .js_peer import open_js_peer

HANDSHAKE_BYTES_MAX: Final = 16 * KIB  # noise, yamux and identify, inside a circuit


async def case_relay(lab: Lab) -> Figures:
    """js reserves a place at us, by circuit relay v2; another js and another host of ours then
    reach it through us, with a connection of their own above ours."""
    limits = RelayLimits()
    relay = Relay(lab.host, lab.key, limits)
    relay.open()
    took: list[float] = []
    with Watch(took):
        circuits = await lab.js.do("reserve", relay=lab.host.addresses()[0])
    assert relay.peers == (lab.js.peer,)
    # where js was dialed from is among them too: it takes that for where we listen
    circuit = f"{lab.host.addresses()[0]}/p2p-circuit/p2p/{lab.js.peer}"
    assert circuit in circuits, circuits
    figures: Figures = {"reserved_ms": p50(took)}
    async with open_js_peer(lab.folder, "bare") as caller:
        assert await caller.do("dial", address=circuit) == lab.js.peer
        said = await caller.do("connection", peer=lab.js.peer)
        assert said["limits"]["seconds"] == limits.circuit_s, said
        spent = limits.circuit_bytes - said["limits"]["bytes"]  # it counts them down
        assert 0 < spent < HANDSHAKE_BYTES_MAX, said
        figures["js_to_js_ms"] = {
            name: round(await caller.do("echo", peer=lab.js.peer, bytes=size), 2)
            for name, size in SIZES.items()
        }
    async with open_host(HostConfig(seed=os.urandom(32))) as host:
        host.handle(ECHO, echo)
        assert await host.connect([circuit]) == lab.js.peer
        figures["us_to_js_ms"] = await echoes(host, lab.js.peer, SIZES)
        back = await lab.js.do("echo", peer=host.peer_id, bytes=KIB)  # over the same circuit
        figures["js_to_us_1_kib_ms"] = round(back, 2)
    return {**figures, "circuits": relay.circuits_served}


async def case_relay_of_js(lab: Lab) -> Figures:
    """We reserve a place at js; a js and a host of ours reach us through it. Little is sent, for
    its circuits end after 128 KiB."""
    sizes = {"1 KiB": KIB, "16 KiB": 16 * KIB}
    held = Reservations(lab.host, wanted=1, source=lambda _: None, usable=lambda _: True)
    async with open_js_peer(lab.folder, "bare", "relay") as relay:
        await lab.host.connect(relay.addresses)
        await lab.host.identified(relay.peer)
        lab.host.disconnect(lab.js.peer)  # which relays for nobody
        took: list[float] = []
        with Watch(took):
            await held.tend()
        assert held.relays == (relay.peer,)
        figures: Figures = {"reserved_ms": p50(took)}
        circuit = f"{relay.addresses[0]}/p2p-circuit/p2p/{lab.host.peer_id}"
        assert await lab.js.do("dial", address=circuit) == lab.host.peer_id
        said = await lab.js.do("connection", peer=lab.host.peer_id)
        assert 0 < 128 * KIB - said["limits"]["bytes"] < HANDSHAKE_BYTES_MAX, said
        figures["js_to_us_ms"] = {
            name: round(await lab.js.do("echo", peer=lab.host.peer_id, bytes=size), 2)
            for name, size in sizes.items()
        }
        async with open_host(HostConfig(seed=os.urandom(32))) as host:
            assert await host.connect([circuit]) == lab.host.peer_id
            figures["us_to_us_ms"] = await echoes(host, lab.host.peer_id, sizes)
    return figures


async def echoes(host: Host, peer: str, sizes: dict[str, int]) -> dict[str, float]:
    figures = {}
    for name, size in sizes.items():
        took: list[float] = []
        with Watch(took):
            await echo_of(host, peer, size)
        figures[name] = p50(took)
    return figures
