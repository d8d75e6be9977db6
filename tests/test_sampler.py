"""The sampling's driver: real talks over memory roads, in virtual time."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest
import trio
from sim.parted import Citizen, Muxed, Seen, Town, TownNet, open_town
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.message import Contact
from potluck.errors import RemoteError, TransportError
from potluck.node.gossip.sampling import OF_EACH, Sampler, seen_at
from potluck.node.gossip.talks import TALK_S, Talk
from potluck.node.net.address import parse
from potluck.node.net.identify import Claims
from potluck.swarm.sampling import ROUND_S
from potluck.swarm.sampling_events import (
    LETTER_BYTES_MAX,
    PROTOCOL,
    VIEW_MAX,
    Heard,
    Member,
    Pull,
    Received,
    View,
    Walk,
)


def names(one: Citizen) -> set[str]:
    return set(one.sampler.contacts(VIEW_MAX))


async def until_all_know_all(town: Town, within_s: float) -> None:
    everybody = {one.id for one in town.citizens}
    with trio.fail_after(within_s):
        while any(names(one) != everybody - {one.id} for one in town.citizens):  # noqa: ASYNC110
            await trio.sleep(1)  # virtual time


async def open_talk(one: Citizen, other: Citizen) -> Talk:
    one.host.learn(other.id, other.host.addresses())
    stream = await one.host.open_stream(other.id, PROTOCOL)
    return Talk(stream, (Pull, View), LETTER_BYTES_MAX)


async def test_all_come_to_know_all_whom_they_could_not_have_heard_of(
    autojump_clock: MockClock,
) -> None:
    """Each joined by the first alone, whose view is all that can spread."""
    async with open_town(12) as town:
        await until_all_know_all(town, 40 * ROUND_S)
        assert town.net.faults == []
        assert not any(one.host.blamed for one in town.citizens)


async def test_who_dies_is_known_no_more_and_who_comes_back_is_joined_by(
    autojump_clock: MockClock,
) -> None:
    async with open_town(6) as town:
        await until_all_know_all(town, 40 * ROUND_S)
        gone, *others = town.citizens
        await gone.host.die()
        with trio.fail_after(600):
            while any(gone.id in names(one) for one in others):  # noqa: ASYNC110  # virtual time
                await trio.sleep(1)
        gone.host.dead = False
        with trio.fail_after(600):
            while not any(one.guide.again for one in others):  # noqa: ASYNC110  # virtual time
                await trio.sleep(1)
        assert {by for one in others for by in one.guide.again} == set(gone.host.addresses())


async def test_whoever_floods_is_not_read(autojump_clock: MockClock) -> None:
    async with open_town(2) as town:
        flooder, other = town.citizens
        handled: list[object] = []
        handle = other.sampler._machine.handle
        other.sampler._machine.handle = (  # type: ignore[method-assign]
            lambda event, now: handled.append(event) or handle(event, now)
        )
        for _ in range(4 * int(OF_EACH[1])):
            talk = await open_talk(flooder, other)
            with suppress(TransportError):
                await talk.send(View(()))
        await trio.sleep(1)
        read = [event for event in handled if isinstance(event, Received)]
        assert OF_EACH[1] <= len(read) <= OF_EACH[1] + 10


async def test_nonsense_ends_the_talk_and_is_its_senders_fault(autojump_clock: MockClock) -> None:
    async with open_town(2) as town:
        foe, other = town.citizens
        foe.host.learn(other.id, other.host.addresses())
        for raw in (b"\0\0\0\x02\xc1\xc1", b"\0\0\0\x09half", (1 << 31).to_bytes(4) + b"x"):
            stream = await foe.host.open_stream(other.id, PROTOCOL)
            await stream.send(raw)
            await stream.close()
            await trio.sleep(2 * TALK_S)
        faults = [error for who, error in town.net.faults if who == other.id]
        assert len(faults) == 3 and all(isinstance(error, RemoteError) for error in faults)


async def test_a_peer_is_kept_only_where_it_was_seen_whatever_it_claims(
    autojump_clock: MockClock,
) -> None:
    """Else one machine would stand in as many networks as it likes."""
    async with open_town(3) as town:
        liar, other = town.citizens[1:]
        liar.host.claimed = [parse("/ip4/99.9.9.9/tcp/1")]
        lie = Member(liar.id, "/ip4/99.9.9.9/tcp/1")
        talk = await open_talk(liar, other)
        await talk.send(View((lie,)))
        with trio.fail_after(120):
            while lie in other.sampler._machine.members():  # noqa: ASYNC110  # virtual time
                await trio.sleep(1)
        liar.host.claimed = [parse(liar.host.place)]
        with trio.fail_after(600):
            while liar.id not in names(other):  # noqa: ASYNC110  # virtual time
                await trio.sleep(1)
        kept = [one for one in other.sampler._machine.members() if one.peer == liar.id]
        assert [one.address for one in kept] == [liar.host.place]


async def test_what_comes_of_a_talk_after_the_services_end_goes_nowhere() -> None:
    """Handlers go on until the host is closed."""
    async with trio.open_nursery() as nursery:
        host = TownNet(nursery).settle(IdentityKey.generate().peer_id, "/ip4/9.9.9.9/tcp/1")
        sampler = Sampler(host, None, Random(1))  # type: ignore[arg-type]
        with trio.CancelScope() as life:
            life.cancel()
            await sampler.run()
        sampler._perform([Walk()] * 100)


async def test_contacts_are_of_many_networks_and_those_that_spoke_come_first() -> None:
    async with trio.open_nursery() as nursery:
        net = TownNet(nursery)
        host = net.settle(IdentityKey.generate().peer_id, "/ip4/9.9.9.9/tcp/1")
        sampler = Sampler(host, None, Random(1), slots=160)  # type: ignore[arg-type]
        crowd = {IdentityKey.generate().peer_id: f"/ip4/8.8.8.{n}/tcp/1" for n in range(20)}
        homes = {IdentityKey.generate().peer_id: f"/ip4/{20 + n}.1.1.1/tcp/1" for n in range(9)}
        contacts = [
            Contact(peer, (f"{place}/p2p/{peer}", "/ip4/7.7.7.7/tcp/1"))
            for peer, place in (crowd | homes).items()
        ]
        members = tuple(one for contact in contacts for one in sampler._members(contact))
        assert {one.address for one in members} == {*crowd.values(), *homes.values()}
        sampler._dispatch(Heard(members))
        met = next(one for one in members if one.peer in homes)
        sampler._dispatch(Received(met, View(())))
        found = sampler.contacts(10)
        assert len(found) == 10 and found[0] == met.peer
        assert sum(peer in crowd for peer in found) <= 2
        assert all(host.known[peer] for peer in found)
        sampler.shun(met.peer)
        assert met.peer not in sampler.contacts(40)


def claims(*addresses: str) -> Claims:
    return Claims("", (), tuple(map(parse, addresses)), None)


RELAY = IdentityKey.from_bytes(b"r" * 32).peer_id
OVER = f"/ip4/5.5.5.5/tcp/7/p2p/{RELAY}/p2p-circuit"


@pytest.mark.parametrize(
    ("seen", "place"),
    [
        (Seen(Muxed(True), ("8.8.8.8", 4), None), "/ip4/8.8.8.8/tcp/4"),
        (Seen(Muxed(False), ("8.8.8.8", 50_000), None), ""),
        (
            Seen(Muxed(False), ("8.8.8.8", 50_000), claims("/ip4/9.9.9.9/tcp/4")),
            "",
        ),
        (
            Seen(Muxed(False), ("8.8.8.8", 9), claims("/ip4/9.9.9.9/tcp/4", "/ip4/8.8.8.8/tcp/4")),
            "/ip4/8.8.8.8/tcp/4",
        ),
        (Seen(Muxed(True), ("8.8.8.8", 9), claims(OVER), from_port=4001), ""),  # punched
        (Seen(Muxed(True), ("5.5.5.5", 7), claims(OVER), relay=RELAY), OVER),
        (Seen(Muxed(True), ("6.6.6.6", 7), claims(OVER), relay=RELAY), ""),
        (Seen(Muxed(False), ("5.5.5.5", 9), claims(OVER)), ""),
    ],
)
def test_an_address_counts_as_far_as_the_connection_bears_it_out(seen: Seen, place: str) -> None:
    assert seen_at(seen) == place  # type: ignore[arg-type]
