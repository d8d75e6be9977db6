"""Distance for the NAT laboratory: every packet through the internet waits, without netem.

    wan ──▶ table 7 ──▶ tun ──▶ this process, `delay_s` later ──▶ tun ──▶ the main table ──▶ wan

Runs in the namespace of the internet, until killed: `python -m integration.nat_delay 0.02`; with
`six` behind it, IPv6 waits too. (What this namespace itself says to its neighbours does not: there
is nobody beyond the tun who could tell it where they are.)
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_BYTES_MAX = 65_536
TABLE = "7"


def open_tun(name: str) -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def divert(name: str, families: Sequence[str]) -> None:
    """Send what comes from a WAN through the tun, and what comes from there on its way."""
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    for family in families:
        for command in (
            f"route add default dev {name} table {TABLE}",
            f"rule add iif {name} lookup main priority 50",
            "rule add iif lo lookup main priority 55",
            f"rule add lookup {TABLE} priority 60",
        ):
            subprocess.run(["ip", family, *command.split()], check=True)


def forward(tun: int, delay_s: float) -> None:
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        wait_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([tun], [], [], wait_s)[0]:
            waiting.append((time.monotonic() + delay_s, os.read(tun, PACKET_BYTES_MAX)))
        while waiting and waiting[0][0] <= time.monotonic():
            os.write(tun, waiting.popleft()[1])


def main() -> None:
    tun = open_tun("far")
    divert("far", ["-4", "-6"] if "six" in sys.argv[2:] else ["-4"])
    print("ready", flush=True)
    forward(tun, float(sys.argv[1]))


if __name__ == "__main__":
    main()
