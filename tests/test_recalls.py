"""Prompts that begin alike, over memory roads: what is recalled changes no bit of any answer."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from sim.memory_swarm import MODEL, ROW_BYTES, Node, World, world
from sim.paged_stage import alone
from sim.paged_swarm import CHUNK, add, plan_of, ran, speak, words
from trio.testing import MockClock

from potluck.errors import RemoteError
from potluck.node.frames import FrameStream
from potluck.node.session import LiveSession, open_session
from potluck.swarm.ledger import Work
from potluck.swarm.prefix import GRAIN, names_of
from potluck.swarm.wire import (
    REMEMBERING_PROTOCOL,
    Ask,
    Held,
    Opened,
    Output,
    Recall,
    Remember,
    Step,
)

PROMPT = words(1, 300)
STAGES = ((0, 2), (2, 4), (4, 6))
KEPT = 256  # of the prompt: two chunks


@asynccontextmanager
async def swarm(copies: int = 1, *, old: bool = False, pages: int = 2048) -> AsyncIterator[World]:
    async with world() as made:
        for _ in range(copies):
            for start, stop in STAGES:
                await add(made, start, stop, old=old, pages=pages)
        yield made


def right(prompt: np.ndarray, more: int = 0) -> list[bytes]:
    """What a session of these rows gets: of the prompt's last, and of each behind it."""
    rows = np.concatenate([prompt, following(more)])
    out = alone(rows, 0, 6)[len(prompt) - 1 :]
    return [row.tobytes() for row in out]


def following(more: int) -> np.ndarray:
    return words(99, more)


async def answer(session: LiveSession, prompt: np.ndarray, more: int = 0) -> list[bytes]:
    out = [await speak(session, prompt)]
    for row in following(more):
        session.feed(row.tobytes(), 1, 1)
        out.append(bytes(await session.output()))
    return out


async def test_what_was_said_before_is_neither_sent_nor_computed_again(
    autojump_clock: MockClock,
) -> None:
    async with swarm() as made:
        host, router = made.client()
        sent = []
        for _ in range(3):
            before = ran(made.nodes)
            async with open_session(host, router, plan_of(PROMPT)) as session:  # type: ignore[arg-type]
                bytes_ = Counted(made)
                assert await answer(session, PROMPT, more=3) == right(PROMPT, more=3)
                sent.append(bytes_.all())
            ran_now = [now - then for now, then in zip(ran(made.nodes), before, strict=True)]
            assert ran_now == [300 + 3 if not sent[:-1] else 300 + 3 - KEPT] * 3
        whole, once, known = sent
        assert whole > 5 * 300 * ROW_BYTES  # up at three hops, and down at two
        assert once < whole - 2.5 * KEPT * ROW_BYTES  # nothing goes up but names
        assert known < once - 1.9 * KEPT * ROW_BYTES  # and nothing comes down
        assert not made.net.faults


class Counted:
    """Bytes on the roads from here on, of streams that are open when it is asked."""

    def __init__(self, made: World) -> None:
        self._streams: list[object] = []
        self._made = made
        self.bytes = 0
        for node in made.nodes:
            for stream in node.host.streams:
                self._watch(stream)
        for node in made.nodes:
            self._hook(node)

    def _hook(self, node: Node) -> None:
        serve = node.host._serve

        async def watched(protocol: str, stream: object) -> None:
            self._watch(stream)
            await serve(protocol, stream)  # type: ignore[arg-type]

        node.host._serve = watched  # type: ignore[method-assign]

    def _watch(self, stream: object) -> None:
        send, receive = stream.send, stream.receive  # type: ignore[attr-defined]

        async def counted_send(*parts: bytes) -> None:
            self.bytes += sum(map(len, parts))
            await send(*parts)

        async def counted_receive(most: int = 65536) -> bytes:
            got: bytes = await receive(most)
            self.bytes += len(got)
            return got

        stream.send, stream.receive = counted_send, counted_receive  # type: ignore[attr-defined]

    def all(self) -> int:
        for node in self._made.nodes:
            del node.host._serve  # type: ignore[misc]
        return self.bytes


