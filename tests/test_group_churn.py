"""Members who fall silent, come late, are cut off or talk nonsense; fragments, tokens, rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trio
from sim.group_town import COUNT, RUN, Citizen, Town, open_town
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.crypto.envelope import sign
from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, UserError
from potluck.node.compute.average.nesterov import cuts
from potluck.node.letters import send_letter
from potluck.node.runs.group import Settings
from potluck.swarm.run.group_events import Computed, Effect, Event, Pace, Shared
from potluck.swarm.run.group_wire import (
    DOMAIN,
    GROUP_MAX,
    LETTER_BYTES_MAX,
    Ballot,
    Card,
    Member,
    Part,
    Plan,
    Prepare,
    Told,
    pack,
    protocol_of,
)

PATIENT = Settings(pace=Pace(patience_s=1e6))


def freeze(citizen: Citizen) -> None:
    """It is there, its streams are open, and nothing comes of what it is told."""
    machine = citizen.group._machine

    def ignore(event: Event, now: float) -> list[Effect]:
        return []

    machine.handle = ignore  # type: ignore[method-assign]


def thaw(citizen: Citizen) -> None:
    del citizen.group._machine.handle  # type: ignore[attr-defined]


async def commit(town: Town, *some: Citizen) -> None:
    for one in some or town.alive:
        one.learns(target=1.0)
    with trio.fail_after(60):
        await town.exchange(*some)
    town.assert_equal(*some)


async def test_who_is_silent_is_left_out_and_comes_back_with_what_it_learnt(
    autojump_clock: MockClock,
) -> None:
    """Its own motion of one epoch, which is in no mean, goes on from the anchor it fetched."""
    async with open_town(4) as town:
        await commit(town)
        silent, *others = town.citizens
        freeze(silent)
        await commit(town, *others)
        assert silent.group.place.commits == 1 and others[0].group.place.commits == 2
        thaw(silent)
        silent.learns(target=1.0)
        moved = silent.weights - silent.group.anchor[0]
        with trio.fail_after(300):
            found = await silent.exchange()  # nobody else waits: it only catches up
        town.assert_equal()
        assert found.peers == ()
        assert torch.allclose(found.weights, silent.group.anchor[0] + moved, atol=1e-6)
        await commit(town)
        assert silent.group.place.commits == 3


async def test_a_step_that_was_averaged_without_its_maker_knowing_is_not_counted_again(
    autojump_clock: MockClock,
) -> None:
    """It held the next state, heard of no commit, and finds the others two commits further. What
    it sent is in the first of these; what it did since is all that goes on from there."""
    async with open_town(3) as town:
        deaf = next(one for one in town.citizens if one is not town.leader())
        others = [one for one in town.citizens if one is not deaf]
        machine = deaf.group._machine
        handle = machine.handle

        def grow_deaf(event: Event, now: float) -> list[Effect]:
            effects = handle(event, now)
            if isinstance(event, Computed):
                freeze(deaf)
            return effects

        machine.handle = grow_deaf  # type: ignore[method-assign]
        for one in town.citizens:
            one.learns(target=1.0)
        sent = deaf.weights
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deaf.exchange)
            for _ in range(2):
                await commit(town, *others)
            thaw(deaf)
        assert deaf.group.place.commits == 0 and torch.equal(deaf.weights, sent)
        deaf.learns(target=1.0)
        moved = deaf.weights - sent
        with trio.fail_after(300):
            await deaf.exchange()
        town.assert_equal()
        assert torch.allclose(deaf.weights, deaf.group.anchor[0] + moved, atol=1e-6)


async def test_a_late_joiner_takes_part_in_the_next_exchange(autojump_clock: MockClock) -> None:
    async with open_town(3) as town:
        await commit(town)
        late = await town.join(7)
        await commit(town)
        assert late.group.place.commits == 2
        assert Member(late.host.peer_id, 1) in late.group.place.members


async def test_who_was_killed_and_started_anew_is_a_joiner(autojump_clock: MockClock) -> None:
    async with open_town(3) as town:
        await commit(town)
        await town.citizens[0].die()
        await commit(town, *town.citizens[1:])
        again = await town.join(0, boot=2)
        for _ in range(2):  # the first may end before it is heard of
            await commit(town, *town.citizens[1:])
        assert Member(again.host.peer_id, 2) in again.group.place.members


async def test_of_two_parts_of_a_town_one_goes_on_and_the_other_follows(
    autojump_clock: MockClock,
) -> None:
    """Five are cut into two and three; then the two wait in vain, and take their steps."""
    async with open_town(5, PATIENT) as town:
        await commit(town)
        few, most = town.citizens[:2], town.citizens[2:]
        await town.cut(*few)
        await commit(town, *most)
        with trio.fail_after(300):
            await town.exchange(*few)
        assert [one.group.place.commits for one in few] == [1, 1]
        await town.cut()
        await commit(town)
        assert {one.group.place.commits for one in town.citizens} == {3}


async def test_a_split_shows_and_heals(autojump_clock: MockClock) -> None:
    """The one that can be: of two, cut off from three, patience is over, and they found themselves
    anew. Then both parts have a successor of one state."""
    async with open_town(5, Settings(pace=Pace(patience_s=60.0))) as town:
        await commit(town)
        few, most = town.citizens[:2], town.citizens[2:]
        await town.cut(*few)
        await commit(town, *most)
        with trio.fail_after(300):
            await town.exchange(*few)
        places = {one.group.place for one in town.citizens}
        assert len(places) == 2 and {one.commits for one in places} == {2}
        assert len({one.before for one in places}) == 1
        await town.cut()
        with trio.fail_after(60):
            await town.exchange()  # the part whose state is left may end one more among itself
        await commit(town)
        assert len({one.group.place.members for one in town.citizens}) == 1
        assert len(town.citizens[0].group.place.members) == 5


async def test_numbers_weigh_as_their_tokens_do(autojump_clock: MockClock) -> None:
    async with open_town(3) as town:
        for value, one in enumerate(town.citizens):
            one.weights = torch.full((COUNT,), float(value))
        wanted = 0.7 * 1.5 * (0 * 100 + 1 * 200 + 2 * 700) / 1000  # Nesterov's first step
        async with trio.open_nursery() as nursery:
            for tokens, one in zip((100, 200, 700), town.citizens, strict=True):
                nursery.start_soon(one.exchange, tokens)
        town.assert_equal()
        assert float((town.citizens[0].weights - wanted).abs().max()) < 0.02


async def test_fragments_take_turns_while_the_runner_goes_on(autojump_clock: MockClock) -> None:
    """An exchange returns at once; what it brings is mixed into what the weights have become."""
    settings = Settings(fragments=2, overlap=1, mix=0.5)
    first, second = cuts(COUNT, 2)
    async with open_town(2, settings) as town:
        for one in town.citizens:
            one.weights = torch.ones(COUNT)
        began_s = trio.current_time()
        await town.exchange()
        assert trio.current_time() == began_s
        for one in town.citizens:
            assert torch.equal(one.weights, torch.ones(COUNT))
            one.weights = one.weights + 1.0
        await town.exchange()  # takes in the first fragment, begins the second
        landed = 0.5 * 2.0 + 0.5 * 0.7 * 1.5 * 1.0
        for one in town.citizens:
            assert torch.allclose(one.weights[:first], torch.tensor(landed), atol=0.02)
            assert torch.equal(one.weights[first:], torch.full((second,), 2.0))
            found = await one.group.settle(one.weights)
            assert torch.allclose(
                found.weights[first:], torch.tensor(0.5 * 2.0 + 0.5 * 0.7 * 1.5 * 2.0), atol=0.02
            )
        town.assert_equal()


@pytest.mark.parametrize("bits", [4, 8])
async def test_what_rounding_takes_comes_with_the_next(
    bits: int, autojump_clock: MockClock
) -> None:
    """The same small motion beside a large one, each time: alone it would be rounded to nothing for
    ever. The anchor is the sum of all steps, so what is owed at the end is one step's at most."""
    settings = Settings(bits=bits)  # type: ignore[arg-type]
    large, small = 1.0, 0.6 / (7 if bits == 4 else 127) / 2
    async with open_town(2, settings) as town:
        moved = torch.full((COUNT,), small)
        moved[::128] = large
        exact = momentum = torch.zeros(COUNT)
        for _ in range(8):
            for one in town.citizens:
                one.weights = one.weights + moved
            await town.exchange()
            momentum = 0.5 * momentum + moved
            exact = exact + 0.7 * (moved + 0.5 * momentum)
        got = town.citizens[0].weights
        assert float(got[1]) > 0.5 * float(exact[1])
        assert float((got - exact).abs().mean()) < 0.5 * float(exact[1])


