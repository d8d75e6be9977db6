"""Microbatches: fair wheels, and a ledger that loses nothing and counts nothing twice."""

from __future__ import annotations

import itertools
import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from potluck.swarm.blocks import BlockRange
from potluck.swarm.machine import Fired, SetTimer, StopTimer
from potluck.swarm.routing import Hop
from potluck.swarm.wiring import (
    Answered,
    Done,
    Dropped,
    Effect,
    Failed,
    Full,
    Ledger,
    Member,
    Refreshed,
    Run,
    Submitted,
    Through,
    Turned,
    Wheels,
)

LENGTH = 6
WHOLE = BlockRange(0, LENGTH)


def wheels_of(**members: BlockRange) -> Wheels:
    wheels = Wheels(random.Random(7).random)
    wheels.update({peer: Member(blocks, (1, 1)) for peer, blocks in members.items()})
    return wheels


def test_a_peer_twice_as_fast_gets_twice_the_work() -> None:
    wheels = wheels_of(fast=WHOLE, slow=WHOLE)
    for _ in range(50):
        wheels.answered("fast", 0.1, 10, LENGTH)
        wheels.answered("slow", 0.2, 10, LENGTH)
    taken = Counter(
        hop.peer for _ in range(300) if (hop := wheels.choose(0, LENGTH, 10)) is not None
    )
    assert abs(taken["fast"] - 200) <= 2 and abs(taken["slow"] - 100) <= 2


def test_a_newcomer_enters_at_the_least_load_and_starves_nobody() -> None:
    """With a load of zero it would take everything until it had caught up with the old ones."""
    wheels = wheels_of(old=WHOLE)
    for _ in range(100):
        wheels.choose(0, LENGTH, 10)
    wheels.update({peer: Member(WHOLE, (1, 1)) for peer in ("old", "new")})
    taken = Counter(
        hop.peer for _ in range(20) if (hop := wheels.choose(0, LENGTH, 10)) is not None
    )
    assert taken["old"] >= 9


def test_who_is_busy_at_one_boundary_is_spared_at_another() -> None:
    wheels = wheels_of(whole=WHOLE, tail=BlockRange(3, LENGTH))
    for _ in range(2):
        wheels.choose(3, LENGTH, 10)  # both stand on this wheel now
    for _ in range(20):
        assert wheels.choose(0, LENGTH, 10) == Hop("whole", WHOLE)
    taken = [hop.peer for _ in range(30) if (hop := wheels.choose(3, LENGTH, 10)) is not None]
    assert taken == ["tail"] * 30


def test_a_ban_ends_with_a_fresher_record_and_not_with_the_same() -> None:
    wheels = wheels_of(a=WHOLE)
    wheels.failed("a")
    for order, banned in (((1, 1), True), ((1, 2), False)):
        wheels.update({"a": Member(WHOLE, order)})
        assert wheels.banned("a") == banned
        assert (wheels.choose(0, LENGTH, 1) is None) == banned


def runs(effects: list[Effect]) -> list[Run]:
    return [effect for effect in effects if isinstance(effect, Run)]


def test_backward_goes_to_another_peer_of_the_same_blocks() -> None:
    ledger = Ledger(WHOLE, wheels := wheels_of(a=WHOLE, b=WHOLE), lambda hop, work: 10.0)
    (forward,) = runs(ledger.handle(Submitted(1, 8), 0.0))
    (backward,) = runs(ledger.handle(Answered(forward.attempt), 1.0))
    (again,) = runs(ledger.handle(Failed(backward.attempt), 2.0))
    assert (backward.phase, again.phase) == ("backward", "backward")
    assert again.hop.peer != backward.hop.peer and wheels.banned(backward.hop.peer)
    assert ledger.handle(Answered(backward.attempt), 3.0) == []  # too late: it is void
    done = ledger.handle(Answered(again.attempt), 3.0)[-1]
    assert done == Done(1, ((again.hop, again.attempt),))


