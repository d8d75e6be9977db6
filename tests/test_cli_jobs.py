"""Jobs from the terminal: what is said, what is refused, and what looking on does."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from potluck.cli import job_asking, job_following
from potluck.cli.main import main
from potluck.node.jobs import worker as workers
from potluck.node.jobs.lines import BatchSpec
from potluck.node.jobs.progress import Progress
from potluck.node.jobs.states import Event, State
from potluck.node.jobs.store import STARTS_MAX, Job, Jobs, open_jobs
from potluck.node.jobs.work import Desk, Report
from potluck.node.jobs.worker import run_worker
from potluck.node.process import process_id

GOOD = '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n'


class Echo:
    """Answers each line by its number."""

    async def run(self, job: Job, desk: Desk, report: Report) -> None:
        for number, _ in await desk.open_lines(past=0, count=99):
            await desk.answer(number, json.dumps({"line": number}), failed=False, tokens=2)
            report.tell(done=number)


class Ended:
    """A worker that was, as whoever started it sees it."""

    def poll(self) -> int:
        return 0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("POTLUCK_JOIN", raising=False)
    monkeypatch.setattr(job_following, "START_AGAIN_S", 0.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def started(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The jobs that a worker was started for; it is done when this returns."""
    found = list[int]()

    def start(home: Path, jobs: Jobs, job: int) -> Ended:
        found.append(job)
        trio.run(run_worker, home, job, {"batch": Echo, "finetune": Echo})
        return Ended()

    for module in (workers, job_following):
        monkeypatch.setattr(module, "start_worker", start)
    return found


