"""The server and the session driver over memory roads, under a virtual clock."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import trio
from sim.adding_engine import WIDTH, AddingEngine, InstantDevice
from sim.memory_host import MemoryHost, MemoryNet, MemoryStream

from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.dht.record import Announcement
from potluck.errors import MissingBlocks, Refused, RemoteError, TransportError
from potluck.node.frames import FrameStream
from potluck.node.router import GRACE_S, Router
from potluck.node.server import OPEN_S, Server
from potluck.node.session import SessionPlan, open_session
from potluck.swarm.admission import Admission, AdmissionConfig
from potluck.swarm.blocks import BlockRange
from potluck.swarm.history import FIRST_STEP_S
from potluck.swarm.wire import (
    PROTOCOL,
    Busy,
    Fault,
    Leaving,
    Open,
    Opened,
    Output,
    Renew,
    Step,
    Truncate,
)

MODEL = "ab" * 32
BLOCKS = 6
ROW_BYTES = WIDTH * 4


@dataclass
class Node:
    key: IdentityKey
    host: MemoryHost
    server: Server
    engine: AddingEngine
    admission: Admission
    device: InstantDevice


@dataclass
class World:
    """A swarm in memory. `add` starts a server; `client` is a router to use it with."""

    net: MemoryNet
    shelf: MemoryShelf = field(default_factory=MemoryShelf)
    nodes: list[Node] = field(default_factory=list)

    async def add(
        self,
        start: int,
        stop: int,
        *,
        cache_tokens: int = 10_000,
        numerics: str = "adding",
        step_s: float = 0.001,
    ) -> Node:
        key = IdentityKey.generate()
        host = self.net.host(key.peer_id)
        engine = AddingEngine(BlockRange(start, stop), numerics)
        device = InstantDevice(engine, step_s)
        admission = Admission(AdmissionConfig(cache_tokens))
        server = Server(engine, device, admission, MODEL)
        host.handle(PROTOCOL, server.serve)
        await MemoryDirectory(key, self.shelf).announce(announcement(start, stop, host, numerics))
        self.nodes.append(Node(key, host, server, engine, admission, device))
        return self.nodes[-1]

    def client(self) -> tuple[MemoryHost, Router]:
        key = IdentityKey.generate()
        host = self.net.host(key.peer_id)
        directory = MemoryDirectory(key, self.shelf)
        return host, Router(host, directory, random.Random(1))  # type: ignore[arg-type]

    def serving(self, start: int) -> Node:
        """The node that serves the live session's hop that begins at this block."""
        return next(
            node
            for node in self.nodes
            if node.server.sessions and not node.host.dead and node.engine.blocks.start == start
        )


def announcement(start: int, stop: int, host: MemoryHost, numerics: str = "adding") -> Announcement:
    return Announcement(
        model=MODEL,
        name="adding",
        start=start,
        stop=stop,
        blocks=BLOCKS,
        state="online",
        device="cpu",
        dtype="float32",
        quantization="none",
        decode_tokens_s=1000.0,
        prefill_tokens_s=1000.0,
        addresses=host.addresses(),
        cache_tokens_free=10_000,
        context_tokens_max=4096,
        numerics=numerics,
        version="0",
    )


@asynccontextmanager
async def world(*spans: tuple[int, int]) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        made = World(MemoryNet(nursery))
        for start, stop in spans:
            await made.add(start, stop)
        yield made
        nursery.cancel_scope.cancel()


def plan(tokens: int = 64, wait_s: float = 0.0) -> SessionPlan:
    return SessionPlan(MODEL, "adding", BLOCKS, WIDTH, tokens, wait_s=wait_s)


def rows(number: int, tokens: int = 1) -> bytes:
    return np.full((tokens, WIDTH), number, "<f4").tobytes()


THREE_STAGES = ((0, 2), (2, 4), (4, 6), (0, 2), (2, 4), (4, 6))


async def talk(made: World, kill_at: dict[int, list[int]]) -> list[bytes]:
    """A prompt in two chunks and eight steps. kill_at: before which step to kill which stages."""
    host, router = made.client()
    out = []
    async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
        session.feed(rows(100, 5), 5, 0)
        session.feed(rows(200, 3), 3, 1)
        await session.output()
        out.append(bytes(await session.output()))
        for number in range(8):
            for start in kill_at.get(number, []):
                await made.serving(start).host.die()
            session.feed(rows(number), 1, 1)
            out.append(bytes(await session.output()))
    return out


