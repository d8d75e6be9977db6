"""The peers of the NAT laboratory: public ones that relay, and homes; each a process of its own.

What a peer can be told stands in nat_peer.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .nat_ground import KINDS, ROOT, Ground, open_ground

RELAYS = 3
READY_S = 60.0  # until every home has its reservations


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

    def relays(self, *, six: bool = False) -> None:
        """Public peers, each of whom joins those before it. six: with an address of each family."""
        for number in range(RELAYS):
            name = f"public{number}"
            places = self.ground.public_six(name) if six else (self.ground.public(name),)
            where = [f"/ip{6 if ':' in place else 4}/{place}/tcp/4001" for place in places]
            asked = ["--relay", "yes", "--listen", *where]
            found = self.start(name, *asked, *(["--join", *self.join] if self.join else []))
            self.join += [one for one in found.addresses if _past_loopback(one)]

    def start_six(self, name: str) -> Peer:
        """A home with IPv6: it listens on every interface, and joins."""
        every = ["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"]
        return self.start(name, "--listen", *every, "--join", *self.join)

    def homes(self, side: str) -> None:
        for kind in KINDS:
            self.ground.home(f"{side}-{kind}", kind)
        with ThreadPoolExecutor(len(KINDS)) as pool:
            list(pool.map(lambda kind: self.start(f"{side}-{kind}", "--join", *self.join), KINDS))

    def close(self) -> None:
        for entered in reversed(self._open):
            entered.__exit__(None, None, None)


@contextmanager
def open_town(
    logs: Path, rtt_s: float, *, six: bool = False, directory: bool = False, level: str = "info"
) -> Iterator[Town]:
    """A ground with three public peers that relay, rtt_s from everybody there and back."""
    with open_ground(rtt_s, six=six) as ground:
        town = Town(ground, logs, directory=directory, level=level)
        try:
            town.relays(six=six)
            yield town
        finally:
            town.close()


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


def _past_loopback(address: str) -> bool:
    return "/127.0.0.1/" not in address and "/::1/" not in address
