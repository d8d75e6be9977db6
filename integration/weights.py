"""Issue H, bar 4: several nodes load one model; how much of it leaves the root, and how fast.

    first    from the root, at 100 Mbit/s
    second   from the first
    poison   has it, and gives other bytes
    killed   kill -9 in the middle, begun again
    others   together

    python -m integration.weights [--mib 1024] [--nodes 8]

All are processes on this machine, so what a node fetches from peers goes over loopback, through
Noise and the multiplexer; the root is HTTP, and no faster than told.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from potluck.node.bench.hub import LocalHub, open_hub
from potluck.node.weights.library import WEIGHTS
from potluck.node.weights.parts import PIECES
from potluck.node.weights.poison import POISON
from potluck.swarm.chunk import CHUNK_BYTES

from .row import Row
from .waiting import until

FILE = "model.safetensors"
MBIT = 100.0
SLOW_BYTES_S = 4 * CHUNK_BYTES  # of each that gives to the one that is killed: so there is a middle
NODE_S = 600.0
ROOT_MOST, FASTER_LEAST = 1.1, 3.0


@dataclass(frozen=True)
class Found:
    """root: bytes that left it, of the model's. second: how often faster than from the root."""

    nodes: int
    mib: int
    root: float
    first_s: float
    second_s: float
    poisoner_banned_by: int
    verified_before_kill: int
    fetched_after_kill: int
    right: bool

    @property
    def faster(self) -> float:
        return self.first_s / self.second_s

    @property
    def resumed(self) -> bool:
        """What was verified and what came after are the model, once."""
        return self.verified_before_kill > 0 and (
            self.verified_before_kill + self.fetched_after_kill == self.mib * CHUNK_BYTES
        )


class Node:
    """A process of weights_node.py."""

    def __init__(
        self, home: Path, fact: Sequence[object], hub: LocalHub, join: Sequence[str], *, lies: bool
    ) -> None:
        self.home = home
        command = [sys.executable, "-P", str(Path(__file__).with_name("weights_node.py"))]
        command += [str(home), json.dumps(fact), *(["--poison"] if lies else [])]
        command += [word for one in join for word in ("--join", one)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | hub.environment | {"HF_HOME": str(home / "hf")},
        )  # fmt: skip
        told = self.read()
        self.peer: str = told["peer"]
        self.addresses: list[str] = told["addresses"]

    def read(self) -> dict[str, object]:  # type: ignore[misc]
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.home.name} has ended with {self.process.wait()}")
        return json.loads(line)  # type: ignore[no-any-return]

    def give_at(self, bytes_s: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"upload {bytes_s}\n")
        self.process.stdin.flush()

    def pieces(self) -> int:
        """How many its journal names: 41 bytes each (parts.py)."""
        return sum(one.stat().st_size // 41 for one in (self.home / WEIGHTS).glob(f"*/{PIECES}"))

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(NODE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def is_right(self, sha256: str) -> bool:
        with (self.home / WEIGHTS / sha256 / "data").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256


@contextmanager
def open_node(
    home: Path, fact: Sequence[object], hub: LocalHub, *join: str, lies: bool = False
) -> Iterator[Node]:
    node = Node(home, fact, hub, join, lies=lies)
    try:
        yield node
    finally:
        if node.process.poll() is None:
            node.end()


def measure(nodes: int, mib: int, work: Path, mbit: float = MBIT) -> Found:
    """nodes: four at least, beside the one that poisons."""
    folder, size = work / "model", mib * CHUNK_BYTES
    folder.mkdir()
    dice = random.Random(1)
    with (folder / FILE).open("wb") as file:
        for _ in range(mib):
            file.write(dice.randbytes(CHUNK_BYTES))
    with ExitStack() as stack:
        hub = stack.enter_context(open_hub(folder, mbit * 125_000))
        fact = [FILE, size, hub.sha256[FILE]]

        def start(name: str, *join: str, lies: bool = False) -> Node:
            return stack.enter_context(open_node(work / name, fact, hub, *join, lies=lies))

        first = start("first")
        first_s = float(str(first.read()["seconds"]))
        join = first.addresses[0]
        second = start("second", join)
        second_s = float(str(second.read()["seconds"]))
        liar = start("poison", join, lies=True)
        liar.read()
        for one in (first, second, liar):
            one.give_at(SLOW_BYTES_S)
        killed = start("killed", join)
        until(lambda: killed.pieces() >= mib // 3, within_s=NODE_S)
        killed.end(signal.SIGKILL)
        verified = sum(_held(killed.home))
        for one in (first, second, liar):
            one.give_at(float("inf"))
        again = start("killed", join)
        told = again.read()
        others = [start(f"n{number}", join) for number in range(nodes - 3)]
        for node in others:
            node.read()
        good = [first, second, again, *others]
        return Found(
            nodes=nodes,
            mib=mib,
            root=hub.sent_bytes / size,
            first_s=first_s,
            second_s=second_s,
            poisoner_banned_by=sum((one.home / POISON / liar.peer).exists() for one in good),
            verified_before_kill=verified,
            fetched_after_kill=int(str(told["peers"])) + int(str(told["root"])),
            right=all(one.is_right(hub.sha256[FILE]) for one in good),
        )


def _held(home: Path) -> Iterator[int]:
    """The bytes of each file's pieces that were verified, by its journal."""
    from potluck.node.weights.library import listed
    from potluck.node.weights.parts import PieceFile

    for about in listed(home):
        yield PieceFile(home / WEIGHTS / about.sha256, about).bytes_here()


def h4_weights() -> Iterator[Row]:
    nodes, mib = 8, 1024
    with tempfile.TemporaryDirectory() as work:
        found = measure(nodes, mib, Path(work))
    yield Row(
        "H4",
        f"{nodes} nodes load a model of {mib} MiB: from the root at most {ROOT_MOST} times that;"
        f" the second {FASTER_LEAST:.0f} times faster than from the root at {MBIT:.0f} Mbit/s; who"
        " poisons is banned; kill -9 costs nothing that was verified",
        f"{found.root:.3f} times; {found.first_s:.1f} s, the second {found.second_s:.1f} s:"
        f" {found.faster:.1f} times faster; banned by {found.poisoner_banned_by};"
        f" {found.verified_before_kill >> 20} MiB verified before kill -9,"
        f" {found.fetched_after_kill >> 20} MiB after",
        holds(found),
        f"python -m integration.weights --mib {mib} --nodes {nodes}",
    )


def holds(found: Found) -> bool:
    return (
        found.right
        and found.root <= ROOT_MOST
        and found.faster >= FASTER_LEAST
        and found.poisoner_banned_by > 0
        and found.resumed
    )


BARS = {"H4": h4_weights}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--mbit", type=float, default=MBIT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measure(asked.nodes, asked.mib, Path(work), asked.mbit)
    print(json.dumps(asdict(found) | {"faster": found.faster, "load": os.getloadavg()}, indent=1))
    return 0 if holds(found) else 1


if __name__ == "__main__":
    sys.exit(main())