@pytest.mark.parametrize("shared", [False, True])
async def test_others_find_it_where_it_is_shared_on_purpose_and_only_there(
    autojump_clock: MockClock, shared: bool
) -> None:
    async with swarm() as made:
        for _ in range(2):
            before = ran(made.nodes)
            host, router = made.client()  # a new one
            plan = plan_of(PROMPT, shared=shared)
            async with open_session(host, router, plan) as session:  # type: ignore[arg-type]
                assert await answer(session, PROMPT) == right(PROMPT)
        ran_now = [now - then for now, then in zip(ran(made.nodes), before, strict=True)]
        assert ran_now == [300 - KEPT if shared else 300] * 3


async def test_another_end_of_the_same_beginning_computes_its_end(
    autojump_clock: MockClock,
) -> None:
    other = np.concatenate([PROMPT[:200], words(2, 120)])
    async with swarm() as made:
        host, router = made.client()
        for prompt, computed in ((PROMPT, 300), (other, 320 - CHUNK), (other, 320 - 2 * CHUNK)):
            before = ran(made.nodes)
            async with open_session(host, router, plan_of(prompt)) as session:  # type: ignore[arg-type]
                assert await answer(session, prompt, more=2) == right(prompt, more=2)
            ran_now = [now - then for now, then in zip(ran(made.nodes), before, strict=True)]
            assert ran_now == [computed + 2] * 3


@pytest.mark.parametrize("dies", [(0,), (2,), (4,), (0, 2, 4)])
@pytest.mark.parametrize("early", [False, True])
async def test_a_hop_that_dies_behind_a_recalled_prompt_changes_no_answer(
    autojump_clock: MockClock, dies: tuple[int, ...], early: bool
) -> None:
    """Its successor lacks the prompt: what it needs is in the client's journal, recalled or not.
    early: while the prompt is on its way."""
    expected = right(PROMPT, more=4)
    async with swarm(copies=2) as made:
        host, router = made.client()
        for turn in range(2):
            async with open_session(host, router, plan_of(PROMPT)) as session:  # type: ignore[arg-type]
                if not turn:
                    assert await answer(session, PROMPT) == expected[:1]
                    continue
                out = []
                if not early:
                    out.append(await speak(session, PROMPT))
                    await fall(made, dies)
                else:
                    session.feed(PROMPT[:CHUNK].tobytes(), CHUNK, 0)
                    await session.output()
                    await fall(made, dies)
                    session.feed(PROMPT[CHUNK:KEPT].tobytes(), CHUNK, 0)
                    session.feed(PROMPT[KEPT:].tobytes(), len(PROMPT) - KEPT, 1)
                    await session.output()
                    out.append(bytes(await session.output()))
                for row in following(4):
                    session.feed(row.tobytes(), 1, 1)
                    out.append(bytes(await session.output()))
                assert out == expected and session.exact
                assert len(session.recoveries) >= len(dies)


async def fall(made: World, starts: tuple[int, ...]) -> None:
    for start in starts:
        await made.serving(start).host.die()


async def test_older_servers_serve_as_before(autojump_clock: MockClock) -> None:
    async with swarm(old=True) as made:
        host, router = made.client()
        for _ in range(2):
            async with open_session(host, router, plan_of(PROMPT)) as session:  # type: ignore[arg-type]
                assert await answer(session, PROMPT, more=2) == right(PROMPT, more=2)
                assert not session.recoveries
        assert ran(made.nodes) == [604] * 3
        assert all(router.homing.known.brought.is_mute(node.host.peer_id) for node in made.nodes)


async def test_receipts_and_what_can_be_audited_are_those_of_a_session_without(
    autojump_clock: MockClock,
) -> None:
    """Servers sign for rows that they recall as for rows that they compute, and the client has all
    that an audit needs."""
    told: list[list[tuple[object, ...]]] = []
    async with swarm() as made:
        host, router = made.client()
        for _ in range(3):
            works: list[Work] = []
            plan = plan_of(PROMPT, receipts=True)
            async with open_session(host, router, plan, works.append) as session:  # type: ignore[arg-type]
                assert await answer(session, PROMPT, more=2) == right(PROMPT, more=2)
                assert await session.settle()
                assert not session.recoveries
                accounts, shares = session.ledger.told()  # type: ignore[union-attr]
            assert [account.length for account in accounts] == [302] * 3
            assert all(share.until == 302 for share in shares)
            told.append(sorted(audited(work) for work in works))
        assert told[0] == told[1] == told[2] and len(told[0]) >= 9
        assert ran(made.nodes) == [302 + 2 * (302 - KEPT)] * 3
        assert not made.net.faults


