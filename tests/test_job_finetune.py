"""A fine-tuning run as a child process: what it tells, how it ends, and that it ends with us."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from potluck.errors import LocalError, UserError
from potluck.node.jobs import finetune
from potluck.node.jobs.finetune import MARK, STARTS_MAX, FinetuneWork, RunSpec
from potluck.node.jobs.store import Jobs, open_jobs
from potluck.node.jobs.work import Desk, Report
from potluck.node.process import marked, process_id

SOON_S = 60.0  # for a process to begin, on a machine that does other things as well


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    with open_jobs(tmp_path) as opened:
        yield opened


class Run:
    """A job whose command is a script. The script sees the file's path, then --json."""

    def __init__(self, jobs: Jobs, folder: Path, script: str) -> None:
        self.file = folder / "run.toml"
        self.file.write_text("seed = 1\n")
        (folder / "command.py").write_text(script)
        self.mark = str(folder)
        self.jobs = jobs
        spec = RunSpec.of(self.file).facts()
        self.job = jobs.add("finetune", "run.toml", spec, (), 1.0)
        lease = jobs.claim(self.job, process_id(), 2.0)
        assert lease is not None
        self.report = Report(jobs.get(self.job).progress)
        self.desk = Desk(jobs, lease, self.report)
        self._work = FinetuneWork([sys.executable, "-P", str(folder / "command.py")], self.mark)

    async def to_its_end(self) -> None:
        with trio.fail_after(SOON_S):
            await self._work.run(self.jobs.get(self.job), self.desk, self.report)

    @property
    def children(self) -> int:
        return len(marked(MARK, f"{self.mark}#{self.job}"))


TELLS = """
import json, sys
assert sys.argv[1].endswith("run.toml") and sys.argv[2] == "--out" and sys.argv[4:] == ["--json"]
print("starting, for a person")
print(json.dumps({"event": "started", "trained": 12, "peers": 9}))
for epoch in range(1, 4):
    print(json.dumps({"event": "epoch", "epoch": epoch, "epochs": 3, "loss": 3.0 / epoch,
                      "tokens": 10 * epoch, "tokens_s": 5.5, "sent_bytes": 100 * epoch,
                      "held_out": None, "peers": 7}), flush=True)
print(json.dumps({"epoch": float("nan"), "loss": None, "peers": "many", "new": [1]}))
print(json.dumps({"event": "finished", "folder": "somewhere"}))
print("[" * 100000)
"""


async def test_what_the_run_tells_is_kept(jobs: Jobs, tmp_path: Path) -> None:
    run = Run(jobs, tmp_path, TELLS)
    await run.to_its_end()
    told = run.report.progress
    assert (told.done, told.total, told.tokens, told.sent_bytes, told.peers) == (3, 3, 30, 300, 7)
    assert told.loss == 1.0 and told.tokens_per_s == 5.5 and told.left_s == 0.0
    assert jobs.points(run.job) == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert run.children == 0


TWICE = """
import json, os, signal, sys
from pathlib import Path
there = Path(sys.argv[1] + ".state")
epoch = int(there.read_text()) if there.exists() else 0
while epoch < 4:
    epoch += 1
    there.write_text(str(epoch))
    print(json.dumps({"epoch": epoch, "epochs": 4, "loss": 1.0 / epoch}), flush=True)
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if epoch == 3:
        raise SystemExit(143)  # asked to end, it has kept what it had
"""


async def test_a_run_that_is_killed_is_started_again_and_goes_on(
    jobs: Jobs, tmp_path: Path
) -> None:
    run = Run(jobs, tmp_path, TWICE)
    await run.to_its_end()
    assert run.report.progress.done == 4
    assert [epoch for epoch, _ in jobs.points(run.job)] == [1, 2, 3, 4]


REFUSES = """
import sys
print("potluck: run.toml: no model", file=sys.stderr)
raise SystemExit(2)
"""


async def test_what_the_run_file_has_wrong_is_a_persons_to_mend(
    jobs: Jobs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(jobs, tmp_path, REFUSES)
    with pytest.raises(UserError, match=r"^run\.toml: no model$"):
        await run.to_its_end()
    assert "potluck: run.toml: no model" in capfd.readouterr().err  # the log has it too


async def test_a_run_file_that_is_another_by_now_is_not_run(jobs: Jobs, tmp_path: Path) -> None:
    run = Run(jobs, tmp_path, "raise SystemExit(0)")
    run.file.write_text("seed = 2\n")
    with pytest.raises(UserError, match="changed since it was submitted"):
        await run.to_its_end()
    run.file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        await run.to_its_end()


async def test_a_fault_of_ours_in_the_run_is_a_fault_of_ours(jobs: Jobs, tmp_path: Path) -> None:
    run = Run(jobs, tmp_path, "raise SystemExit(70)")
    with pytest.raises(LocalError, match="code 70"):
        await run.to_its_end()


LACKS = """
import sys
from pathlib import Path
there = Path(sys.argv[1] + ".state")
if there.exists():
    raise SystemExit(0)
there.touch()
print("potluck: no peer serves blocks 2:4 of demo", file=sys.stderr)
raise SystemExit(1)
"""


async def test_what_the_swarm_lacks_is_waited_for(jobs: Jobs, tmp_path: Path) -> None:
    run = Run(jobs, tmp_path, LACKS)
    await run.to_its_end()
    assert "blocks 2:4 of demo" in run.report.progress.note


STAYS = """
import json, time
print(json.dumps({"epoch": 1, "epochs": 9}), flush=True)
time.sleep(1000)
"""


async def test_the_child_ends_with_the_work(jobs: Jobs, tmp_path: Path) -> None:
    run = Run(jobs, tmp_path, STAYS)
    begun = trio.Event()
    tell = run.report.tell

    def heard(**changed: object) -> None:
        tell(**changed)
        if run.report.progress.done:
            begun.set()

    run.report.tell = heard  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.to_its_end)
        await begun.wait()
        assert run.children == 1
        nursery.cancel_scope.cancel()
    assert run.children == 0


async def test_a_run_that_is_killed_again_and_again_is_given_up(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "LONGEST_S", 0.01)  # between two tries
    run = Run(jobs, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(LocalError, match=f"{STARTS_MAX} times without an epoch"):
        await run.to_its_end()


def test_a_run_is_told_what_was_submitted(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("seed = 1\n")
    spec = RunSpec.of(tmp_path / "run.toml", ["/ip4/x"], offline=True)
    assert RunSpec.read(json.loads(json.dumps(spec.facts()))) == spec
    folder = str(tmp_path / "run")
    assert spec.words() == [
        f"{folder}.toml", "--out", folder, "--json", "--join", "/ip4/x", "--offline",
    ]  # fmt: skip


async def test_a_file_that_is_no_run_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(UserError, match="no run file"):
        RunSpec.of(tmp_path / "large.toml")
    with pytest.raises(UserError, match="cannot be read"):
        RunSpec.of(tmp_path / "none.toml")
