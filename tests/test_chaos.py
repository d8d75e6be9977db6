"""What chaos plans: the same for a seed, every kind, and never more than the swarm can spare."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from potluck.errors import MissingBlocks, PotluckError
from potluck.node.process import process_id
from potluck.node.session import Recovery
from potluck.node.testnet.chaos import (
    COVERED_MOST_S,
    Made,
    Outcome,
    Wish,
    _Run,
    quantile,
)
from potluck.node.testnet.islands import address_of
from potluck.node.testnet.launcher import LocalSwarm, Plan, lay_out
from potluck.node.testnet.readers import Load, Toll, make_questions
from potluck.node.testnet.roster import Roster
from potluck.swarm.blocks import BlockRange
from potluck.swarm.chaos import (
    FIRST_S,
    KINDS,
    LASTS_S,
    RETURN_S,
    Fault,
    Kind,
    plan_faults,
    uncovered,
)
from potluck.swarm.routing import Hop

TWO_MINUTES_S = 120.0
kinds = st.lists(st.sampled_from(KINDS), min_size=1, max_size=6, unique=True)


def seats(nodes: int, replicas: int) -> dict[str, BlockRange]:
    spans = lay_out(8, nodes, replicas)
    return {f"n{number}": BlockRange(*span) for number, span in enumerate(spans, 1)}


@example(seed=1341, asked=["kill"])  # one just before 60 s, which rounds to it
@given(seed=st.integers(), asked=kinds)
def test_a_seed_plans_the_same_and_only_what_was_asked_for(seed: int, asked: list[Kind]) -> None:
    nodes = seats(8, 4)
    plans = [
        plan_faults(random.Random(seed), nodes, kinds=order, within_s=60)
        for order in (asked, asked[::-1])
    ]
    assert plans[0] == plans[1]
    assert {fault.kind for fault in plans[0]} <= set(asked)
    for fault in plans[0]:
        least_s, most_s = LASTS_S[fault.kind]
        assert FIRST_S <= fault.at_s < 60 and least_s <= fault.for_s <= most_s


@given(
    seed=st.integers(),
    asked=kinds,
    shape=st.sampled_from([(8, 4), (8, 2), (4, 2), (6, 3), (9, 4), (3, 1), (5, 2)]),
)
def test_every_block_keeps_a_node_that_is_well(
    seed: int, asked: list[Kind], shape: tuple[int, int]
) -> None:
    """A victim counts as gone until RETURN_S after its fault's end, and is nobody's victim again
    before that. Newcomers do not count: they leave."""
    nodes = seats(*shape)
    faults = plan_faults(random.Random(seed), nodes, kinds=asked, within_s=TWO_MINUTES_S)
    harm = [fault for fault in faults if fault.kind != "join"]
    for fault in harm:
        assert fault.blocks == nodes[fault.node]
        out = [
            one.node
            for one in harm
            if one.at_s <= fault.at_s < one.at_s + one.for_s + RETURN_S - 0.02  # rounded times
        ]
        assert len(out) == len(set(out))
        assert not uncovered([span for name, span in nodes.items() if name not in out], 8)


@given(seed=st.integers())
def test_two_minutes_hold_every_kind_several_times(seed: int) -> None:
    """28 faults are expected of 8 nodes with 4 replicas; when many are out, some are left out."""
    faults = plan_faults(random.Random(seed), seats(8, 4), within_s=TWO_MINUTES_S)
    assert {fault.kind for fault in faults} == set(KINDS)
    names = [fault.node for fault in faults if fault.kind == "join"]
    assert len(set(names)) == len(names) >= 2


@given(seed=st.integers())
def test_without_replicas_only_newcomers_come_unless_it_is_allowed(seed: int) -> None:
    nodes = seats(4, 1)
    plan = plan_faults(random.Random(seed), nodes, within_s=TWO_MINUTES_S)
    assert {fault.kind for fault in plan} == {"join"}
    bold = plan_faults(random.Random(seed), nodes, within_s=TWO_MINUTES_S, uncover=True)
    assert {fault.kind for fault in bold} > {"join"}


def test_uncovered_names_the_blocks() -> None:
    assert uncovered([BlockRange(0, 2), BlockRange(1, 3), BlockRange(5, 6)], 8) == (3, 4, 6, 7)


def test_the_p95_of_twenty_is_the_nineteenth() -> None:
    assert quantile([float(number) for number in range(20, 0, -1)], 0.95) == 19.0
    assert quantile([3.0], 0.5) == 3.0 and quantile([], 0.5) is None


# ---- the load


@given(seed=st.integers(), context=st.sampled_from([64, 1024, 4096]), words=st.integers(40, 900))
def test_questions_fit_the_context_and_half_are_drawn(seed: int, context: int, words: int) -> None:
    asked = make_questions(random.Random(seed), range(words), 12, context)
    assert asked == make_questions(random.Random(seed), range(words), 12, context)
    for one in asked:
        assert one.ids and one.new_tokens >= 1
        assert len(one.ids) + one.new_tokens <= context
    assert sum(one.temperature == 0 for one in asked) == 6


class Scripted:
    """A swarm whose answers are told beforehand: (token, text, seconds that it takes) each.

    Every answer of one question; `answers` are given one after another, the last for ever.
    """

    def __init__(self, *answers: list[tuple[int, str, float]], error: PotluckError | None = None):
        self._answers = list(answers)
        self._error = error

    async def voice(self, model: str) -> Any:
        text = SimpleNamespace(encode=lambda prose: list(range(50)))
        return SimpleNamespace(text=text, context=64)

    @asynccontextmanager
    async def generation(self, model: str, prompt: Any, **options: Any) -> AsyncIterator[Any]:
        script = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        yield Answering(script, self._error)


class Answering:
    def __init__(self, script: list[tuple[int, str, float]], error: PotluckError | None) -> None:
        self._script = iter(script)
        self._error = error
        self.recoveries: list[Recovery] = []

    def __aiter__(self) -> Answering:
        return self

    async def __anext__(self) -> Any:
        try:
            token, text, seconds = next(self._script)
        except StopIteration:
            if self._error is not None:
                raise self._error from None
            raise StopAsyncIteration from None
        await trio.sleep(seconds)
        if seconds > 1:
            self.recoveries.append(Recovery("bob", BlockRange(0, 4), "", trio.current_time()))
        peer = "bob" if not self.recoveries else "carol"
        route = (Hop(peer, BlockRange(0, 8)),)
        return SimpleNamespace(token=token, text=text, seconds=seconds, route=route)


RIGHT = [(7, "a", 0.1), (8, "", 0.1), (9, "bc", 0.1)]


async def read(swarm: Scripted) -> tuple[Load, list[str]]:
    """One answer undisturbed, and one read."""
    failures: list[str] = []
    load = Load(cast("Any", swarm), "demo", wait_s=0, failed=failures.append)
    await load.learn(random.Random(1), 1)
    await load.read(random.Random(1), trio.current_time() + 1.0)
    return load, failures


async def test_the_same_answer_is_no_fault(autojump_clock: MockClock) -> None:
    load, failures = await read(Scripted(RIGHT))
    assert failures == [] and load.finished == load.begun > 0
    assert load.tokens == 3 * load.finished


@pytest.mark.parametrize(
    "disturbed, told",
    [
        ([(7, "a", 0.1), (6, "", 0.1), (9, "bc", 0.1)], "token 1 is 6, undisturbed it was 8"),
        ([*RIGHT, (5, "", 0.1)], "token 3 is 5, undisturbed it was None"),
        (RIGHT[:2], "it ended after 2 of 3 tokens"),
        ([(7, "a", 0.1), (8, "", 0.1), (9, "bd", 0.1)], "another text"),
        ([(7, "a", 0.1), (8, "", 100.0), (9, "bc", 0.1)], "no token for 60 s"),
    ],
)
async def test_every_other_answer_is_one(
    disturbed: list[tuple[int, str, float]], told: str, autojump_clock: MockClock
) -> None:
    load, failures = await read(Scripted(RIGHT, disturbed, RIGHT))
    assert len(failures) == 1 and told in failures[0]
    assert load.finished == load.begun - 1


async def test_a_session_that_fails_is_one_too(autojump_clock: MockClock) -> None:
    swarm = Scripted(RIGHT)
    failures: list[str] = []
    load = Load(cast("Any", swarm), "demo", wait_s=0, failed=failures.append)
    await load.learn(random.Random(1), 1)
    swarm._error = MissingBlocks("demo", ((0, 4),))
    await load.read(random.Random(1), trio.current_time() + 1.0)
    assert failures and "MissingBlocks" in failures[0] and "session 1" in failures[0]
    assert load.finished == 0


async def test_a_wait_is_put_down_to_the_fault_of_whom_the_session_lost(
    autojump_clock: MockClock,
) -> None:
    """The second token takes 2 s, in which bob is lost; alice's fault has nothing to do with it."""
    slow = [(7, "a", 0.1), (8, "", 2.0), (9, "bc", 0.1)]
    load = Load(cast("Any", Scripted(RIGHT, slow)), "demo", wait_s=0, failed=pytest.fail)
    await load.learn(random.Random(1), 1)
    now = trio.current_time()
    bob, alice = load.charge("bob", now, 5.0), load.charge("alice", now, 5.0)
    await load.read(random.Random(1), now + 0.5)
    assert list(bob.longest_s) == [1] and bob.longest_s[1] == pytest.approx(2.0)
    assert alice.longest_s == {}


