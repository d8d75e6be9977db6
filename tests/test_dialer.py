"""The dialer: every address is tried, dials are shared, and two that cross end as one."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from net_hosts import seeded, until
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, TransportError
from potluck.node.net.address import Address, parse
from potluck.node.net.dialer import STAGGER_S, Joined, connect_tcp, race
from potluck.node.net.host import Host, open_host
from potluck.node.net.peers import AT_ONCE_S, SURPLUS_TICKS

ADDRESSES = [Address("ip4", f"192.0.2.{n}", 4001) for n in range(1, 6)]


class Road:
    """Attempts that take as long and end as they are told to; notes what became of them."""

    def __init__(self, plan: dict[int, tuple[float, bool]]) -> None:
        self.plan = plan  # by the address's last number: seconds, and whether it succeeds
        self.began: dict[int, float] = {}
        self.failed: list[int] = []
        self.given_up: list[int] = []
        self.cancelled: list[int] = []

    async def attempt(self, address: Address) -> int:
        number = int(address.host.rpartition(".")[2])
        self.began[number] = trio.current_time()
        takes_s, works = self.plan.get(number, (trio.current_time() + 1e9, False))
        try:
            await trio.sleep(takes_s)
        except trio.Cancelled:
            self.cancelled.append(number)
            raise
        if not works:
            raise TransportError("refused")
        return number

    async def run(self) -> int:
        return await race(
            ADDRESSES,
            self.attempt,
            failed=lambda address: self.failed.append(int(address.host.rpartition(".")[2])),
            give_up=self.given_up.append,
        )


async def test_a_stale_address_costs_thirty_milliseconds(autojump_clock: MockClock) -> None:
    """The first address leads nowhere; stock would never try the second (D2)."""
    road = Road({2: (0.01, True)})
    began = trio.current_time()
    assert await road.run() == 2
    assert trio.current_time() - began == pytest.approx(STAGGER_S + 0.01)
    assert road.cancelled == [1] and 3 not in road.began


async def test_a_refused_address_costs_nothing(autojump_clock: MockClock) -> None:
    road = Road({1: (0.001, False), 2: (0.001, False), 3: (0.001, True)})
    began = trio.current_time()
    assert await road.run() == 3
    assert trio.current_time() - began == pytest.approx(0.003)
    assert road.failed == [1, 2]


async def test_of_two_that_succeed_at_once_one_is_given_up(autojump_clock: MockClock) -> None:
    road = Road({1: (STAGGER_S + 0.01, True), 2: (0.01, True)})
    won = await road.run()
    assert sorted([won, *road.given_up, *road.cancelled]) == [1, 2]


async def test_when_all_fail_every_reason_is_told(autojump_clock: MockClock) -> None:
    road = Road({n: (0.01 * n, False) for n in range(1, 6)})
    with pytest.raises(TransportError) as caught:
        await road.run()
    assert all(address.host in str(caught.value) for address in ADDRESSES)
    assert sorted(road.failed) == [1, 2, 3, 4, 5]


async def test_whoever_wants_a_peer_that_is_being_dialed_waits_for_that_dial(
    autojump_clock: MockClock,
) -> None:
    dials = 0

    async def dial() -> str:
        nonlocal dials
        dials += 1
        await trio.sleep(1)
        return "connection"

    found: list[str] = []

    async def want() -> None:
        found.append(await joined.run("peer", ADDRESSES[:2], dial))

    async with trio.open_nursery() as nursery:
        joined: Joined[str] = Joined(nursery)
        async with trio.open_nursery() as wanting:
            for _ in range(10):
                wanting.start_soon(want)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.5):  # one loses patience: the others still get theirs
                await joined.run("peer", ADDRESSES[:1], dial)
        assert found == ["connection"] * 10 and dials == 1
        await want()
        assert dials == 2


async def test_a_dial_that_nobody_waits_for_ends(autojump_clock: MockClock) -> None:
    ended = trio.Event()

    async def dial() -> str:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()
        return ""

    async with trio.open_nursery() as nursery:
        joined: Joined[str] = Joined(nursery)
        with trio.move_on_after(1):
            await joined.run("peer", ADDRESSES, dial)
        await ended.wait()

        async def works() -> str:
            return "new"

        assert await joined.run("peer", ADDRESSES, works) == "new"


async def test_a_dial_to_other_addresses_is_not_joined(autojump_clock: MockClock) -> None:
    """Somebody dials an address that is stale; whoever knows the right one does not wait."""

    async def never() -> str:
        await trio.sleep_forever()
        return ""

    async def works() -> str:
        return "new"

    async with trio.open_nursery() as nursery:
        joined: Joined[str] = Joined(nursery)
        nursery.start_soon(joined.run, "peer", ADDRESSES[:1], never)
        await trio.testing.wait_all_tasks_blocked()
        assert await joined.run("peer", ADDRESSES[1:2], works) == "new"
        nursery.cancel_scope.cancel()


async def test_a_failed_dial_fails_for_all_who_wait() -> None:
    async def fails() -> str:
        raise RemoteError("not who it should be")

    async with trio.open_nursery() as nursery:
        joined: Joined[str] = Joined(nursery)
        for _ in range(2):
            with pytest.raises(TransportError, match="not who it should be"):
                await joined.run("peer", ADDRESSES, fails)


async def test_a_name_is_looked_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        (await connect_tcp(parse(f"/dns4/localhost/tcp/{port}"))).close()
    with pytest.raises(TransportError):
        await connect_tcp(parse(f"/ip4/127.0.0.1/tcp/{port}"))


@pytest.mark.parametrize("name", ["a" * 64, ".org", "xn--" + "a" * 300])
async def test_a_name_that_nobody_can_look_up_is_only_that(name: str) -> None:
    with pytest.raises(TransportError, match=r"no name of a host|has no address"):
        await connect_tcp(Address("dns4", name, 1))


# ---- over real sockets


async def test_the_right_address_is_found_among_wrong_ones() -> None:
    """One refuses, one is somebody else's, one is right; stock dials one of them only (D2, D4)."""
    async with (
        open_host(seeded("a")) as alice,
        open_host(seeded("b")) as bob,
        open_host(seeded("c")) as carol,
    ):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            refusing = closed.getsockname()[1]
        carols = carol.addresses()[0].removesuffix(f"/p2p/{carol.peer_id}")
        told = [
            f"/ip4/127.0.0.1/tcp/{refusing}/p2p/{bob.peer_id}",
            f"{carols}/p2p/{bob.peer_id}",
            *bob.addresses(),
        ]
        assert await alice.connect(told) == bob.peer_id
        assert alice.connected() == (bob.peer_id,)