async def undisturbed() -> list[bytes]:
    async with world(*THREE_STAGES) as made:
        return await talk(made, {})


@pytest.mark.parametrize("kills", [{3: [0]}, {0: [2]}, {7: [4]}, {2: [0, 2]}, {1: [2], 5: [4]}])
async def test_killed_servers_change_no_answer(
    autojump_clock: trio.testing.MockClock, kills: dict[int, list[int]]
) -> None:
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made:
        assert await talk(made, kills) == expected


async def test_a_session_leaves_the_relay_and_no_answer_changes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The way to each of two servers becomes direct while steps are under way."""
    expected = await undisturbed()
    async with world((0, 3), (3, 6)) as made:
        host, router = made.client()
        host.relays = {node.host.peer_id: "relay" for node in made.nodes}
        out = []
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            session.feed(rows(100, 5), 5, 0)
            session.feed(rows(200, 3), 3, 1)
            await session.output()
            out.append(bytes(await session.output()))
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
    autojump_clock: trio.testing.MockClock,
) -> None:
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made:
        host, router = made.client()
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            session.feed(rows(100, 5), 5, 0)
            session.feed(rows(200, 3), 3, 1)
            await session.output()
            await session.output()
            made.serving(2).host.stall()
            began = trio.current_time()
            session.feed(rows(0), 1, 1)
            assert bytes(await session.output()) == expected[1]
            assert FIRST_STEP_S <= trio.current_time() - began <= FIRST_STEP_S + 1
            assert [lost.reason for lost in session.recoveries] == ["no answer before its deadline"]


@pytest.mark.parametrize(
    "rubbish",
    [
        lambda data: data[:-4] + struct.pack("<f", float("nan")),
        lambda data: b"\xff" * len(data),
        lambda data: data[:8] + b"\xc1" + data[9:],
    ],
)
async def test_a_server_that_answers_rubbish_is_replaced(
    autojump_clock: trio.testing.MockClock, rubbish: object
) -> None:
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made:
        host, router = made.client()
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            session.feed(rows(100, 5), 5, 0)
            session.feed(rows(200, 3), 3, 1)
            await session.output()
            await session.output()
            for stream in made.serving(4).host.streams:
                stream.bend = rubbish  # type: ignore[assignment]
            session.feed(rows(0), 1, 1)
            assert bytes(await session.output()) == expected[1]
            assert len(session.recoveries) == 1


@pytest.mark.parametrize("others", ["adding", "another"])
async def test_a_hop_is_replaced_inside_its_numerics_class_and_the_answer_says_if_not(
    autojump_clock: trio.testing.MockClock, others: str
) -> None:
    """Beside three peers of another class stands one of the lost hop's own, or does not."""
    async with world((0, 3), (3, 6)) as made:
        host, router = made.client()
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
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
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world((0, 2), (4, 6)) as made:
        host, router = made.client()
        began = trio.current_time()
        with pytest.raises(MissingBlocks, match="blocks 2:4 of adding") as caught:
            async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
                await session.output()
        assert caught.value.missing == ((2, 4),)
        assert trio.current_time() - began < GRACE_S + 1


async def test_with_wait_a_session_goes_on_when_cover_comes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    expected = await undisturbed()
    async with world((0, 2), (4, 6)) as made:
        host, router = made.client()
        async with trio.open_nursery() as nursery:

            async def bring() -> None:
                await trio.sleep(20)
                await made.add(2, 4)

            nursery.start_soon(bring)
            async with open_session(host, router, plan(wait_s=60)) as session:  # type: ignore[arg-type]
                session.feed(rows(100, 5), 5, 0)
                session.feed(rows(200, 3), 3, 1)
                await session.output()
                assert bytes(await session.output()) == expected[0]


