"""A network of its own for each node of a testnet, so that any of them can be cut off.

    node n1                      node n2
    198.18.k.2  ── bridge ──  198.18.k.3        the bridge is 198.18.k.1, where everybody else is

Network namespaces of Linux, one a node, joined by a bridge; 198.18.0.0/15 is kept for tests of
networks (RFC 2544) and leads nowhere. A node is cut off by taking its cable out of the bridge: no
packet comes or goes, and nobody is told. Needs root and `ip`. Where the nodes shall seem far apart
a process carries the packets (roads.py), and there is no bridge.
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
    """The address of a node: n1, n2, ... of the start; x1, x2, ... that came later; of whoever
    started them, without a name."""
    if not name:
        return f"{_network(folder)}.1"
    number = int(name[1:]) + (FIRST - 1 if name[0] == "n" else JOINED)
    return f"{_network(folder)}.{number}"


def make_island(folder: Path, name: str) -> None:
    """The namespace of a node, and its cable; the bridge, if it is the first. Raises UserError."""
    bridge, cable, namespace = _bridge(folder), _cable(folder, name), _namespace(folder, name)
    if namespace in _namespaces():
        return
    if not Path("/sys/class/net", bridge).exists():
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{_network(folder)}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
    _ip("netns", "add", namespace)
    _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    inside = _number(folder, name)
    _ip(*inside, "route", "add", "default", "via", f"{_network(folder)}.1")
    _ip("link", "set", cable, "up", "master", bridge)


def settle(folder: Path, name: str) -> None:
    """The namespace of a node around the device that stands ready for it (`link_of`); without a
    name, the device of whoever starts the nodes, who has no namespace. Raises UserError."""
    link = link_of(folder, name)
    if not name:
        _ip("addr", "add", f"{address_of(folder, name)}/24", "dev", link)
        _ip("link", "set", link, "up")
        return
    namespace = _namespace(folder, name)
    _ip("netns", "add", namespace)
    _ip("link", "set", link, "netns", namespace, "name", "eth0")
    inside = _number(folder, name)
    _ip(*inside, "route", "add", "default", "dev", "eth0")


def link_of(folder: Path, name: str) -> str:
    """The name of the device that leads to a node; without a name, to whoever starts them."""
    return _cable(folder, name) if name else _bridge(folder)


def _number(folder: Path, name: str) -> tuple[str, ...]:
    """Its address, inside; how to run `ip` there."""
    inside = ("netns", "exec", _namespace(folder, name), "ip")
    _ip(*inside, "addr", "add", f"{address_of(folder, name)}/24", "dev", "eth0")
    _ip(*inside, "link", "set", "lo", "up")
    _ip(*inside, "link", "set", "eth0", "up")
    return inside


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
