"""A light node: keeps records for others and is an address to join by. Knows no model, no torch.

It passes evidence on as well: most peers of a swarm are connected to one of its kind.

identity ▶ host ▶ directory ▶ ready ... SIGTERM ▶ gone
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import trio

from .config import RUNNING
from .errands import start_errands
from .home import hold_home, prepare_home, write_whole
from .identity import load_or_create, next_boot
from .log import get_logger
from .member import open_member
from .net.access import Access
from .net.nat import NatConfig
from .peerstore import load_known
from .pins import Pin
from .trust.evidence import open_court

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

log = get_logger()

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SHELF_BYTES_MAX: Final = 8 * 1024 * 1024  # of either shelf: with 90 MiB of program, 110 at most


@dataclass(frozen=True, slots=True)
class BootstrapConfig:
    """A light node's settings, as a node's (config.py); but it relays from the start."""

    home: Path
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    join: tuple[str, ...] = ()
    relay: Literal["auto", "yes", "no"] = "yes"
    access: Access = field(default_factory=Access)
    ban: tuple[str, ...] = ()
    allow_only: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """What a light node says once it answers. known: peers that it knows by then."""

    peer: str
    addresses: tuple[str, ...]
    known: int
    seconds: float


async def run_bootstrap(
    config: BootstrapConfig, *, task_status: TaskStatus[Ready] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer until SIGTERM or SIGINT. Raises UserError for whatever the owner can mend."""
    began_s = time.monotonic()
    prepare_home(config.home)
    with hold_home(config.home), ExitStack() as stopping:
        key = load_or_create(config.home)
        async with (
            open_member(
                key,
                listen=config.listen,
                join=config.join,
                boot=next_boot(config.home, time.time()),
                serve=True,
                known=load_known(config.home),
                shelf_bytes_max=SHELF_BYTES_MAX,
                nat=NatConfig(relay=config.relay),
                access=config.access,
                pins=config.pins,
            ) as member,
            trio.open_nursery() as services,
        ):
            # while it joins, a signal has its usual effect: nobody counts on it yet
            signals = stopping.enter_context(trio.open_signal_receiver(*STOP_SIGNALS))
            court = await open_court(member, config.home)
            services.start_soon(court.run, list)  # it serves no blocks, and is told of no work
            start_errands(
                services, config.home, member, ban=config.ban, allow_only=config.allow_only
            )
            ready = Ready(
                member.host.peer_id,
                member.host.addresses(),
                len(member.directory.peers()),
                time.monotonic() - began_s,
            )
            running = config.home / RUNNING
            write_whole(running, json.dumps(_facts(ready)))
            try:
                task_status.started(ready)
                async for number in signals:
                    log.info("stopping", signal=signal.Signals(number).name)
                    break
            finally:
                running.unlink(missing_ok=True)
            services.cancel_scope.cancel()


def _facts(ready: Ready) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "role": "bootstrap",
        "peer": ready.peer,
        "addresses": list(ready.addresses),
        "seconds": round(ready.seconds, 3),
    }