async def test_nonsense_is_its_senders_fault_and_nobody_elses(autojump_clock: MockClock) -> None:
    async with open_town(3) as town:
        foe = IdentityKey.from_bytes(b"f" * 32)
        host = town.net.host(foe.peer_id)
        victim = town.citizens[0]
        peer, place = victim.host.peer_id, victim.group.place
        card = Card(RUN, foe.peer_id, 1, 1, place.state, place.before, 0, 1, 1, True)
        mine = sign(foe, DOMAIN, encode(card))
        forged = sign(foe, DOMAIN, encode(replace(card, peer=peer)))
        other_run = sign(foe, DOMAIN, encode(replace(card, run=bytes(32))))
        ballot = Ballot(9, Member(peer, 1))
        nonsense = [
            b"\xc1",
            bytes(LETTER_BYTES_MAX + 1),
            pack(Told(forged, True)),
            pack(Told(other_run, True)),
            pack(Told(mine[:-1], True)),
            pack(Prepare(place.state, (), ballot)),
            pack(Plan(place.state, ballot, (mine, mine))),
        ]
        for raw in nonsense:
            town.net.faults.clear()
            stream = await host.open_stream(peer, protocol_of(RUN))
            await send_letter(stream, raw)
            await trio.sleep(1)
            assert [type(fault) for _, fault in town.net.faults] == [RemoteError], raw
        stream = await host.open_stream(peer, protocol_of(RUN))
        await send_letter(stream, pack(Part(place.state, ballot, bytes(32), "give", 0, 2**40)))
        await commit(town)


