"""Exchanges by gossip over memory roads: together, with the dead, the late, the lying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trio
from sim.run_world import FLAT, run_world, terms_of
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory
from potluck.dht.record import Provider
from potluck.errors import RemoteError, TransportError, UserError
from potluck.node.compute.average.outer import PULL
from potluck.node.gossip.talks import Talk
from potluck.node.runs.company import LOOK_EVERY_S, Company, meeting_of, seen_by
from potluck.node.runs.exchange import Carries
from potluck.swarm.run.plan import differences
from potluck.swarm.run.statement import (
    LETTER_BYTES_MAX,
    PROTOCOL,
    QUESTIONS,
    Part,
    Same,
    Told,
    state,
)

RUN = terms_of().run


async def test_four_peers_have_their_mean_after_one_exchange(autojump_clock: MockClock) -> None:
    """All begin at 0 and reach 1 to 4; NoLoCo goes .7 of the way to the mean, 2.5."""
    async with run_world(4) as world:
        began_s = trio.current_time()
        for found in await world.together(0, [1.0, 2.0, 3.0, 4.0]):
            torch.testing.assert_close(found, torch.full((FLAT.count,), PULL * 2.5))
        assert trio.current_time() - began_s < 1.0  # nobody waits for a deadline
        last = await world.peers[0].gossip.exchange(1, torch.ones(FLAT.count), 5)
        assert last.next == 2 and last.sent_bytes > 0


async def test_a_peer_alone_makes_its_own_outer_step(autojump_clock: MockClock) -> None:
    async with run_world(1) as world:
        found = await world.peers[0].gossip.exchange(0, torch.ones(FLAT.count), 100)
        torch.testing.assert_close(found.weights, torch.full((FLAT.count,), PULL))
        assert found.peers == () and found.received_bytes == 0


async def test_who_is_dead_is_missed_and_nothing_more(autojump_clock: MockClock) -> None:
    async with run_world(4) as world:
        await world.peers[3].host.die()
        for found in await world.together(0, [1.0, 2.0, 3.0]):
            torch.testing.assert_close(found, torch.full((FLAT.count,), PULL * 2.0))
        for epoch in (1, 2):
            await world.together(epoch, [1.0, 2.0, 3.0])
        assert all(len(peer.company.members) == 2 for peer in world.peers[:3])


async def test_who_is_silent_is_waited_for_until_the_deadline(autojump_clock: MockClock) -> None:
    async with run_world(3) as world:

        async def silent(stream: Any) -> None:
            await trio.sleep_forever()

        world.peers[2].host.handle(PROTOCOL, silent)
        began_s = trio.current_time()
        await world.together(0, [1.0, 3.0])
        assert trio.current_time() - began_s == pytest.approx(30.0, abs=0.1)


async def test_who_is_late_is_waited_for_a_little_and_then_left(autojump_clock: MockClock) -> None:
    """A fiftieth of what an epoch takes, and a quarter of a second at least."""
    async with run_world(2) as world:
        for lasts_s, waits_s in ((100.0, 2.0), (1.0, 0.25), (10_000.0, 15.0)):
            await trio.sleep(lasts_s)
            began_s = trio.current_time()
            found = await world.peers[0].gossip.exchange(0, torch.ones(FLAT.count), 1)
            assert found.peers == ()
            assert trio.current_time() - began_s == pytest.approx(waits_s, abs=0.1)


async def test_what_is_not_on_disk_is_not_given_out(autojump_clock: MockClock) -> None:
    """Else a peer that is killed, and comes back, would sign two things for one epoch."""
    async with run_world(2) as world:
        world.peers[0].kept = False
        alone, pulled = await world.together(0, [1.0, 3.0])
        torch.testing.assert_close(alone, torch.full((FLAT.count,), PULL * 2.0))
        torch.testing.assert_close(pulled, torch.full((FLAT.count,), PULL * 3.0))


async def test_after_a_stop_the_same_is_said_again(autojump_clock: MockClock) -> None:
    async with run_world(2) as world:
        one, other = world.peers
        await world.together(0, [1.0, 3.0])
        signed = one.gossip.signed
        assert signed is not None and isinstance(one.gossip, Carries)
        one.gossip.resign(*signed)
        await one.exchange(0, 2.0)  # its steps came to something else this time
        assert one.gossip.signed == signed
        await other.exchange(0, 3.0)
        assert other.forks == []
        with pytest.raises(RemoteError):
            other.gossip.resign(*signed)
        with pytest.raises(RemoteError):
            one.gossip.resign(signed[0], signed[1] + b"0")


def lies(kind: str, key: Any) -> Any:
    """A handler that answers every pull with something of this kind."""
    good = torch.ones(FLAT.count).numpy().tobytes()
    turn = 0

    async def serve(stream: Any) -> None:
        nonlocal turn
        talk = Talk(stream, QUESTIONS, LETTER_BYTES_MAX)
        await talk.receive()
        turn += 1
        match kind:
            case "infinite":
                raw = torch.full((FLAT.count,), torch.inf).numpy().tobytes()
                await talk.send(Told(state(key, RUN, 0, 1, raw).raw), Part(raw))
            case "short":
                await talk.send(Told(state(key, RUN, 0, 1, good[:-4]).raw), Part(good[:-4]))
            case "endless":
                said = Told(state(key, RUN, 0, 1, good).raw)
                await talk.send(said, Part(good), *(Part(good) for _ in range(3)))
                await talk.send(Part(good + good))
            case "too much":
                await talk.send(Told(state(key, RUN, 0, 1, good).raw), Part(good + b"1"))
            case "other bytes":
                await talk.send(Told(state(key, RUN, 0, 1, good).raw), Part(bytes(len(good))))
            case "other run":
                await talk.send(Told(state(key, b"q" * 32, 0, 1, good).raw), Part(good))
            case "two things":
                raw = (turn * torch.ones(FLAT.count)).numpy().tobytes()
                await talk.send(Told(state(key, RUN, 0, 1, raw).raw), Part(raw))
        await talk.close()

    return serve


@pytest.mark.parametrize("kind", ["infinite", "short", "too much", "other bytes", "other run"])
async def test_what_no_honest_peer_sends_counts_for_nothing_and_is_blamed(
    kind: str, autojump_clock: MockClock
) -> None:
    async with run_world(3) as world:
        liar = world.peers[2]
        liar.host.handle(PROTOCOL, lies(kind, liar.key))
        for found in await world.together(0, [1.0, 3.0]):
            torch.testing.assert_close(found, torch.full((FLAT.count,), PULL * 2.0))
        for peer in world.peers[:2]:
            assert [one for one, _ in peer.host.blamed] == [liar.key.peer_id]


async def test_who_says_more_than_it_told_is_not_read_on(autojump_clock: MockClock) -> None:
    async with run_world(2) as world:
        liar = world.peers[1]
        liar.host.handle(PROTOCOL, lies("endless", liar.key))
        found = await world.peers[0].gossip.exchange(0, torch.full((FLAT.count,), 3.0), 1)
        assert found.received_bytes < 2 * 4 * FLAT.count + 1000


async def test_two_things_to_two_pullers_are_found_out_by_what_these_show_each_other(
    autojump_clock: MockClock,
) -> None:
    async with run_world(3) as world:
        liar = world.peers[2]
        liar.host.handle(PROTOCOL, lies("two things", liar.key))
        await world.together(0, [1.0, 3.0])
        await world.together(1, [1.0, 3.0])
        assert [peer.forks for peer in world.peers[:2]] == [[liar.key.peer_id]] * 2
        assert all(liar.key.peer_id not in peer.company.members for peer in world.peers[:2])
        found = await world.peers[0].gossip.exchange(2, torch.ones(FLAT.count), 1)
        assert liar.key.peer_id not in found.peers


async def test_the_gate_takes_nothing_that_raises_the_loss(autojump_clock: MockClock) -> None:
    """Of 0 the loss is 1. With the other 2 is the outcome; alone 1."""
    async with run_world(2, terms_of(gate=0.02)) as world:
        one = world.peers[0]
        one.losses = {2 * PULL: 1.03, PULL: 1.01}
        first, _ = await world.together(0, [1.0, 3.0])
        torch.testing.assert_close(first, torch.full((FLAT.count,), PULL))
        assert one.gossip.refused == 1
        one.losses = {}
        one.losses = dict.fromkeys([round(0.01 * at, 3) for at in range(1000)], 9.0)
        last, _ = await world.together(1, [1.0, 3.0])
        torch.testing.assert_close(last, first)  # where it was, at rest
        assert not one.mixer.carried()["momentum"].any()


async def test_a_newcomer_begins_in_the_middle_of_those_who_are_there(
    autojump_clock: MockClock,
) -> None:
    async with run_world(4) as world:
        assert await world.peers[0].gossip.join() is None  # nobody has any weights yet
        await world.together(5, [1.0, 2.0, 3.0, 1e9])
        late = await world.add()
        await late.company.until(4)
        joined = await late.gossip.join()
        assert joined is not None and joined[0] == 6
        assert 1.0 <= float(joined[1][0]) <= 3.0
        await world.together(6, [2.0, 2.0, 2.0, 2.0, 2.0])


async def test_who_was_away_goes_on_from_the_middle_of_the_others(
    autojump_clock: MockClock,
) -> None:
    async with run_world(4) as world:
        await world.together(9, [4.0, 5.0, 6.0])
        away = world.peers[3]
        found = await away.gossip.exchange(0, torch.full((FLAT.count,), 1.0), 1)
        assert found.next == 10
        torch.testing.assert_close(found.weights, torch.full((FLAT.count,), 5.0))


async def test_who_is_a_little_behind_is_not_moved_so(autojump_clock: MockClock) -> None:
    """Its own step and the mean of all four, as ever: .7 of 4."""
    async with run_world(4) as world:
        await world.together(2, [4.0, 5.0, 6.0])
        found = await world.peers[3].gossip.exchange(0, torch.full((FLAT.count,), 1.0), 1)
        assert found.next == 3
        torch.testing.assert_close(found.weights, torch.full((FLAT.count,), PULL * 4.0))


async def test_a_stream_on_which_nothing_is_asked_is_let_go(autojump_clock: MockClock) -> None:
    async with run_world(2) as world:
        one, other = world.peers
        stream = await other.host.open_stream(one.key.peer_id, PROTOCOL)
        began_s = trio.current_time()
        with pytest.raises(TransportError):
            await stream.receive()
        assert trio.current_time() - began_s == pytest.approx(10.0, abs=0.1)


async def test_alone_there_is_nobody_to_join(autojump_clock: MockClock) -> None:
    async with run_world(1) as world:
        assert await world.peers[0].gossip.join() is None


async def test_who_runs_another_file_of_this_name_is_no_member_and_is_known_by_its_terms(
    autojump_clock: MockClock,
) -> None:
    async with run_world(2) as world:
        stranger = await world.add(terms_of(asked=4))
        (others,) = {one.run: one for one in stranger.company.others}.values()
        assert differences(stranger.gossip._terms, others) == [
            "exchange.asked is 4 here and 3 there"
        ]
        assert not stranger.company.members
        found = await world.peers[0].gossip.exchange(0, torch.ones(FLAT.count), 1)
        assert stranger.key.peer_id not in found.peers


async def test_who_waits_for_others_looks_for_them_every_second(
    autojump_clock: MockClock,
) -> None:
    """The second knew the first, and would have looked again in half a minute. The third is met by
    nobody else: its first look is at a directory that names nobody yet."""
    async with run_world(2) as world:
        began_s, second = trio.current_time(), world.peers[1]
        third = IdentityKey.generate()

        async def serve(stream: Any) -> None:
            talk = Talk(stream, QUESTIONS, LETTER_BYTES_MAX)
            await talk.receive()
            await talk.send(Same(0))
            await talk.close()

        world.net.host(third.peer_id).handle(PROTOCOL, serve)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.company.until, 2)
            await trio.sleep(5)
            await MemoryDirectory(third, world.shelf).provide([meeting_of("tales")])
        assert trio.current_time() - began_s < 7.0


async def test_who_waits_for_others_no_more_looks_for_them_as_seldom_as_before(
    autojump_clock: MockClock,
) -> None:
    async with run_world(2) as world:
        company, looks = world.peers[1].company, 0
        find = company._directory.providers

        async def counted(chunks: Sequence[bytes]) -> Mapping[bytes, tuple[Provider, ...]]:
            nonlocal looks
            looks += 1
            return await find(chunks)

        company._directory.providers = counted  # type: ignore[method-assign]
        with trio.move_on_after(5):
            await company.until(7)
        assert looks >= 4
        looks = 0
        await trio.sleep(10 * LOOK_EVERY_S)
        assert looks <= 11


async def test_who_pulls_without_end_is_served_no_more(autojump_clock: MockClock) -> None:
    async with run_world(2) as world:
        one, other = world.peers
        await world.together(0, [1.0, 3.0])
        served = 0
        for _ in range(40):
            joined = await other.gossip.join()
            served += joined is not None
        assert 1 <= served <= 16
        await trio.sleep(60)
        assert (await one.gossip.exchange(1, torch.ones(FLAT.count), 1)).peers != ()


async def test_weights_that_have_diverged_are_the_owners_to_mend(
    autojump_clock: MockClock,
) -> None:
    async with run_world(1) as world:
        with pytest.raises(UserError, match="diverged"):
            await world.peers[0].exchange(0, float("nan"))


@pytest.mark.parametrize(
    ("remote", "seen"),
    [("198.51.100.7", "/ip4/198.51.100.7"), ("::ffff:198.51.100.7", "/ip4/198.51.100.7"),
     ("2001:db8::1", "/ip6/2001:db8::1"), ("fe80::1%eth0", "/ip6/fe80::1")],
)  # fmt: skip
def test_a_peer_is_where_its_connection_comes_from(remote: str, seen: str) -> None:
    """And not where it says: names of one network get no larger part of the draws than that has."""
    host: Any = SimpleNamespace(best=lambda peer: SimpleNamespace(remote=(remote, 1)))
    assert seen_by(host)("ann") == seen
    host.best = lambda peer: None
    assert seen_by(host)("ann") == ""


async def test_many_names_of_one_network_are_a_small_part_of_the_draws() -> None:
    """A hundred ids of one address beside twenty peers of other networks: each of the 160 slots
    prefers a network before it prefers a peer, so about 160 / 21 keep one of the hundred."""
    places = {f"liar{at:03}".ljust(52, "x"): "/ip4/198.51.100.9" for at in range(100)}
    places |= {f"peer{at:03}".ljust(52, "x"): f"/ip4/{50 + at}.1.1.1" for at in range(20)}
    host: Any = SimpleNamespace(peer_id="me", welcomes=lambda peer: True)
    unused: Any = None
    company = Company(host, unused, terms_of(), Random(1), lambda peer: places[peer])
    for peer in places:
        company.met(peer)
    drawn = company.draw(40)
    assert len([one for one in drawn if one.startswith("liar")]) <= 20
    assert len([one for one in drawn if one.startswith("peer")]) == 20
