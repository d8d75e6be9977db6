"""Distance for the NAT laboratory: every packet through the internet waits, without netem.

    wan ──▶ table 7 ──▶ tun ──▶ this process, `delay_s` later ──▶ tun ──▶ the main table ──▶ wan

Runs in the namespace of the internet, until killed: `python -m integration.nat_delay 0.02`.
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

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_BYTES_MAX = 65_536
TABLE = "7"


def open_tun(name: str) -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def divert(name: str) -> None:
    """Send what comes from a WAN through the tun, and what comes from there on its way."""
    for command in (
        f"ip link set {name} up",
        f"ip route add default dev {name} table {TABLE}",
        f"ip rule add iif {name} lookup main priority 50",
        f"ip rule add lookup {TABLE} priority 60",
    ):
        subprocess.run(command.split(), check=True)


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
    divert("far")
    print("ready", flush=True)
    forward(tun, float(sys.argv[1]))


if __name__ == "__main__":
    main()