@pytest.fixture
def idle(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The same, and they do nothing."""
    found = list[int]()

    def start(home: Path, jobs: Jobs, job: int) -> Ended:
        found.append(job)
        return Ended()

    for module in (workers, job_following):
        monkeypatch.setattr(module, "start_worker", start)
    return found


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "some.jsonl").write_text(GOOD)
    return str(tmp_path / "some.jsonl")


@pytest.fixture
def facts(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What a command that is to succeed prints as JSON."""

    def run(*words: str) -> Any:
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def store(home: Path) -> Iterator[Jobs]:
    with open_jobs(home) as jobs:
        yield jobs


def test_a_file_is_submitted_answered_and_had(
    file: str, started: list[int], facts: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    told = facts("submit", file, "-m", "demo")
    assert (told["id"], told["state"], told["done"], told["total"]) == (1, "done", 3, 3)
    assert started == [1] and told["pid"] is None
    assert main(["job", "result", "1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"line": 1}, {"line": 2}, {"line": 3}]
    assert main(["job", "result", "1", "--out", "out.jsonl"]) == 0
    assert Path("out.jsonl").read_text().count("\n") == 3
    assert [one["id"] for one in facts("jobs")] == [1]
    assert main(["jobs"]) == 0
    assert "some.jsonl" in capsys.readouterr().out
    assert main(["job", "show", "1"]) == 0
    assert "potluck job result 1" in capsys.readouterr().out


def test_what_is_asked_for_is_what_is_kept(
    file: str, idle: list[int], store: Jobs, facts: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["--temperature", "0.5", "--seed", "7", "--stop", "x\\n", "-n", "9"]
    words += ["--top-k", "3"]
    join = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGxLnoo3ntFjDBD5gEYnPacaYipxNyybKH88sGfybFBYf"
    facts("submit", file, "-m", "demo", *words, "--join", join, "-d", "--out", "o.jsonl")
    assert BatchSpec.read(store.get(1).spec) == BatchSpec(
        "demo",
        {"max_tokens": 9, "temperature": 0.5, "top_k": 3, "stop": ["x\n"]},
        7,
        join=(join,),
        out=str(tmp_path / "o.jsonl"),
    )
    facts("submit", file, "-m", "demo", "-d")
    first = BatchSpec.read(store.get(2).spec)
    assert first.options == {"max_tokens": 64, "temperature": 0.0} and first.join == ()
    facts("submit", file, "-m", "demo", "-d")
    assert BatchSpec.read(store.get(3).spec).seed != first.seed  # drawn, and kept
    assert idle == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "words", "complaint"),
    [
        (GOOD + "nope\n", ["-m", "demo"], "line 4: not JSON"),
        (GOOD, ["-m", "demo", "--stop", ""], "--stop is empty"),
        ("", ["-m", "demo"], "is empty"),
        (GOOD, [], "--model"),
        (GOOD, ["-m", "no-such"], "no-such"),
        (GOOD, ["-m", "demo", "--out", "there.jsonl"], "there.jsonl exists"),
        (GOOD, ["-m", "demo", "--out", "nowhere/x"], "no folder"),
        (GOOD, ["-m", "demo", "--out", "."], "is a folder"),
        (GOOD, ["-m", "demo", "--temperature", "9"], "temperature must be"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(
    home: Path, idle: list[int], store: Jobs, one_line: Callable[[], str], content: str,
    words: list[str], complaint: str,
) -> None:  # fmt: skip
    Path("some.jsonl").write_text(content)
    Path("there.jsonl").write_text("of another")
    assert main(["submit", "some.jsonl", *words]) == 2
    assert complaint in one_line()
    assert store.all() == [] and idle == []
    assert Path("there.jsonl").read_text() == "of another"


def test_a_file_that_is_not_there_or_far_too_long_is_told(
    home: Path, idle: list[int], one_line: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["submit", "none.jsonl", "-m", "demo"]) == 2
    assert "none.jsonl: cannot be read" in one_line()
    Path("some.jsonl").write_text('{"prompt": "' + "a" * (3 << 20) + '"}\n' + GOOD)
    assert main(["submit", "some.jsonl", "-m", "demo"]) == 2
    said = one_line()
    assert "line 1: longer than 1 MiB" in said and "line 2" not in said
    monkeypatch.setattr(job_asking, "FILE_BYTES_MAX", 1 << 20)
    assert main(["submit", "some.jsonl", "-m", "demo"]) == 2
    assert "above 1 MiB: split it" in one_line()


def test_a_run_file_needs_a_potluck_that_can_run_it(
    home: Path,
    started: list[int],
    facts: Callable[..., Any],
    one_line: Callable[[], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("run.toml").write_text("seed = 1\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["submit", "run.toml"]) == 2
    assert "no finetune command" in one_line()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert main(["submit", "run.toml", "-m", "demo"]) == 2
    assert "leave out --model" in one_line()
    assert facts("submit", "run.toml")["kind"] == "finetune"
    assert main(["job", "result", "1"]) == 0
    assert capsys.readouterr().out == f"{Path('run').absolute()}\n"


def test_ctrl_c_looks_away_and_says_how_to_look_again(
    file: str, idle: list[int], store: Jobs, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def interrupt(seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(job_following.time, "sleep", interrupt)
    assert main(["submit", file, "-m", "demo"]) == 130
    said = capsys.readouterr().err
    assert "job show 1 --follow" in said and "job cancel 1" in said and "Traceback" not in said
    assert store.get(1).state == State.QUEUED


def test_whoever_looks_on_starts_another_worker_and_no_more_than_make_sense(
    file: str, home: Path, store: Jobs, facts: Callable[..., Any], one_line: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each worker dies once it has the job; the third that gets nowhere is the last."""
    starts = list[int]()

    def start(home: Path, jobs: Jobs, job: int) -> Ended:
        starts.append(job)
        dead = process_id()
        jobs.claim(job, type(dead)(dead.pid, 1.0), 2.0)
        return Ended()

    monkeypatch.setattr(job_following, "start_worker", start)
    assert main(["submit", file, "-m", "demo", "--json"]) == 1
    assert "without getting any further" in one_line()
    assert starts == [1] * (STARTS_MAX + 1) and store.get(1).state == State.FAILED


def test_whoever_looks_on_is_told_once_what_it_waits_for(
    file: str, home: Path, store: Jobs, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    looks = list[float]()

    def look(seconds: float) -> None:
        looks.append(seconds)
        lease = store.claim(1, process_id(), 2.0)
        if len(looks) < 4 and lease is not None:
            store.beat(lease, Progress(1, 3, note="nobody serves 2:4"))
        elif len(looks) > 4:
            store.ask(1, Event.CANCEL, 3.0)

    monkeypatch.setattr(job_following, "start_worker", lambda *_: Ended())
    monkeypatch.setattr(job_following.time, "sleep", look)
    assert main(["submit", file, "-m", "demo"]) == 1
    said = capsys.readouterr().err
    assert said.count("job 1 waits: nobody serves 2:4") == 1 and "is cancelled" in said


def test_a_bar_is_drawn_on_a_terminal(
    file: str, started: list[int], store: Jobs, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(job_following.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["submit", file, "-m", "demo"]) == 0
    said = capsys.readouterr().err
    assert "job 1 done" in said and "3 of 3 lines" in said


def test_a_job_is_paused_cancelled_resumed_and_forgotten(
    file: str, idle: list[int], facts: Callable[..., Any], one_line: Callable[[], str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    facts("submit", file, "-m", "demo", "-d")
    assert facts("job", "pause", "1")["state"] == "paused"
    assert [one["state"] for one in facts("job", "resume", "1")] == ["queued"]
    assert facts("job", "cancel", "1")["state"] == "cancelled"
    assert main(["job", "cancel", "1"]) == 2
    assert "a job that is cancelled cannot cancel" in one_line()
    assert facts("job", "resume", "1")[0]["state"] == "queued" and idle == [1, 1, 1]
    assert main(["job", "delete", "1"]) == 2
    assert "job cancel 1 first" in one_line()
    assert main(["job", "cancel", "1"]) == 0
    assert "job resume 1" in capsys.readouterr().out
    assert main(["job", "delete", "1"]) == 0 and facts("jobs") == []
    assert main(["job", "show", "1"]) == 2
    assert "no job 1" in one_line()


def test_resume_without_a_number_is_for_all_that_lost_their_workers(
    file: str, idle: list[int], store: Jobs, facts: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for _ in range(4):
        facts("submit", file, "-m", "demo", "-d")
    dead = process_id()
    store.claim(1, dead, 2.0)  # this very process: it lives
    store.claim(2, type(dead)(dead.pid, 1.0), 2.0)
    store.ask(3, Event.PAUSE, 2.0)
    assert [one["state"] for one in facts("jobs")] == ["running", "interrupted", "paused", "queued"]
    idle.clear()
    assert [one["id"] for one in facts("job", "resume")] == [2, 4] and idle == [2, 4]
    for job in (1, 2, 4):
        store.ask(job, Event.CANCEL, 2.0)
    assert main(["job", "resume"]) == 0
    assert "no job waits" in capsys.readouterr().err


def test_answers_that_are_not_all_there_are_given_only_when_asked_so(
    file: str, idle: list[int], store: Jobs, facts: Callable[..., Any],
    one_line: Callable[[], str], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    facts("submit", file, "-m", "demo", "-d")
    lease = store.claim(1, process_id(), 2.0)
    assert lease is not None and store.answer(lease, 2, "second")
    assert main(["job", "result", "1"]) == 2
    assert "--partial" in one_line()
    assert main(["job", "result", "1", "--partial"]) == 0
    assert capsys.readouterr().out == "second\n"
    store.ask(1, Event.PAUSE, 3.0, "its disk is full")
    assert main(["job", "show", "1", "--follow"]) == 1
    said = capsys.readouterr().err
    assert "its disk is full" in said and "job resume 1" in said


def test_the_log_is_shown_and_the_loss_is_drawn(
    file: str, idle: list[int], store: Jobs, facts: Callable[..., Any],
    one_line: Callable[[], str], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    facts("submit", file, "-m", "demo", "-d")
    store.log(1).write_text("one\ntwo\nthree\n")
    assert main(["job", "logs", "1", "-n", "2"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
    assert main(["job", "logs", "2"]) == 2
    assert "no job 2" in one_line()
    assert main(["job", "plot", "1", "loss.png"]) == 2
    assert "told no loss" in one_line()
    lease = store.claim(1, process_id(), 2.0)
    assert lease is not None
    for step in range(5):
        store.point(lease, step, 3.0 - step / 2)
    pytest.importorskip("matplotlib")
    assert main(["job", "plot", "1", "loss.png"]) == 0
    assert Path("loss.png").read_bytes().startswith(b"\x89PNG")


def test_no_jobs_is_no_fault(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 0
    assert "potluck submit" in capsys.readouterr().err
