"""Sessions whose rows lie in groups of 8 or 4 bits: who dies changes nothing, audits find the same
bytes, and a peer that knows no groups is neither asked nor blamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import trio
from sim.adding_engine import WIDTH
from sim.memory_swarm import BLOCKS, THREE_STAGES, World, plan, world
from trio.testing import MockClock

from potluck.errors import MissingBlocks
from potluck.node.compute.tensor import pack
from potluck.node.session import LiveSession, open_session
from potluck.node.trust.again import compute_again
from potluck.swarm.ledger import Work
from potluck.swarm.rows import row_bytes
from potluck.swarm.wire import CODED_PROTOCOL

coded = pytest.mark.parametrize("dtype", ["int8", "int4"])


def rows(number: int, tokens: int, dtype: str) -> bytes:
    return bytes(pack(torch.full((tokens, WIDTH), float(number)), dtype))


async def talk(
    made: World,
    dtype: str,
    kill_at: Mapping[int, int] | None = None,
    works: list[Work] | None = None,
) -> tuple[list[bytes], LiveSession]:
    """A prompt in two chunks and eight steps. kill_at: before which step to kill which stage.
    works: takes what was signed for."""
    host, router = made.client()
    asked = replace(plan(receipts=works is not None), dtype=dtype)
    on_signed = None if works is None else works.append
    async with open_session(host, router, asked, on_signed) as session:  # type: ignore[arg-type]
        session.feed(rows(100, 5, dtype), 5, 0)
        session.feed(rows(200, 3, dtype), 3, 1)
        await session.output()
        out = [bytes(await session.output())]
        for number in range(8):
            if kill_at and number in kill_at:
                await made.serving(kill_at[number]).host.die()
            session.feed(rows(number, 1, dtype), 1, 1)
            out.append(bytes(await session.output()))
        if works is not None:
            assert await session.settle()
        return out, session


@coded
async def test_killed_servers_change_no_byte(autojump_clock: MockClock, dtype: str) -> None:
    """A replay is the very bytes that the dead hop had been sent."""
    async with world(*THREE_STAGES) as made:
        expected, _ = await talk(made, dtype)
    assert {len(one) for one in expected} == {row_bytes(WIDTH, dtype)}
    for kills in ({3: 0}, {0: 2}, {7: 4}, {1: 2, 5: 4}):
        async with world(*THREE_STAGES) as made:
            found, session = await talk(made, dtype, kills)
            assert found == expected
            assert len(session.recoveries) == len(kills)


@coded
async def test_what_is_signed_are_the_bytes_of_the_wire_and_an_audit_finds_them_again(
    autojump_clock: MockClock, dtype: str
) -> None:
    works: list[Work] = []
    async with world((0, 6), (0, 6)) as made:
        _, session = await talk(made, dtype, works=works)
        served = session.route[0].peer
        other = next(node for node in made.nodes if node.host.peer_id != served)
        host, _ = made.client()
        assert works
        for work in works:
            assert work.dtype == dtype
            assert len(work.gave) == work.rows * row_bytes(WIDTH, dtype)
            found = await compute_again(host, other.host.peer_id, work)  # type: ignore[arg-type]
            assert bytes(found.gave) == bytes(work.gave)


@coded
async def test_peers_that_know_no_groups_are_passed_by_and_not_blamed(
    autojump_clock: MockClock, dtype: str
) -> None:
    async with world((0, 6), (0, 6), (0, 6), (0, 6)) as made:
        for old in made.nodes[1:]:
            old.host.unhandle(CODED_PROTOCOL)
        for _ in range(4):
            host, router = made.client()
            asked = replace(plan(), dtype=dtype)
            async with open_session(host, router, asked) as session:  # type: ignore[arg-type]
                session.feed(rows(1, 2, dtype), 2, 1)
                await session.output()
                assert session.route[0].peer == made.nodes[0].host.peer_id
            now = trio.current_time()
            assert not any(router.history(one.host.peer_id).banned(now) for one in made.nodes)
            async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
                session.feed(rows(1, 2, "f32"), 2, 1)
                await session.output()


async def test_where_nobody_knows_groups_it_is_said(autojump_clock: MockClock) -> None:
    async with world((0, BLOCKS)) as made:
        made.nodes[0].host.unhandle(CODED_PROTOCOL)
        with pytest.raises(MissingBlocks):
            await talk(made, "int8")
