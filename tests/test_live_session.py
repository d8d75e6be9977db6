"""The session driver over memory roads: whatever dies, stalls or lies, the answer is the same."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import trio
from sim.adding_engine import WIDTH
from sim.memory_host import MemoryStream
from sim.memory_swarm import (
    BLOCKS,
    MODEL,
    THREE_STAGES,
    announcement,
    begun,
    plan,
    prompt,
    prompted,
    rows,
    step,
    talk,
    undisturbed,
    world,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from potluck.dht.memory import MemoryDirectory
from potluck.errors import MissingBlocks, Refused
from potluck.node.frames import FrameStream
from potluck.node.router import GRACE_S
from potluck.node.session import open_session
from potluck.swarm.history import FIRST_STEP_S, STRANGER_FLOOR_S, Usual
from potluck.swarm.wire import PROTOCOL, Busy, Opened, Output, Renew, Step


@pytest.mark.parametrize("kills", [{3: [0]}, {0: [2]}, {7: [4]}, {2: [0, 2]}, {1: [2], 5: [4]}])
async def test_killed_servers_change_no_answer(
    autojump_clock: MockClock, kills: dict[int, list[int]]
) -> None:
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made:
        assert await talk(made, kills) == expected


async def test_a_session_leaves_the_relay_and_no_answer_changes(
    autojump_clock: MockClock,
) -> None:
    """The way to each of two servers becomes direct while steps are under way."""
    expected = await undisturbed()
    async with world((0, 3), (3, 6)) as made:
        host, router = made.client()
        host.relays = {node.host.peer_id: "relay" for node in made.nodes}
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            out = [await prompt(session)]
            for number in range(8):
                session.feed(rows(number), 1, 1)
                if number in (2, 5):
                    host.becomes_direct(made.nodes[number // 3].host.peer_id)
                out.append(bytes(await session.output()))
            assert [one.moved for one in session.recoveries] == [True, True]
            assert all(
                router.history(peer).banned(trio.current_time()) is False
                for peer in (node.host.peer_id for node in made.nodes)
            )
        assert out == expected
        assert host.on_direct == []


async def test_a_stalled_server_is_left_at_its_deadline(
    autojump_clock: MockClock,
) -> None:
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, prompted(made) as (session, router):
        router.usual = Usual()  # nobody knows yet what is late
        made.serving(2).host.stall()
        began = trio.current_time()
        assert await step(session, 0) == expected[1]
        assert FIRST_STEP_S <= trio.current_time() - began <= FIRST_STEP_S + 1
        assert [lost.reason for lost in session.recoveries] == ["no answer before its deadline"]


async def test_a_stranger_that_takes_work_and_does_none_is_raced_by_what_others_take(
    autojump_clock: MockClock,
) -> None:
    """It answered too seldom to be known itself, but the other hops answered as well."""
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, prompted(made) as (session, _):
        assert await step(session, 0) == expected[1]
        made.serving(2).host.stall()
        began = trio.current_time()
        assert await step(session, 1) == expected[2]
        assert STRANGER_FLOOR_S <= trio.current_time() - began <= STRANGER_FLOOR_S + 1
        assert [lost.reason for lost in session.recoveries] == ["its standby answered first"]


@pytest.mark.parametrize(
    "rubbish",
    [
        lambda data: data[:-4] + struct.pack("<f", float("nan")),
        lambda data: b"\xff" * len(data),
        lambda data: data[:8] + b"\xc1" + data[9:],
    ],
)
async def test_a_server_that_answers_rubbish_is_replaced(
    autojump_clock: MockClock, rubbish: object
) -> None:
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, prompted(made) as (session, _):
        for stream in made.serving(4).host.streams:
            stream.bend = rubbish  # type: ignore[assignment]
        assert await step(session, 0) == expected[1]
        assert len(session.recoveries) == 1


@pytest.mark.parametrize("others", ["adding", "another"])
async def test_a_hop_is_replaced_inside_its_numerics_class_and_the_answer_says_if_not(
    autojump_clock: MockClock, others: str
) -> None:
    """Beside three peers of another class stands one of the lost hop's own, or does not."""
    async with world((0, 3), (3, 6)) as made, begun(made) as (session, router):
        session.feed(rows(1), 1, 1)
        await session.output()
        for _ in range(3):
            await made.add(0, 6, numerics="another")
        await made.add(2, 6, numerics=others)
        await router.announcements(MODEL, within_s=0)
        await made.serving(3).host.die()
        session.feed(rows(2), 1, 1)
        await session.output()
        assert session.exact == (others == "adding")


async def test_missing_blocks_are_named_when_no_cover_comes(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 2), (4, 6)) as made:
        began = trio.current_time()
        with pytest.raises(MissingBlocks, match="blocks 2:4 of adding") as caught:
            async with begun(made) as (session, _):
                await session.output()
        assert caught.value.missing == ((2, 4),)
        assert trio.current_time() - began < GRACE_S + 1


async def test_with_wait_a_session_goes_on_when_cover_comes(
    autojump_clock: MockClock,
) -> None:
    expected = await undisturbed()
    async with world((0, 2), (4, 6)) as made, trio.open_nursery() as nursery:

        async def bring() -> None:
            await trio.sleep(20)
            await made.add(2, 4)

        nursery.start_soon(bring)
        async with begun(made, wait_s=60) as (session, _):
            assert await prompt(session) == expected[0]


