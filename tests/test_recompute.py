"""Accused work is computed again by who serves the blocks, from what its accuser shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import trio
from sim.adding_engine import WIDTH
from sim.memory_host import MemoryHost, MemoryStream
from sim.memory_swarm import MODEL, ROW_BYTES, Node, World, rows, world
from test_again import answer
from trio.testing import MockClock

from potluck.crypto.codec import decode, encode
from potluck.crypto.keys import IdentityKey
from potluck.errors import Refused, RemoteError, TransportError
from potluck.node.frames import FrameStream
from potluck.node.loopback import Loopback
from potluck.node.trust import exhibit
from potluck.node.trust.exhibit import (
    BYTES_MAX,
    FETCH_FIRST_S,
    PROTOCOL,
    Exhibit,
    Exhibits,
    exhibit_of,
    fetch,
    name_of,
)
from potluck.node.trust.limits import Limit, Limits
from potluck.node.trust.recompute import Recomputer, Unfounded, work_of
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Ledger, Work
from potluck.swarm.routing import Hop
from potluck.swarm.session_events import SendStep
from potluck.swarm.testimony import Accusation, Case, check_accusation, sign_accusation
from potluck.swarm.wire import PROTOCOL as SESSIONS
from potluck.swarm.wire import Open, Opened, Output, Receipts, Sign, Step, Truncate

EXACT = "adding c1"  # equal steps give equal bits
SESSION = b"session of tests"
BLOCKS = BlockRange(1, 5)
ACCUSER = IdentityKey.from_bytes(b"accuser".ljust(32, b"."))


async def session(
    made: World, server: Node, chunks: tuple[int, ...] = (20, 20), *, back: int = 0
) -> list[Work]:
    """What a server signed for. back: positions that are taken back after the first chunk."""
    host, _ = made.client()
    frames = FrameStream(await host.open_stream(server.host.peer_id, SESSIONS))
    ledger = Ledger(SESSION, MODEL, BLOCKS, WIDTH, "f32", ROW_BYTES, works=True)
    await frames.send(Open(SESSION, MODEL, 1, 5, 64, "f32", receipts=True))
    opened, _ = await answer(frames, Opened)
    ledger.opened(1, Hop(server.host.peer_id, BLOCKS), opened.opening, opened.numerics)
    works, at = [], 0
    for tokens in chunks:
        payload = rows(at + 1, tokens)
        await frames.send(Step(at, (tokens,), tokens), payload)
        ledger.sent(SendStep(1, at, (tokens,), tokens, (payload,)))
        ledger.got(1, (await answer(frames, Output))[1])
        at += tokens
        await frames.send(Sign())
        works += ledger.signed(1, (await answer(frames, Receipts))[0].chunks)
        if back:
            at -= back
            await frames.send(Truncate(at))
            back = 0
    await frames.close()
    return works


def case_of(work: Work, raw: bytes, off: float = 0.5) -> Case:
    account = work.account
    told = Accusation(
        work.peer, account.raw[0], account.raw[work.place + 1], name_of(raw), off, 1.8e9
    )
    return check_accusation(sign_accusation(ACCUSER, told))


@dataclass
class Scene:
    """A server that may lie, and another that is asked what it makes of it."""

    made: World
    accused: Node
    judge: Node
    accuser: MemoryHost
    exhibits: Exhibits
    serving: list[tuple[str, BlockRange]]
    limits: Limits

    async def works(self, *, lies: bool = False, **how: Any) -> list[Work]:
        if lies:
            bend(self.accused)
        return await session(self.made, self.accused, **how)

    async def verdict(
        self, work: Work, raw: bytes | None = None, *, off: float = 0.5
    ) -> str | None:
        shown = exhibit_of(work) if raw is None else raw
        self.exhibits.put(shown)
        return await self.of(case_of(work, shown, off))

    async def of(self, case: Case) -> str | None:
        host: Any = self.judge.host
        serve: Any = self.judge.server.serve
        return await Recomputer(host, lambda: self.serving, serve, self.limits).compute(case)


def bend(node: Node, to: float | None = None) -> None:
    """It adds one to all that it gives out; or makes it this."""
    honest = node.engine.run

    def run(*asked: Any) -> tuple[memoryview, float]:
        rows, took_s = honest(*asked)
        false = np.frombuffer(rows, "<f4") + 1
        if to is not None:
            false[:] = to
        return memoryview(false.astype("<f4").tobytes()), took_s

    node.engine.run = run  # type: ignore[method-assign]


@asynccontextmanager
async def scene(theirs: str = EXACT, ours: str = EXACT, *limits: Limit) -> AsyncIterator[Scene]:
    async with world() as made:
        accused = await made.add(0, 6, numerics=theirs)
        judge = await made.add(0, 6, numerics=ours)
        accuser = made.net.host(ACCUSER.peer_id)
        exhibits = Exhibits()
        accuser.handle(PROTOCOL, exhibits.serve)
        serving = [("cd" * 32, BlockRange(0, 1)), (MODEL, BlockRange(0, 6))]
        yield Scene(made, accused, judge, accuser, exhibits, serving, Limits(limits))


async def test_right_work_is_found_right_and_wrong_work_wrong(autojump_clock: MockClock) -> None:
    async with scene() as stage:
        for work in await stage.works():
            assert await stage.verdict(work) == "right"
        for work in await stage.works(lies=True):
            assert await stage.verdict(work) == "wrong"
        assert stage.judge.engine.caches == [] and stage.judge.server.sessions == 0


async def test_of_two_classes_what_is_within_the_limit_is_right_and_nothing_is_wrong(
    autojump_clock: MockClock,
) -> None:
    """These blocks make anything of the least change to a row, as real ones do of rows that were
    searched for: an honest peer whose numbers are others by a rounding is not convicted by them."""
    wide = Limit(MODEL, "one", "other", 0.9, 100, 0.4)
    async with scene("one", "other", wide) as stage:
        (work, _) = await stage.works(lies=True)
        assert await stage.verdict(work, off=2.0) == "right"
        assert await stage.verdict(work, off=1.7) is None, "too fine for us: nobody is refuted"
    narrow = replace(wide, limit=1e-6)
    async with scene("one", "other", narrow) as stage:
        honest, rounded = stage.judge.engine.run, np.float32(1 + 2**-22)

        def run(cache: Any, payload: memoryview, *rest: Any) -> tuple[memoryview, float]:
            near = np.frombuffer(payload, "<f4") * rounded
            return honest(cache, memoryview(near.astype("<f4").tobytes()), *rest)

        stage.judge.engine.run = run  # type: ignore[method-assign]
        (work, _) = await stage.works()
        assert await stage.verdict(work) is None


async def test_between_classes_that_nobody_measured_nothing_is_said(
    autojump_clock: MockClock,
) -> None:
    async with scene("one", "other") as stage:
        (work, _) = await stage.works(lies=True)
        assert await stage.verdict(work) is None


async def test_what_overflowed_in_another_class_convicts_nobody(
    autojump_clock: MockClock,
) -> None:
    """Whoever sends the rows can make those of a narrow class no numbers; in one class of equal
    bits an honest peer would have had none either."""
    for ours, limits, verdict in (
        ("other", [Limit(MODEL, EXACT, "other", 0.9, 100, 0.4)], None),
        (EXACT, [], "wrong"),
    ):
        async with scene(EXACT, ours, *limits) as stage:
            bend(stage.accused, to=np.nan)
            (work, _) = await stage.works()
            assert await stage.verdict(work) == verdict


async def test_a_limit_of_another_dtype_on_the_wire_says_nothing(autojump_clock: MockClock) -> None:
    narrow = Limit(MODEL, "one", "other", 1e-6, 100, 1e-7, wire="bf16")
    async with scene("one", "other", narrow) as stage:
        (work, _) = await stage.works(lies=True)
        assert await stage.verdict(work) is None


async def test_a_tenth_of_the_device_is_the_accusers(autojump_clock: MockClock) -> None:
    """The next case waits for it; one whose exhibit is not there has cost nothing."""
    async with scene() as stage:
        slow = await stage.made.add(0, 6, step_s=0.5, numerics=EXACT)
        (work, _) = await stage.works()
        host: Any = slow.host
        serve: Any = slow.server.serve
        judge = Recomputer(host, lambda: stage.serving, serve, stage.limits)
        raw = exhibit_of(work)
        took = []
        for shown in (False, True, True):
            if shown:
                stage.exhibits.put(raw)
            began_s = trio.current_time()
            assert (await judge.compute(case_of(work, raw)) is not None) == shown
            took.append(trio.current_time() - began_s)
        assert took[0] < took[1] < 5 < 9 * took[1] < took[2]


# ---- exhibits


Change = Callable[[Exhibit], Exhibit]
FALSE: dict[str, Change] = {
    "other rows": lambda told: replace(told, took=bytes(len(told.took))),
    "other answers": lambda told: replace(told, gave=bytes(len(told.gave))),
    "too few rows": lambda told: replace(told, took=told.took[:-ROW_BYTES]),
    "answers cut short": lambda told: replace(told, gave=told.gave[:-ROW_BYTES]),
    "sizes of more": lambda told: replace(told, sizes=(*told.sizes, 7)),
    "a shorter account": lambda told: replace(told, account=told.account[:-1]),
    "a chunk left out": lambda told: replace(told, account=(told.account[0], told.account[-1])),
    "no account": lambda told: replace(told, account=(b"x", b"y")),
}


@pytest.mark.parametrize("what", [*FALSE, "no exhibit"])
async def test_an_accuser_whose_exhibit_does_not_fit_is_refuted(
    autojump_clock: MockClock, what: str
) -> None:
    """It signed for these very bytes: who made them up answers for it, whatever the work is."""
    async with scene() as stage:
        (_, work) = await stage.works(lies=True)
        raw = exhibit_of(work)
        told = decode(raw, Exhibit, max_bytes=BYTES_MAX)
        false = b"nonsense" if what == "no exhibit" else encode(FALSE[what](told))
        with pytest.raises(Unfounded):
            work_of(false, case_of(work, false))
        assert await stage.verdict(work, false) == "right"


async def test_without_its_exhibit_nothing_is_known_of_work(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exhibit, "BYTES_MAX", 100_000)
    async with scene() as stage:
        (work, _) = await stage.works(lies=True)
        raw = exhibit_of(work)
        case = case_of(work, raw)
        assert await stage.of(case) is None, "the accuser never had it"

        async def other(stream: MemoryStream) -> None:
            await stream.receive()
            await stream.send(raw[:-1])
            await stream.close()

        async def endless(stream: MemoryStream) -> None:
            while True:
                await stream.send(bytes(1 << 16))

        async def silent(stream: MemoryStream) -> None:
            await trio.sleep_forever()

        async def drip(stream: MemoryStream) -> None:
            for at in range(len(raw)):
                await trio.sleep(1.0)
                await stream.send(raw[at : at + 1])

        for serve in (other, endless, silent, drip):
            stage.accuser.handle(PROTOCOL, serve)  # type: ignore[arg-type]
            began_s = trio.current_time()
            assert await stage.of(case) is None
            assert trio.current_time() - began_s <= 1.1 * FETCH_FIRST_S
        await stage.accuser.die()
        assert await stage.of(case) is None


async def test_work_of_which_rows_were_taken_back_is_left_alone(
    autojump_clock: MockClock,
) -> None:
    """Which rows were computed with is not under any root that still stands."""
    async with scene() as stage:
        works = await stage.works(lies=True, back=5)
        for work in works[1:]:
            assert await stage.verdict(work) is None


async def test_who_does_not_serve_the_blocks_or_has_no_room_says_nothing(
    autojump_clock: MockClock,
) -> None:
    async with scene() as stage:
        (work, _) = await stage.works(lies=True)
        full = await stage.made.add(0, 6, cache_tokens=1, numerics=EXACT)
        assert await replace(stage, judge=full).verdict(work) is None
        slow = await stage.made.add(0, 6, step_s=1000.0, numerics=EXACT)
        assert await replace(stage, judge=slow).verdict(work) is None
        assert slow.server.sessions == 0
        stage.serving[:] = [(MODEL, BlockRange(0, 4))]
        assert await stage.verdict(work) is None


async def test_exhibits_are_shown_so_often_and_no_more(autojump_clock: MockClock) -> None:
    async with scene() as stage:
        name = stage.exhibits.put(b"exhibit")
        greedy: Any = stage.made.net.host("greedy")
        shown = 0
        for _ in range(20):
            try:
                shown += await fetch(greedy, ACCUSER.peer_id, name) == b"exhibit"
            except TransportError:
                break
        assert shown == exhibit.OF_EACH[1]
        other: Any = stage.made.net.host("other")
        assert await fetch(other, ACCUSER.peer_id, name) == b"exhibit"
        with trio.fail_after(1):
            await stage.exhibits.taken(name)
        with trio.move_on_after(1) as waited:
            await stage.exhibits.taken(stage.exhibits.put(b"another"))
        assert waited.cancelled_caught
        assert any(isinstance(error, Refused) for _, error in stage.made.net.faults)


async def test_what_is_kept_of_exhibits_is_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exhibit, "KEPT_BYTES_MAX", 100)
    async with scene() as stage:
        names = [stage.exhibits.put(bytes([number]) * 40) for number in range(5)]
        asks: Any = stage.made.net.host("asks")
        with pytest.raises(TransportError, match="no such"):
            await fetch(asks, ACCUSER.peer_id, names[0])
        assert await fetch(asks, ACCUSER.peer_id, names[-1]) == bytes([4]) * 40
        await trio.sleep(exhibit.KEEP_S)
        with pytest.raises(TransportError, match="no such"):
            await fetch(asks, ACCUSER.peer_id, names[-1])


async def test_work_that_is_too_large_to_be_shown_is_not_accused(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exhibit, "BYTES_MAX", 100)
    async with scene() as stage:
        (work, _) = await stage.works()
        with pytest.raises(RemoteError, match="allowed"):
            exhibit_of(work)


# ---- streams to ourselves


async def test_a_stream_to_ourselves_carries_bytes_both_ways_and_ends(
    autojump_clock: MockClock,
) -> None:
    async def echo(stream: Any) -> None:
        while len(piece := await stream.receive(3)):
            await stream.send(bytes(piece))

    async def refuse(stream: Any) -> None:
        raise RemoteError("no")

    async with trio.open_nursery() as nursery:
        stream = await Loopback("me", echo, nursery).open_stream("me", "/x")
        await stream.send(b"hel", b"lo")
        assert bytes(await stream.receive()) + bytes(await stream.receive()) == b"hello"
        await stream.close()
        assert bytes(await stream.receive()) == b""
        refused = await Loopback("me", refuse, nursery).open_stream("me", "/x")
        with pytest.raises(TransportError):
            await refused.receive()
        with pytest.raises(TransportError):
            await refused.send(b"x")
