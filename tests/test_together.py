"""Chains, prompts that begin alike, and rows in groups in one session: what one of them cannot do
beside another is left out, and the answer is what it is without."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sim.adding_engine import WIDTH
from sim.memory_swarm import THREE_STAGES, begun, plan, prompt, step, undisturbed, world
from sim.paged_stage import alone
from sim.paged_swarm import add, plan_of, ran, speak, words
from trio.testing import MockClock

from potluck.node.compute.tensor import pack
from potluck.node.prompt import prompt_of
from potluck.node.session import open_session
from potluck.swarm.wire import CODED_PROTOCOL, Open, Remember, protocol_of

from .test_live_receipts import proof_of

SAID = words(1, 300)
KEPT = 256  # of it: whole chunks


async def test_what_may_be_recalled_goes_by_star(autojump_clock: MockClock) -> None:
    """It is recalled although a chain was asked for, and comes out right."""
    expected = [row.tobytes() for row in alone(SAID, 0, 6)[len(SAID) - 1 :]]
    async with world() as made:
        for span in ((0, 2), (2, 4), (4, 6)):
            await add(made, *span)
        host, router = made.client()
        for computed in (300, 300 - KEPT):
            before = ran(made.nodes)
            asked = replace(plan_of(SAID), chain=True)
            async with open_session(host, router, asked) as session:  # type: ignore[arg-type]
                assert [await speak(session, SAID)] == expected
                assert session.chained is None
            now = ran(made.nodes)
            assert [one - other for one, other in zip(now, before, strict=True)] == [computed] * 3
        assert not made.net.faults


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("receipts", [False, True])
async def test_rows_in_groups_go_from_hop_to_hop(
    autojump_clock: MockClock, dtype: str, receipts: bool
) -> None:
    """A prompt in chunks, single rows, and a server is killed: the bytes are those of the star."""
    found = []
    for chain in (False, True):
        async with world(*THREE_STAGES) as made:
            host, router = made.client()
            asked = replace(plan(receipts=receipts, chain=chain), dtype=dtype)
            async with open_session(host, router, asked) as session:  # type: ignore[arg-type]
                await session.opened()
                out = []
                for number, tokens in enumerate((4, 4, 1, 1, 1, 1, 1, 1)):
                    rows = torch.arange(tokens * WIDTH).reshape(tokens, WIDTH) + float(number)
                    session.feed(pack(rows, dtype), tokens, 1)
                    out.append(bytes(await session.output()))
                    if number == 4:
                        await made.serving(2).host.die()
                found.append(out)
                assert session.chained is None if not chain else session.chained >= 5
                if receipts:
                    assert await session.settle() and proof_of(session).faults == []
    assert found[0] == found[1]


async def test_a_chain_goes_on_as_ever_beside_servers_that_remember(
    autojump_clock: MockClock,
) -> None:
    expected = await undisturbed()
    async with world(*THREE_STAGES) as made, begun(made, chain=True) as (session, _):
        assert [await prompt(session), *[await step(session, n) for n in range(8)]] == expected
        assert session.chained >= 8


async def test_rows_in_groups_are_not_named() -> None:
    """bf16 rows are, by their own bytes."""
    ids = range(200)

    class Now:
        async def run(self, work: Any) -> Any:
            return work()

    for dtype in ("f32", "bf16", "int8", "int4"):
        voice: Any = SimpleNamespace(
            width=WIDTH,
            wire=dtype,
            embed=lambda ids, dtype=dtype: pack(torch.ones(len(ids), WIDTH), dtype),
        )
        named = await prompt_of(voice, ids, "own", Now())  # type: ignore[arg-type]
        if dtype in ("int8", "int4"):
            assert named is None
        else:
            assert named is not None and len(named.names) == 200 // 64


def test_coded_rows_open_under_their_own_protocol() -> None:
    asked = Open(bytes(16), "cd" * 32, 2, 4, 64, "int8")
    remembered = Remember(bytes(16), "cd" * 32, 2, 4, 64, "int8", shared=True)
    assert protocol_of(asked) == protocol_of(remembered) == CODED_PROTOCOL
