"""How soon a peer is back when its network has changed: `python -m integration.nat_change`.

Two homes behind NATs have talked, directly. Then at one of them

    cable      the Wi-Fi's address is gone, and a cable to another NAT is in
    lease      the same interface has another address
    suspend    the process stands still for SUSPENDED_S
    outage     the network is away for OUTAGE_S, and comes back the same

Nobody tells either of them anything, and the one that has changed asks for nobody. Measured: the
seconds until a word of the other's comes back from it, and until that is direct again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .nat_lab import RTT_S
from .nat_town import Town, open_town, until_ready

SUSPENDED_S = 20.0
OUTAGE_S = 20.0
BACK_S = 90.0  # after that it is lost
BAR_S = 30.0  # issue B's


def by_cable(town: Town) -> None:
    ground, home = town.ground, f"{town.ground.prefix}bob"
    ground.inside(home, *["ip", "addr", "del", "192.168.1.2/24", "dev", "eth0"])
    ground.inside(home, *["ip", "link", "set", "eth0", "down"])
    ground.another_way_out(home, "eth1", "port")


def by_lease(town: Town, home: str = "bob") -> None:
    for command in (
        "ip addr del 192.168.1.2/24 dev eth0",
        "ip addr add 192.168.1.77/24 dev eth0",
        "ip route add default via 192.168.1.1",
    ):
        town.ground.inside(f"{town.ground.prefix}{home}", *command.split())


def by_suspend(town: Town) -> None:
    process = town.peers["bob"].process
    process.send_signal(signal.SIGSTOP)
    time.sleep(SUSPENDED_S)
    process.send_signal(signal.SIGCONT)


def by_outage(town: Town) -> None:
    wan = f"{town.ground.prefix}bob-nat"
    town.ground.inside(wan, *["ip", "link", "set", "wan", "down"])
    time.sleep(OUTAGE_S)
    town.ground.inside(wan, *["ip", "link", "set", "wan", "up"])
    town.ground.inside(wan, *f"ip route add default via {town.ground.gateway(wan)}".split())


CHANGES: dict[str, Callable[[Town], None]] = {
    "cable": by_cable,
    "lease": by_lease,
    "suspend": by_suspend,
    "outage": by_outage,
}


def measure(change: str, logs: Path, *, directory: bool, level: str = "info") -> dict[str, Any]:
    """Seconds after the change, None when not within BACK_S; what is counted stands above."""
    with open_town(logs, RTT_S, directory=directory, level=level) as town:
        ground = town.ground
        for name in ("alice", "bob"):
            ground.home(name, "port")
            town.start(name, "--join", *town.join)
        until_ready(town, ["alice", "bob"])
        where = town.peers["bob"].tell(do="report")
        met = town.peers["alice"].tell(
            do="meet", peer=where["peer"], addresses=where["addresses"], within_s=15
        )
        CHANGES[change](town)
        return {"change": change, "direct_s": met["direct_s"], **_until_back(town)}


def _until_back(town: Town) -> dict[str, Any]:
    """Alice asks and asks."""
    began = time.monotonic()
    back: dict[str, float | None] = {"back_s": None, "direct_again_s": None}
    while time.monotonic() - began < BACK_S and None in back.values():
        told = town.peers["alice"].tell(do="talk", peer=town.peers["bob"].peer)
        if told["talks"]:
            for what, holds in (("back_s", True), ("direct_again_s", told["relay"] is None)):
                if holds and back[what] is None:
                    back[what] = round(time.monotonic() - began, 1)
        time.sleep(0.2)
    return back


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("changes", nargs="*", default=list(CHANGES))
    parser.add_argument("--directory", action="store_true")
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--log", default="info")
    asked = parser.parse_args()
    found = []
    with TemporaryDirectory(prefix="potluck-nat-") as folder:
        for change in asked.changes:
            logs = (asked.logs or Path(folder)) / change
            logs.mkdir(parents=True, exist_ok=True)
            found.append(measure(change, logs, directory=asked.directory, level=asked.log))
            print(json.dumps(found[-1]), flush=True)
    return 0 if all((one["back_s"] or BACK_S) < BAR_S for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
