"""A network that changes: what hung on the old one is ended, and the peers are dialed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from potluck.crypto.keys import IdentityKey
from potluck.errors import TransportError
from potluck.node.net import nat
from potluck.node.net.address import parse
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.mux_config import MuxConfig
from potluck.node.net.watch import AGAIN_MAX, LOOK_S, watch


class Mux:
    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.failure: Exception | None = None

    def fail(self, failure: Exception) -> None:
        self.failure = failure


class Connection:
    def __init__(self, peer: str, local_host: str, relay: str | None = None) -> None:
        self.mux = Mux(peer)
        self.local_host = local_host
        self.relay = relay


class Network:
    """A host as far as `watch` knows it; `up` says whether anybody can be dialed."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.links: list[Connection] = []
        self.up = True
        self.hosts = frozenset(("192.168.1.2",))
        self.asleep_s = 0.0
        self.changes = 0
        self.dials = 0
        nursery.start_soon(
            lambda: watch(
                self,  # type: ignore[arg-type]
                self.changed,
                look=lambda: self.hosts,
                wall=lambda: trio.current_time() + self.asleep_s,
            )
        )

    def changed(self) -> None:
        self.changes += 1

    def connections(self) -> list[Any]:
        return [one for one in self.links if one.mux.failure is None]

    def acquaintances(self) -> list[str]:
        return list(dict.fromkeys(one.mux.peer for one in self.connections()))

    def best(self, peer: str) -> Connection | None:
        return next((one for one in self.connections() if one.mux.peer == peer), None)

    def forgive(self, peer: str | None = None) -> None:
        pass

    async def dial_known(self, peer: str) -> None:
        self.dials += 1
        await trio.sleep(0.1)
        if not self.up:
            raise TransportError("no route")
        self.links.append(Connection(peer, min(self.hosts)))


@pytest.fixture
async def network(nursery: trio.Nursery) -> Network:
    made = Network(nursery)
    made.links = [
        Connection("relay", "192.168.1.2"),
        Connection("alice", "", relay="relay"),
        Connection("near", "127.0.0.1"),
    ]
    return made


async def test_nothing_is_done_while_nothing_changes(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    before = list(network.links)
    await trio.sleep(100)
    assert network.links == before and not network.changes and not network.dials


async def test_what_hung_on_an_address_that_is_gone_is_dialed_again(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    relay, alice, near = network.links
    await trio.sleep(10)
    network.hosts = frozenset(("192.168.2.2",))
    await trio.sleep(LOOK_S + 1)
    assert relay.mux.failure and alice.mux.failure and not near.mux.failure
    assert sorted(network.acquaintances()) == ["alice", "near", "relay"]
    assert network.changes == 1


async def test_a_peer_that_came_just_before_the_change_is_dialed_too(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    await trio.sleep(2 * LOOK_S - 0.2)
    network.links.append(Connection("late", "192.168.1.2"))
    network.hosts = frozenset(("192.168.2.2",))
    await trio.sleep(LOOK_S + 1)
    assert "late" in network.acquaintances()


async def test_after_a_long_sleep_everybody_is_dialed_again(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    before = list(network.links)
    await trio.sleep(10)
    network.asleep_s += 9
    await trio.sleep(LOOK_S + 1)
    assert network.changes == 0
    network.asleep_s += 20
    await trio.sleep(LOOK_S + 1)
    assert all(one.mux.failure for one in before)
    assert sorted(network.acquaintances()) == ["alice", "near", "relay"]
    assert network.changes == 1


async def test_when_nobody_is_left_the_network_is_waited_for(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    await trio.sleep(10)
    network.up = False
    for link in network.links:
        link.mux.fail(TransportError("no sign of life"))
    await trio.sleep(3600)
    assert network.dials < 3600 / (2 * LOOK_S) * len(network.links)  # no hammering
    assert network.changes == 0
    network.up = True
    await trio.sleep(5 * LOOK_S)
    assert sorted(network.acquaintances()) == ["alice", "near", "relay"]
    assert network.changes == 1


@pytest.mark.parametrize("listen", [(), ("/ip4/127.0.0.1/tcp/0",)])
async def test_who_listens_nowhere_is_watched_over_as_well(
    listen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's connections hang on an address as a node's do."""
    watched: list[Host] = []
    begun = trio.Event()

    async def note(host: Host, changed: Callable[[], None]) -> None:
        watched.append(host)
        begun.set()

    monkeypatch.setattr(nat, "watch", note)
    async with open_host(HostConfig(seed=b"c" * 32, listen=listen)) as client:
        nat.start_nat(client, IdentityKey.from_bytes(b"c" * 32), nat.NatConfig(portmap=False))
        with trio.fail_after(10):
            await begun.wait()
        assert watched == [client]


async def test_no_more_than_a_few_are_dialed(
    network: Network, autojump_clock: trio.testing.MockClock
) -> None:
    network.links += [Connection(f"peer {number}", "192.168.1.2") for number in range(50)]
    await trio.sleep(10)
    network.hosts = frozenset(("192.168.2.2",))
    await trio.sleep(LOOK_S)
    assert network.dials == AGAIN_MAX


# ---- a connection that its peer may have lost


async def test_a_doubted_peer_has_to_give_a_sign_of_life_soon() -> None:
    limits = MuxConfig()
    async with (
        open_host(HostConfig(seed=b"a" * 32)) as alice,
        open_host(HostConfig(seed=b"b" * 32)) as bob,
    ):
        await bob.connect(alice.addresses())
        await bob.identified(alice.peer_id)
        mux = bob.connections(alice.peer_id)[0].mux
        mux.doubt()
        assert mux.silent_ticks == limits.dead_after_ticks - limits.doubted_ticks
        with trio.fail_after(10):
            while mux.silent_ticks:  # noqa: ASYNC110  # its answer has no event
                await trio.sleep(0.005)
        assert mux.failure is None
        mux.doubt()
        for _ in range(limits.doubted_ticks + 1):  # in one breath: no answer can come
            mux.tick()
        assert "no sign of life" in str(mux.failure)


async def test_a_peer_that_connects_anew_is_doubted_on_its_old_connection() -> None:
    async with (
        open_host(HostConfig(seed=b"a" * 32)) as alice,
        open_host(HostConfig(seed=b"b" * 32)) as bob,
    ):
        await bob.connect(alice.addresses())
        (old,) = alice.connections(bob.peer_id)
        doubted: list[str] = []
        old.mux.doubt = lambda: doubted.append("old")  # type: ignore[method-assign]
        await bob._outbound.attempt(alice.peer_id, parse(alice.addresses()[0]))
        assert doubted == ["old"]
