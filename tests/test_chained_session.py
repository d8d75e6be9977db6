"""Sessions from hop to hop over memory roads: the answers are those of the star, whatever dies."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from sim.memory_host import MemoryStream
from sim.memory_swarm import (
    THREE_STAGES,
    World,
    begun,
    prompt,
    rows,
    step,
    talk,
    undisturbed,
    world,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from potluck.node import chain as node_chain
from potluck.node.session import LiveSession
from potluck.swarm.wire import CHAIN_PROTOCOL, EARLY_CHAIN_PROTOCOL, PROTOCOL, Onward

from .test_live_receipts import proof_of
from .test_wardrobe import ONE

RECEIPTS = pytest.mark.parametrize("receipts", [False, True])


async def told(session: LiveSession, steps: int = 8) -> list[bytes]:
    return [await prompt(session), *[await step(session, number) for number in range(steps)]]


# ---- the same answers


@RECEIPTS
async def test_what_goes_from_hop_to_hop_is_what_goes_by_star(
    autojump_clock: MockClock, receipts: bool
) -> None:
    expected = await undisturbed()
    async with (
        world(*THREE_STAGES) as made,
        begun(made, receipts=receipts, chain=True) as (
            session,
            _,
        ),
    ):
        assert await told(session) == expected
        assert session.chained >= 8 and session.recoveries == []
        if receipts:
            assert await session.settle()
            proof = proof_of(session)
            assert proof.good and proof.bare == [] and proof.linked == 6
        pushed = [node for node in made.nodes if (node.host.dialed)]
        assert len(pushed) == 2, "each of the two that follow dials its leader"
    await wait_all_tasks_blocked()
    assert made.net.faults == []
    assert [node.admission.sessions for node in made.nodes] == [0] * 6


@RECEIPTS
@pytest.mark.parametrize("kills", [{3: [0]}, {0: [2]}, {7: [4]}, {2: [0, 2]}, {1: [2], 5: [4]}])
async def test_killed_servers_change_no_answer(
    autojump_clock: MockClock, kills: dict[int, list[int]], receipts: bool
) -> None:
    expected = await undisturbed()
    async with (
        world(*THREE_STAGES) as made,
        begun(made, receipts=receipts, chain=True) as (
            session,
            _,
        ),
    ):
        out = [await prompt(session)]
        for number in range(8):
            for start in kills.get(number, []):
                await made.serving(start).host.die()
            out.append(await step(session, number))
        assert out == expected
        assert session.chained > 4
        if receipts:
            assert await session.settle()
            assert proof_of(session).faults == []


@pytest.mark.parametrize("stage", [0, 1, 2])
async def test_a_death_at_any_moment_of_a_step_changes_no_answer(
    autojump_clock: MockClock, stage: int
) -> None:
    """A step takes 20 ms at each of three hops; the peer dies before it has the step, with it, when
    it has pushed it on, and when the next ones have."""
    expected = await undisturbed()
    for moment in range(8):
        async with world() as made:
            for start, stop in THREE_STAGES:
                await made.add(start, stop, step_s=0.02)
            async with begun(made, chain=True) as (session, _), trio.open_nursery() as nursery:
                out = [await prompt(session), await step(session, 0)]

                async def kill(made: World = made, moment: int = moment) -> None:
                    await trio.sleep(0.009 * moment)
                    await made.serving(2 * stage).host.die()

                nursery.start_soon(kill)
                out += [await step(session, number) for number in range(1, 8)]
                assert out == expected, moment
                assert len(session.recoveries) == 1


async def test_a_session_with_an_adapter_goes_from_hop_to_hop(autojump_clock: MockClock) -> None:
    async with world(*THREE_STAGES) as made:
        expected = await talk(made, {}, ONE)
    assert expected != await undisturbed()
    async with (
        world(*THREE_STAGES) as made,
        begun(made, adapter=ONE, chain=True) as (
            session,
            _,
        ),
    ):
        assert await told(session) == expected and session.chained >= 8


async def test_who_leaves_is_replaced_and_no_answer_changes(autojump_clock: MockClock) -> None:
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, begun(made, receipts=True, chain=True) as (session, _):
        out = [await prompt(session), await step(session, 0)]
        leaver = made.serving(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaver.server.drain, 30.0)
            out += [await step(session, number) for number in range(1, 8)]
            began = trio.current_time()
        assert out == expected
        assert trio.current_time() - began < 5.0, "it had to wait for the session"
        assert session.recoveries == []
        before = session.chained
        for number in range(8, 12):
            await step(session, number)
        assert session.chained > before and leaver.server.sessions == 0
        assert await session.settle() and proof_of(session).faults == []


# ---- steps behind the question


async def test_the_first_steps_wait_for_no_answer_to_what_opens_the_session(
    autojump_clock: MockClock,
) -> None:
    """Nothing comes back from any server yet, and all have computed the prompt."""
    expected = await undisturbed()
    roads: list[MemoryStream] = []
    async with world((0, 2), (2, 4), (4, 6)) as made:
        for node in made.nodes:
            serve = node.host.handlers[PROTOCOL]

            async def hold(stream: MemoryStream, serve: Any = serve) -> None:
                stream.outward.held = True
                roads.append(stream)
                await serve(stream)

            node.host.handlers[PROTOCOL] = hold
        computed, last = trio.Event(), made.nodes[2].device
        step_there = last.step

        async def note(*asked: Any, **more: Any) -> Any:
            found = await step_there(*asked, **more)
            computed.set()
            return found

        last.step = note  # type: ignore[method-assign]
        async with begun(made, chain=True) as (session, _), trio.open_nursery() as nursery:
            out: list[bytes] = []

            async def speak() -> None:
                await session.opened()
                out.extend(await told(session))

            nursery.start_soon(speak)
            await computed.wait()
            assert len(roads) == 3 and out == []
            assert all(node.device.ran for node in made.nodes)
            for stream in roads:
                stream.outward.held = False
                stream.outward.touch()
        assert out == expected and session.chained >= 9, "the prompt, too"


async def test_who_is_full_is_replaced_and_nothing_that_was_sent_behind_is_lost(
    autojump_clock: MockClock,
) -> None:
    expected, replaced = await undisturbed(), 0
    for _ in range(6):
        async with world((0, 2), (2, 4), (4, 6)) as made:
            await made.add(0, 2, cache_tokens=8)
            async with begun(made, chain=True) as (session, _):
                assert await told(session) == expected
                replaced += len(session.recoveries)
            assert made.net.faults == []
    assert replaced, "the full one was asked in one of six"


async def test_whose_record_tells_of_another_class_is_asked_first_from_then_on(
    autojump_clock: MockClock,
) -> None:
    expected = await undisturbed()
    async with world((0, 2), (2, 4), (4, 6)) as made:
        made.nodes[1].engine.numerics = "another"  # since its record was made
        async with begun(made, chain=True) as (session, router):
            assert await told(session) == expected
            assert [lost.peer for lost in session.recoveries] == [made.nodes[1].host.peer_id]
            assert "another class" in session.recoveries[0].reason
            assert router.history(made.nodes[1].host.peer_id).misled


# ---- by star


async def test_what_cannot_reach_its_leader_is_served_by_star(autojump_clock: MockClock) -> None:
    expected = await undisturbed()
    async with world((0, 2), (2, 4), (4, 6)) as made:
        first, second, _ = made.nodes
        second.host.cannot_reach.add(first.host.peer_id)
        async with begun(made, chain=True) as (session, _):
            assert await told(session) == expected
            assert session.recoveries == [] and session.chained > 0  # from the second to the third
            assert first.device.ran and all(len(one.sizes) == 1 for one in first.device.ran)
        assert second.host.blamed == []


async def test_who_knows_of_no_chains_is_asked_for_none(autojump_clock: MockClock) -> None:
    expected = await undisturbed()
    async with world() as made:
        for start in (0, 2, 4):
            await made.add(start, start + 2, chains=start != 2)
        async with begun(made, chain=True) as (session, _):
            assert await told(session) == expected
            assert session.chained == 0 and session.recoveries == []
        assert [node.host.dialed for node in made.nodes] == [[], [], []]


@pytest.mark.parametrize("older", [{0}, {2}, {4}, {0, 2, 4}])
async def test_servers_of_the_first_version_are_told_of_a_chain_one_after_the_other(
    autojump_clock: MockClock, older: set[int]
) -> None:
    expected = await undisturbed()
    async with world() as made:
        for start in (0, 2, 4):
            await made.add(start, start + 2, early=start not in older)
        async with begun(made, chain=True) as (session, _):
            assert await told(session) == expected
            assert session.chained is not None and session.chained > 4
            assert session.recoveries == []
        asked = {protocol for node in made.nodes for _, protocol in node.host.dialed}
        assert CHAIN_PROTOCOL in asked
        assert (EARLY_CHAIN_PROTOCOL in asked) == (older in ({0}, {4})), "of two that know it"


async def test_no_chain_is_made_unless_it_is_asked_for(autojump_clock: MockClock) -> None:
    async with world(*THREE_STAGES) as made, begun(made) as (session, _):
        await told(session)
        assert session.chained is None
        assert [node.host.dialed for node in made.nodes] == [[]] * 6


async def test_a_push_that_is_held_up_is_made_good_by_star(autojump_clock: MockClock) -> None:
    """The road between two hops goes dead, and nobody says so: neither is lost."""
    expected = await undisturbed()
    async with world((0, 2), (2, 4), (4, 6)) as made, begun(made, chain=True) as (session, _):
        out = [await prompt(session)]
        out += [await step(session, number) for number in range(6)]
        leader = made.nodes[0]
        (road,) = [one for one in leader.host.streams if one.peer == made.nodes[1].host.peer_id]
        road.outward.held = True
        began = trio.current_time()
        out += [await step(session, number) for number in range(6, 8)]
        assert out == expected and session.recoveries == []
        assert trio.current_time() - began < 2.0


@RECEIPTS
async def test_who_pushes_rubbish_harms_no_session(
    autojump_clock: MockClock, receipts: bool
) -> None:
    """Its follower takes no more of it, and goes on by star with what was given to us."""
    expected = await undisturbed()
    async with (
        world((0, 2), (2, 4), (4, 6)) as made,
        begun(made, receipts=receipts, chain=True) as (session, _),
    ):
        out = [await prompt(session), await step(session, 0)]
        leader, follower = made.nodes[0], made.nodes[1]
        (road,) = [one for one in leader.host.streams if one.peer == follower.host.peer_id]
        road.bend = lambda data: data[:-16] + b"\xff" * 16  # not a number
        out += [await step(session, number) for number in range(1, 8)]
        assert out == expected and session.recoveries == []
        assert [peer for peer, _ in follower.host.blamed] == [leader.host.peer_id]


async def test_who_pushes_other_rows_than_it_gives_is_lost(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It seals what it pushes, as it must; so its follower, which computed with them, is not
    blamed."""
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, begun(made, receipts=True, chain=True) as (session, _):
        out = [await prompt(session), await step(session, 0)]
        liar = made.serving(0)
        honest = node_chain.Seat.push

        def lie(seat: node_chain.Seat, told: Onward, given: memoryview) -> bool:
            mine = seat._chains.key is liar.key
            return honest(seat, told, memoryview(rows(7, told.sizes[0])) if mine else given)

        monkeypatch.setattr(node_chain.Seat, "push", lie)
        out += [await step(session, number) for number in range(1, 8)]
        assert out == expected
        assert [lost.peer for lost in session.recoveries] == [liar.host.peer_id]
        assert await session.settle() and proof_of(session).faults == []
