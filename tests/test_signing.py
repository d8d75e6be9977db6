"""A server that is asked for receipts: what it signs is what it took and gave, within bounds."""

from __future__ import annotations

import threading

import pytest
import trio
from sim.adding_engine import WIDTH
from sim.memory_swarm import MODEL, World, dial, heard, opening, rows, world
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.crypto.merkle import leaves_of, root_of
from potluck.node.frames import FrameStream
from potluck.node.server import HOLD_S
from potluck.node.signing import ASIDE_BYTES, Notaries, note, signed
from potluck.swarm import receipt
from potluck.swarm.receipt import Account, Notary
from potluck.swarm.wire import (
    RECEIPTS_MAX,
    Fault,
    Open,
    Opened,
    Output,
    Receipts,
    Renew,
    Sign,
    Step,
    Truncate,
)

ROW_BYTES = WIDTH * 4


async def opened(made: World, tokens: int = 32) -> tuple[FrameStream, Account]:
    """A stream on which a session with receipts is open."""
    frames = await dial(made)
    await frames.send(opening(receipts=True, tokens=tokens))
    answer = await heard(frames)
    assert isinstance(answer, Opened)
    return frames, Account(answer.opening)


async def output(frames: FrameStream) -> bytes:
    received = await frames.receive()
    assert received is not None and isinstance(received[0], Output)
    return bytes(received[1])


async def receipts(frames: FrameStream) -> tuple[bytes, ...]:
    answer = await heard(frames)
    assert isinstance(answer, Receipts)
    return answer.chunks


def root(*payloads: bytes) -> bytes:
    return root_of(leaves_of(b"".join(payloads), ROW_BYTES))


