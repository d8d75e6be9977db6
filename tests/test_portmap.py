"""Forwarded ports: what is said to the router, and what is made of its answers."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from potluck.crypto.keys import IdentityKey
from potluck.node.net import nat as nat_module
from potluck.node.net import portmap
from potluck.node.net.address import Address
from potluck.node.net.host import HostConfig, open_host
from potluck.node.net.lan import from_text, to_text
from potluck.node.net.nat import Nat, NatConfig
from potluck.node.net.portmap import default_gateway, map_by_pmp


async def router(sock: trio.socket.SocketType, *, deaf_to: int = 0, result: int = 0) -> None:
    """A NAT-PMP router that overhears the first few questions."""
    while True:
        question, asker = await sock.recvfrom(64)
        if deaf_to:
            deaf_to -= 1
            continue
        head = struct.pack("!BBHI", 0, question[1] | 0x80, result, 77)
        if question[1] == portmap.PMP_ADDRESS:
            await sock.sendto(head + bytes((11, 0, 9, 2)), asker)
        else:
            _, _, _, inside, _, lease = struct.unpack("!BBHHHI", question)
            await sock.sendto(head + struct.pack("!HHI", inside, 50_000, lease // 2), asker)


async def mapped(monkeypatch: pytest.MonkeyPatch, **habits: int) -> portmap.Mapping | None:
    found: portmap.Mapping | None = None
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        monkeypatch.setattr(portmap, "PMP_PORT", sock.getsockname()[1])
        monkeypatch.setattr(portmap, "PMP_FIRST_S", 0.02)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: router(sock, **habits))
            found = await map_by_pmp(4001, gateway="127.0.0.1")
            nursery.cancel_scope.cancel()
    return found


async def test_a_router_that_speaks_nat_pmp_maps_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may choose another port, and a shorter lease."""
    found = await mapped(monkeypatch)
    assert found == portmap.Mapping(Address("ip4", "11.0.9.2", 50_000), "nat-pmp", 1800.0)


async def test_a_lost_question_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await mapped(monkeypatch, deaf_to=2) is not None


async def test_a_router_that_refuses_maps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await mapped(monkeypatch, result=2) is None


async def test_no_router_maps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await mapped(monkeypatch, deaf_to=99) is None


def test_the_router_is_read_from_the_kernels_table(tmp_path: Path) -> None:
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway\tFlags\n"
        "eth0\t0001A8C0\t00000000\t0001\n"
        "eth0\t00000000\t0101A8C0\t0003\n"
    )
    assert default_gateway(table) == "192.168.1.1"


def test_addresses_survive_a_txt_record_and_nonsense_does_not() -> None:
    addresses = [
        "/ip4/192.168.1.2/tcp/4001/p2p/12D3KooWBWSvhZU8XUfdZos7F4XKKw5u5oapksA9UK2jX4vc3rnU"
    ]
    assert from_text(to_text(addresses)) == addresses
    assert from_text(to_text(["x" * 300])) == []
    assert from_text(b"\x03abc\xffdnsaddr=\xc3") == []


async def test_the_first_answer_is_told_and_then_each_change(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """That no router answers is worth a word too, once: whoever waits for it waits no longer."""
    place = Address("ip4", "11.0.9.2", 4001)
    here = portmap.Mapping(place, "upnp", 1200.0)
    answers = iter([None, None, here, here, None])
    told: list[portmap.Mapping | None] = []

    async def ask(port: int) -> portmap.Mapping | None:
        return next(answers)

    async def undo(mapping: portmap.Mapping, port: int) -> None: ...

    monkeypatch.setattr(portmap, "_map", ask)
    monkeypatch.setattr(portmap, "_unmap", undo)
    with trio.move_on_after(2 * 600 + 2 * 600 + 1):
        await portmap.keep_mapped(4001, told.append)
    assert told == [None, here, None]


class Router:
    """Stands in for `keep_mapped`: forwards from `outside`, and notes when it began and ended."""

    def __init__(self, outside: str) -> None:
        self.outside = outside
        self.asked: list[str] = []

    async def keep(self, port: int, told: Callable[[portmap.Mapping | None], None]) -> None:
        self.asked.append("began")
        told(portmap.Mapping(Address("ip4", self.outside, port), "upnp", 3600.0))
        try:
            await trio.sleep_forever()
        finally:
            self.asked.append("undone")


@asynccontextmanager
async def behind(router: Router, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nat]:
    monkeypatch.setattr(nat_module, "keep_mapped", router.keep)
    key = IdentityKey.from_bytes(b"a" * 32)
    async with open_host(HostConfig(seed=key.seed(), listen=("/ip4/0.0.0.0/tcp/0",))) as host:
        nat = Nat(host, key, NatConfig())
        nat._own = frozenset(("192.168.1.2",))
        nat.start_mapping()
        await trio.testing.wait_all_tasks_blocked()
        yield nat
        host.nursery.cancel_scope.cancel()


async def test_on_another_network_its_router_is_asked_and_the_old_ones_word_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router = Router("11.0.9.2")
    async with behind(router, monkeypatch) as nat:
        assert any("/11.0.9.2/" in one for one in nat._host.addresses())
        assert nat._host.nat.mapped
        monkeypatch.setattr(nat_module, "reachable", lambda _: [Address("ip4", "10.0.0.9", 1)])
        nat.start_over()
        assert not any("/11.0.9.2/" in one for one in nat._host.addresses())
        assert (nat._host.nat.mapped, nat._host.nat.portmap) == (False, "asking")
        router.outside = "11.0.7.7"
        await trio.testing.wait_all_tasks_blocked()
        assert router.asked == ["began", "undone", "began"]
        assert any("/11.0.7.7/" in one for one in nat._host.addresses())
        monkeypatch.setattr(nat_module, "reachable", lambda _: [Address("ip4", "11.0.7.9", 1)])
        nat.start_over()
        await trio.testing.wait_all_tasks_blocked()
        assert router.asked == ["began", "undone", "began", "undone"]  # no router is in between
        assert nat._host.nat.portmap == "not tried"


async def test_a_router_behind_another_nat_gives_no_address_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with behind(Router("100.64.3.4"), monkeypatch) as nat:
        assert not any("/100.64.3.4/" in one for one in nat._host.addresses())
        assert (nat._host.nat.mapped, nat._host.nat.portmap) == (False, "upnp")