def audited(work: Work) -> tuple[object, ...]:
    chunk = work.account.chunks[work.place]
    return (
        work.blocks.start, work.sizes, tuple(bytes(one) for one in work.took), work.rows,
        bytes(work.gave), chunk.at, chunk.tokens, chunk.took, chunk.gave,
    )  # fmt: skip


async def test_what_is_taken_back_of_a_recalled_prompt_is_computed(
    autojump_clock: MockClock,
) -> None:
    """Back into what was recalled, and on with other rows: nothing of the first is left."""
    async with swarm() as made:
        host, router = made.client()
        for back in (None, 70, 0, 128, 299):
            async with open_session(host, router, plan_of(PROMPT)) as session:  # type: ignore[arg-type]
                assert await answer(session, PROMPT) == right(PROMPT)
                if back is None:
                    continue
                other = np.concatenate([PROMPT[:back], words(3, 50)])
                session.feed(words(3, 50).tobytes(), 50, 1, back)
                assert bytes(await session.output()) == right(other)[0]
                session.feed(following(1).tobytes(), 1, 1)
                assert bytes(await session.output()) == right(other, more=1)[1]


async def test_a_server_that_gives_other_rows_than_it_named_is_left(
    autojump_clock: MockClock,
) -> None:
    async with swarm(copies=2) as made:
        host, router = made.client()
        async with open_session(host, router, plan_of(PROMPT)) as session:  # type: ignore[arg-type]
            await answer(session, PROMPT)
            liar = made.serving(2)
        memory = liar.server._prefixes
        assert memory is not None
        read = memory._read
        memory._read = lambda kept: Bent(read(kept))  # type: ignore[method-assign,assignment,return-value]
        async with open_session(host, router, plan_of(PROMPT)) as session:  # type: ignore[arg-type]
            assert await answer(session, PROMPT, more=2) == right(PROMPT, more=2)
            assert [one.reason for one in session.recoveries] == [
                "rows that are not those it named"
            ]


class Bent:
    """What was kept, with another row."""

    def __init__(self, seen: object) -> None:
        self.took, self.name = seen.took, seen.name  # type: ignore[attr-defined]
        gave = bytearray(seen.gave)  # type: ignore[attr-defined]
        gave[3] ^= 1
        self.gave = bytes(gave)


async def test_nobody_recalls_what_he_was_not_told_of(autojump_clock: MockClock) -> None:
    """Names of another client's prompt, or of one that was never said, are held by nobody; and a
    recall of what is not held is a fault."""
    async with world() as made:
        node = await add(made, 0, 6)
        host, router = made.client()
        async with open_session(host, router, plan_of(PROMPT)) as session:  # type: ignore[arg-type]
            await answer(session, PROMPT)
        mine = names_of([PROMPT.tobytes()], ROW_BYTES)
        for asked, shared in ((mine, False), ((b"x" * 32,), True)):
            other, _ = made.client()
            stream = await other.open_stream(node.host.peer_id, REMEMBERING_PROTOCOL)
            frames = FrameStream(stream)
            await frames.send(Remember(bytes(16), MODEL, 0, 6, 512, "f32", shared=shared))
            assert isinstance((await frames.receive() or (None,))[0], Opened)
            await frames.send(Ask(asked))
            assert (await frames.receive() or (None,))[0] == Held(0, ())
            await frames.send(Step(0, (GRAIN,), 0), PROMPT[:GRAIN].tobytes())
            assert isinstance((await frames.receive() or (None,))[0], Output)
            await frames.send(Recall(GRAIN, (GRAIN,), 0, False))
            await frames.receive()
            assert isinstance(made.net.faults[-1][1], RemoteError)


async def test_a_server_without_room_to_keep_anything_serves_as_any(
    autojump_clock: MockClock,
) -> None:
    """Sessions promise themselves nearly all pages; what is kept goes as they need it."""
    dice = random.Random(3)
    async with world() as made:
        await add(made, 0, 6, pages=60)
        host, router = made.client()
        for turn in range(6):
            prompt = words(turn % 2, dice.choice([130, 200, 300]))
            async with open_session(host, router, plan_of(prompt, tokens=320)) as session:  # type: ignore[arg-type]
                assert await answer(session, prompt, more=3) == right(prompt, more=3)
        assert not made.net.faults
