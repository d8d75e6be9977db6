"""A server that leaves: its sessions move while it serves on, or are told to go."""

from __future__ import annotations

import trio
from sim.memory_swarm import (
    THREE_STAGES,
    admitted,
    begun,
    dial,
    heard,
    opening,
    prompt,
    prompted,
    rows,
    step,
    undisturbed,
    world,
)
from trio.testing import MockClock

from potluck.errors import TransportError
from potluck.swarm.wire import Busy, Leaving, Opened, Output, Step


async def test_a_draining_server_hands_its_sessions_over(
    autojump_clock: MockClock,
) -> None:
    """Drained with no patience, the server cuts its session; the client goes on elsewhere with the
    same answer, and does not hold it against the peer."""
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, prompted(made) as (session, router):
        leaving = made.serving(2)
        await leaving.server.drain(0.0)
        assert await step(session, 0) == expected[1]
        assert leaving.server.sessions == 0
        assert not router.history(leaving.host.peer_id).banned(trio.current_time())


async def test_a_leaving_server_serves_until_a_standby_holds_all(
    autojump_clock: MockClock,
) -> None:
    """Nothing is lost or taken back: the session moves between two tokens, on its one span."""
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, trio.open_nursery() as nursery:
        async with begun(made) as (session, _):
            out = [await prompt(session)]
            leaving = made.serving(2)
            before = session.route
            began_s = trio.current_time()
            drained = trio.Event()

            async def leave() -> None:
                await leaving.server.drain(30.0)
                drained.set()

            nursery.start_soon(leave)
            for number in range(8):
                out.append(await step(session, number))
            await drained.wait()
            assert trio.current_time() - began_s < 1
            assert session.recoveries == []
            after = session.route
            assert [hop.blocks for hop in after] == [hop.blocks for hop in before]
            moved = [one.peer != other.peer for one, other in zip(before, after, strict=True)]
            assert moved == [False, True, False]
            assert leaving.host.peer_id == before[1].peer
        assert out == expected
        assert made.net.faults == [] or isinstance(made.net.faults[0][1], TransportError)


async def test_word_of_leaving_comes_whole_between_answers(
    autojump_clock: MockClock,
) -> None:
    async with world() as made, trio.open_nursery() as nursery:
        node = await made.add(0, 6, step_s=0.1)
        frames = await admitted(made)
        for at in range(4):
            await frames.send(Step(at, (1,), 1), rows(at))
        nursery.start_soon(node.server.drain, 30.0)
        heard = []
        for _ in range(5):
            received = await frames.receive()
            assert received is not None
            heard.append(received[0])
        assert [one.at for one in heard if isinstance(one, Output)] == [0, 1, 2, 3]
        told = [one for one in heard if isinstance(one, Leaving)]
        assert len(told) == 1 and 29 < told[0].within_s <= 30
        await frames.close()


async def test_a_leaving_server_takes_nobody_new_and_tells_whoever_was_opening(
    autojump_clock: MockClock,
) -> None:
    async with world() as made, trio.open_nursery() as nursery:
        node = await made.add(0, 6, step_s=1.0)
        early = await dial(made)
        await early.send(opening())
        await trio.sleep(0.5)  # its cache is being opened
        nursery.start_soon(node.server.drain, 30.0)
        await trio.sleep(0.1)
        late = await dial(made)
        await late.send(opening())
        assert isinstance(await heard(late), Busy)
        assert isinstance(await heard(early), Opened)
        assert isinstance(await heard(early), Leaving)
        assert node.server.sessions == 1
        await early.close()


async def test_whoever_finds_no_other_is_served_to_the_last_second(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made, trio.open_nursery() as nursery:
        node = made.nodes[0]
        frames = await admitted(made)
        nursery.start_soon(node.server.drain, 30.0)
        assert isinstance(await heard(frames), Leaving)
        await trio.sleep(29)
        await frames.send(Step(0, (1,), 1), rows(1))
        assert isinstance(await heard(frames), Output)
        assert isinstance(await heard(frames), Busy)
        assert node.server.sessions == 0 and node.engine.caches == []


async def test_a_drain_that_is_cancelled_ends_its_sessions_at_once(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made:
        node = made.nodes[0]
        await admitted(made)
        with trio.move_on_after(5):
            await node.server.drain(30.0)
        assert trio.current_time() < 7
        assert node.admission.sessions == 0 and node.engine.caches == []