async def test_a_server_signs_for_exactly_what_it_took_and_gave(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made:
        frames, account = await opened(made)
        said = account.opening
        assert account.peer == made.nodes[0].key.peer_id
        assert (said.session, said.model.hex(), said.blocks.start, said.blocks.stop) == (
            bytes(16), MODEL, 0, 6,
        )  # fmt: skip
        assert (said.width, said.dtype, said.numerics) == (WIDTH, "f32", "adding")
        prompt, one = rows(1, 5), rows(2)
        await frames.send(Step(0, (5,), 0), prompt)
        assert await output(frames) == b""
        await frames.send(Step(5, (1,), 1), one)
        gave = await output(frames)
        await frames.send(Sign())
        (raw,) = await receipts(frames)
        chunk = account.add(raw)
        assert (chunk.at, chunk.tokens, chunk.rows) == (0, 6, 1)
        assert (chunk.took, chunk.gave) == (root(prompt, one), root(gave))
        await frames.send(Sign())
        assert await receipts(frames) == ()


async def test_frames_are_answered_in_order_and_what_is_forgotten_is_not_signed_for(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made:
        frames, account = await opened(made)
        await frames.send(Step(0, (4,), 4), rows(1, 4))
        await frames.send(Truncate(3))
        await frames.send(Sign())
        await frames.send(Step(2, (1,), 1), rows(2))  # a step may truncate too, behind a signature
        await frames.send(Sign())
        first = await output(frames)
        (raw,) = await receipts(frames)
        chunk = account.add(raw)
        assert (chunk.at, chunk.tokens) == (0, 3)
        assert chunk.gave == root(first[: 3 * ROW_BYTES])
        second = await output(frames)
        (raw,) = await receipts(frames)
        chunk = account.add(raw)
        assert (chunk.at, chunk.tokens) == (2, 1)
        assert (chunk.took, chunk.gave) == (root(rows(2)), root(second))


async def test_receipts_go_with_the_next_answer_or_soon_by_themselves(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made:
        frames, account = await opened(made)
        await frames.send_both(Step(0, (1,), 1), rows(1), behind=Sign())
        await output(frames)
        await frames.send_both(Step(1, (1,), 1), rows(2), behind=Sign())
        (raw,) = await receipts(frames)
        came_s = trio.current_time()
        await output(frames)
        assert trio.current_time() == came_s
        assert account.add(raw).stop == 1
        (raw,) = await receipts(frames)
        assert trio.current_time() == came_s + HOLD_S  # no step came for it to go with
        assert account.add(raw).stop == 2
        for asked in (Truncate(2), Sign(), Renew()):  # whatever else comes finds it on the way
            await frames.send_both(Step(2, (1,), 1), rows(3), behind=Sign())
            await output(frames)
            now_s = trio.current_time()
            await frames.send(asked)
            (raw,) = await receipts(frames)
            assert trio.current_time() == now_s
            assert account.add(raw).stop == 3
            if asked == Sign():
                assert await receipts(frames) == ()
        await frames.send_both(Step(3, (1, 1), 0), rows(3, 2), behind=Sign())  # a replay
        await output(frames)
        now_s = trio.current_time()
        assert len(await receipts(frames)) == 1 and trio.current_time() == now_s


async def test_receipts_do_not_wait_for_a_device(autojump_clock: MockClock) -> None:
    """Who waits behind others, or is served slowly, would be taken for late."""
    async with world((0, 6)) as made:
        made.nodes[0].device.step_s = 1.0
        frames, _ = await opened(made)
        await frames.send_both(Step(0, (1,), 1), rows(1), behind=Sign())
        await output(frames)
        now_s = trio.current_time()
        await frames.send(Step(1, (1,), 1), rows(2))
        assert len(await receipts(frames)) == 1 and trio.current_time() == now_s
        await output(frames)


async def test_who_does_not_ask_for_receipts_gets_none(autojump_clock: MockClock) -> None:
    async with world((0, 6)) as made:
        frames = await dial(made)
        await frames.send(opening())
        answer = await heard(frames)
        assert isinstance(answer, Opened) and answer.opening == b""


async def test_who_never_asks_to_sign_is_refused_before_much_is_kept(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt, "PENDING_MAX", 8)
    async with world((0, 6)) as made:
        frames, _ = await opened(made)
        await frames.send(Step(0, (8,), 8), rows(1, 8))
        await output(frames)
        await frames.send(Sign())  # all is signed for: there is room again
        await receipts(frames)
        await frames.send(Step(8, (8,), 8), rows(1, 8))
        await output(frames)
        await frames.send(Step(16, (1,), 1), rows(1))
        assert isinstance(await heard(frames), Fault)


async def test_rows_left_out_again_and_again_fill_one_answer_at_most(
    autojump_clock: MockClock,
) -> None:
    """Every other step wants no row, and so each gives a chunk: when the next would be one too many
    for a frame, it is refused; and what is pending then does fit."""
    for steps, fault in ((2 * RECEIPTS_MAX - 2, False), (2 * RECEIPTS_MAX - 1, True)):
        async with world((0, 6)) as made:
            frames, _ = await opened(made, tokens=256)
            answers = []
            for at in range(steps):
                await frames.send(Step(at, (1,), at % 2), rows(at))
                answers.append(await heard(frames))
            assert isinstance(answers[-1], Fault) == fault
            if not fault:
                await frames.send(Sign())
                assert len(await receipts(frames)) == RECEIPTS_MAX - 1


async def test_what_is_large_is_hashed_on_another_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[bool] = []

    def spy(method):  # type: ignore[no-untyped-def]
        def spied(*args):  # type: ignore[no-untyped-def]
            threads.append(threading.current_thread() is threading.main_thread())
            return method(*args)

        return spied

    for name in ("took", "gave", "sign"):
        monkeypatch.setattr(Notary, name, spy(getattr(Notary, name)))
    width, tokens = 32, 1024
    asked = Open(bytes(16), MODEL, 0, 2, 4096, "f32", receipts=True)
    notary = Notaries(IdentityKey.generate()).open(asked, Opened(60.0, width, "adding"))
    account = Account(notary.opening)
    payload = memoryview(bytes(4 * width * tokens))
    assert len(payload) > ASIDE_BYTES
    await note(notary, 0, payload, payload[: 4 * width])
    for raw in (await signed(notary)).chunks:
        account.add(raw)
    assert threads == [False] * 3
    await note(notary, tokens, payload[: 4 * width], payload[:0])
    for raw in (await signed(notary)).chunks:
        account.add(raw)
    assert threads == [False] * 3 + [True] * 3
    assert account.length == tokens + 1
