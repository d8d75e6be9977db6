"""The server over memory roads, against clients that are silent, wrong, hostile or gone."""

from __future__ import annotations

import random

import pytest
import trio
from sim.memory_host import MemoryStream
from sim.memory_swarm import (
    THREE_STAGES,
    admitted,
    dial,
    heard,
    opening,
    rows,
    talk,
    undisturbed,
    world,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from potluck.errors import RemoteError, TransportError
from potluck.node.frames import FrameStream
from potluck.node.opening import OPEN_S
from potluck.swarm.wire import (
    PROTOCOL,
    Busy,
    Fault,
    Opened,
    Output,
    Sign,
    Step,
    Truncate,
)


@pytest.mark.parametrize(
    "first",
    [
        opening(model="cd" * 32),
        opening(stop=7),
        opening(start=3, stop=3),
        opening(tokens=0),
        opening(tokens=5000),
        opening(dtype="f64"),
        Step(0, (1,), 1),
        Opened(1.0, 4, "x"),
    ],
)
async def test_a_bad_opening_is_answered_with_its_fault_and_closed(
    autojump_clock: MockClock, first: object
) -> None:
    async with world((0, 6)) as made:
        frames = await dial(made)
        await frames.send(first)  # type: ignore[arg-type]
        received = await frames.receive()
        assert received is not None and isinstance(received[0], Fault)
        await wait_all_tasks_blocked()
        assert made.nodes[0].admission.sessions == 0
        assert isinstance(made.net.faults[0][1], RemoteError)


@pytest.mark.parametrize(
    ("step", "payload"),
    [
        (Step(1, (1,), 1), rows(1)),  # a hole
        (Step(0, (1,), 2), rows(1)),  # more rows than tokens
        (Step(0, (0, 1), 1), rows(1)),  # an empty piece
        (Step(0, (33,), 1), rows(1, 33)),  # beyond what was reserved
        (Step(0, (2,), 1), rows(1)),  # a payload too short
        (Truncate(1), b""),
        (Sign(), b""),  # in a session that did not ask for receipts
        (opening(), b""),
    ],
)
async def test_a_bad_step_ends_the_session_and_frees_its_cache(
    autojump_clock: MockClock, step: object, payload: bytes
) -> None:
    async with world((0, 6)) as made:
        frames = await admitted(made)
        await frames.send(step, payload)  # type: ignore[arg-type]
        received = await frames.receive()
        assert received is not None and isinstance(received[0], Fault)
        await wait_all_tasks_blocked()
        assert made.nodes[0].admission.sessions == 0


async def test_a_silent_client_is_let_go_before_and_after_opening(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made:
        await dial(made)
        frames = await admitted(made)
        await trio.sleep(OPEN_S + 1)
        assert len(made.nodes[0].host.streams) == 1
        received = await frames.receive()
        assert received is not None and isinstance(received[0], Busy)
        assert made.nodes[0].admission.sessions == 0


async def test_a_step_may_truncate_and_a_truncation_may_be_asked_for(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made:
        frames = await admitted(made)
        answers = []
        for message in (Step(0, (2,), 1), Step(2, (1,), 1), Step(2, (1,), 1), Truncate(2)):
            await frames.send(
                message, *([rows(7, message.sizes[0])] if hasattr(message, "sizes") else [])
            )
            if not isinstance(message, Truncate):
                received = await frames.receive()
                assert received is not None and isinstance(received[0], Output)
                answers.append(bytes(received[1]))
        assert answers[1] == answers[2]
        await frames.send(Step(3, (1,), 1), rows(7))
        assert isinstance(await heard(frames), Fault)


async def test_an_honest_client_is_served_beside_streams_of_random_bytes(
    autojump_clock: MockClock,
) -> None:
    rng = random.Random(5)
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made:
        host, _ = made.client()
        for _ in range(300):
            peer = rng.choice(made.nodes).host.peer_id
            stream: MemoryStream = await host.open_stream(peer, PROTOCOL)
            with_open = rng.random() < 0.5
            try:
                if with_open:
                    await FrameStream(stream).send(opening(start=0, stop=rng.randint(1, 6)))
                await stream.send(rng.randbytes(rng.randint(0, 200)))
            except TransportError:
                pass  # refused before the rubbish was sent
        assert await talk(made, {}) == expected


async def test_nothing_is_computed_for_a_client_that_gave_up_while_it_waited(
    autojump_clock: MockClock,
) -> None:
    """It leaves with further frames on the way: the server has read on, and hears of its end."""
    async with world() as made:
        node = await made.add(0, 6, step_s=10.0)
        node.device.waiting = 1  # somebody else's step
        frames = await admitted(made)
        for at in range(3):
            await frames.send(Step(at, (1,), 1), rows(1))
        await trio.sleep(5)
        await frames.reset()
        await wait_all_tasks_blocked()
        assert node.admission.sessions == 0 and node.engine.caches == []
        assert node.device.ran == [] and node.device.waiting == 1


async def test_what_is_sent_while_a_step_waits_is_answered_in_order(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made:
        made.nodes[0].device.waiting = 1
        frames = await admitted(made)
        for at in range(20):
            await frames.send(Step(at, (1,), 1), rows(at))
        for at in range(20):
            received = await frames.receive()
            assert received is not None and isinstance(received[0], Output)
            assert received[0].at == at
        await frames.close()
        await wait_all_tasks_blocked()
        assert made.nodes[0].admission.sessions == 0 and made.net.faults == []


async def test_rubbish_behind_a_step_that_waits_is_a_fault(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made:
        made.nodes[0].device.waiting = 1
        host, _ = made.client()
        stream = await host.open_stream(made.nodes[0].host.peer_id, PROTOCOL)
        frames = FrameStream(stream)
        await frames.send(opening())
        await frames.receive()
        await frames.send(Step(0, (1,), 1), rows(1))
        await stream.send(b"\xff" * 64)
        await wait_all_tasks_blocked()
        await trio.sleep(1)
        assert isinstance(made.net.faults[0][1], RemoteError)
        assert made.nodes[0].admission.sessions == 0
