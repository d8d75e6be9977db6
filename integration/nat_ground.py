"""Homes behind NATs, made of network namespaces: an internet of our own, with nobody else on it.

    home ── LAN ── NAT ── WAN ── internet ── public peer
    192.168.1.2    nft     11.0.k.2   a router       11.0.k.2

Each WAN is a network of its own (a /24), as real ones are. No namespace has a way out of this
ground; all of them are removed at the end. Needs root, `ip` and `nft`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parent.parent
Kind = Literal["full-cone", "address", "port", "symmetric", "double", "udp-blocked"]
KINDS: tuple[Kind, ...] = ("full-cone", "address", "port", "symmetric", "double", "udp-blocked")

# What a NAT lets in: what answers (all), and strangers that are sent on to the home (some).
# The mapping keeps the port, as home routers do where they can; a symmetric one draws a new port.
FORWARD = """
table ip nat {
  %(sets)s
  chain prerouting { type nat hook prerouting priority dstnat;
    %(strangers)s
  }
  chain postrouting { type nat hook postrouting priority srcnat;
    oifname "wan" masquerade %(mapping)s
  }
  chain forward { type filter hook forward priority filter; policy drop;
    %(first)s
    iifname "lan" oifname "wan" accept
    ct state established,related accept
    ct status dnat accept
  }
  chain input { type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname "lan" accept
  }
}
"""
SYN = 'oifname "wan" tcp flags & (syn | ack) == syn'
RULES: dict[str, dict[str, str]] = {
    "port": {},
    "udp-blocked": {"first": "meta l4proto udp drop"},
    "symmetric": {"mapping": "fully-random"},
    "full-cone": {
        "sets": "set open { type inet_service; flags dynamic,timeout; timeout 10m; }",
        "first": f"{SYN} update @open {{ tcp sport }}",
        "strangers": 'iifname "wan" tcp dport @open dnat to %(inside)s',
    },
    "address": {
        "sets": "set open { type ipv4_addr . inet_service; flags dynamic,timeout; timeout 10m; }",
        "first": f"{SYN} update @open {{ ip daddr . tcp sport }}",
        "strangers": 'iifname "wan" ip saddr . tcp dport @open dnat to %(inside)s',
    },
}


def why_not() -> str | None:
    """Why no ground can be made here; None when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    probe = f"potluck-{os.getpid()}-probe"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"ip netns add: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


@dataclass
class Ground:
    """The namespaces. Made by `open_ground`."""

    prefix: str
    names: list[str]
    wans: int = 0

    def add(self, name: str) -> str:
        full = f"{self.prefix}{name}"
        _run("ip", "netns", "add", full)
        self.names.append(full)
        self.inside(full, "ip", "link", "set", "lo", "up")
        return full

    def inside(self, namespace: str, *command: str, stdin: str = "") -> str:
        return _run("ip", "netns", "exec", namespace, *command, stdin=stdin)

    def command(self, namespace: str, command: Sequence[str]) -> list[str]:
        """How to run a command there."""
        return ["ip", "netns", "exec", namespace, *command]

    def wan(self, namespace: str) -> str:
        """Connect a namespace to the internet; its address there."""
        self.wans += 1
        near, far = f"11.0.{self.wans}.1", f"11.0.{self.wans}.2"
        self.wire(f"{self.prefix}net", f"w{self.wans}", near, namespace, "wan", far)
        return far

    def public(self, name: str) -> str:
        """A peer with an address of the internet's; its address."""
        return self.wan(self.add(name))

    def home(self, name: str, kind: Kind) -> str:
        """A peer behind a NAT; the NAT's address on the internet."""
        home, router = self.add(name), self.add(f"{name}-nat")
        if kind == "double":
            carrier = self.add(f"{name}-cgn")
            outside = self.wan(carrier)
            self.wire(carrier, "lan", "100.64.0.1", router, "wan", "100.64.0.2")
            self._nat(carrier, "port", "100.64.0.2")
        else:
            outside = self.wan(router)
        self.wire(router, "lan", "192.168.1.1", home, "eth0", "192.168.1.2")
        self._nat(router, "port" if kind == "double" else kind, "192.168.1.2")
        return outside

    def another_way_out(self, home: str, link: str, kind: Kind) -> None:
        """A second NAT for a home that has lost its first: another network altogether."""
        router = self.add(f"{home.removeprefix(self.prefix)}-nat2")
        self.wan(router)
        self.wire(router, "lan", "192.168.2.1", home, link, "192.168.2.2")
        self._nat(router, kind, "192.168.2.2")

    def gateway(self, router: str) -> str:
        """Where a namespace's way into the internet begins."""
        shown = self.inside(router, *["ip", "-4", "-o", "addr", "show", "dev", "wan"])
        return shown.split("inet ")[1].split("/")[0].rsplit(".", 1)[0] + ".1"

    def _nat(self, router: str, kind: str, inside: str) -> None:
        rules = {"sets": "", "strangers": "", "mapping": "", "first": "", **RULES[kind]}
        rules["strangers"] %= {"inside": inside}
        self.inside(router, "nft", "-f", "-", stdin=FORWARD % rules)
        self.inside(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def wire(self, near: str, link: str, here: str, far: str, name: str, there: str) -> None:
        """A cable between two namespaces; `far` has its default route through it."""
        _run("ip", "link", "add", link, "netns", near, "type", "veth",
             "peer", "name", name, "netns", far)  # fmt: skip
        for namespace, end, address in ((near, link, here), (far, name, there)):
            self.inside(namespace, "ip", "addr", "add", f"{address}/24", "dev", end)
            self.inside(namespace, "ip", "link", "set", end, "up")
        self.inside(far, "ip", "route", "add", "default", "via", here)


@contextmanager
def open_ground(rtt_s: float = 0.0) -> Iterator[Ground]:
    """An empty internet. On leaving, whatever still runs in it is ended and all is removed.

    rtt_s: what a packet takes through the internet and back.
    """
    ground = Ground(f"potluck-{os.getpid()}-", [])
    try:
        net = ground.add("net")
        ground.inside(net, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        program = [sys.executable, "-m", f"{__package__}.nat_delay"]
        with _delay(ground.command(net, program), rtt_s) if rtt_s else nullcontext():
            yield ground
    finally:
        for name in reversed(ground.names):
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in found.stdout.split():
                subprocess.run(["kill", "-9", pid], capture_output=True)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextmanager
def _delay(command: list[str], rtt_s: float) -> Iterator[None]:
    """The process that delays, while it is needed."""
    with subprocess.Popen(
        [*command, str(rtt_s / 2)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"nat_delay ended: {process.wait()}")
            yield
        finally:
            process.kill()


def _run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}\n{stdin}")
    return done.stdout
