"""A session whose servers sign, over memory roads: the answer is the same, and it can be proved.

A server that signs what is not so, signs late or does not sign at all is replaced, like one that
answers rubbish or nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from sim.adding_engine import AddingEngine
from sim.memory_swarm import (
    BLOCKS,
    MODEL,
    ROW_BYTES,
    THREE_STAGES,
    Node,
    World,
    begun,
    prompt,
    rows,
    step,
    undisturbed,
    world,
)
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.errors import MissingBlocks
from potluck.node.link import EXAMINE_S
from potluck.node.server import HOLD_S
from potluck.node.session import SETTLE_S, LiveSession
from potluck.node.signing import Notaries
from potluck.swarm import ledger, receipt
from potluck.swarm.ledger import Work
from potluck.swarm.proof import Answer, Proof, check_proof, write_proof
from potluck.swarm.receipt import CHUNK_TOKENS, Notary
from potluck.swarm.wire import Message, Receipts, Step

LENGTH = 16  # positions of the usual talk: a prompt of 5 and 3, and eight steps


@asynccontextmanager
async def signed(made: World) -> AsyncIterator[LiveSession]:
    async with begun(made, receipts=True) as (session, _):
        yield session


async def talk(
    made: World, session: LiveSession, kill_at: dict[int, list[int]] | None = None
) -> list[bytes]:
    out = [await prompt(session)]
    for number in range(8):
        for start in (kill_at or {}).get(number, []):
            await made.serving(start).host.die()
        out.append(await step(session, number))
    return out


def proof_of(session: LiveSession) -> Proof:
    assert session.ledger is not None
    accounts, shares = session.ledger.told()
    answer = Answer(
        session.ledger.session, 0.0, bytes.fromhex(MODEL), "adding", BLOCKS,
        tuple(range(session.length + 1)), 1, session.length, tuple(shares), bytes(32),
    )  # fmt: skip
    return check_proof(write_proof(IdentityKey.generate(), accounts, [], answer))


async def test_an_answer_with_receipts_is_the_same_and_can_be_proved(
    autojump_clock: MockClock,
) -> None:
    """Three hops, and three chunks: each part of the prompt, and what came after it."""
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, signed(made) as session:
        assert await talk(made, session) == expected
        assert await session.settle()
        proof = proof_of(session)
        assert proof.good and proof.bare == [] and proof.linked == 6
        assert [one.chunks for one in proof.signers] == [3, 3, 3]
        assert session.recoveries == []


@pytest.mark.parametrize("kills", [{3: [0]}, {0: [2]}, {7: [4]}, {2: [0, 2]}, {1: [2], 5: [4]}])
async def test_killed_servers_change_no_answer_and_it_is_proved_nevertheless(
    autojump_clock: MockClock, kills: dict[int, list[int]]
) -> None:
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, signed(made) as session:
        assert await talk(made, session, kills) == expected
        assert await session.settle()
        proof = proof_of(session)
        assert proof.faults == []
        assert len(proof.signers) > 3  # of those who died too


async def test_long_answers_are_signed_for_on_the_way(autojump_clock: MockClock) -> None:
    async with world((0, 6)) as made, begun(made, 200, receipts=True) as (session, _):
        for number in range(3 * CHUNK_TOKENS):
            await step(session, number)
        assert session.ledger is not None
        (account,), _ = session.ledger.told()
        assert account.length >= 2 * CHUNK_TOKENS
        assert await session.settle()
        assert [one.tokens for one in account.chunks] == [CHUNK_TOKENS] * 3


async def test_receipts_are_looked_at_behind_the_next_step_or_soon(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its server computes, that is; a person who reads on is not waited for."""
    looked: list[tuple[int, float]] = []
    plain = ledger.Ledger.examine

    def examine(self: ledger.Ledger, link: int) -> list[Work]:
        looked.append((live.length, trio.current_time()))
        return plain(self, link)

    monkeypatch.setattr(ledger.Ledger, "examine", examine)
    async with world((0, 6)) as made, begun(made, 200, receipts=True) as (live, _):
        for number in range(CHUNK_TOKENS + 2):
            await step(live, number)
        assert [length for length, _ in looked] == [CHUNK_TOKENS + 2]  # they came with that answer
        for number in range(CHUNK_TOKENS - 2):
            await step(live, number)
        now_s = trio.current_time()
        await trio.sleep(1)
        (_, (length, at_s)) = looked
        assert length == 2 * CHUNK_TOKENS and at_s - now_s <= HOLD_S + EXAMINE_S + 0.01


# ---- servers that do not sign, or sign what is not so


class _Forgetful(Notary):
    """Signs for rows that it never saw."""

    def took(self, at: int, rows: bytes) -> None:
        super().took(at, bytes(len(rows)))


class _Boastful(Notary):
    """Signs for rows that it never gave."""

    def gave(self, rows: bytes) -> None:
        super().gave(bytes(len(rows)))


def sign_as(node: Node, kind: type[Notary]) -> None:
    opened = node.server._notaries.open

    def bent(asked, answer):  # type: ignore[no-untyped-def]
        notary = opened(asked, answer)
        notary.__class__ = kind
        return notary

    node.server._notaries.open = bent  # type: ignore[method-assign]


