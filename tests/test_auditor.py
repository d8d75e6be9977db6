"""Audits over pretended peers: who is asked, what comes of it, and that nobody suffers for another.

A peer's answer is a table: `honest` gives what the blocks give, `liars` what they agree on.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from audit_world import HONEST, TORCH, World
from receipts import MODEL, ROW_BYTES
from trio.testing import MockClock

from potluck.node.trust.again import is_whole, parts_of, took_last
from potluck.node.trust.auditor import (
    COMPUTE_S,
    REST_S,
    TOKEN_S,
    WAITING_MAX,
)
from potluck.node.trust.book import Trust
from potluck.node.trust.limits import Limit, Limits


async def test_right_work_is_found_right_and_both_gain(autojump_clock: MockClock) -> None:
    world = World(others={"honest0": "honest"})
    docket = await world.audit()
    assert [one.verdict for one in world.findings] == ["right"]
    assert (docket.tally.signed, docket.tally.drawn, docket.tally.right) == (1, 1, 1)
    assert world.findings[0].again[0].account.chunks[-1].gave == world.account.chunks[-1].gave
    assert world.trust.mean(world.peer("accused")) == pytest.approx(2 / 3)
    assert world.trust.mean(world.peer("honest0")) == pytest.approx(2 / 3)


async def test_a_liar_is_convicted_by_peers_that_are_known(autojump_clock: MockClock) -> None:
    world = World(lies=True, others=HONEST)
    world.know(*HONEST)
    docket = await world.audit()
    [found] = world.findings
    assert found.verdict == "wrong" and found.wrong == (world.peer("accused"),)
    assert docket.tally.convicted == [world.peer("accused")]
    assert world.trust.banned(world.peer("accused"))
    assert not any(world.trust.banned(world.peer(name)) for name in HONEST)
    assert found.judged.median > 0.1 and len(found.again) == 4
    assert found.convicting == (world.work,)


async def test_strangers_convict_nobody_and_leave_a_doubt(autojump_clock: MockClock) -> None:
    """However many agree: who is not known moves nothing."""
    world = World(lies=True, others={f"p{number}": "honest" for number in range(9)})
    docket = await world.audit()
    assert [one.verdict for one in world.findings] == ["open"]
    assert world.findings[0].doubted == (world.peer("accused"),)
    assert docket.tally.convicted == [] and not world.trust.banned(world.peer("accused"))
    assert world.trust.mean(world.peer("accused")) < 0.5
    assert len(world.asked) == 7, "the accused and seven: then it is left open"


async def test_an_auditor_that_lies_about_honest_work_is_convicted_itself(
    autojump_clock: MockClock,
) -> None:
    for roll in range(12):
        world = World(others={**HONEST, "liar": "lies"}, roll=roll)
        world.know(*HONEST, "accused")
        world.trust = replace_rate(world.trust)
        await world.audit()
        assert world.findings[0].verdict == "right"
        assert not world.trust.banned(world.peer("accused"))
        if world.asked[0] == "liar":
            assert world.findings[0].wrong == (world.peer("liar"),)
            assert world.findings[0].again[0].peer != world.peer("liar")
            assert world.findings[0].judged.worst == 0
            [shown] = world.findings[0].convicting
            assert shown.peer == shown.account.peer == world.peer("liar")
            assert shown.account.chunks[shown.place].took == world.account.chunks[-1].took
            assert bytes(shown.gave) == world.false[-1] and is_whole(shown)
            assert world.trust.banned(world.peer("liar"))
            return
    pytest.fail("no lot fell on the liar")


def replace_rate(trust: Trust) -> Trust:
    """Audit everything: a lot that spares a known peer would end the test."""
    trust.rate = lambda peer: 1.0  # type: ignore[method-assign]
    return trust


@pytest.mark.parametrize("fault", ["dead", "busy", "rubbish", "silent"])
async def test_an_auditor_that_fails_is_nobodys_fault_and_another_is_asked(
    autojump_clock: MockClock, fault: str
) -> None:
    for roll in range(20):
        world = World(others={"faulty": fault, "honest0": "honest"}, roll=roll)
        await world.audit()
        assert world.findings[0].verdict == "right"
        assert world.trust.mean(world.peer("faulty")) == 0.5
        assert not world.trust.banned(world.peer("faulty"))
        if world.asked == ["faulty", "honest0"]:
            return
    pytest.fail("no lot fell on the faulty one")


async def test_what_nobody_can_compute_again_stays_unaudited(autojump_clock: MockClock) -> None:
    world = World(others={f"dead{number}": "dead" for number in range(9)})
    began = trio.current_time()
    docket = await world.audit()
    assert world.findings == [] and docket.tally.unaudited == 1 and docket.tally.audited == 0
    assert len(world.asked) == 4 and trio.current_time() - began < 10
    alone = World()
    assert (await alone.audit()).tally.unaudited == 1


async def test_a_silent_auditor_is_left_at_its_deadline(autojump_clock: MockClock) -> None:
    world = World(others={"silent": "silent"})
    began = trio.current_time()
    assert (await world.audit()).tally.unaudited == 1
    assert trio.current_time() - began == pytest.approx(COMPUTE_S + 72 * TOKEN_S)


async def test_who_gave_nothing_is_left_in_peace_for_a_while(autojump_clock: MockClock) -> None:
    world = World(others={"dead": "dead"})
    async with world.docket() as docket:
        for rest_s in (0.0, REST_S / 2, REST_S):
            await trio.sleep(rest_s)
            docket.signed(world.work)
            await docket.idle()
    assert world.asked == ["dead", "dead"] and docket.tally.unaudited == 3


async def test_no_hop_of_the_session_nor_a_barred_peer_is_asked(autojump_clock: MockClock) -> None:
    world = World(others={"hop": "honest", "barred": "honest", "other": "honest"})
    world.unusable = {"barred"}
    async with world.docket() as docket:
        docket.peers.add(world.peer("hop"))
        docket.signed(world.work)
        await docket.idle()
    assert world.asked == ["other"]


async def test_the_same_class_comes_first_and_then_other_networks(
    autojump_clock: MockClock,
) -> None:
    limits = Limits([Limit(MODEL.hex(), "none c1", "none torch fp32", 0.01, 9, 0.001)])
    near, far = "/ip4/11.1.0.1/tcp/1", "/ip4/12.1.0.1/tcp/1"
    places = {"accused": near, "near": near, "far": far, "torch": far}
    made = [
        World(others=others, addresses=places, classes={"torch": TORCH}, limits=limits)
        for others in (
            {"torch": "near", "near": "honest", "far": "honest"},
            {"torch": "near", "near": "honest"},
            {"torch": "near"},
        )
    ]
    for world in made:
        await world.audit()
    assert [world.asked for world in made] == [["far"], ["near"], ["torch"]]
    assert made[2].findings[0].verdict == "right" and made[2].findings[0].limit == 0.01


async def test_a_class_that_nobody_measured_is_not_asked(autojump_clock: MockClock) -> None:
    world = World(others={"torch": "honest"}, classes={"torch": TORCH})
    assert (await world.audit()).tally.unaudited == 1
    assert world.asked == []


async def test_too_few_tokens_of_another_class_leave_it_open(autojump_clock: MockClock) -> None:
    limits = Limits([Limit(MODEL.hex(), "none c1", "none torch fp32", 0.01, 9, 0.001)])
    world = World(
        others={"torch": "honest"}, classes={"torch": TORCH}, limits=limits, chunks=(40, 4),
        lies=True,
    )  # fmt: skip
    await world.audit()
    assert [one.verdict for one in world.findings] == ["open"]
    for name in ("accused", "torch"):
        assert world.trust.mean(world.peer(name)) == 0.5


async def test_what_gave_nothing_out_is_not_drawn(autojump_clock: MockClock) -> None:
    world = World(others=HONEST)
    world.work = replace(world.work, rows=0, gave=b"")
    docket = await world.audit()
    assert (docket.tally.signed, docket.tally.drawn) == (1, 0)


async def test_a_full_queue_never_makes_a_session_wait(autojump_clock: MockClock) -> None:
    world = World(others={"silent": "silent"})
    auditor = world.auditor()
    docket = auditor.docket(world.findings.append)
    for _ in range(WAITING_MAX + 5):
        docket.signed(world.work)
    assert docket.tally.drawn == WAITING_MAX + 5 and docket.tally.unaudited == 5


def test_the_frames_are_cut_where_the_account_is_and_give_the_rows_it_gave() -> None:
    world = World(chunks=(40, 32))
    assert [(one.at, one.rows, one.signed) for one in parts_of(world.work)] == [
        (0, 0, True),
        (40, 32, True),
    ]
    assert took_last(world.work) == world.took[-1]
    before = replace(world.work, place=0, sizes=(40,), took=world.work.took[:1], rows=5)
    assert [one.rows for one in parts_of(world.work, [before])] == [5, 32]
    last = replace(world.work, rows=1, gave=world.work.gave[-ROW_BYTES:])
    assert [one.rows for one in parts_of(last)] == [0, 1]
    assert took_last(last) == world.took[-1][-ROW_BYTES:]


def test_work_whose_chunk_begins_inside_a_step_cannot_be_computed_again() -> None:
    world = World(chunks=(40, 32))
    assert is_whole(world.work)
    joined = replace(world.work, sizes=(72,), took=(b"".join(world.took),))
    assert not is_whole(joined)
    assert not is_whole(replace(world.work, sizes=(40,), took=world.work.took[:1]))
