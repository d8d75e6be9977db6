"""A chunk is computed again by a real server over a memory road, and it signs for what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from sim.adding_engine import WIDTH
from sim.memory_host import MemoryStream
from sim.memory_swarm import MODEL, ROW_BYTES, World, rows, world
from trio.testing import MockClock

from potluck.errors import Refused, RemoteError, TransportError
from potluck.node.frames import FrameStream
from potluck.node.trust.again import Again, compute_again
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Ledger, Work
from potluck.swarm.routing import Hop
from potluck.swarm.session_events import SendStep
from potluck.swarm.wire import PROTOCOL, Open, Opened, Output, Receipts, Sign, Step

BLOCKS = BlockRange(1, 5)
SESSION = b"session of tests"
CHUNKS = ((8,), (1,) * 32, (1,) * 5)  # a prompt, and 37 tokens


async def worked(made: World, *, bend: int = 0) -> list[Work]:
    """What the first node signed for, in a session of three chunks. bend: added to what it gave,
    as if it had."""
    host, _ = made.client()
    peer = made.nodes[0].host.peer_id
    frames = FrameStream(await host.open_stream(peer, PROTOCOL))
    ledger = Ledger(SESSION, MODEL, BLOCKS, WIDTH, "f32", ROW_BYTES, works=True)
    await frames.send(Open(SESSION, MODEL, 1, 5, 64, "f32", receipts=True))
    opened, _ = await answer(frames, Opened)
    ledger.opened(1, Hop(peer, BLOCKS), opened.opening, opened.numerics)
    works, at = [], 0
    for sizes in CHUNKS:
        for size in sizes:
            payload = rows(at + 1, size)
            await frames.send(Step(at, (size,), size), payload)
            ledger.sent(SendStep(1, at, (size,), size, (payload,)))
            ledger.got(1, (await answer(frames, Output))[1])
            at += size
        await frames.send(Sign())
        works += ledger.signed(1, (await answer(frames, Receipts))[0].chunks)
    await frames.close()
    return works


async def answer(frames: FrameStream, kind: type) -> tuple:  # type: ignore[type-arg]
    received = await frames.receive()
    assert received is not None and isinstance(received[0], kind), received
    return received


async def again(made: World, work: Work, node: int = 1) -> Again:
    host, _ = made.client()
    return await compute_again(host, made.nodes[node].host.peer_id, work)  # type: ignore[arg-type]


async def test_another_server_gives_the_same_rows_and_signs_for_the_same_chunk(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6), (0, 6)) as made:
        for work in await worked(made):
            found = await again(made, work)
            assert bytes(found.gave) == bytes(work.gave) and found.peer != work.peer
            mine, theirs = work.account.chunks[work.place], found.account.chunks[-1]
            assert (mine.took, mine.gave) == (theirs.took, theirs.gave)
            took = [chunk.took for chunk in work.account.chunks[: work.place + 1]]
            assert [chunk.took for chunk in found.account.chunks] == took, "and for those before"
        with trio.fail_after(10):  # and nothing is kept, once the server has heard of the end
            while any(node.engine.caches for node in made.nodes):  # noqa: ASYNC110  # virtual time
                await trio.sleep(0.1)


async def test_a_question_that_nobody_has_answered_yet_is_answered(
    autojump_clock: MockClock,
) -> None:
    """As whoever bears witness asks it."""
    async with world((0, 6), (0, 6)) as made:
        for work in await worked(made):
            found = await again(made, replace(work, gave=b""))
            assert bytes(found.gave) == bytes(work.gave)


async def test_chunks_before_it_are_shown_in_the_same_pass(autojump_clock: MockClock) -> None:
    async with world((0, 6), (0, 6)) as made:
        *before, last = await worked(made)
        host, _ = made.client()
        peer = made.nodes[1].host.peer_id
        for earlier in (before, before[1:]):
            found = await compute_again(host, peer, last, earlier)  # type: ignore[arg-type]
            assert [bytes(rows) for rows in found.earlier] == [bytes(one.gave) for one in earlier]
            assert bytes(found.gave) == bytes(last.gave) and found.number == 2
            for one in earlier:  # and it has signed for them as the other did
                assert found.account.chunks[one.place].gave == one.account.chunks[one.place].gave


async def test_whatever_hinders_it_is_an_error_by_its_remedy(autojump_clock: MockClock) -> None:
    async with world((0, 6)) as made:
        work = (await worked(made))[0]
        full = await made.add(0, 6, cache_tokens=1)
        other = await made.add(2, 6)
        with pytest.raises(Refused):
            await again(made, work, made.nodes.index(full))
        with pytest.raises(RemoteError, match="not in"):
            await again(made, work, made.nodes.index(other))
        await made.nodes[0].host.die()
        with pytest.raises(TransportError):
            await again(made, work, 0)


@pytest.mark.parametrize("lie", ["no opening", "no receipts", "another's rows", "not a number"])
async def test_who_does_not_answer_for_its_word_is_not_heard(
    autojump_clock: MockClock, lie: str
) -> None:
    async with world((0, 6), (0, 6)) as made:
        work = (await worked(made))[0]
        honest = made.nodes[1].server.serve

        async def serve(stream: MemoryStream) -> None:
            if lie in ("no opening", "no receipts"):
                frames = FrameStream(stream)
                await frames.receive()
                await frames.send(Opened(60.0, WIDTH, "adding"))
                return
            stream.bend = spoil
            await honest(stream)

        def spoil(data: bytes) -> bytes:
            """The last number of the rows that it gives out."""
            if not data.endswith(bytes(work.gave)[-ROW_BYTES:]):
                return data
            return data[:-4] + (b"\x00\x00\xc0\x7f" if lie == "not a number" else b"\0\0\x80?")

        made.nodes[1].host.handle(PROTOCOL, serve)
        with pytest.raises(RemoteError):
            await again(made, work)


async def test_given_up_it_frees_the_servers_cache(autojump_clock: MockClock) -> None:
    async with world((0, 6)) as made:
        work = (await worked(made))[1]
        node = await made.add(0, 6, step_s=100.0)
        with trio.move_on_after(10) as deadline:
            await again(made, work)
        assert deadline.cancelled_caught
        await trio.sleep(200)
        assert node.engine.caches == []
