"""What a user looks at when something does not work: the facts, gathered; diagnosis.py judges them.

A running node is asked by what it writes down (report.py), and its door is knocked at. Where none
runs, a host of the moment takes its place for some seconds: it listens, asks the router for a port,
joins, has strangers dial it, and leaves without a trace.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psutil
import trio

from .. import __version__
from ..crypto.keys import IdentityKey
from ..dht.directory import Directory
from ..dht.kad import open_directory
from ..dht.known import to_join
from ..errors import RemoteError, TransportError, UserError
from .config import find_access, find_join
from .diagnosis import Facts, Knock, Source
from .footing import Hub, Machine, Place, Wanted
from .home import LOCK, hold_home
from .identity import KEY_FILE, load_or_create
from .member import Member
from .net.access import Access
from .net.address import listening, parse
from .net.clock import ask_time, tell_time
from .net.host import Host, HostConfig, open_host
from .net.lan import tell_and_listen
from .net.nat import NatConfig, start_nat
from .net.watch import own_hosts
from .peerstore import load_known
from .report import STALE_S, load_report, network_facts
from .rest import running

KNOCK_S: Final = 6.0
SETTLE_S: Final = 14.0  # for the router, strangers and relays: UPnP alone may take 12
NEIGHBOURS_S: Final = 3.0  # multicast DNS answers within one
KNOWN_MAX: Final = 4  # peers of the last run to knock at
HUB_S: Final = 6.0
HUB: Final = "https://huggingface.co"
OBSERVERS: Final = 2  # networks whose word tells the kind of a NAT


@dataclass(frozen=True, slots=True)
class _Door:
    """A peer, and by which addresses to knock."""

    peer: str
    addresses: list[str] = field(default_factory=list)
    source: Source = "join"


async def look(
    home: Path,
    join: Sequence[str],
    machine: Machine,
    *,
    port: int = 0,
    alone: bool = False,
    model: Wanted | None = None,
) -> Facts:
    """Everything that there is to know. alone: of this machine; nobody else is asked.

    port: where a node is meant to listen. model: what it is to serve, as far as it is here.
    """
    place = look_at_home(home)
    told = _running(home)
    pid = int(told["pid"]) if told else 0
    place = replace(place, held=told is None and _held(home))
    port_fault = look_at_port(port) if told is None and port else ""
    facts = Facts(
        machine, place, pid, hosts=sorted(own_hosts()), model=model, port_fault=port_fault
    )
    if told and told["age_s"] > STALE_S:
        return replace(facts, hanging_s=told["age_s"])
    if told and told["version"] != __version__:
        return replace(facts, other_version=told["version"])
    facts = replace(facts, network=told, rest=_why_resting(home) if told else "")
    if alone:
        return facts
    doors = [] if place.config_fault else _doors(home, join)
    access = Access() if place.config_fault else find_access(home)
    key = IdentityKey.generate()
    if told is None:
        found: list[Hub] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask_hub, found)
            network, knocks = await _try_out(key, doors, access, 0 if port_fault else port)
        return replace(facts, network=network, knocks=knocks, hub=found[0])
    doors = [door for door in doors if door.peer != told["peer"]]
    doors += _by_peer(told["addresses"], "this node")
    async with open_host(HostConfig(seed=key.seed(), listen=(), access=access)) as host:
        knocks = await _knock_at(host, doors)
    return replace(facts, knocks=knocks)


def look_at_port(port: int) -> str:
    """Why a node could not listen there; "" when it can."""
    try:
        for one in listening([f"/ip4/0.0.0.0/tcp/{port}"]):
            one.close()
    except UserError as error:
        return str(error)
    return ""


def _why_resting(home: Path) -> str:
    try:
        told = running(home)
    except UserError:
        return ""
    why = told.get("trouble") or (told.get("rest") or {}).get("why")
    return f"{told.get('state')}: {why}" if why else ""


def _held(home: Path) -> bool:
    """Whether a process runs under it, by its lock alone."""
    if not (home / LOCK).exists():
        return False
    try:
        with hold_home(home):
            return False
    except UserError:
        return True


async def _ask_hub(found: list[Hub]) -> None:
    """Whether the hub answers; what it says does not matter."""
    address = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "no", "false", "off"):
        found.append(Hub(address, off=True))
        return
    began_s = trio.current_time()
    fault = f"silent for {HUB_S:.0f} s"
    with trio.move_on_after(HUB_S):
        fault = await trio.to_thread.run_sync(
            _knock_at_hub,
            address,
            abandon_on_cancel=True,  # type: ignore[call-arg]  # libp2p's stubs of trio are old
        )
    found.append(Hub(address, fault, round(trio.current_time() - began_s, 3)))


def _knock_at_hub(address: str) -> str:
    """Blocks. Why it does not answer; "" when it does."""
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_S):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code < 500 else f"it answers {error.code}"
    except (OSError, ValueError) as error:  # URLError is an OSError
        return str(getattr(error, "reason", error))[:120]


def look_at_home(home: Path) -> Place:
    """Nothing is made, and nothing is mended."""
    mode, fault, peer, key_fault, config_fault = None, "", "", "", ""
    try:
        status = home.stat()
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISDIR(status.st_mode):
            fault = "is no folder"
        elif not os.access(home, os.W_OK | os.X_OK):
            fault = "cannot be written by this user"
        else:
            fault = _why_not_written(home)
    except FileNotFoundError:
        fault = _why_not_written(_standing(home))  # the first start makes it
    except OSError as error:
        fault = error.strerror or str(error)
    if not fault and os.path.lexists(home / KEY_FILE):
        try:
            peer = load_or_create(home).peer_id
        except UserError as error:
            key_fault = str(error)
    try:
        find_join((), home)
        find_access(home)
    except UserError as error:
        config_fault = str(error)
    free = shutil.disk_usage(_standing(home)).free
    return Place(str(home), mode, fault, free, peer, key_fault, config_fault)


def _standing(home: Path) -> Path:
    """The home, or what there is of the way to it."""
    # os.path's, which takes what cannot be looked at for nothing: Path's own raises over some
    return next(one for one in (home, *home.absolute().parents) if os.path.exists(one))


def _why_not_written(folder: Path) -> str:
    """By a file that has no name, and leaves no trace; a full disk is told as one."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:  # that the disk is full is told by itself
            return f"nothing can be written in {folder} ({error.strerror})"
    return ""


