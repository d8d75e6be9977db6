"""Processes of one run on this machine: `potluck finetune`, each in a home of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from potluck.node.identity import load_or_create
from potluck.node.runs.checkpoint import FOLDER
from potluck.node.testnet.launcher import MARK
from potluck.node.testnet.lies import LIARS, RUN_LIE

PROGRAM: Final = (sys.executable, "-P", "-m", "potluck.cli", "finetune")
LOOK_EVERY_S: Final = 0.05
PATIENCE_S: Final = 240.0  # of a short run, on a machine that does other things too

SEAT: Final = re.compile(r'you are "(\w+)" in this run, of numerics "(\w+)"')

RUN: Final = """\
name = "tales"
model = "demo"
seed = 7
[adapter]
rank = {rank}
targets = {targets}
[data]
files = ["tales.jsonl"]
tokens = {tokens}
held_out = 0.1
[training]
batch = {batch}
inner_steps = {steps}
epochs = {epochs}
epoch_s = {epoch_s}
learning_rate = {rate}
[exchange]
kind = "{kind}"
aggregator = "{aggregator}"
asked = {asked}
liars = {liars}
bits = {bits}
gate_sequences = {gate_sequences}
reply_s = {reply_s}
fragments = {fragments}
overlap = {overlap}
{more}
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of a run's file."""

    rank: int = 4
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    tokens: int = 32
    batch: int = 1
    steps: int = 3
    epochs: int = 24
    epoch_s: float = 60.0
    rate: float = 3e-3
    kind: str = "gossip"
    aggregator: str = "judged"
    asked: int = 3
    liars: int = 1
    bits: int = 8
    gate_sequences: int = 2
    reply_s: float = 20.0
    fragments: int = 1
    overlap: int = 0
    more: str = ""  # tables of the kind's own

    def text(self) -> str:
        values = {name: getattr(self, name) for name in self.__slots__}
        return RUN.format(**{**values, "targets": json.dumps(self.targets)})


@dataclass
class Member:
    """One process, and what it has said."""

    name: str
    home: Path
    process: subprocess.Popen[bytes]
    log: Path
    errors: Path
    patience_s: float

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = self.log.read_text(encoding="utf-8").split("\n")[:-1]  # the last is not whole
        return [told for told in map(json.loads, lines) if told["event"] == kind]

    def until(self, what: Callable[[Member], bool], said: str) -> None:
        """Wait for it. Raises TimeoutError, or ChildProcessError when the process ends before."""
        deadline_s = time.monotonic() + self.patience_s
        while not what(self):
            ended = self.process.poll() is not None
            if ended and not what(self):
                raise ChildProcessError(f"{self.name} ended before {said}: {self.complaints()}")
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.name}: {said}: {self.complaints()}")
            try:
                self.process.wait(LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                continue

    def started(self) -> dict[str, Any]:
        self.until(lambda one: bool(one.events("started")), "it had started")
        return self.events("started")[0]

    @property
    def address(self) -> str:
        return str(self.started()["addresses"][0])

    def reaches(self, epoch: int) -> None:
        self.until(
            lambda one: any(told["epoch"] >= epoch for told in one.events("epoch")),
            f"epoch {epoch} was over",
        )

    def finishes(self) -> dict[str, Any]:
        """What it says at its end. Raises ChildProcessError."""
        code = self.process.wait(self.patience_s)
        if code:
            raise ChildProcessError(f"{self.name} ended with {code}: {self.complaints()}")
        return self.events("finished")[0]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def complaints(self) -> str:
        return self.all_complaints()[-2000:]

    def all_complaints(self) -> str:
        return self.errors.read_text(encoding="utf-8")


@dataclass
class Group:
    """The processes of one run. around: what a member's command is put behind, by its name;
    options: what it is given besides. lies: by name, the attack with which it lies. patience_s: for
    whatever is waited for."""

    folder: Path
    members: dict[str, Member] = field(default_factory=dict)
    around: Callable[[str], Sequence[str]] = lambda name: ()
    options: Callable[[str], Sequence[str]] = lambda name: ()
    lies: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = PATIENCE_S

    def start(self, name: str, join: str = "", *, peers: int = 0, linger_s: float = 5.0) -> Member:
        """Anew, or again: under the same name it is the same peer."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        times = len(list(home.glob("*.log")))
        log, errors = home / f"{times}.log", home / f"{times}.err"
        command = [
            *self.around(name), *PROGRAM, str(self.folder / "tales.toml"), "--json",
            "--home", str(home), "--out", str(home / "adapter"), "--peers", str(peers),
            "--linger", str(linger_s), *(["--join", join] if join else []), *self.options(name),
        ]  # fmt: skip
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "PYTHONUNBUFFERED": "1",
            "POTLUCK_JOIN": "", "POTLUCK_HOME": str(home),
        }  # fmt: skip
        if name in self.lies:
            environment |= {RUN_LIE: self.lies[name], LIARS: str(len(self.lies))}
            environment[MARK] = str(self.folder)
        with log.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
            )
        self.members[name] = Member(name, home, process, log, errors, self.patience_s)
        return self.members[name]

    def seats(self, names: Sequence[str], timing: str) -> None:
        """Make the run a guarded one of these. The first is told by its own process who it is, and
        in which class of numerics, which is this machine's; the keys of the others lie where their
        processes will look for them."""
        first = self.start(names[0])
        first.process.wait(self.patience_s)
        told = SEAT.search(first.complaints())
        assert told is not None, first.complaints()
        peer, numerics = told.groups()
        folders = [self.folder / name / FOLDER / "tales" for name in names[1:]]
        members = json.dumps([peer, *(load_or_create(one).peer_id for one in folders)])
        with (self.folder / "tales.toml").open("a", encoding="utf-8") as file:
            table = f'[exchange.guarded]\nmembers = {members}\nnumerics = "{numerics}"\n{timing}\n'
            file.write(table)

    def end(self) -> None:
        for member in self.members.values():
            if member.process.poll() is None:
                member.process.kill()
            member.process.wait()


def write_texts(path: Path, characters: int) -> None:
    """Real English: the topics of Python's own help, which every machine has."""
    from pydoc_data.topics import topics

    with path.open("w", encoding="utf-8") as file:
        for topic in sorted(topics):
            if file.tell() > characters:
                break
            file.write(json.dumps({"text": topics[topic].strip()}) + "\n")


@contextmanager
def open_group(
    folder: Path, wanted: Wanted, *, characters: int = 60_000, **how: Any
) -> Iterator[Group]:
    """Nothing of it is left running."""
    write_texts(folder / "tales.jsonl", characters)
    (folder / "tales.toml").write_text(wanted.text(), encoding="utf-8")
    group = Group(folder, **how)
    try:
        yield group
    finally:
        group.end()