async def test_numbers_that_are_not_finite_count_as_no_part(autojump_clock: MockClock) -> None:
    """fp32, where a NaN has a form. Who sends it is left out and blamed, and the others finish."""
    async with open_town(3, Settings(bits=32)) as town:
        liar, *honest = town.citizens
        machine = liar.group._machine
        handle = machine.handle

        def lie(event: Event, now: float) -> list[Effect]:
            if isinstance(event, Shared):
                spoilt = tuple(b"\xff" * len(part) for part in event.parts)
                event = replace(event, parts=spoilt)
            return handle(event, now)

        machine.handle = lie  # type: ignore[method-assign]
        for one in town.citizens:
            one.learns(target=1.0)
        with trio.fail_after(300):
            await town.exchange()
        town.assert_equal(*honest)
        assert {one.group.place.commits for one in honest} == {1}
        assert all(bool(torch.isfinite(one.weights).all()) for one in honest)
        assert all({*one.blamed} == {liar.host.peer_id} for one in honest)


async def test_own_weights_that_are_not_finite_are_the_users_matter(
    autojump_clock: MockClock,
) -> None:
    async with open_town(1) as town:
        town.citizens[0].weights[5] = float("nan")
        with pytest.raises(UserError, match="learning rate"):
            await town.citizens[0].exchange()


async def test_of_more_than_a_group_those_whose_word_counts_go_on(
    autojump_clock: MockClock,
) -> None:
    """Two more than fit: they are left out, follow, and keep their motion; nobody is stuck."""
    async with open_town(GROUP_MAX + 2) as town:
        for commits in (1, 2):
            for one in town.citizens:
                one.learns(target=1.0)
            with trio.fail_after(300):
                found = await town.exchange()
            town.assert_equal()
            assert town.citizens[0].group.place.commits == commits
            assert sorted(len(one.peers) for one in found) == [0] * 2 + [GROUP_MAX - 1] * GROUP_MAX


async def test_a_state_that_nobody_gives_keeps_nobody_from_an_exchange(
    autojump_clock: MockClock,
) -> None:
    """Of a thousand commits, as a liar tells: it is asked for, and the others go on."""
    async with open_town(3) as town:
        liar = IdentityKey.from_bytes(b"l" * 32)
        host = town.net.host(liar.peer_id)
        card = Card(RUN, liar.peer_id, 1, 1, b"?" * 32, bytes(32), 1000, 1, 1, False)
        told = pack(Told(sign(liar, DOMAIN, encode(card)), False))
        for one in town.citizens:
            stream = await host.open_stream(one.host.peer_id, protocol_of(RUN))
            await send_letter(stream, told)
        await trio.sleep(1)
        await commit(town)
        assert {one.group.place.commits for one in town.citizens} == {1}


async def test_who_says_that_it_is_slow_and_sends_nothing_costs_others_no_exchange(
    autojump_clock: MockClock,
) -> None:
    """At a byte a second its parts would take an hour; whoever waits for them waits in vain."""
    async with open_town(3) as town:
        others = list(town.citizens)
        slow = await town.join(7, rate=1)
        assert slow.group._roads is not None
        slow.group._roads.carry = lambda *part: None  # type: ignore[method-assign]
        for one in town.alive:
            one.learns(target=1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.exchange)
            await town.exchange(*others)
            town.assert_equal(*others)
            assert others[0].group.place.commits == 1
            assert len(others[0].group.place.members) == 3
            nursery.cancel_scope.cancel()
