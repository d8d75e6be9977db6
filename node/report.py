"""What a running node says of its place in the network: a file, for whoever asks on this machine.

    home/network.json    written when it has changed, and each minute; removed at the end

`potluck status` and `potluck doctor` read it. A file, and no socket: it is there when the node
hangs as well, and its age tells that.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import trio

from .. import __version__
from .home import replace_file
from .log import get_logger
from .member import Member
from .net.access import plain
from .net.address import address_of
from .net.clock import Skew, ask_time

log = get_logger()

REPORT: Final = "network.json"
LOOK_S: Final = 2.0
ANYWAY_S: Final = 60.0
STALE_S: Final = 3 * ANYWAY_S  # a report of this age is a dead node's, or a hanging one's
CLOCK_S: Final = 600.0
CLOCK_SOON_S: Final = 10.0  # while nobody has told the time
NEIGHBOURS_TOLD: Final = 16


async def keep_report(home: Path, member: Member) -> None:
    """A service: write down how the network sees us, for as long as we run."""
    said: Mapping[str, Any] = {}
    skew: Skew | None = None
    write_s = clock_s = 0.0
    try:
        while True:
            now = trio.current_time()
            if now >= clock_s:
                skew = await ask_time(member.host)
                clock_s = trio.current_time() + (CLOCK_S if skew else CLOCK_SOON_S)
            told = network_facts(member, skew)
            if told != said or now >= write_s:
                _write(home, told)
                said, write_s = told, now + ANYWAY_S
            await trio.sleep(LOOK_S)
    finally:
        with suppress(OSError):
            (home / REPORT).unlink(missing_ok=True)


def load_report(home: Path, now: float) -> dict[str, Any] | None:
    """What the node under this home has said last; None when none runs. `now` in unix seconds.

    `age_s` is added: beyond STALE_S the node hangs, or was killed.
    """
    try:
        told = json.loads((home / REPORT).read_text(encoding="utf-8"))
        return {**told, "age_s": round(now - float(told["written_s"]), 1)}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def network_facts(member: Member, skew: Skew | None) -> dict[str, Any]:
    """Our place in the network, as JSON has it."""
    host, nat = member.host, member.nat
    connections = host.connections()
    near = {one.mux.peer for one in connections if one.relay is None and _is_near(one.remote[0])}
    return {
        "peer": host.peer_id,
        "version": __version__,
        "listens": [str(address_of(one.getsockname()[:2])) for one in host.listeners],
        "addresses": list(host.addresses()),
        "nat": asdict(host.nat),
        "relaying": {
            "reservations": len(nat.relay.peers),
            "circuits": nat.relay.circuits,
            "served": nat.relay.circuits_served,
        },
        "direct": len({one.mux.peer for one in connections if one.relay is None}),
        "relayed": len({one.mux.peer for one in connections if one.relay is not None}),
        "neighbours": sorted(near)[:NEIGHBOURS_TOLD],
        "directory": len(member.directory.peers()),
        "clock": None if skew is None else asdict(skew),
    }


def _is_near(host: str) -> bool:
    """Whether an address is of a network that we are in, and not this machine's own."""
    address = plain(host)
    return not address.is_global and not address.is_loopback


def _write(home: Path, told: Mapping[str, Any]) -> None:
    stamped = {**told, "pid": os.getpid(), "written_s": round(time.time(), 1)}
    try:
        replace_file(home / REPORT, json.dumps(stamped).encode())
    except OSError as error:  # a full disk shall end nobody's answer
        log.warning("report not written", path=str(home / REPORT), reason=error.strerror)
