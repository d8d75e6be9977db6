"""How fast the engine is on this processor, beside llama.cpp, on the same weights in one run.

Rounds of ours and of theirs alternate, and the ratio is that of the medians. A row is one figure of
one format: prefill_int8, decode_int8 (one session), decode8_int8, decode16_int8, the same of nf4.

    python -m integration.engine_speed [--llama /path/to/python] [--work FOLDER] [--rows ROW ...]

--llama (or POTLUCK_LLAMA) is a Python that has llama-cpp-python, built for this machine, and gguf:

    python3 -m venv llama && CMAKE_ARGS=-DGGML_NATIVE=ON llama/bin/pip install llama-cpp-python gguf

--work (or POTLUCK_WORK) keeps the weights in each format (4 GB), and each row as soon as it is
measured, in rows.json: a later run measures the rows it names, and prints all that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.native.library import read_bandwidth
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.pages import Lease, Pool

from .engine_weights import HIDDEN, write_checkpoint

THREADS = 2
PROMPT = 128
STEPS = {1: 24, 8: 8, 16: 6}  # decode steps in a round, by sessions
ROUNDS = 5
PEER = Path(__file__).with_name("llama_peer.py")
THEIRS = {"int8": "Q8_0", "nf4": "Q4_0"}
KINDS = {"prefill": 0, "decode": 1, "decode8": 8, "decode16": 16}  # sessions; 0: a prompt
ROWS = tuple(f"{kind}_{format}" for format in THEIRS for kind in KINDS)


class Side(Protocol):
    """Who is measured."""

    def prefill(self, tokens: int) -> float:
        """Seconds of a prompt of so many tokens."""
        ...

    def decode(self, sessions: int, steps: int, length: int) -> float:
        """Seconds of so many steps, each session with `length` tokens before."""
        ...


class Ours:
    """Our stage of all blocks."""

    def __init__(self, work: Path, quantization: str) -> None:
        checkpoint = open_checkpoint(work / "checkpoint", home=work)
        self.stage = NativeStage.load(
            checkpoint,
            0,
            checkpoint.spec.blocks,
            quantization=quantization,
            threads=THREADS,
            cache_dir=work / "kept",
        )
        self.pool = Pool(budget_bytes=1 << 30, page_bytes=self.stage.page_bytes)
        dice = torch.Generator().manual_seed(2)
        self.rows = torch.randn(PROMPT, HIDDEN, generator=dice)
        self._held: list[Lease] = []
        self._asked = (0, 0, 0)  # sessions, steps and tokens that they are for

    def _lease(self, tokens: int) -> Lease:
        lease = self.pool.open(0, self.stage.stop, tokens)
        lease.reserve(0, tokens)
        return lease

    def prefill(self, tokens: int) -> float:
        lease = self._lease(tokens)
        began = time.perf_counter()
        self.stage.forward_rows(self.rows[:tokens], [(lease, 0, tokens)])
        spent = time.perf_counter() - began
        lease.release()
        return spent

    def decode(self, sessions: int, steps: int, length: int) -> float:
        leases = self._filled(sessions, steps, length)
        rows = self.rows[:sessions]
        began = time.perf_counter()
        for step in range(steps):
            self.stage.forward_rows(rows, [(lease, length + step, 1) for lease in leases])
        return time.perf_counter() - began

    def _filled(self, sessions: int, steps: int, length: int) -> list[Lease]:
        """Sessions that hold `length` tokens: those of the round before, or new ones."""
        if self._asked != (sessions, steps, length):
            for lease in self._held:
                lease.release()
            self._held = [self._lease(length + steps) for _ in range(sessions)]
            for lease in self._held:
                self.stage.forward_rows(self.rows[:length], [(lease, 0, length)])
            self._asked = (sessions, steps, length)
        return self._held


class Theirs:
    """llama.cpp in a Python of its own."""

    def __init__(self, python: str, work: Path) -> None:
        self._work = work
        self._said = (work / "llama.log").open("w")
        self.process = subprocess.Popen(
            [python, str(PEER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )

    def load(self, kind: str) -> None:
        """This format of the checkpoint, made when it is not there yet."""
        plain, made = self._work / "BF16.gguf", self._work / f"{kind}.gguf"
        if not made.exists():
            if not plain.exists():
                self.ask("write", self._work / "checkpoint", plain)
            self.ask("quantize", plain, made, kind, THREADS)
        self.ask("load", made, THREADS)

    def ask(self, *words: object) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(*words, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"llama.cpp gave up on {words[0]}; {self._said.name} says why")
        return json.loads(answer)

    def prefill(self, tokens: int) -> float:
        return self.ask("prefill", tokens)["seconds"]

    def decode(self, sessions: int, steps: int, length: int) -> float:
        return self.ask("decode", sessions, steps, length)["seconds"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._said.close()


@contextmanager
def open_sides(work: Path, quantization: str, llama: str | None) -> Iterator[dict[str, Side]]:
    """Ours, and theirs if there is a Python for it, with the weights loaded."""
    sides: dict[str, Side] = {"ours": Ours(work, quantization)}
    if llama is None:
        yield sides
        return
    theirs = Theirs(llama, work)
    try:
        theirs.load(THEIRS[quantization])
        yield sides | {"llama": theirs}
    finally:
        theirs.close()


def _row(sides: dict[str, Side], kind: str, rounds: int) -> dict[str, Any]:
    """Tokens a second of each side, medians of alternating rounds, and their ratio."""
    sessions = KINDS[kind]
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            if sessions:
                steps = STEPS[sessions]
                rate = sessions * steps / side.decode(sessions, steps, PROMPT)
            else:
                rate = PROMPT / side.prefill(PROMPT)
            if number:  # the first round pays for memory
                rates[name].append(rate)
    found: dict[str, Any] = {
        name: round(statistics.median(seen), 1) for name, seen in rates.items()
    }
    if "llama" in found:
        found["ratio"] = round(found["ours"] / found["llama"], 2)
    found["range"] = {
        name: [round(min(seen), 1), round(max(seen), 1)] for name, seen in rates.items()
    }
    found["load"] = round(os.getloadavg()[0], 2)
    found["at"] = time.strftime("%Y-%m-%d %H:%M")
    return found


def _share_read(row: dict[str, Any], weight_bytes: int) -> None:
    """How near one session's decoding comes to the memory's speed, measured beside it."""
    bandwidth = read_bandwidth(THREADS)
    row["read_GB_s"] = round(bandwidth / 1e9, 1)
    row["weights_read_share"] = round(row["ours"] * weight_bytes / bandwidth, 3)


def measure(
    llama: str | None,
    work: Path,
    *,
    rows: Iterable[str] = ROWS,
    rounds: int = ROUNDS,
) -> dict[str, dict[str, Any]]:
    """These rows, and those that were measured before in this folder."""
    wanted = set(rows)
    if not (work / "checkpoint" / "config.json").exists():
        write_checkpoint(work / "checkpoint")
    path = work / "rows.json"
    told: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for quantization in THEIRS:
        kinds = [kind for kind in KINDS if f"{kind}_{quantization}" in wanted]
        if not kinds:
            continue
        with open_sides(work, quantization, llama) as sides:
            for kind in kinds:
                row = _row(sides, kind, rounds)
                ours = sides["ours"]
                assert isinstance(ours, Ours)
                if kind == "decode":
                    _share_read(row, ours.stage.weight_bytes)
                told[f"{kind}_{quantization}"] = row
                path.write_text(json.dumps(told, indent=1), encoding="utf-8")
                print(f"{kind}_{quantization}", json.dumps(row), file=sys.stderr, flush=True)
    for quantization in THEIRS:
        one, many = (told.get(f"{kind}_{quantization}") for kind in ("decode", "decode16"))
        if one is not None and many is not None:
            many["over_batch1"] = round(many["ours"] / one["ours"], 2)
    return told


@contextmanager
def open_work(name: str | None) -> Iterator[Path]:
    """The folder of this name, which stays, or one that does not."""
    if name is None:
        with tempfile.TemporaryDirectory(prefix="potluck-engine-") as made:
            yield Path(made)
        return
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama", default=os.environ.get("POTLUCK_LLAMA"))
    parser.add_argument("--work", default=os.environ.get("POTLUCK_WORK"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    with open_work(asked.work) as work:
        found = measure(asked.llama, work, rows=asked.rows, rounds=asked.rounds)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