def _running(home: Path) -> dict[str, Any] | None:
    """What this home's node says; None when none runs."""
    told = load_report(home, time.time())
    try:
        # who wrote it was born before it: a later process has only inherited the pid
        lives = told and psutil.Process(int(told["pid"])).create_time() <= told["written_s"] + 1
    except (psutil.Error, KeyError, ValueError, TypeError):
        return None
    return told if lives else None


def _doors(home: Path, join: Sequence[str]) -> list[_Door]:
    """Whom to join by, or else the last seen of the last run."""
    named = _by_peer(find_join(join, home), "join")
    if named:
        return named
    return _by_peer(to_join(load_known(home)), "last run")[:KNOWN_MAX]


def _by_peer(addresses: Sequence[str], source: Source) -> list[_Door]:
    found: dict[str, _Door] = {}
    for text in addresses:
        try:
            name = parse(text).peer or text
        except RemoteError:
            name = text  # no address at all: the knock says so
        found.setdefault(name, _Door(name, source=source)).addresses.append(text)
    return list(found.values())


async def _knock_at(host: Host, doors: Sequence[_Door]) -> list[Knock]:
    """Dial them all, and wait until those that answer have said who they are."""
    found: dict[str, Knock] = {}

    async def knock(door: _Door) -> None:
        began_s = trio.current_time()
        try:
            with trio.fail_after(KNOCK_S):
                peer = await host.connect(door.addresses)
                took_s = trio.current_time() - began_s
                await host.identified(peer)
            found[door.peer] = Knock(door.peer, door.source, round(took_s, 6))
        except (TransportError, RemoteError) as error:
            found[door.peer] = Knock(door.peer, door.source, None, str(error))
        except trio.TooSlowError:
            found[door.peer] = Knock(door.peer, door.source, None, f"silent for {KNOCK_S:.0f} s")

    async with trio.open_nursery() as nursery:
        for door in doors:
            nursery.start_soon(knock, door)
    return [found[door.peer] for door in doors]


async def _join(directory: Directory, doors: Sequence[_Door], knocks: Sequence[Knock]) -> None:
    """Meet more of the swarm than those who were named: they are to dial us, and to see us."""
    there = {one.peer for one in knocks if one.took_s is not None}
    addresses = [text for door in doors if door.peer in there for text in door.addresses]
    with suppress(TransportError):  # it left again: the knock has told more
        if addresses:
            await directory.bootstrap(addresses)


async def _try_out(
    key: IdentityKey, doors: Sequence[_Door], access: Access, port: int
) -> tuple[dict[str, Any], list[Knock]]:
    """Be a node for a moment, that keeps nothing for others."""
    listen = [f"/ip4/0.0.0.0/tcp/{port}"]
    if any(":" in one for one in own_hosts()):
        listen.append(f"/ip6/::/tcp/{port}")
    neighbours: set[str] = set()

    async def meet(addresses: Sequence[str]) -> None:
        neighbours.update(door.peer for door in _by_peer(addresses, "join"))

    async with (
        open_host(HostConfig(seed=key.seed(), listen=tuple(listen), access=access)) as host,
        open_directory(host, key, boot=int(time.time()), serve=False) as directory,
    ):
        tell_time(host)
        nat = start_nat(host, key, NatConfig(relay="no"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell_and_listen, key.peer_id, nat.near_addresses, meet)
            began_s = trio.current_time()
            knocks = await _knock_at(host, doors)
            with trio.move_on_at(began_s + SETTLE_S):
                answering = {one.peer for one in knocks if one.took_s is not None}
                if answering:
                    await directory.bootstrap(
                        [
                            text
                            for door in doors
                            if door.peer in answering
                            for text in door.addresses
                        ]
                    )
                await nat.settled()
                await nat.asked_router()
                await nat.ports.ensure(host.connections(), words=OBSERVERS)
            skew = await ask_time(host)
            await trio.sleep_until(began_s + NEIGHBOURS_S)
            nursery.cancel_scope.cancel()
        nat.publish()
        member = Member(host, directory, nat, key)
        facts = network_facts(member, skew)
    return {**facts, "neighbours": sorted({*facts["neighbours"], *neighbours})}, knocks
