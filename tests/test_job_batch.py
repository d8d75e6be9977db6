"""A batch over a pretended swarm: every line once, in order, whatever fails on the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from api_fakes import PretendedSwarm
from trio.testing import MockClock

from potluck.errors import (
    LocalError,
    MissingBlocks,
    PotluckError,
    Refused,
    TransportError,
    UserError,
    only,
)
from potluck.node.api.language import Language
from potluck.node.generation import Generation, Request
from potluck.node.jobs.batch import BatchWork
from potluck.node.jobs.database import DiskTrouble
from potluck.node.jobs.lines import BatchSpec
from potluck.node.jobs.patience import TRIES_MAX
from potluck.node.jobs.states import Event, State
from potluck.node.jobs.store import Job, Jobs, Lease, Superseded, open_jobs
from potluck.node.jobs.work import Desk, Report
from potluck.node.process import ProcessId, process_id

PROMPTS = [f"The function number {number} returns" for number in range(12)]
OPTIONS = {"max_tokens": 4, "temperature": 0.9}


@dataclass
class Swarm(PretendedSwarm):
    """faults: what the next answers raise, each before any token. poison: raised for whoever asks
    this prompt's ids."""

    faults: list[PotluckError] = field(default_factory=list)
    poison: dict[tuple[int, ...], PotluckError] = field(default_factory=dict)
    most: int = 0
    joins: int = 0
    unjoinable: int = 0
    unknown: str = ""

    @property
    def backend(self) -> Any:
        return self

    @asynccontextmanager
    async def answer(self, request: Request) -> AsyncIterator[Generation]:
        async with super().answer(request) as found:
            self.most = max(self.most, self.open)
            if self.faults:
                raise self.faults.pop(0)
            if request.ids in self.poison:
                raise self.poison[request.ids]
            yield found

    async def language(self, name: str) -> Language:
        if name == self.unknown:
            raise UserError("its files cannot be had")
        return await super().language(name)

    def sent_bytes(self) -> int:
        return 100 * self.opened

    @asynccontextmanager
    async def joined(self, spec: BatchSpec) -> AsyncIterator[Any]:
        self.joins += 1
        if self.joins <= self.unjoinable:
            raise UserError("nobody answers")
        yield Voices(self)


class Voices:
    def __init__(self, swarm: Swarm) -> None:
        self.backend = swarm
        self.language, self.sent_bytes = swarm.language, swarm.sent_bytes

    def peers(self) -> int:
        return 3


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    with open_jobs(tmp_path) as opened:
        yield opened


@dataclass
class Begun:
    """A job that is held."""

    jobs: Jobs
    job: Job
    lease: Lease
    report: Report
    desk: Desk

    async def run(self, swarm: Swarm) -> list[Any]:
        await BatchWork(swarm.joined).run(self.job, self.desk, self.report)
        return self.answers

    @property
    def answers(self) -> list[Any]:
        return [json.loads(text) for _, text in self.jobs.answers(self.job.id)]


def begin(jobs: Jobs, lines: Sequence[Any] = (), **spec: Any) -> Begun:
    told = BatchSpec(model="demo", options=OPTIONS, seed=7, **{"at_once": 3, **spec})
    raw = [json.dumps(one) for one in lines or [{"prompt": one} for one in PROMPTS]]
    number = jobs.add("batch", "some.jsonl", told.facts(), raw, 1.0)
    return again(jobs, number, process_id())


def again(jobs: Jobs, number: int, me: ProcessId) -> Begun:
    lease = jobs.claim(number, me, 2.0)
    assert lease is not None
    report = Report(jobs.get(number).progress)
    return Begun(jobs, jobs.get(number), lease, report, Desk(jobs, lease, report))


async def undisturbed(jobs: Jobs) -> list[Any]:
    return await begin(jobs).run(Swarm())


