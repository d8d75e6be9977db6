"""Lookouts: sampled peers that stay connected, of a node and of a client that only watches."""

from __future__ import annotations

from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from sim.parted import Guide, Town, TownHost, TownNet
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.crypto.keys import IdentityKey
from potluck.dht.known import Known
from potluck.dht.network import prefixes_of
from potluck.node.gossip.lookouts import LOOK_S, Watch
from potluck.node.gossip.sampling import Sampler
from potluck.swarm.lookouts import LOOKOUTS, TENURE_S, Lookouts
from potluck.swarm.sampling import ROUND_S, WATCH_S, WATCH_SOON
from potluck.swarm.sampling_events import PROTOCOL, Heard, Member, Pull, Received, View

LATER_S = 900.0


def member(number: int, network: int | None = None) -> Member:
    return Member(f"p{number}", f"/ip4/{20 + (number if network is None else network)}.1.1.1/tcp/1")


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.booleans()), max_size=60))
def test_they_are_few_and_fit_and_each_peer_is_one_of_them_once(
    heard: list[tuple[int, int, bool]],
) -> None:
    lookouts = Lookouts()
    bad: set[str] = set()
    for now, (number, network, spoils) in enumerate(heard):
        bad.update({f"p{number}"} if spoils else ())
        drawn = [member(number, network), member(number + 1, network)]
        there = lookouts.tend(drawn, 100.0 * now, fit=lambda peer: peer not in bad)
        assert len(there) == len({one.peer for one in there}) <= LOOKOUTS
        assert not bad & {one.peer for one in there}


def test_who_is_lost_is_replaced_at_once_and_others_step_down_one_at_a_time() -> None:
    lookouts = Lookouts()
    crowd = [member(n) for n in range(40)]
    first = lookouts.tend(crowd, 0.0, fit=lambda peer: True)
    assert first == tuple(crowd[:LOOKOUTS])
    assert lookouts.tend(crowd[::-1], TENURE_S - 1, fit=lambda peer: True) == first
    lookouts.lose(first[1].peer)
    second = lookouts.tend(crowd[::-1], TENURE_S - 1, fit=lambda peer: True)
    assert set(first) - set(second) == {first[1]} and len(second) == LOOKOUTS
    for turn in range(1, LOOKOUTS + 1):
        before = set(lookouts.members())
        after = set(lookouts.tend(crowd[10:], (1 + turn) * TENURE_S, fit=lambda peer: True))
        assert len(before - after) == 1
    assert not set(lookouts.members()) & set(first)


def test_of_one_network_there_are_two_at_most_while_others_are_drawn() -> None:
    crowd = [member(n, network=7) for n in range(20)]
    there = Lookouts().tend([*crowd, member(30), member(31)], 0.0, fit=lambda peer: True)
    assert sum(one in crowd for one in there) == LOOKOUTS - 2
    assert len(Lookouts().tend(crowd, 0.0, fit=lambda peer: True)) == LOOKOUTS  # nobody else


class Client:
    """A client in the town: it joined by the first, and only watches."""

    def __init__(self, town: Town) -> None:
        first = town.citizens[0]
        peer = IdentityKey.from_bytes(b"c" * 32).peer_id
        self.host: TownHost = town.net.settle(peer, "/ip4/9.9.9.9/tcp/1")
        self.host.claimed = []  # it listens nowhere
        self.guide = Guide(peers=float(len(town.citizens)))
        known = Known(first.id, first.host.addresses(), 0.0)
        self.guide.answered = lambda: (known,)  # type: ignore[method-assign]
        self.sampler = Sampler(self.host, self.guide, Random(5), watches=True)  # type: ignore[arg-type]
        self.watch = Watch(self.host, self.sampler)  # type: ignore[arg-type]
        self.views: list[int] = []  # bytes of each that came
        handle = self.sampler._machine.handle

        def count(event, now):  # type: ignore[no-untyped-def]
            if isinstance(event, Received):
                self.views.append(len(encode(event.message)))
            return handle(event, now)

        self.sampler._machine.handle = count  # type: ignore[method-assign]

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sampler.run)
            nursery.start_soon(self.watch.run)


