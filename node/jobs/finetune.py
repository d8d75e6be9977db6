"""A fine-tuning run as a job: `potluck finetune RUN.toml --json` as a child, and what it tells.

The run's own command trains, keeps its checkpoints and goes on from them when it is started again
(issue F, "Elastic and resumable"); the job starts it, starts it again whenever it was ended, and
keeps what it says. On stdout it tells an object in a line; of those with an epoch these words are
read, any of which may be missing, and the rest passed over:

    {"event": "epoch", "epoch": 3, "epochs": 20, "loss": 2.31, "tokens": 81920, "tokens_s": 410.2,
     "sent_bytes": 1048576, "peers": 7}

    exit code 0            done
    1, or by a signal      the swarm lacks something, or somebody ended it: again, later
    2                      bad input: the job is paused, and its last line on stderr says why
    else                   our own fault: the job fails

The child ends with its worker, however that ends (leash.py), and one that is left all the same is
ended before another is started.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import trio

from ...errors import LocalError, UserError
from ..leash import leash
from ..process import end, marked
from .patience import FIRST_S, LONGEST_S
from .progress import Rate, finite, left_s
from .store import Job
from .work import Desk, Report

MARK: Final = "POTLUCK_RUN"  # in the environment of the child: whose run it is
LINE_BYTES_MAX: Final = 1 << 20
FILE_BYTES_MAX: Final = 1 << 20
STARTS_MAX: Final = 5  # guess: in a row without an epoch
GRACE_S: Final = 5.0  # guess: to write what it has learnt, and to leave its peers in order
BAD_INPUT: Final = 2  # this and the others: cli/edge.py
FAILED: Final = 1
ENDED: Final = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # it was asked to, and did


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What was submitted: the file, the SHA-256 of what it said, and where the adapter is put."""

    file: str
    digest: str
    folder: str
    join: tuple[str, ...] = ()
    offline: bool = False

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of(file: Path, join: Sequence[str] = (), *, offline: bool = False) -> RunSpec:
        """Raises UserError when it cannot be read."""
        place = file.absolute()
        folder = str(place.with_suffix(""))
        return RunSpec(str(place), _digest(file), folder, tuple(join), offline)

    @staticmethod
    def read(told: dict[str, Any]) -> RunSpec:
        join, offline = told.get("join", ()), bool(told.get("offline"))
        return RunSpec(told["file"], told["digest"], told["folder"], tuple(join), offline)

    def words(self) -> list[str]:
        """What the run's command is told."""
        joins = [word for one in self.join for word in ("--join", one)]
        offline = ["--offline"] if self.offline else []
        return [self.file, "--out", self.folder, "--json", *joins, *offline]


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    if len(content) > FILE_BYTES_MAX:
        raise UserError(f"{file} is larger than {FILE_BYTES_MAX >> 20} MiB: it is no run file")
    return hashlib.sha256(content).hexdigest()


class FinetuneWork:
    """command: what RunSpec.words is added to. mark: of whose children."""

    def __init__(self, command: Sequence[str], mark: str) -> None:
        self._command = command
        self._mark = mark

    async def run(self, job: Job, desk: Desk, report: Report) -> None:
        spec = RunSpec.read(job.spec)
        wait_s, idle = FIRST_S, 0
        while True:
            if _digest(Path(spec.file)) != spec.digest:
                raise UserError(
                    f"{spec.file} has changed since it was submitted: put it back, or submit it "
                    "anew"
                )
            child = _Child(desk, report)
            code = await child.run([*self._command, *spec.words()], f"{self._mark}#{job.id}")
            if code == 0:
                return
            if code == BAD_INPUT:
                raise UserError(child.last or f"{spec.file} is refused, and nobody says why")
            if code > 0 and code not in (FAILED, *ENDED):
                raise LocalError(f"potluck finetune ended with code {code}: {child.last}")
            idle, wait_s = (0, FIRST_S) if child.epochs else (idle + 1, min(2 * wait_s, LONGEST_S))
            if code != FAILED and idle >= STARTS_MAX:
                raise LocalError(f"potluck finetune was ended {idle} times without an epoch")
            why = "it was ended by somebody" if code != FAILED else child.last or "it failed"
            report.tell(note=f"{why} (trying again)")
            await trio.sleep(wait_s)


class _Child:
    """One process, from its start to its end. epochs: that it told of. last: its last line on
    stderr, without our own name before it."""

    def __init__(self, desk: Desk, report: Report) -> None:
        self._desk = desk
        self._report = report
        self._pace = Rate(trio.current_time())
        self._epoch = report.progress.done
        self.epochs = 0
        self.last = ""

    async def run(self, command: Sequence[str], mark: str) -> int:
        """Its exit code; below zero, the signal that ended it."""
        await trio.to_thread.run_sync(_end_left, mark, 0.0)
        failure: Exception | None = None
        with leash(MARK, mark):
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, MARK: mark},
            )  # fmt: skip
            assert process.stdout is not None and process.stderr is not None
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._complaints, process.stderr)
                    try:
                        await self._told(process.stdout)
                    except Exception as error:  # the nursery would wrap it in a group
                        failure = error
                        nursery.cancel_scope.cancel()
                if failure is None:
                    return await process.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_end_left, mark, GRACE_S)
                    await process.wait()
        assert failure is not None
        raise failure

    async def _told(self, stdout: trio.abc.ReceiveStream) -> None:
        async for line in _lines(stdout):
            try:
                told = json.loads(line)
            except (ValueError, RecursionError):
                continue  # meant for a person
            if isinstance(told, dict):
                await self._take(told)

    async def _take(self, told: dict[str, Any]) -> None:
        """An epoch; whatever else it says is for others."""
        numbers = {name: found for name in told if (found := finite(told[name])) is not None}
        if "epoch" not in numbers:
            return
        epoch, now, before = int(numbers["epoch"]), trio.current_time(), self._report.progress
        total = int(numbers.get("epochs", before.total))
        self._pace.count(max(0, epoch - self._epoch), now)
        self.epochs += epoch > self._epoch
        self._epoch = epoch
        self._report.tell(
            done=epoch,
            total=total,
            tokens=int(numbers.get("tokens", before.tokens)),
            tokens_per_s=numbers.get("tokens_s", 0.0),
            sent_bytes=int(numbers.get("sent_bytes", before.sent_bytes)),
            peers=int(numbers.get("peers", 0)),
            left_s=left_s(total - epoch, self._pace.per_s(now)),
            loss=numbers.get("loss", before.loss),
            note="",
        )
        if "loss" in numbers:
            await self._desk.point(epoch, numbers["loss"])

    async def _complaints(self, stderr: trio.abc.ReceiveStream) -> None:
        async for line in _lines(stderr):
            text = line.decode("utf-8", "replace")
            print(text, file=sys.stderr, flush=True)
            self.last = text.strip().removeprefix("potluck: ") or self.last


def _end_left(mark: str, grace_s: float) -> None:
    end(marked(MARK, mark), grace_s=grace_s)


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """Without their ends; what is longer than any line is passed over."""
    held = b""
    async for piece in stream:
        *whole, held = (held + piece).split(b"\n")
        for line in whole:
            yield line
        held = held if len(held) <= LINE_BYTES_MAX else b""
    if held:
        yield held