async def test_an_unreachable_peer_is_said_in_one_line() -> None:
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        told = bob.addresses()
    async with open_host(seeded("a")) as alice:
        with pytest.raises(TransportError, match="refused") as caught:
            await alice.connect(told)
        assert "\n" not in str(caught.value)
        alice.learn(bob.peer_id, told)
        with pytest.raises(TransportError, match="refused"):
            await alice.open_stream(bob.peer_id, "/x/1")
        with pytest.raises(TransportError, match="a moment ago"):
            await alice.open_stream(bob.peer_id, "/x/1")
        with pytest.raises(TransportError, match="no address"):
            await alice.open_stream(IdentityKey.generate().peer_id, "/x/1")


async def test_both_dial_at_once_and_use_the_same_connection() -> None:
    """Whichever way the dials cross, both choose the one that the smaller id dialed."""
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.connect, bob.addresses())
            nursery.start_soon(bob.connect, alice.addresses())
        await until(lambda: len(both(alice, bob)) == len(both(bob, alice)))
        smaller = min(alice.peer_id, bob.peer_id)
        if len(both(alice, bob)) == 2:
            for host, other in ((alice, bob), (bob, alice)):
                best = host._peers.best(other.peer_id)
                assert best is not None
                assert best.mux.dialer == (host.peer_id == smaller)
        await until(lambda: not any(c.mux.streams for c in both(alice, bob)))
        for _ in range(SURPLUS_TICKS + 1):
            alice._peers.tick()
            bob._peers.tick()
        await until(lambda: len(both(alice, bob)) == 1)
        await until(lambda: len(both(bob, alice)) == 1)


def both(host: Host, other: Host) -> list[object]:
    return list(host._peers.of(other.peer_id))


async def test_a_connection_that_comes_later_replaces_the_one_its_dialer_lost() -> None:
    async with open_host(seeded("a")) as alice, open_host(seeded("b")) as bob:
        await alice.connect(bob.addresses())
        await until(lambda: len(both(bob, alice)) == 1)
        (old,) = bob._peers.of(alice.peer_id)
        old.since -= 2 * AT_ONCE_S
        await bob._outbound.attempt(alice.peer_id, parse(alice.addresses()[0]))
        await until(lambda: len(both(bob, alice)) == 2)
        best = bob._peers.best(alice.peer_id)
        assert best is not None and best is not old