async def test_a_new_session_must_begin_with_the_right_token(autojump_clock: MockClock) -> None:
    failures: list[str] = []
    swarm = Scripted(RIGHT, RIGHT, [(1, "", 0.1)])
    load = Load(cast("Any", swarm), "demo", wait_s=0, failed=failures.append)
    await load.learn(random.Random(1), 1)
    assert await load.probe() and failures == []
    assert await load.probe() and len(failures) == 1


async def test_a_swarm_that_is_gone_for_good_ends_the_run_and_is_told_once(
    autojump_clock: MockClock,
) -> None:
    """Every new session is refused: one line that it was, one that none was served at last."""

    async def refused() -> bool:
        await trio.sleep(3)
        return False

    failures: list[str] = []
    fault = Fault(0.0, "kill", "n1", BlockRange(0, 4), 1.0)
    made = Made(fault, Toll("peer", trio.current_time(), 1.0), 0.0)
    run = _Run(
        net=cast("Any", None), wish=Wish(1, 60.0), swarm=cast("Any", None),
        load=cast("Any", SimpleNamespace(probe=refused)), breaker=cast("Any", None),
        outcome=Outcome(), say=failures.append, failed=failures.append,
    )  # fmt: skip
    with trio.fail_after(2 * COVERED_MOST_S):
        await run._cover(made)
    assert made.covered_s is None
    assert len(failures) == 2 and "refused while n1 was out" in failures[0]
    assert "no new session was served" in failures[1]


