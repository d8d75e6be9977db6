"""What the measurements stand on: nodes as processes of their own, and what they use.

    with open_node(home, model, "--blocks", "0:4") as node:
        node.memory(), node.counts()

A node is started as a person starts it (`potluck node --json`), and read as a person reads it: its
line on stdout says that it serves, its log on stderr what is open.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

READY_S = 60.0  # a node of a toy model on a machine that does other things as well
COUNT_S = 20.0
END_S = 15.0
COMMAND_S = 100.0
LOOK_EVERY_S = 0.01
MIB = 1 << 20
# -P: no folder that we happen to stand in may shadow a module
POTLUCK = (sys.executable, "-P", "-m", "potluck.cli")
# one thread: spinning barriers of several processes on few cores bring each other to a halt
# and no guest: these nodes serve, however busy their machine
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "POTLUCK_JOIN": "", "POTLUCK_GUEST": "no",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, in MiB.

    pss counts a page that n processes share as 1/n, so it moves when a neighbour starts or ends;
    rss counts it whole: the pss of a process that is alone. own: what no file backs.
    """

    pss: float
    rss: float
    own: float


@dataclass(slots=True)
class Node:
    """A node that serves. ready_s: seconds from its start to its line on stdout."""

    process: subprocess.Popen[bytes]
    home: Path
    facts: dict[str, Any]
    ready_s: float

    @property
    def addresses(self) -> list[str]:
        return list(self.facts["addresses"])

    @property
    def peer(self) -> str:
        return str(self.facts["peer"])

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        return (self.home / "log").read_text(encoding="utf-8", errors="replace")

    def memory(self) -> Memory:
        return memory_of(self.process.pid)

    def cpu_s(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def counts(self) -> dict[str, int]:
        """What is open in it: sessions, leases, free_tokens, streams, connections."""
        before = len(self._told())
        self.process.send_signal(signal.SIGUSR1)
        deadline_s = time.monotonic() + COUNT_S
        while len(told := self._told()) == before:
            if time.monotonic() > deadline_s or not self.lives:
                raise TimeoutError(f"no counts from {self.peer}: {self.log[-2000:]}")
            time.sleep(LOOK_EVERY_S)
        return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", told[-1])}

    def _told(self) -> list[str]:
        return [line for line in self.log.split("\n")[:-1] if " counts " in line]  # whole lines

    def end(self) -> int:
        """Ask it to stop; its exit code."""
        if self.lives:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def open_node(
    home: Path,
    model: Path | str,
    *options: str,
    join: Sequence[str] = (),
    environment: Mapping[str, str] = ENVIRONMENT,
) -> Iterator[Node]:
    """A node of `model`, for as long as this lasts. It sees off no session at its end."""
    home.mkdir(parents=True, exist_ok=True)
    command = [*POTLUCK, "node", "--home", str(home), "--model", str(model), "--threads", "1"]
    command += ["--json", "--drain-s", "0", *options]
    command += [part for address in join for part in ("--join", address)]
    began_s = time.monotonic()
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **environment}
        )
    try:
        line = _first_line(process, began_s + READY_S)
        if not line:
            raise RuntimeError(f"the node did not start: {(home / 'log').read_text()}")
        yield (node := Node(process, home, json.loads(line), time.monotonic() - began_s))
        node.end()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def potluck(*words: str) -> dict[str, Any]:
    """What a command line says, as JSON; it has to succeed."""
    done = subprocess.run(
        [*POTLUCK, *words, "--json"], capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def memory_of(pid: int) -> Memory:
    """Linux only: another system has no such account."""
    found: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, size = line.partition(":")
        found[name] = int(size.split()[0]) * 1024 / MIB
    return Memory(round(found["Pss"], 1), round(found["Rss"], 1), round(found["Anonymous"], 1))


def processor_s(pids: Iterable[int]) -> float:
    """Processor time of these processes so far; a system counts it in steps of 10 ms."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system for one in times)


def quantile_ms(seconds: Sequence[float], share: float) -> float:
    ordered = sorted(seconds)
    if not ordered:
        return float("nan")
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def load() -> float:
    """How busy the machine is: runnable processes, the mean of a minute."""
    return round(os.getloadavg()[0], 2)


def _first_line(process: subprocess.Popen[bytes], deadline_s: float) -> bytes:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline_s - time.monotonic()))
    return process.stdout.readline() if ready else b""
