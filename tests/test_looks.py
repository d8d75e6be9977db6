"""Looks: one pass over a chunk and all before it, and over whole sessions at their end."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from random import Random

import trio
from audit_world import HONEST, World, floats, signed
from trio.testing import MockClock

from potluck.node.trust.again import is_whole
from potluck.node.trust.auditor import (
    Auditor,
)
from potluck.node.trust.docket import Docket
from potluck.swarm.audit import Lots
from potluck.swarm.ledger import Work


def works(world: World, gave: list[bytes]) -> list[Work]:
    """All chunks that the accused signed for, if it gave this."""
    world.account = signed("accused", world.took, gave, world.numerics)
    return [
        replace(
            world.work, account=world.account, place=place, sizes=world.chunks[: place + 1],
            took=tuple(world.took[: place + 1]), rows=world.chunks[place], gave=gave[place],
        )
        for place in range(len(world.chunks))
    ]  # fmt: skip


def looking_at(world: World, rate: float, chunk_lots: list[float], whole: float) -> Auditor:
    """An auditor whose lots fall like this: of the chunks in order, and of the session."""
    world.trust.rate = lambda peer: rate  # type: ignore[method-assign]
    auditor, left = world.auditor(), list(chunk_lots)

    class Rigged(Lots):
        def draw(self, what: str, *names: bytes) -> float:
            if what == "chunk":
                return left.pop(0)
            return {"session": whole, "way": 0.99}.get(what, 0.5)

    auditor._lots = Rigged(bytes(32))
    return auditor


async def findings_of(world: World, auditor: Auditor, work: list[Work]) -> Docket:
    docket = auditor.docket(world.findings.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(auditor.run)
        for one in work:
            docket.signed(one)
        docket.ended()
        with trio.fail_after(3600):
            await docket.idle()
        nursery.cancel_scope.cancel()
    return docket


async def test_a_look_compares_all_chunks_before_it_in_one_pass(autojump_clock: MockClock) -> None:
    world = World(chunks=(40, 32, 32, 32), others={"honest0": "honest"})
    auditor = looking_at(world, 0.2, [0.9, 0.9, 0.0, 0.9], whole=0.9)
    docket = await findings_of(world, auditor, works(world, world.right))
    assert [one.work.place for one in world.findings] == [0, 1, 2] and world.asked == ["honest0"]
    assert [one.verdict for one in world.findings] == ["right"] * 3
    assert (docket.tally.signed, docket.tally.drawn, docket.tally.right) == (4, 3, 3)
    for one in world.findings:  # a proof shows the chunk of who computed it again beside it
        [again] = one.again
        assert again.account.chunks[again.number].gave == world.account.chunks[one.work.place].gave
        assert bytes(again.gave) == bytes(one.work.gave)
    assert world.trust._book.valid(world.peer("accused")) == 3


async def test_a_lie_before_the_chunk_that_was_drawn_convicts_and_ends_the_look(
    autojump_clock: MockClock,
) -> None:
    world = World(chunks=(40, 32, 32, 32), others=HONEST)
    world.know(*HONEST)
    gave = [world.right[0], world.false[1], *world.right[2:]]
    auditor = looking_at(world, 0.2, [0.9, 0.9, 0.9, 0.0], whole=0.9)
    docket = await findings_of(world, auditor, works(world, gave))
    assert [one.verdict for one in world.findings] == ["right", "wrong"]
    wrong = world.findings[1]
    assert wrong.work.place == 1 and wrong.wrong == (world.peer("accused"),)
    assert wrong.again[0].number == 1 and is_whole(wrong.convicting[0])
    assert (docket.tally.drawn, docket.tally.unaudited) == (4, 2)


async def test_an_auditor_that_lies_of_an_earlier_chunk_has_signed_for_that(
    autojump_clock: MockClock,
) -> None:
    world = World(chunks=(40, 32), others={"liar": "lies", **HONEST})
    world.know(*HONEST, "accused")
    auditor = looking_at(world, 0.2, [0.9, 0.0], whole=0.9)
    world.unusable_now = lambda: set(HONEST) if not world.asked else {"liar"}
    await findings_of(world, auditor, works(world, world.right))
    [found] = world.findings[:1]
    assert found.verdict == "right" and found.wrong == (world.peer("liar"),)
    [shown] = found.convicting
    assert shown.place == 0 and shown.peer == world.peer("liar") and is_whole(shown)
    assert bytes(shown.gave) == world.false[0]


async def test_a_whole_session_is_looked_at_when_it_has_ended_but_for_what_was_before(
    autojump_clock: MockClock,
) -> None:
    world = World(chunks=(40, 32, 32, 32), others={"honest0": "honest"})
    auditor = looking_at(world, 0.2, [0.9, 0.0, 0.9, 0.9], whole=0.05)
    docket = await findings_of(world, auditor, works(world, world.right))
    assert sorted(one.work.place for one in world.findings) == [0, 1, 2, 3]
    assert world.asked == ["honest0"] * 2 and docket.tally.drawn == 4
    spared = World(chunks=(40, 32), others={"honest0": "honest"})
    auditor = looking_at(spared, 0.2, [0.9, 0.9], whole=0.11)
    assert (await findings_of(spared, auditor, works(spared, spared.right))).tally.drawn == 0


async def test_what_was_taken_back_is_compared_no_more(autojump_clock: MockClock) -> None:
    world = World(chunks=(40, 32, 32), others={"honest0": "honest"})
    old = works(world, world.right)
    auditor = looking_at(world, 0.2, [0.9, 0.9, 0.0], whole=0.9)
    took = (old[2].took[0], floats(Random(9), 32), old[2].took[2])  # other words in its place
    await findings_of(world, auditor, [*old[:2], replace(old[2], took=took)])
    assert [one.work.place for one in world.findings] == [0, 2]


def test_what_a_session_keeps_to_be_compared_grows_with_its_chunks_not_their_square() -> None:
    """A thousand chunks; each has all steps before it, which are not kept a thousand times."""
    chunks = 1000
    world = World(chunks=(1,) * chunks)
    docket = looking_at(world, 0.2, [0.9] * chunks, whole=0.9).docket(world.findings.append)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for place in range(chunks):
            docket.signed(
                replace(
                    world.work, place=place, sizes=world.chunks[: place + 1],
                    took=tuple(world.took[: place + 1]), gave=world.right[place],
                )
            )  # fmt: skip
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert docket.tally.signed == chunks and after - before < 1000 * chunks