def still_town(nursery: trio.Nursery, count: int) -> Town:
    """Peers that know each other and answer, and do nothing by themselves."""
    town = Town(TownNet(nursery), seed=1)
    for _ in range(count):
        town.settle()
    everybody = tuple(Member(one.id, one.host.place) for one in town.citizens)
    for one in town.citizens:
        one.host.handle(PROTOCOL, one.sampler._receive)
        one.sampler._dispatch(Heard(everybody))
    return town


async def test_a_client_comes_to_watch_by_peers_that_it_was_not_told_of(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        town = still_town(nursery, 12)
        client = Client(town)
        nursery.start_soon(client.run)
        with trio.fail_after(120):
            while len(client.watch.contacts()) < LOOKOUTS:  # noqa: ASYNC110  # virtual time
                await trio.sleep(1)
        there = {one.peer for one in client.watch.contacts()}
        assert there == client.host.kept and there <= set(client.host.connected())
        assert len({prefixes_of(one.addresses[0]) for one in client.watch.contacts()}) == LOOKOUTS
        for one in town.citizens:
            if one.id in there:
                await one.host.die()
                client.host.links.pop(one.id)
        with trio.fail_after(10 * WATCH_S):
            while len({one.peer for one in client.watch.contacts()} - there) < LOOKOUTS:  # noqa: ASYNC110
                await trio.sleep(1)
        everybody = {peer for one in town.citizens for peer in one.sampler.contacts(256)}
        assert client.host.peer_id not in everybody
        assert town.net.faults == []
        nursery.cancel_scope.cancel()


async def test_what_a_client_pays_for_watching(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in its first seconds; then a question each five seconds for a minute, and each minute
    for as long as it lives."""
    async with trio.open_nursery() as nursery:
        client = Client(still_town(nursery, 60))
        nursery.start_soon(client.run)
        await trio.sleep(ROUND_S - 1)
        assert client.views == [] and client.host.sent == 0 and not client.host.connected()
        await trio.sleep(WATCH_SOON * ROUND_S)
        soon, soon_bytes = len(client.views), sum(client.views) + client.host.sent
        assert 0 < soon <= WATCH_SOON + 1
        await trio.sleep(LATER_S)
        asked = len(client.views) - soon
        spent = sum(client.views) + client.host.sent - soon_bytes
        with capsys.disabled():
            print(f"\n{soon} views, {soon_bytes} B in a minute; {asked}, {spent} B in 15 minutes")
        assert 10 <= asked <= LATER_S / WATCH_S + 2
        assert spent / LATER_S <= 300
        nursery.cancel_scope.cancel()


async def test_who_watches_answers_nobody_and_tells_nothing(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(still_town(nursery, 6))
        said: list[object] = []
        send = client.sampler._send

        async def record(member: Member, message: Pull | View) -> None:
            said.append(message)
            await send(member, message)

        client.sampler._send = record  # type: ignore[method-assign]
        nursery.start_soon(client.run)
        await trio.sleep(100 * LOOK_S)
        assert said and all(isinstance(one, Pull) for one in said)
        assert not client.host.handlers
        nursery.cancel_scope.cancel()


async def test_who_is_banned_is_no_lookout_and_no_sample(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        one = still_town(nursery, 8).citizens[1]
        nursery.start_soon(one.sampler.run)
        banned: set[str] = set()
        watch = Watch(one.host, one.sampler, shunned=banned.__contains__)  # type: ignore[arg-type]
        nursery.start_soon(watch.run)
        with trio.fail_after(900):
            while not (watch.contacts() and one.sampler.drawn()):  # noqa: ASYNC110  # virtual time
                await trio.sleep(1)
        liar = one.sampler.drawn()[-1]
        banned.add(liar)
        one.sampler.shun(liar)
        watch.shun(liar)
        assert liar not in one.sampler.drawn()
        assert liar not in {each.peer for each in (*one.sampler.ranked(), *watch.contacts())}
        nursery.cancel_scope.cancel()