async def test_the_only_replica_is_tried_again_after_a_hiccup(
    autojump_clock: MockClock,
) -> None:
    """One stream breaks, its peer lives: after its first ban it serves the session again."""
    expected = await undisturbed()
    async with world((0, 2), (2, 4), (4, 6)) as made, prompted(made) as (session, _):
        await made.serving(2).host.streams[0].reset()
        assert await step(session, 0) == expected[1]


async def test_leaving_a_session_frees_every_cache_at_once(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 3), (3, 6)) as made:
        async with begun(made) as (session, _):
            session.feed(rows(1), 1, 1)
            await session.output()
            assert [node.admission.sessions for node in made.nodes] == [1, 1]
        await wait_all_tasks_blocked()
        assert [node.admission.free_tokens for node in made.nodes] == [10_000, 10_000]
        assert [node.engine.caches for node in made.nodes] == [[], []]
        assert made.net.faults == []


async def test_a_full_swarm_refuses_and_says_when_to_return(
    autojump_clock: MockClock,
) -> None:
    async with world() as made:
        await made.add(0, 6, cache_tokens=10)
        with pytest.raises(Refused) as caught:
            async with begun(made, tokens=64) as (session, _):
                session.feed(rows(1), 1, 1)
                await session.output()
        assert caught.value.retry_after_s > 0


async def test_a_session_that_waits_longer_than_its_lease_is_kept_by_renewal(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made, begun(made) as (session, _):
        session.feed(rows(1), 1, 1)
        await session.output()
        await trio.sleep(1000)
        session.feed(rows(2), 1, 1)
        await session.output()
        assert session.recoveries == []


async def test_a_lease_of_no_time_does_not_make_a_client_renew_without_end(
    autojump_clock: MockClock,
) -> None:
    renewed = 0

    async def lend_for_no_time(stream: MemoryStream) -> None:
        nonlocal renewed
        frames = FrameStream(stream)
        await frames.receive()
        await frames.send(Opened(0.0, WIDTH, "adding"))
        while (received := await frames.receive()) is not None:
            renewed += isinstance(received[0], Renew)

    async with world((0, 6)) as made:
        made.nodes[0].host.handle(PROTOCOL, lend_for_no_time)
        async with begun(made):
            await trio.sleep(60)
    assert 0 < renewed <= 60


async def test_a_wrong_answer_ends_no_ban(autojump_clock: MockClock) -> None:
    """Or a liar that is all alone would be asked for ever."""

    async def answer_elsewhere(stream: MemoryStream) -> None:
        frames = FrameStream(stream)
        await frames.receive()
        await frames.send(Opened(60.0, WIDTH, "adding"))
        while (received := await frames.receive()) is not None:
            step = received[0]
            assert isinstance(step, Step)
            await frames.send(Output(step.at + 1, 1, 1, 0.0, 0.0, 0), rows(0))

    async with world((0, 6)) as made:
        made.nodes[0].host.handle(PROTOCOL, answer_elsewhere)
        with trio.fail_after(60), pytest.raises(MissingBlocks):
            async with begun(made) as (session, _):
                session.feed(rows(0), tokens=1, rows=1)
                await session.output()


async def test_whoever_leaves_as_the_stream_opens_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    """The dial has succeeded, and cannot be taken back, when the session is cancelled."""
    async with world((0, 6)) as made:
        host, router = made.client()
        dial = host.open_stream
        leaving = trio.CancelScope()

        async def open_and_cancel(peer: str, protocol: str) -> MemoryStream:
            stream = await dial(peer, protocol)
            leaving.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(0.1)  # the session's own end runs meanwhile
            return stream

        host.open_stream = open_and_cancel  # type: ignore[method-assign]
        with leaving:
            async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
                await session.output()
        await wait_all_tasks_blocked()
        assert made.nodes[0].host.streams == [] and made.net.faults == []


async def test_who_is_always_busy_and_says_come_back_at_once_holds_nobody_up(
    autojump_clock: MockClock,
) -> None:
    """It claims to be far faster than the honest one, and so would be chosen again and again. It
    refuses on opening; or it opens, and refuses each step."""
    for opens in (False, True):
        async with world((0, BLOCKS), (0, BLOCKS)) as made:
            honest, liar = made.nodes
            told = announcement(0, BLOCKS, honest.host)
            slow = replace(told, decode_tokens_s=1.0)
            await MemoryDirectory(honest.key, made.shelf).announce(slow)
            asked = 0

            async def refuse(stream: MemoryStream, opens: bool = opens) -> None:
                nonlocal asked
                asked += 1
                assert asked < 20, "asked without end"
                frames = FrameStream(stream)
                await frames.receive()
                if opens:
                    await frames.send(Opened(60.0, WIDTH, "adding"))
                    await frames.receive()
                await frames.send(Busy("no", 0.0))

            liar.host.handle(PROTOCOL, refuse)
            async with begun(made) as (session, _):
                with trio.fail_after(1.0):
                    await prompt(session)
                assert session.route[0].peer == honest.host.peer_id
                assert asked <= 1