async def test_the_only_replica_is_tried_again_after_a_hiccup(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One stream breaks, its peer lives: after its first ban it serves the session again."""
    expected = await undisturbed()
    async with world((0, 2), (2, 4), (4, 6)) as made:
        host, router = made.client()
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            session.feed(rows(100, 5), 5, 0)
            session.feed(rows(200, 3), 3, 1)
            await session.output()
            await session.output()
            await made.serving(2).host.streams[0].reset()
            session.feed(rows(0), 1, 1)
            assert bytes(await session.output()) == expected[1]


async def test_leaving_a_session_frees_every_cache_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world((0, 3), (3, 6)) as made:
        host, router = made.client()
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            session.feed(rows(1), 1, 1)
            await session.output()
            assert [node.admission.sessions for node in made.nodes] == [1, 1]
        await trio.testing.wait_all_tasks_blocked()
        assert [node.admission.free_tokens for node in made.nodes] == [10_000, 10_000]
        assert [node.engine.caches for node in made.nodes] == [[], []]
        assert made.net.faults == []


async def test_a_full_swarm_refuses_and_says_when_to_return(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as made:
        await made.add(0, 6, cache_tokens=10)
        host, router = made.client()
        with pytest.raises(Refused) as caught:
            async with open_session(host, router, plan(tokens=64)) as session:  # type: ignore[arg-type]
                session.feed(rows(1), 1, 1)
                await session.output()
        assert caught.value.retry_after_s > 0


async def test_a_draining_server_hands_its_sessions_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Drained with no patience, the server cuts its session; the client goes on elsewhere with the
    same answer, and does not hold it against the peer."""
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made:
        host, router = made.client()
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            session.feed(rows(100, 5), 5, 0)
            session.feed(rows(200, 3), 3, 1)
            await session.output()
            await session.output()
            leaving = made.serving(2)
            await leaving.server.drain(0.0)
            session.feed(rows(0), 1, 1)
            assert bytes(await session.output()) == expected[1]
            assert leaving.server.sessions == 0
            assert not router.history(leaving.host.peer_id).banned(trio.current_time())


async def test_a_leaving_server_serves_until_a_standby_holds_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing is lost or taken back: the session moves between two tokens, on its one span."""
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, trio.open_nursery() as nursery:
        host, router = made.client()
        out = []
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            session.feed(rows(100, 5), 5, 0)
            session.feed(rows(200, 3), 3, 1)
            await session.output()
            out.append(bytes(await session.output()))
            leaving = made.serving(2)
            before = session.route
            began_s = trio.current_time()
            drained = trio.Event()

            async def leave() -> None:
                await leaving.server.drain(30.0)
                drained.set()

            nursery.start_soon(leave)
            for number in range(8):
                session.feed(rows(number), 1, 1)
                out.append(bytes(await session.output()))
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
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as made, trio.open_nursery() as nursery:
        node = await made.add(0, 6, step_s=0.1)
        frames = await dial(made)
        await frames.send(opening())
        await frames.receive()
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
    autojump_clock: trio.testing.MockClock,
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
        assert isinstance((await late.receive() or [None])[0], Busy)
        assert isinstance((await early.receive() or [None])[0], Opened)
        assert isinstance((await early.receive() or [None])[0], Leaving)
        assert node.server.sessions == 1
        await early.close()


async def test_whoever_finds_no_other_is_served_to_the_last_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world((0, 6)) as made, trio.open_nursery() as nursery:
        node = made.nodes[0]
        frames = await dial(made)
        await frames.send(opening())
        await frames.receive()
        nursery.start_soon(node.server.drain, 30.0)
        assert isinstance((await frames.receive() or [None])[0], Leaving)
        await trio.sleep(29)
        await frames.send(Step(0, (1,), 1), rows(1))
        assert isinstance((await frames.receive() or [None])[0], Output)
        assert isinstance((await frames.receive() or [None])[0], Busy)
        assert node.server.sessions == 0 and node.engine.caches == []


async def test_a_drain_that_is_cancelled_ends_its_sessions_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world((0, 6)) as made:
        node = made.nodes[0]
        frames = await dial(made)
        await frames.send(opening())
        await frames.receive()
        with trio.move_on_after(5):
            await node.server.drain(30.0)
        assert trio.current_time() < 7
        assert node.admission.sessions == 0 and node.engine.caches == []


async def test_a_session_that_waits_longer_than_its_lease_is_kept_by_renewal(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world((0, 6)) as made:
        host, router = made.client()
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            session.feed(rows(1), 1, 1)
            await session.output()
            await trio.sleep(1000)
            session.feed(rows(2), 1, 1)
            await session.output()
            assert session.recoveries == []


async def test_a_lease_of_no_time_does_not_make_a_client_renew_without_end(
    autojump_clock: trio.testing.MockClock,
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
        host, router = made.client()
        async with open_session(host, router, plan()):  # type: ignore[arg-type]
            await trio.sleep(60)
    assert 0 < renewed <= 60


async def test_a_wrong_answer_ends_no_ban(autojump_clock: trio.testing.MockClock) -> None:
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
        host, router = made.client()
        with trio.fail_after(60), pytest.raises(MissingBlocks):
            async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
                session.feed(rows(0), tokens=1, rows=1)
                await session.output()


async def dial(made: World) -> FrameStream:
    host, _ = made.client()
    return FrameStream(await host.open_stream(made.nodes[0].host.peer_id, PROTOCOL))


def opening(**changes: object) -> Open:
    asked = {
        "session": bytes(16),
        "model": MODEL,
        "start": 0,
        "stop": 6,
        "tokens": 32,
        "dtype": "f32",
    }
    return Open(**(asked | changes))  # type: ignore[arg-type]


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
    autojump_clock: trio.testing.MockClock, first: object
) -> None:
    async with world((0, 6)) as made:
        frames = await dial(made)
        await frames.send(first)  # type: ignore[arg-type]
        received = await frames.receive()
        assert received is not None and isinstance(received[0], Fault)
        await trio.testing.wait_all_tasks_blocked()
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
        (opening(), b""),
    ],
)
async def test_a_bad_step_ends_the_session_and_frees_its_cache(
    autojump_clock: trio.testing.MockClock, step: object, payload: bytes
) -> None:
    async with world((0, 6)) as made:
        frames = await dial(made)
        await frames.send(opening())
        assert isinstance((await frames.receive() or [None])[0], Opened)
        await frames.send(step, payload)  # type: ignore[arg-type]
        received = await frames.receive()
        assert received is not None and isinstance(received[0], Fault)
        await trio.testing.wait_all_tasks_blocked()
        assert made.nodes[0].admission.sessions == 0


async def test_a_silent_client_is_let_go_before_and_after_opening(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world((0, 6)) as made:
        await dial(made)
        frames = await dial(made)
        await frames.send(opening())
        assert isinstance((await frames.receive() or [None])[0], Opened)
        await trio.sleep(OPEN_S + 1)
        assert len(made.nodes[0].host.streams) == 1
        received = await frames.receive()
        assert received is not None and isinstance(received[0], Busy)
        assert made.nodes[0].admission.sessions == 0


async def test_a_step_may_truncate_and_a_truncation_may_be_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world((0, 6)) as made:
        frames = await dial(made)
        await frames.send(opening())
        await frames.receive()
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
        assert isinstance((await frames.receive() or [None])[0], Fault)


async def test_an_honest_client_is_served_beside_streams_of_random_bytes(
    autojump_clock: trio.testing.MockClock,
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
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It leaves with further frames on the way: the server has read on, and hears of its end."""
    async with world() as made:
        node = await made.add(0, 6, step_s=10.0)
        node.device.waiting = 1  # somebody else's step
        frames = await dial(made)
        await frames.send(opening())
        assert isinstance((await frames.receive() or [None])[0], Opened)
        for at in range(3):
            await frames.send(Step(at, (1,), 1), rows(1))
        await trio.sleep(5)
        await frames.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert node.admission.sessions == 0 and node.engine.caches == []
        assert node.device.ran == [] and node.device.waiting == 1


async def test_what_is_sent_while_a_step_waits_is_answered_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world((0, 6)) as made:
        made.nodes[0].device.waiting = 1
        frames = await dial(made)
        await frames.send(opening())
        await frames.receive()
        for at in range(20):
            await frames.send(Step(at, (1,), 1), rows(at))
        for at in range(20):
            received = await frames.receive()
            assert received is not None and isinstance(received[0], Output)
            assert received[0].at == at
        await frames.close()
        await trio.testing.wait_all_tasks_blocked()
        assert made.nodes[0].admission.sessions == 0 and made.net.faults == []


async def test_rubbish_behind_a_step_that_waits_is_a_fault(
    autojump_clock: trio.testing.MockClock,
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
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        assert isinstance(made.net.faults[0][1], RemoteError)
        assert made.nodes[0].admission.sessions == 0