def answer_with(node: Node, change) -> None:  # type: ignore[no-untyped-def]
    """Its `Receipts` are changed on the way; None: they are kept back."""
    send = node.server._answer

    def changed(said: Message | None) -> Message | None:
        return change(said.chunks) if isinstance(said, Receipts) else said

    async def answer(session, message: Message, *payload: memoryview, before=None) -> None:  # type: ignore[no-untyped-def]
        if (said := changed(message)) is not None:
            await send(session, said, *payload, before=changed(before))

    node.server._answer = answer  # type: ignore[method-assign]


def flipped(chunks: tuple[bytes, ...]) -> Receipts:
    return Receipts((bytes([*chunks[0][:-1], chunks[0][-1] ^ 1]), *chunks[1:]))


LIES = {
    "took": lambda node: sign_as(node, _Forgetful),
    "gave": lambda node: sign_as(node, _Boastful),
    "key": lambda node: setattr(node.server, "_notaries", Notaries(IdentityKey.generate())),
    "bit": lambda node: answer_with(node, flipped),
    "none": lambda node: answer_with(node, lambda chunks: Receipts(())),
    "twice": lambda node: answer_with(node, lambda chunks: Receipts(chunks * 2)),
    "silent": lambda node: answer_with(node, lambda chunks: None),
}


@pytest.mark.parametrize("lie", LIES)
async def test_who_signs_what_is_not_so_or_nothing_is_replaced_and_blamed(
    autojump_clock: MockClock, lie: str
) -> None:
    """The middle hop has but the liar at first; an honest one comes half a second later."""
    expected = await undisturbed()
    async with world((0, 2), (2, 4), (4, 6)) as made, trio.open_nursery() as nursery:
        liar = made.nodes[1]
        LIES[lie](liar)

        async def bring() -> None:
            await trio.sleep(0.5)
            await made.add(2, 4)

        async with signed(made) as session:
            nursery.start_soon(bring)
            assert await talk(made, session) == expected
            assert await session.settle()
            proof = proof_of(session)
            assert proof.faults == []
            assert made.nodes[3].host.peer_id in {one.peer for one in proof.signers}
            lost = {one.peer for one in session.recoveries}
            assert lost == {liar.host.peer_id}
            assert liar.host.peer_id not in {hop.peer for hop in session.route}


async def test_a_session_that_nobody_signs_for_in_time_says_so(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6)) as made, signed(made) as session:
        answer_with(made.nodes[0], lambda chunks: None)
        session.feed(rows(1), 1, 1)
        await session.output()
        began_s = trio.current_time()
        assert not await session.settle()
        assert trio.current_time() - began_s <= SETTLE_S + 0.1
        assert proof_of(session).good is True  # no fault, but nothing is proved
        assert proof_of(session).bare == [f"block {one}, positions 0..1" for one in range(6)]


# ---- convictions, audits, and sessions without receipts


async def test_who_is_convicted_is_left_at_once_and_not_taken_again(
    autojump_clock: MockClock,
) -> None:
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, signed(made) as session:
        out = [await prompt(session), await step(session, 0)]
        liar = next(hop.peer for hop in session.route if hop.blocks.start == 2)
        session.convicted(liar, "found lying")
        out.append(await step(session, 1))
        assert out == expected[:3]
        assert [(one.peer, one.reason) for one in session.recoveries] == [(liar, "found lying")]
        assert liar not in {hop.peer for hop in session.route}
        await made.serving(2).host.die()
        with pytest.raises(MissingBlocks):
            await step(session, 2)


async def test_what_may_be_audited_is_all_that_it_takes_to_compute_it_again(
    autojump_clock: MockClock,
) -> None:
    works: list[Work] = []
    async with (
        world((0, 3), (3, 6)) as made,
        begun(made, receipts=True, works=works.append) as (session, _),
    ):
        await talk(made, session)
        assert await session.settle()
    assert {(one.peer, one.blocks.start) for one in works} == {
        (node.host.peer_id, node.engine.blocks.start) for node in made.nodes
    }
    assert sorted((one.blocks.start, one.place) for one in works) == [
        (start, place) for start in (0, 3) for place in range(3)
    ]
    for work in works:
        engine = AddingEngine(work.blocks)
        cache = engine.open_cache(work.blocks, 64)
        payload = memoryview(b"".join(work.took))
        again, _ = engine.run(cache, payload, Step(0, work.sizes, work.rows), "f32")
        assert bytes(again) == bytes(work.gave) and len(again) == work.rows * ROW_BYTES
        assert (work.numerics, work.dtype) == ("adding", "f32")


async def test_without_receipts_nothing_is_hashed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(*args: object) -> None:
        raise AssertionError("a row was hashed")

    expected = await undisturbed()
    monkeypatch.setattr(receipt, "leaves_of", hashed)
    monkeypatch.setattr(ledger, "leaves_of", hashed)
    async with world(*THREE_STAGES) as made, begun(made) as (session, _):
        assert await talk(made, session) == expected
        assert session.ledger is None
