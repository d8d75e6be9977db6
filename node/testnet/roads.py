"""Roads between the nodes of a testnet, as long, as narrow and as bad as wanted.

    client, node n1, n2, ...                                a process of ours
    eth0, a tun ── packet ──▶ lost? ──▶ its bytes, one after another ──▶ its way ──▶ eth0, a tun

Each node has a network of its own (islands.py), and so has whoever started them; the other end of
each is held by one process, which passes packets on. It does what netem does in Linux's kernel,
where that has it: those of containers and small virtual machines mostly have not. Every pair has a
road of its own, each direction too. Needs root, `ip` and /dev/net/tun.

Where nothing is to be lost a train of TCP segments is passed on as one, as the kernel hands it to a
network card: it takes the time of all its segments' bytes, and each of them alone would take this
process some 20 us, which the nodes beside it would lack.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from random import Random

from ...errors import UserError
from ..process import Outliving
from . import islands

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUNSETOFFLOAD = 0x400454D0
TUN_F_CSUM, TUN_F_TSO4 = 1, 2
TRAIN = struct.Struct("=BBHHHH")  # linux/virtio_net.h: flags, kind, header, a segment's bytes, sums
PACKET_BYTES_MAX = 65_536 + TRAIN.size
TCP_HEADERS = 52  # of a segment behind the first: IPv4, TCP and its time stamps
WAITING_S = 0.2  # guess: what a router's queue holds; what comes then is lost, as TCP expects
AT_ONCE = 64  # guess: packets of one end, a millisecond of them
IPV4_HEADER = 20


@dataclass(frozen=True, slots=True)
class Road:
    """one_way_s: of a packet. bytes_s: in each direction. loss: share of packets, 0..1."""

    one_way_s: float
    bytes_s: float = float("inf")
    loss: float = 0.0


class Carrier:
    """What is on the roads. Packets are IPv4, whole; trains: behind a header that tells of what
    segments each is."""

    def __init__(self, road: Road, dice: Random, *, trains: bool = False) -> None:
        self._road = road
        self._dice = dice
        self._head = TRAIN.size if trains else 0
        self._free_s: dict[bytes, float] = {}  # by source and destination
        self._carried: list[tuple[float, int, bytes]] = []
        self._number = 0

    def take(self, packet: bytes, now: float) -> None:
        """Put it on its road, if that takes it."""
        ends = packet[self._head + 12 : self._head + IPV4_HEADER]
        begins_s = max(now, self._free_s.get(ends, now))
        if begins_s - now > WAITING_S or self._dice.random() < self._road.loss:
            return
        self._free_s[ends] = gone_s = begins_s + self._bytes(packet) / self._road.bytes_s
        self._number += 1
        heapq.heappush(self._carried, (gone_s + self._road.one_way_s, self._number, packet))

    def _bytes(self, packet: bytes) -> int:
        """On the wire."""
        size = len(packet) - self._head
        segment = TRAIN.unpack_from(packet)[3] if self._head else 0
        return size + (max(0, size - 1) // segment * TCP_HEADERS if segment else 0)

    def arrived(self, now: float) -> Iterator[bytes]:
        """What has come to its end by now, in order."""
        while self._carried and self._carried[0][0] <= now:
            yield heapq.heappop(self._carried)[2]

    @property
    def next_s(self) -> float | None:
        """When the next one arrives; None: nothing is on its way."""
        return self._carried[0][0] if self._carried else None


def why_not() -> str | None:
    """Why no roads can be laid here; None when they can."""
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return islands.why_not()


def lay_roads(folder: Path, names: Sequence[str], road: Road, mark: tuple[str, str]) -> None:
    """A network for each of these nodes, and roads between all; they last as long as the process
    with this mark, which is started here. Raises UserError."""
    if (why := why_not()) is not None:
        raise UserError(f"no roads between networks of their own: {why}")
    command = [sys.executable, "-P", "-m", __name__, str(folder), json.dumps(asdict(road)), *names]
    process = Outliving(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, mark[0]: mark[1]},
        start_new_session=True,  # Ctrl-C in the terminal is not for it
    )
    assert process.stdout is not None
    with process.stdout as said:
        lines = [said.readline().decode()]
        if lines[0] != "ready\n":
            lines += said.read().decode().splitlines()
            process.wait()
            raise UserError(f"no roads between the nodes: {[one for one in lines if one][-1]}")


def open_tun(name: str, *, trains: bool = False) -> int:
    """A device of this name, here. Raises OSError."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if trains else 0)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    if trains:
        fcntl.ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return tun


def carry(ends: Mapping[bytes, int], carrier: Carrier, *, trains: bool = False) -> None:
    """Pass packets on, for ever. ends: by their addresses."""
    tuns, head = [*ends.values()], TRAIN.size if trains else 0
    target = slice(head + 16, head + IPV4_HEADER)
    while True:
        next_s = carrier.next_s
        rest_s = None if next_s is None else max(0.0, next_s - time.monotonic())
        for tun in select.select(tuns, (), (), rest_s)[0]:
            for packet in _read(tun, head + IPV4_HEADER):
                if packet[head] >> 4 == 4 and packet[target] in ends:
                    carrier.take(packet, time.monotonic())
        for packet in carrier.arrived(time.monotonic()):
            try:
                os.write(ends[packet[target]], packet)
            except OSError:  # its node is gone, or takes no more: lost, as on any road
                continue


def _read(tun: int, least: int) -> Iterator[bytes]:
    """What is there, as far as others need not wait for it."""
    for _ in range(AT_ONCE):
        try:
            packet = os.read(tun, PACKET_BYTES_MAX)
        except OSError:  # nothing more, or the node's network is gone
            return
        if len(packet) < least:
            return
        yield packet


def main() -> None:
    folder, told, names = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    ends, trains = {}, not told["loss"]  # a train that is lost would be many packets
    for name in ("", *names):  # whoever starts them has no name
        address = islands.address_of(folder, name)
        tun = open_tun(islands.link_of(folder, name), trains=trains)
        islands.settle(folder, name)
        ends[IPv4Address(address).packed] = tun
    print("ready", flush=True)
    sys.stdout.close()
    carry(ends, Carrier(Road(**told), Random(1), trains=trains), trains=trains)


if __name__ == "__main__":
    try:
        main()
    except (OSError, UserError) as error:
        print(error)
        sys.exit(1)
