"""Homes behind NATs, made of network namespaces: an internet of our own, with nobody else on it.

    home ── LAN ── NAT ── WAN ── internet ── public peer
    192.168.1.2    nft     11.0.k.2   a router       11.0.k.2

Each WAN is a network of its own (a /24), as real ones are. With IPv6 a home has addresses of the
internet's, and a router that lets in only what answers:

    home ── LAN ── firewall ── WAN ── internet
    2a11:0:k:1::2                2a11:0:k::2

No namespace has a way out of this ground; all of them are removed at the end. Needs root, `ip` and
`nft`.
"""

from __future__ import annotations

import itertools
import os
import re
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
SixKind = Literal["ipv6", "dual"]  # IPv6 alone; or that, and IPv4 behind the worst of NATs
SIX_KINDS: tuple[SixKind, ...] = ("ipv6", "dual")
SIX = "2a11:0"  # of the internet's, as 11.0 is
NUMBERS = itertools.count()  # of the grounds of one process: there may be several at once

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
FIREWALL = """
table ip6 firewall {
  chain forward { type filter hook forward priority filter; policy drop;
    iifname "lan" oifname "wan" accept
    ct state established,related accept
  }
  chain input { type filter hook input priority filter; policy drop;
    ct state established,related accept
    meta l4proto ipv6-icmp accept
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


def why_not_six() -> str | None:
    """Why no ground can have IPv6 here."""
    if not Path("/proc/net/if_inet6").exists():
        return "this kernel has no IPv6"
    return why_not()


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

    def wan(self, namespace: str, *, four: bool = True, six: bool = False) -> tuple[str, ...]:
        """Connect a namespace to the internet; its addresses there."""
        self.wans += 1
        net, link = f"{self.prefix}net", f"w{self.wans}"
        places = [f"11.0.{self.wans}."] if four else []
        places += [f"{SIX}:{self.wans:x}::"] if six else []
        self._cable(net, link, namespace, "wan")
        for place in places:
            self._number(net, link, f"{place}1", namespace, "wan", f"{place}2")
        return tuple(f"{place}2" for place in places)

    def public(self, name: str) -> str:
        """A peer with an address of the internet's; its address."""
        return self.wan(self.add(name))[0]

    def public_six(self, name: str) -> tuple[str, ...]:
        """A peer with an address of each family; both."""
        return self.wan(self.add(name), six=True)

    def home_six(self, name: str, kind: SixKind) -> None:
        """A peer with IPv6, behind a firewall."""
        home, router = self.add(name), self.add(f"{name}-nat")
        self.wan(router, four=kind == "dual", six=True)
        inner = f"{SIX}:{self.wans:x}:1::"
        self._cable(router, "lan", home, "eth0")
        if kind == "dual":
            self._number(router, "lan", "192.168.1.1", home, "eth0", "192.168.1.2")
            self._nat(router, "symmetric", "192.168.1.2")
        self._number(router, "lan", f"{inner}1", home, "eth0", f"{inner}2")
        self.inside(router, "nft", "-f", "-", stdin=FIREWALL)
        self.inside(router, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        there = ["via", f"{SIX}:{self.wans:x}::2"]
        self.inside(f"{self.prefix}net", "ip", "-6", "route", "add", f"{inner}/64", *there)

    def home(self, name: str, kind: Kind) -> str:
        """A peer behind a NAT; the NAT's address on the internet."""
        home, router = self.add(name), self.add(f"{name}-nat")
        if kind == "double":
            carrier = self.add(f"{name}-cgn")
            outside = self.wan(carrier)[0]
            self.wire(carrier, "lan", "100.64.0.1", router, "wan", "100.64.0.2")
            self._nat(carrier, "port", "100.64.0.2")
        else:
            outside = self.wan(router)[0]
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
        self._cable(near, link, far, name)
        self._number(near, link, here, far, name, there)

    def _cable(self, near: str, link: str, far: str, name: str) -> None:
        _run("ip", "link", "add", link, "netns", near, "type", "veth",
             "peer", "name", name, "netns", far)  # fmt: skip
        for namespace, end in ((near, link), (far, name)):
            self.inside(namespace, "ip", "link", "set", end, "up")

    def _number(self, near: str, link: str, here: str, far: str, name: str, there: str) -> None:
        """Addresses at both ends, and the far one's default route."""
        six = ":" in here
        size = ["/64", "nodad"] if six else ["/24"]
        for namespace, end, address in ((near, link, here), (far, name, there)):
            told = [f"{address}{size[0]}", *size[1:]]
            self.inside(namespace, "ip", "addr", "add", *told, "dev", end)
        family = "-6" if six else "-4"
        self.inside(far, "ip", family, "route", "add", "default", "via", here)


@contextmanager
def open_ground(rtt_s: float = 0.0, *, six: bool = False) -> Iterator[Ground]:
    """An empty internet. On leaving, whatever still runs in it is ended and all is removed.

    rtt_s: what a packet takes through the internet and back. six: IPv6 is routed too.
    """
    _sweep()
    ground = Ground(f"potluck-{os.getpid()}-{next(NUMBERS)}-", [])
    try:
        net = ground.add("net")
        ground.inside(net, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        if six:
            ground.inside(net, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        program = [sys.executable, "-m", f"{__package__}.nat_delay", str(rtt_s / 2)]
        program += ["six"] if six else []
        with _delay(ground.command(net, program)) if rtt_s else nullcontext():
            yield ground
    finally:
        for name in reversed(ground.names):
            for pid in _inhabitants(name):
                subprocess.run(["kill", "-9", pid], capture_output=True)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _sweep() -> None:
    """Remove what killed runs left behind: their process is gone, and nothing is in it."""
    names = [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line.strip()]
    for name in names:
        made = re.fullmatch(r"potluck-(\d+)-.+", name)
        if made and not Path(f"/proc/{made[1]}").exists() and not _inhabitants(name):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _inhabitants(namespace: str) -> list[str]:
    """The pids of what runs there."""
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    return found.stdout.split()


@contextmanager
def _delay(command: list[str]) -> Iterator[None]:
    """The process that delays, while it is needed."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
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
