"""Circuit relay v2 with js-libp2p: it reserves at us, we at it, and others come through."""

from __future__ import annotations

import os
from typing import Any, Final

from potluck.crypto.keys import IdentityKey
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.relay import Relay, RelayLimits
from potluck.node.net.reservations import Reservations

from .interop_lab import ECHO, KIB, SIZES, Figures, Lab, Watch, echo, echo_of, p50, until
from .js_peer import JsError, JsPeer, open_js_peer

HANDSHAKE_BYTES_MAX: Final = 16 * KIB  # noise, yamux and identify, inside a circuit


async def case_relay(lab: Lab) -> Figures:
    """A js that listens nowhere reserves a place at us, by circuit relay v2; another js and another
    host of ours then reach it through us, with a connection of their own above ours."""
    limits = RelayLimits()
    relay = Relay(lab.host, lab.key, limits)
    relay.open()
    here = lab.host.addresses()[0]
    async with open_js_peer(lab.folder, "bare", "hidden") as home:
        took: list[float] = []
        with Watch(took):
            circuits = await home.do("reserve", relay=here)
        assert relay.peers == (home.peer,)
        assert circuits == [f"{here}/p2p-circuit/p2p/{home.peer}"], circuits
        figures: Figures = {"reserved_ms": p50(took)}

        assert await lab.js.do("dial", address=circuits[0]) == home.peer
        said = await lab.js.do("connection", peer=home.peer)
        assert said["limits"]["seconds"] == limits.circuit_s, said
        spent = limits.circuit_bytes - said["limits"]["bytes"]  # it counts them down
        assert 0 < spent < HANDSHAKE_BYTES_MAX, said
        figures["js_to_js_ms"] = await js_echoes(lab.js, home.peer, SIZES)

        async with open_host(HostConfig(seed=os.urandom(32), listen=())) as host:
            host.handle(ECHO, echo)
            assert await host.connect(circuits) == home.peer
            figures["us_to_js_ms"] = await echoes(host, home.peer, SIZES)
            figures["js_to_us_ms"] = await js_echoes(home, host.peer_id, SIZES)
            assert host.relay_of(home.peer) == lab.host.peer_id
    return {**figures, "circuits": relay.circuits_served}


async def case_relay_limits(lab: Lab) -> Figures:
    """What a relay of ours does not give away, js is refused in words that it understands."""
    relay = Relay(lab.host, lab.key, RelayLimits(reservations_max=1, circuit_bytes=256 * KIB))
    relay.open()
    here = lab.host.addresses()[0]
    js = lab.js
    async with open_js_peer(lab.folder, "bare", "hidden") as home:
        [circuit] = await home.do("reserve", relay=here)
        said = await _refusal(js, "reserve", relay=here)
        assert "RESERVATION_REFUSED" in said, said
        nobody = f"{here}/p2p-circuit/p2p/{IdentityKey.generate().peer_id}"
        said = await _refusal(js, "dial", address=nobody)
        assert "NO_RESERVATION" in said, said
        await js.do("dial", address=circuit)
        await js_echoes(js, home.peer, {"64 KiB": 64 * KIB})
        too_much = await _refusal(js, "echo", peer=home.peer, bytes=1024 * KIB)
        await until(lambda: relay.circuits == 0)
        await js.do("dial", address=circuit)
        await js_echoes(js, home.peer, {"1 KiB": KIB})
        assert relay.peers == (home.peer,)
    return {"refused": ["RESERVATION_REFUSED", "NO_RESERVATION", too_much]}


async def _refusal(js: JsPeer, deed: str, **arguments: Any) -> str:
    """What js threw; it must."""
    try:
        await js.do(deed, **arguments)
    except JsError as error:
        return str(error)
    raise AssertionError(f"js was allowed to {deed}")


async def case_relay_of_js(lab: Lab) -> Figures:
    """A host of ours that listens nowhere reserves a place at js; a js and another host of ours
    reach it through that. Little is sent, for js's circuits end after 128 KiB."""
    sizes = {"1 KiB": KIB, "16 KiB": 16 * KIB}
    async with (
        open_js_peer(lab.folder, "bare", "relay") as relay,
        open_host(HostConfig(seed=os.urandom(32), listen=())) as home,
    ):
        home.handle(ECHO, echo)
        held = Reservations(home, wanted=1, source=lambda _: None, usable=lambda _: True)
        await home.connect(relay.addresses)
        await home.identified(relay.peer)
        took: list[float] = []
        with Watch(took):
            await held.tend()
        assert held.relays == (relay.peer,)
        figures: Figures = {"reserved_ms": p50(took)}
        circuit = f"{relay.addresses[0]}/p2p-circuit/p2p/{home.peer_id}"

        assert await lab.js.do("dial", address=circuit) == home.peer_id
        said = await lab.js.do("connection", peer=home.peer_id)
        assert 0 < 128 * KIB - said["limits"]["bytes"] < HANDSHAKE_BYTES_MAX, said
        figures["js_to_us_ms"] = await js_echoes(lab.js, home.peer_id, sizes)

        assert await lab.host.connect([circuit]) == home.peer_id
        figures["us_to_us_ms"] = await echoes(lab.host, home.peer_id, sizes)
        assert lab.host.relay_of(home.peer_id) == relay.peer
    return figures


async def js_echoes(js: JsPeer, peer: str, sizes: dict[str, int]) -> dict[str, float]:
    """Of a js and a peer that it reaches through a relay alone."""
    figures = {
        name: round(await js.do("echo", peer=peer, bytes=size), 2) for name, size in sizes.items()
    }
    assert await js.do("direct", peer=peer) is False
    return figures


async def echoes(host: Host, peer: str, sizes: dict[str, int]) -> dict[str, float]:
    figures = {}
    for name, size in sizes.items():
        took: list[float] = []
        with Watch(took):
            await echo_of(host, peer, size)
        figures[name] = p50(took)
    return figures
