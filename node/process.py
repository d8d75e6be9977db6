"""Processes of ours on this machine: started apart, known again later, ended for certain.

A pid alone may by now be somebody else's. A process is known by its pid *and* the time at which it
began, and by a mark in its environment, which it inherits at birth: so that a process is found
even when whoever started it died before writing its pid down.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..errors import LocalError, UserError
from .config import RUNNING

# psutil adds the kernel's boot time, whole seconds that a clock adjustment may move, to a count of
# ticks; a pid does not come round within this time
CREATED_TOLERANCE_S = 2.0
LOOK_EVERY_S = 0.01  # whether a process has ended
END_S = 5.0  # guess: a killed one is gone in milliseconds, or later if a device's driver holds it


@dataclass(frozen=True, slots=True)
class ProcessId:
    """Which process is meant, for all time. created_s: unix seconds."""

    pid: int
    created_s: float


def process_id(pid: int | None = None) -> ProcessId:
    """Of a running process; by default of this one."""
    process = psutil.Process(pid)
    return ProcessId(process.pid, process.create_time())


class Outliving(subprocess.Popen[bytes]):
    """A process that is meant to outlive whoever started it: to forget it is no mistake."""

    def __del__(self) -> None:
        """Without Popen's warning."""


def start(
    command: Sequence[str], *, mark: tuple[str, str], environment: Mapping[str, str], log: Path
) -> Outliving:
    """Start a process apart from this one and its terminal. What it says is added to `log`.

    mark: the variable and its value by which `marked` finds it.
    """
    with log.open("ab") as out:
        return Outliving(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, mark[0]: mark[1]},
            start_new_session=True,  # Ctrl-C in the terminal is not for it
        )


def last_lines(log: Path, count: int, *, bytes_max: int = 1 << 20) -> list[str]:
    """The last lines of a log that are not empty; [] when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - bytes_max))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


def find(known: ProcessId) -> psutil.Process | None:
    """The process that is meant, if it lives; None when it ended, or its pid is another's now."""
    try:
        process = psutil.Process(known.pid)
        same = abs(process.create_time() - known.created_s) < CREATED_TOLERANCE_S
        return process if same and _lives(process) else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Every live process of this user that was born with this mark, this one excepted."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get(variable) == value
            if ours and _lives(process):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, a kernel thread, or gone meanwhile: not ours
    return found


def refuse_second(home: Path) -> None:
    """Raise UserError when a node of this home runs: two of one identity would fight.

    A node.json that a crash left behind is removed, so that nobody joins by it.
    """
    running = home / RUNNING
    try:
        told = json.loads(running.read_text(encoding="utf-8"))
        process = psutil.Process(int(told["pid"]))
        # who wrote the file was born before it: a later one has only inherited the pid
        alive = process.create_time() <= running.stat().st_mtime and _lives(process)
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        alive = False
    if alive:
        raise UserError(
            f"a node runs under {home} already (process {process.pid}): "
            "give this one a --home of its own"
        )
    with suppress(OSError):  # a home that cannot be used is refused when it is made
        running.unlink(missing_ok=True)


def end(processes: Iterable[psutil.Process], *, grace_s: float) -> None:
    """End them all: asked first, given `grace_s`, then killed. When this returns they are gone."""
    left = list(processes)
    if grace_s > 0:
        for process in left:
            _send(process.terminate)
            _send(process.resume)  # a stopped one hears nothing
        left = _wait(left, grace_s)
    for process in left:
        _send(process.kill)
    left = _wait(left, END_S)
    if left:
        raise LocalError(f"processes {[one.pid for one in left]} do not end, though killed")


def _wait(processes: Iterable[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Until they have ended, or the time is up; who lives then.

    psutil's own wait takes a zombie for alive, and a container's first process may reap late or
    never.
    """
    deadline_s = time.monotonic() + within_s
    left = [process for process in processes if _lives(process)]
    while left and time.monotonic() < deadline_s:
        time.sleep(LOOK_EVERY_S)
        left = [process for process in left if _lives(process)]
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return True
        with suppress(psutil.TimeoutExpired):
            process.wait(0)  # a child of ours is reaped by this
    except psutil.NoSuchProcess:
        pass
    return False


def _send(signal: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):  # it was faster
        signal()
