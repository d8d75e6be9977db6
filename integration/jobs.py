"""Issue F, bar 8, second half: a batch of prompts that is answered right whatever is killed.

    python -m integration.jobs [--prompts 1000] [--kills 5] [--seed 1]      one JSON line

Four nodes serve the demo model, each block twice. The same file is submitted twice: once left
alone, once with kills (SIGKILL) at random places: of the process that submitted it, of the worker,
of both at once, of nodes. A submitter that was killed comes back as a person would, by `potluck job
show ID --follow`; a node is started anew. Right is a line that is, to the byte, the undisturbed
run's; greedy and drawn lines alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potluck.node.jobs.states import OPEN, State
from potluck.node.jobs.store import Jobs, open_jobs
from potluck.node.jobs.worker import MARK
from potluck.node.library import DEMO_FOLDER
from potluck.node.process import end, marked
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet

from .ground import ENVIRONMENT, POTLUCK, load
from .waiting import until

NODES, REPLICAS, BLOCKS = 4, 2, 8
TOKENS = 6
DONE_S = 1800.0  # guess: a thousand lines on a machine that does other things as well
KINDS = ("submitter", "worker", "peer", "both", "peer")
WORDS = ("returns", "takes", "raises", "is called by", "reads a file and", "sorts", "yields")


def measure(prompts: int = 1000, kills: int = 5, seed: int = 1) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="potluck-jobs-") as folder:
        home = Path(folder)
        file = home / "prompts.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in _lines(prompts)))
        plan = Plan(home, str(DEMO_FOLDER), "demo", BLOCKS, nodes=NODES, replicas=REPLICAS)
        with open_testnet(plan) as net, open_jobs(home) as jobs, _no_worker_left(home):
            person = _Person(home, file, home / "alone.jsonl")
            alone_s = _Fate(net, person, jobs, 1).run([])
            person = _Person(home, file, home / "disturbed.jsonl")
            fate = _Fate(net, person, jobs, 2)
            disturbed_s = fate.run(_plan(prompts, kills, random.Random(seed)))
            return {
                **_compare(home, prompts),
                "killed": fate.killed,
                "seconds_alone": round(alone_s, 1),
                "seconds_disturbed": round(disturbed_s, 1),
                "tokens": jobs.tally(2).tokens,
                "load": load(),
            }


def _lines(prompts: int) -> Iterator[dict[str, Any]]:
    """No two alike; every third is drawn."""
    for number in range(prompts):
        prompt = f"The function number {number} {WORDS[number % len(WORDS)]}"
        yield {"prompt": prompt, "id": number, **({"temperature": 0.9} if number % 3 == 0 else {})}


def _plan(prompts: int, kills: int, rng: random.Random) -> list[tuple[int, str]]:
    """Once so many lines are answered, that is killed."""
    kinds = [KINDS[number % len(KINDS)] for number in range(kills)]
    rng.shuffle(kinds)
    places = sorted(rng.sample(range(prompts // 20, prompts * 3 // 4), kills))
    return list(zip(places, kinds, strict=True))


class _Person:
    """Who submits the file, and comes back when what looked on was killed."""

    def __init__(self, home: Path, file: Path, out: Path) -> None:
        self._home = home
        words = ["submit", str(file), "-m", "demo", "-n", str(TOKENS), "--seed", "5", "--out"]
        self.process = self._start(*words, str(out), "--quiet")

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [*POTLUCK, *words, "--home", str(self._home)]
        environment = {**os.environ, **ENVIRONMENT}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def killed(self, job: int) -> None:
        """And back."""
        self.process.kill()
        self.process.wait()
        self.process = self._start("job", "show", str(job), "--follow", "--json")


class _Fate:
    """What befalls a job. killed: what was, in order."""

    def __init__(self, net: LocalSwarm, person: _Person, jobs: Jobs, job: int) -> None:
        self._net = net
        self._person = person
        self._jobs = jobs
        self._job = job
        self._starting: set[str] = set()
        self.killed: list[str] = []

    def run(self, planned: list[tuple[int, str]]) -> float:
        """Seconds until the job is done, and whoever looks on has said so."""
        began_s = time.monotonic()
        try:
            for at, kind in planned:
                self._kill(self._worker(at), kind)
            until(lambda: self._seen() and self._person.process.poll() is not None, DONE_S)
        finally:
            self._person.process.kill()
            code = self._person.process.wait()
        told = self._jobs.get(self._job)
        if code != 0 or told.state != State.DONE:
            raise AssertionError(f"{code}, {told}: {self._jobs.log(self._job).read_text()[-2000:]}")
        return time.monotonic() - began_s

    def _kill(self, worker: int, kind: str) -> None:
        if kind in ("worker", "both"):
            os.kill(worker, signal.SIGKILL)
        if kind in ("submitter", "both"):
            self._person.killed(self._job)
        if kind == "peer":
            lives = [seat.name for seat in self._net.seats if seat.process is not None]
            name = lives[worker % len(lives)]
            self._net.send(name, signal.SIGKILL)
            self._net.launch(name, self._net.join)
            self._starting.add(name)
        self.killed.append(kind)

    def _worker(self, at: int) -> int:
        """The pid of whoever works at the job, once so many of its answers are there."""
        until(lambda: self._seen() and self._jobs.tally(self._job).done >= at, DONE_S)
        until(lambda: self._held() or self._jobs.get(self._job).state not in OPEN, DONE_S)
        holder = self._jobs.get(self._job).holder
        assert holder is not None, f"ended after {self.killed}: {self._jobs.get(self._job)}"
        return holder.pid

    def _held(self) -> bool:
        return self._jobs.held(self._jobs.get(self._job))

    def _seen(self) -> bool:
        """True, once it was seen which of the nodes that were started anew serve by now."""
        self._starting -= {name for name in self._starting if self._net.ready(name) is not None}
        return True


def _compare(home: Path, prompts: int) -> dict[str, Any]:
    alone, disturbed = (
        (home / name).read_bytes().splitlines() for name in ("alone.jsonl", "disturbed.jsonl")
    )
    told = [json.loads(line) for line in disturbed]
    in_order = [one["line"] for one in told] == list(range(1, prompts + 1))
    right = sum(one == other for one, other in zip(alone, disturbed, strict=False))
    return {
        "prompts": prompts,
        "lines": len(disturbed),
        "right": right if in_order and len(alone) == prompts else 0,
        "errors": sum("error" in one for one in told),
    }


@contextmanager
def _no_worker_left(home: Path) -> Iterator[None]:
    try:
        yield
    finally:
        end(marked(MARK, str(home)), grace_s=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    found = measure(asked.prompts, asked.kills, asked.seed)
    print(json.dumps(found))
    sys.exit(0 if found["right"] == asked.prompts else 1)


if __name__ == "__main__":
    main()
