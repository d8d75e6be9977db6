"""The NAT matrix (issue B, bar 3), measured: `python -m integration.nat_lab`.

Six kinds of home on either side, three public peers that relay, each a process in a network
namespace of its own. Every pair meets once: does it connect within 10 s, is it direct within 30 s?
Then a session: a node behind one NAT, `potluck generate` behind another, begun over the relay.

What theory allows: a punch needs one port that can be foretold. Behind a symmetric NAT there is
none, so the other side has to let in whatever comes from that address, or from any.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import nat_session
from .nat_ground import KINDS, Ground, Kind, open_ground, why_not

ROOT = Path(__file__).parent.parent
RELAYS = 3
RTT_S = 0.04  # between any two networks: two homes of one country
STARTED_S = 60.0
READY_S = 60.0  # until every home has its reservations
OPEN: frozenset[Kind] = frozenset(("full-cone", "address"))  # take any port of a peer they dialed


def allowed(one: Kind, other: Kind) -> bool:
    """Whether theory lets this pair go direct."""
    if "symmetric" not in (one, other):
        return True
    return one in OPEN or other in OPEN


@dataclass
class Peer:
    """A process in a namespace, and what it said first."""

    process: subprocess.Popen[str]
    peer: str = ""
    addresses: tuple[str, ...] = ()

    def tell(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a peer of the laboratory ended: {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def started(ground: Ground, namespace: str, log: Path, *arguments: str) -> Iterator[Peer]:
    command = [sys.executable, "-m", "integration.nat_peer", *arguments]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            ground.command(namespace, command),
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as process,
    ):  # fmt: skip
        try:
            peer = Peer(process)
            told = peer.hear()
            peer.peer, peer.addresses = told["peer"], tuple(told["addresses"])
            yield peer
        finally:
            process.kill()


class Town:
    """All peers of one run, by name."""

    def __init__(self, ground: Ground, logs: Path, *, directory: bool, level: str = "info") -> None:
        self.ground = ground
        self.logs = logs
        self.peers: dict[str, Peer] = {}
        self.join: list[str] = []
        self._open: list[Any] = []
        self._more = ["--log", level, *(["--directory"] if directory else [])]

    def start(self, name: str, *arguments: str) -> Peer:
        namespace = f"{self.ground.prefix}{name}"
        entered = started(
            self.ground, namespace, self.logs / f"{name}.log", *self._more, *arguments
        )
        self.peers[name] = entered.__enter__()
        self._open.append(entered)
        return self.peers[name]

    def relays(self) -> None:
        """Public peers, each of whom joins those before it."""
        for number in range(RELAYS):
            name = f"public{number}"
            address = self.ground.public(name)
            asked = ["--relay", "yes", "--listen", f"/ip4/{address}/tcp/4001"]
            found = self.start(name, *asked, *(["--join", *self.join] if self.join else []))
            self.join.append(found.addresses[0])

    def homes(self, side: str) -> None:
        for kind in KINDS:
            self.ground.home(f"{side}-{kind}", kind)
        with ThreadPoolExecutor(len(KINDS)) as pool:
            list(pool.map(lambda kind: self.start(f"{side}-{kind}", "--join", *self.join), KINDS))

    def close(self) -> None:
        for entered in reversed(self._open):
            entered.__exit__(None, None, None)


def until_ready(town: Town, names: list[str]) -> dict[str, dict[str, Any]]:
    """Wait until each home can be reached; what it says of itself."""
    deadline = time.monotonic() + READY_S
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        while True:
            told = town.peers[name].tell(do="report")
            if told["nat"]["relays"] or told["nat"]["reachability"] == "public":
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} has no relay: {told}")
            time.sleep(0.2)
        found[name] = told
    return found


def matrix(level: str, logs: Path, rtt_s: float) -> dict[str, Any]:
    """Every kind on the left dials every kind on the right."""
    with open_ground(rtt_s) as ground:
        town = Town(ground, logs, directory=False, level=level)
        try:
            town.relays()
            town.homes("left")
            town.homes("right")
            names = [f"{side}-{kind}" for side in ("left", "right") for kind in KINDS]
            before = until_ready(town, names)
            rows: list[dict[str, Any]] = []
            for shift in range(len(KINDS)):  # each home is in one pair at a time
                pairs = [(one, KINDS[(at + shift) % len(KINDS)]) for at, one in enumerate(KINDS)]
                with ThreadPoolExecutor(len(pairs)) as pool:
                    rows += pool.map(lambda pair: _meet(town, *pair), pairs)
            after = {name: town.peers[name].tell(do="report")["nat"] for name in names}
        finally:
            town.close()
    return {"rows": rows, "homes": after, "at_first": {k: v["nat"] for k, v in before.items()}}


def _meet(town: Town, left: Kind, right: Kind) -> dict[str, Any]:
    dialer, dialed = town.peers[f"left-{left}"], town.peers[f"right-{right}"]
    where = dialed.tell(do="report")
    found = dialer.tell(do="meet", peer=where["peer"], addresses=where["addresses"])
    dialer.tell(do="part", peer=where["peer"])
    return {"left": left, "right": right, "allowed": allowed(left, right), **found}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    connected = [row for row in rows if row["connected_s"] is not None and row["talks"]]
    direct = [row for row in rows if row["direct_s"] is not None]
    may = [row for row in rows if row["allowed"]]
    punched = sorted(row["direct_s"] for row in direct if row["relayed"])
    return {
        "pairs": len(rows),
        "connected": len(connected),
        "connected_s_max": max((row["connected_s"] for row in connected), default=None),
        "allowed": len(may),
        "allowed_direct": sum(row["direct_s"] is not None for row in may),
        "direct": len(direct),
        "direct_share": round(len(direct) / len(rows), 3),
        "direct_s_p50": punched[len(punched) // 2] if punched else None,
        "direct_s_max": max(punched, default=None),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: dialer down, dialed across; seconds until direct, or how it stays."""
    cells = {(row["left"], row["right"]): _cell(row) for row in rows}
    lines = ["| dials ↓ | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    for left in KINDS:
        lines.append(f"| {left} | " + " | ".join(cells[left, right] for right in KINDS) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["connected_s"] is None:
        return "FAILED"
    if row["direct_s"] is None:
        return "relayed" if not row["allowed"] else "RELAYED"
    return f"direct {row['direct_s']:.1f} s"


def measure(
    *, rtt_s: float = RTT_S, level: str = "info", logs: Path | None = None
) -> dict[str, Any]:
    """Bar 3: the matrix, and a session that moves. Raises RuntimeError where it cannot be run."""
    reason = why_not()
    if reason is not None:
        raise RuntimeError(reason)
    with TemporaryDirectory(prefix="potluck-nat-") as folder:
        place = logs or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        found = matrix(level, place, rtt_s)
    session = nat_session.measure("port", "port", rtt_s=rtt_s)
    return {**summary(found["rows"]), **found, "session": session, "rtt_ms": rtt_s * 1e3}


def holds(found: dict[str, Any]) -> bool:
    """Whether bar 3 does."""
    sessions = len(found["session"]["runs"])
    return bool(
        found["connected"] == found["pairs"]
        and found["allowed_direct"] == found["allowed"]
        and found["direct_share"] >= 0.7
        and found["session"]["equal"] == found["session"]["moved"] == sessions
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--log", default="info")
    parser.add_argument("--rtt-ms", type=float, default=RTT_S * 1e3)
    asked = parser.parse_args()
    found = measure(rtt_s=asked.rtt_ms / 1e3, level=asked.log, logs=asked.logs)
    print(table(found["rows"]))
    print(json.dumps(summary(found["rows"])))
    print(json.dumps(found["session"]))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0 if holds(found) else 1


if __name__ == "__main__":
    sys.exit(main())