def test_where_nodes_that_choose_are_is_what_they_wrote_down_last(tmp_path: Path) -> None:
    plan = Plan(tmp_path, "/m", "m", 8, nodes=2, epoch_s=5.0, memory_mib=8, cache_mib=4)
    roster = plan.roster(("potluck", "node"), process_id())
    words = " ".join(roster.program)
    assert "--epoch-s 5.0" in words and "--max-memory 8" in words and "--cache-mib 4" in words
    net = LocalSwarm(roster)
    for seat in net.seats:
        (plan.folder / seat.name).mkdir(parents=True)
        roster.note(replace(seat, pid=7, peer=f"peer of {seat.name}"))
    facts = {"pid": 7, "peer": "peer of n1", "addresses": ["/at/n1"], "blocks": [3, 8]}
    (plan.folder / "n1" / "node.json").write_text(json.dumps(facts))
    stale = facts | {"pid": 6, "blocks": [1, 2]}
    (plan.folder / "n2" / "node.json").write_text(json.dumps(stale))
    before = net.seat("n2")
    net.look()
    assert (net.seat("n1").start, net.seat("n1").stop) == (3, 8)
    assert net.seat("n2") == before, "of the process before"
    again = Roster.read(plan.folder)
    assert again is not None and again.seats == roster.seats and again.epoch_s == 5.0


def test_an_island_has_an_address_of_its_own() -> None:
    names = [*(f"n{number}" for number in range(1, 9)), *(f"x{number}" for number in range(1, 9))]
    found = {address_of(Path("/home/me/testnet"), name) for name in names}
    assert len(found) == 16
    assert all(address.startswith(("198.18.", "198.19.")) for address in found)
    assert not any(address.endswith(".1") for address in found)  # the bridge's