def test_backward_where_nobody_serves_the_whole_piece_is_done_in_parts() -> None:
    ledger = Ledger(WHOLE, wheels := wheels_of(whole=WHOLE), lambda hop, work: 10.0)
    (forward,) = runs(ledger.handle(Submitted(1, 8), 0.0))
    (backward,) = runs(ledger.handle(Answered(forward.attempt), 1.0))
    wheels.update({
        "head": Member(BlockRange(0, 4), (1, 1)),
        "tail": Member(BlockRange(2, 6), (1, 1)),
        "whole": Member(WHOLE, (1, 1)),
    })  # fmt: skip
    step = runs(ledger.handle(Failed(backward.attempt), 2.0))
    walk = []
    while step:
        walk.append((step[0].phase, str(step[0].hop.blocks)))
        effects = ledger.handle(Answered(step[0].attempt), 3.0)
        step = runs(effects)
    assert walk == [("forward", "0:4"), ("backward", "4:6"), ("backward", "0:4")]
    assert isinstance(effects[-1], Done)


class Trainer(RuleBasedStateMachine):
    """Peers come, go, fail, answer late or never; every microbatch is through exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.seq = 1
        self.members: dict[str, Member] = {}
        self.wheels = Wheels(random.Random(1).random)
        self.ledger = Ledger(WHOLE, self.wheels, lambda hop, work: 5.0)
        self.live: dict[int, Run] = {}
        self.void: set[int] = set()
        self.timers: dict[object, float] = {}
        self.ran: dict[int, Run] = {}
        self.answered: set[int] = set()
        self.done: Counter[int] = Counter()
        self.submitted = 0

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Run(attempt):
                    assert attempt not in self.ran
                    assert self.members[effect.hop.peer].blocks.covers(effect.hop.blocks)
                    assert not self.wheels.banned(effect.hop.peer)
                    self.live[attempt] = self.ran[attempt] = effect
                case Done(number, backward):
                    self.done[number] += 1
                    edges = [hop.blocks for hop, _ in backward]
                    assert edges[0].start == 0 and edges[-1].stop == LENGTH
                    assert all(a.stop == b.start for a, b in itertools.pairwise(edges))
                    for hop, attempt in backward:
                        run = self.ran[attempt]
                        assert (run.number, run.phase, run.hop) == (number, "backward", hop)
                        assert attempt in self.answered
                case SetTimer(key, at_s):
                    self.timers[key] = at_s
                case StopTimer(key):
                    self.timers.pop(key, None)

    @rule(tokens=st.integers(1, 64))
    def submit(self, tokens: int) -> None:
        self.submitted += 1
        self.perform(self.ledger.handle(Submitted(self.submitted, tokens), self.now))

    @rule(name=st.sampled_from("abcde"), start=st.integers(0, 5), length=st.integers(1, 6))
    def serve(self, name: str, start: int, length: int) -> None:
        self.seq += 1
        blocks = BlockRange(start, min(LENGTH, start + length))
        self.members[name] = Member(blocks, (1, self.seq))
        self.refresh()

    @rule(name=st.sampled_from("abcde"))
    def leave(self, name: str) -> None:
        self.members.pop(name, None)
        self.refresh()

    def refresh(self) -> None:
        self.wheels.update(self.members)
        self.perform(self.ledger.handle(Refreshed(), self.now))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), fails=st.booleans(), twice=st.booleans())
    def answer(self, data: st.DataObject, fails: bool, twice: bool) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[attempt]
        self.now += 0.1
        if not fails:
            self.answered.add(attempt)
        event = Failed(attempt) if fails else Answered(attempt)
        self.perform(self.ledger.handle(event, self.now))
        if twice:
            assert self.ledger.handle(Answered(attempt), self.now) == []

    @rule(wait_s=st.sampled_from([0.5, 6.0]))
    def wait(self, wait_s: float) -> None:
        self.now += wait_s
        for key in [key for key, at_s in self.timers.items() if at_s <= self.now]:
            del self.timers[key]
            self.perform(self.ledger.handle(Fired(key), self.now))

    @invariant()
    def each_is_open_or_done_once(self) -> None:
        assert all(times == 1 for times in self.done.values())
        open_ = set(self.ledger.open)
        assert open_ | set(self.done) == set(range(1, self.submitted + 1))
        assert not open_ & set(self.done)
        waited = {run.number for attempt, run in self.live.items() if attempt in self.timers}
        assert waited | set(self.ledger.stranded) == open_  # nothing lies about unwatched

    def teardown(self) -> None:
        self.seq += 1
        self.members = {"end": Member(WHOLE, (9, self.seq))}
        self.refresh()
        for _ in range(1000):
            waited = sorted(attempt for attempt in self.live if attempt in self.timers)
            if not waited:
                break
            self.live.pop(waited[0])
            self.answered.add(waited[0])
            self.perform(self.ledger.handle(Answered(waited[0]), self.now))
        assert not self.ledger.open


Trainer.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTrainer = Trainer.TestCase


def paused(wheels: Wheels) -> Ledger:
    return Ledger(WHOLE, wheels, lambda hop, tokens: 10.0, pauses=True)


def test_between_forward_and_backward_the_caller_says_when() -> None:
    ledger = paused(wheels_of(one=BlockRange(0, 4), two=BlockRange(4, LENGTH)))
    (_, run) = ledger.handle(Submitted(1, 10), 0.0)
    assert isinstance(run, Run)
    (_, _, run) = ledger.handle(Answered(run.attempt), 1.0)
    assert isinstance(run, Run)
    effects = ledger.handle(Answered(run.attempt), 2.0)
    assert effects == [StopTimer(run.attempt), Through(1)]
    assert ledger.open == (1,) and ledger.stranded == ()
    assert ledger.handle(Refreshed(), 3.0) == ledger.handle(Fired("look again"), 3.0) == []
    (_, run) = ledger.handle(Turned(1), 4.0)
    assert isinstance(run, Run) and (run.phase, run.hop.peer) == ("backward", "two")
    assert ledger.handle(Turned(1), 4.0) == []  # once
    (_, _, run) = ledger.handle(Answered(run.attempt), 5.0)
    assert isinstance(run, Run) and run.hop.peer == "one"
    _, done = ledger.handle(Answered(run.attempt), 6.0)
    assert isinstance(done, Done) and [hop.peer for hop, _ in done.backward] == ["one", "two"]


def test_what_is_dropped_is_answered_to_nobody() -> None:
    ledger = paused(wheels_of(one=WHOLE))
    (_, run) = ledger.handle(Submitted(1, 10), 0.0)
    assert isinstance(run, Run)
    assert ledger.handle(Dropped(1), 1.0) == [StopTimer(run.attempt)]
    assert ledger.handle(Answered(run.attempt), 2.0) == ledger.handle(Dropped(1), 2.0) == []
    assert ledger.open == ()
    (_, run) = ledger.handle(Submitted(2, 10), 3.0)
    assert isinstance(run, Run)
    ledger.handle(Answered(run.attempt), 4.0)
    assert ledger.handle(Dropped(2), 5.0) == ledger.handle(Turned(2), 5.0) == []


def test_who_has_no_room_is_asked_again_when_he_says_and_others_at_once() -> None:
    wheels = wheels_of(one=WHOLE, two=WHOLE)
    ledger = paused(wheels)
    (_, first) = ledger.handle(Submitted(1, 10), 0.0)
    assert isinstance(first, Run)
    (_, _, second) = ledger.handle(Full(first.attempt, 3.0), 1.0)
    assert isinstance(second, Run) and second.hop.peer != first.hop.peer
    assert ledger.handle(Full(second.attempt, 1.0), 1.5) == [
        StopTimer(second.attempt),
        SetTimer("look again", 4.0),
    ]
    assert ledger.stranded == (1,) and not wheels.banned("one") and not wheels.banned("two")
    assert ledger.handle(Fired("look again"), 2.0) == [SetTimer("look again", 4.0)]
    (_, third) = ledger.handle(Fired("look again"), 4.0)
    assert isinstance(third, Run)