async def test_every_line_is_answered_in_order_and_so_many_at_once(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    swarm, job = Swarm(), begin(jobs)
    answers = await job.run(swarm)
    assert [one["line"] for one in answers] == list(range(1, 13))
    assert len({one["text"] for one in answers}) > 6  # they are of their prompts
    assert len({one["seed"] for one in answers}) == 12
    assert swarm.most == 3
    told = job.report.progress
    assert (told.done, told.total, told.errors, told.peers) == (12, 12, 0, 3)
    assert told.tokens == sum(one["completion_tokens"] for one in answers)
    assert told.sent_bytes == 1200 and told.left_s == 0.0


async def test_what_the_swarm_lacks_is_waited_for_and_changes_no_word(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    faults: list[PotluckError] = [MissingBlocks("demo", ((2, 4),))] * 30
    faults += [Refused("full", retry_after_s=2.0), TransportError("cut")] * 10
    swarm = Swarm(faults=faults, unjoinable=3)
    assert await begin(jobs).run(swarm) == await undisturbed(jobs)
    assert swarm.joins == 4


async def test_it_says_what_it_waits_for(jobs: Jobs, autojump_clock: MockClock) -> None:
    job, notes = begin(jobs), list[str]()
    tell = job.report.tell

    def noted(**changed: Any) -> None:
        notes.append(changed.get("note", ""))
        tell(**changed)

    job.report.tell = noted  # type: ignore[method-assign]
    await job.run(Swarm(faults=[MissingBlocks("demo", ((2, 4),))], unjoinable=1))
    assert any("nobody answers" in one for one in notes)
    assert any("2:4 of demo" in one for one in notes)
    assert job.report.progress.note == ""


async def test_a_line_that_breaks_whoever_takes_it_is_an_error_and_holds_up_nobody(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    """It is asked TRIES_MAX times; the swarm answers something else in between, and at the end,
    when no other line is left, a question of our own."""
    swarm = Swarm()
    ids = tuple(swarm.language_.voice.prompt(PROMPTS[5]))
    swarm.poison[ids] = TransportError("it went away")
    answers = await begin(jobs).run(swarm)
    expected = await undisturbed(jobs)
    assert answers[5]["error"]["code"] == "swarm_unreachable" and answers[5]["line"] == 6
    assert [one for one in answers if one["line"] != 6] == expected[:5] + expected[6:]
    assert swarm.opened >= 11 + TRIES_MAX


async def test_a_swarm_that_is_down_costs_no_line_its_answer(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    """Every road breaks, those of our own question too, many more times than a line is tried."""
    swarm = Swarm(faults=[TransportError("cut")] * 200)
    assert await begin(jobs).run(swarm) == await undisturbed(jobs)


async def test_a_question_at_fault_is_answered_so_and_the_others_go_on(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    lines = [
        {"prompt": "a", "max_tokens": 4},
        {"prompt": "word " * 5000},
        {"prompt": "a", "max_tokens": 1_000_000},
        {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": 3}},
        {"custom_id": "d", "method": "POST", "url": "/v1/completions",
         "body": {"prompt": "a", "max_tokens": 2, "stream": True}},
        {"custom_id": "e", "method": "POST", "url": "/v1/chat/completions",
         "body": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}},
    ]  # fmt: skip
    job = begin(jobs, lines)
    first, long, large, wrong, stream, talk = await job.run(Swarm())
    assert first["text"] and "context" in long["error"]["message"]
    assert large["error"]["code"] == "context_length_exceeded"
    assert wrong["response"]["status_code"] == stream["response"]["status_code"] == 400
    assert talk["response"]["status_code"] == 200
    assert talk["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert job.report.progress.errors == 4


async def test_a_run_that_is_cut_goes_on_and_makes_nothing_twice(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    swarm, job = Swarm(), begin(jobs)
    with trio.CancelScope() as cut:
        answer = jobs.answer

        def counted(*args: Any, **more: Any) -> bool:
            took = answer(*args, **more)
            if jobs.tally(job.job.id).done == 5:
                trio.from_thread.run_sync(cut.cancel)
            return took

        jobs.answer = counted  # type: ignore[method-assign]
        await job.run(swarm)
    assert cut.cancelled_caught and swarm.open == 0
    jobs.answer = answer  # type: ignore[method-assign]
    done = jobs.tally(job.job.id).done
    assert 5 <= done < 12
    second = Swarm()
    answers = await again(jobs, job.job.id, process_id()).run(second)
    assert answers == await undisturbed(jobs)
    assert second.opened == 12 - done


async def test_whoever_lost_the_lease_ends_with_it(jobs: Jobs, autojump_clock: MockClock) -> None:
    job = begin(jobs)
    jobs.ask(job.job.id, Event.CANCEL, 3.0)
    with pytest.raises(Superseded):
        await job.run(Swarm())
    assert job.answers == [] and jobs.get(job.job.id).state == State.CANCELLED


async def test_a_model_that_cannot_be_had_is_no_lines_fault(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    job = begin(jobs)
    with pytest.raises(UserError, match=r"demo.*cannot be had"):
        await job.run(Swarm(unknown="demo"))
    assert job.answers == []


async def test_our_own_fault_is_no_lines_answer(jobs: Jobs, autojump_clock: MockClock) -> None:
    """Nor is the half of an answer that was heard before it."""
    job = begin(jobs)
    with pytest.raises((LocalError, ExceptionGroup)) as told:
        await job.run(Swarm(faults=[LocalError("a bug")]))
    fault = told.value
    assert isinstance(only(fault) if isinstance(fault, ExceptionGroup) else fault, LocalError)
    assert all(one["finish_reason"] == "length" for one in job.answers)


async def test_a_full_disk_holds_up_the_answers_and_loses_none(
    jobs: Jobs, autojump_clock: MockClock
) -> None:
    """It refuses for a while: meanwhile no more is asked than is at hand."""
    job, swarm = begin(jobs), Swarm()
    answer, refused = jobs.answer, 0

    def full(*args: Any, **more: Any) -> bool:
        nonlocal refused
        refused += 1
        if refused <= 20:
            assert swarm.opened <= 3
            raise DiskTrouble("no space left")
        return answer(*args, **more)

    jobs.answer = full  # type: ignore[method-assign]
    assert [one["line"] for one in await job.run(swarm)] == list(range(1, 13))
    jobs.answer = answer  # type: ignore[method-assign]
    assert job.answers == await undisturbed(jobs)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def whole(out: Path) -> list[int]:
    return [json.loads(line)["line"] for line in out.read_text().splitlines()]


async def test_the_result_is_a_file_that_is_whole(
    jobs: Jobs, out: Path, autojump_clock: MockClock
) -> None:
    job = begin(jobs, out=str(out))
    await job.run(Swarm())
    assert whole(out) == list(range(1, 13))
    assert sorted(one.name for one in out.parent.iterdir()) == ["answers.jsonl", "jobs"]
    await again(jobs, job.job.id, process_id()).run(Swarm())  # it was killed before it said so
    assert whole(out) == list(range(1, 13))


@pytest.mark.parametrize("spoil", ["exists", "gone"])
async def test_a_result_that_cannot_be_placed_is_not_lost(
    jobs: Jobs, tmp_path: Path, spoil: str, autojump_clock: MockClock
) -> None:
    out = tmp_path / "there" / "answers.jsonl"
    out.parent.mkdir()
    job = begin(jobs, out=str(out))
    ruin: dict[str, Callable[[], object]] = {
        "exists": lambda: out.write_text("another's"),
        "gone": out.parent.rmdir,
    }
    ruin[spoil]()
    with pytest.raises(UserError, match=f"job result {job.job.id}"):
        await job.run(Swarm())
    assert spoil == "gone" or out.read_text() == "another's"
    assert len(job.answers) == 12
    replacing = begin(jobs, out=str(tmp_path / "there.jsonl"), replace=True)
    (tmp_path / "there.jsonl").write_text("of before")
    await replacing.run(Swarm())
    assert whole(tmp_path / "there.jsonl") == list(range(1, 13))
