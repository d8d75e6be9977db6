"""A network of its own for each node of a testnet, so that any of them can be cut off.

    node n1                      node n2
    198.18.k.2  ── bridge ──  198.18.k.3        the bridge is 198.18.k.1, where everybody else is

Network namespaces of Linux, one a node, joined by a bridge; 198.18.0.0/15 is kept for tests of
networks (RFC 2544) and leads nowhere. A node is cut off by taking its cable out of the bridge: no
packet comes or goes, and nobody is told. Needs root and `ip`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError

FIRST = 2  # the bridge itself is 1
JOINED = 128  # where the addresses of nodes that come later begin


def why_not() -> str | None:
    """Why no island can be made here; None when it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    return None if shutil.which("ip") else "`ip` is not installed"


def address_of(folder: Path, name: str) -> str:
    """The address of a node: n1, n2, ... of the start; x1, x2, ... that came later."""
    number = int(name[1:]) + (FIRST - 1 if name[0] == "n" else JOINED)
    return f"{_network(folder)}.{number}"


def make_island(folder: Path, name: str) -> None:
    """The namespace of a node, and its cable; the bridge, if it is the first. Raises UserError."""
    bridge, cable, namespace = _bridge(folder), _cable(folder, name), _namespace(folder, name)
    if not Path("/sys/class/net", bridge).exists():
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{_network(folder)}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
    if namespace in _namespaces():
        return
    inside = ("netns", "exec", namespace, "ip")
    _ip("netns", "add", namespace)
    _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    _ip(*inside, "addr", "add", f"{address_of(folder, name)}/24", "dev", "eth0")
    _ip(*inside, "link", "set", "lo", "up")
    _ip(*inside, "link", "set", "eth0", "up")
    _ip(*inside, "route", "add", "default", "via", f"{_network(folder)}.1")
    _ip("link", "set", cable, "up", "master", bridge)


def on_island(folder: Path, name: str, command: Sequence[str]) -> list[str]:
    """How to run a command there."""
    return ["ip", "netns", "exec", _namespace(folder, name), *command]


def cut(folder: Path, name: str) -> None:
    """From now on nothing comes to this node, and nothing from it."""
    _ip("link", "set", _cable(folder, name), "nomaster")


def heal(folder: Path, name: str) -> None:
    """As before."""
    _ip("link", "set", _cable(folder, name), "master", _bridge(folder))


def remove_islands(folder: Path) -> None:
    """All of a testnet's, and the bridge; nothing where there are none."""
    if why_not() is not None:
        return
    for namespace in _namespaces():
        if namespace.startswith(_namespace(folder, "")):
            _ip("netns", "del", namespace)
    if Path("/sys/class/net", _bridge(folder)).exists():
        _ip("link", "del", _bridge(folder))


def _namespaces() -> list[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]


def _mark(folder: Path) -> bytes:
    return hashlib.sha256(str(folder).encode()).digest()


def _network(folder: Path) -> str:
    mark = _mark(folder)  # 512 networks: two testnets of one machine hardly meet
    return f"198.{18 + mark[0] % 2}.{mark[1]}"


def _bridge(folder: Path) -> str:
    return f"pb{_mark(folder).hex()[:8]}"


def _cable(folder: Path, name: str) -> str:
    return f"p{_mark(folder).hex()[:8]}{name}"  # 15 letters at most


def _namespace(folder: Path, name: str) -> str:
    return f"potluck-{_mark(folder).hex()[:8]}-{name}"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"ip {' '.join(words)}: {done.stderr.strip() or 'it failed'}")
