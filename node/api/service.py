"""The API, from its start to its end: bind, join, load, answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ...errors import UserError
from ..client import Swarm, open_swarm
from ..compute.worker import open_worker
from .app import Api, Guard
from .backend import SwarmBackend
from .http import Bound, listen, serve

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

PORT = 11545
STEPS_QUEUED_MAX = 4096  # tokens that may wait for the head: more than all choices of all answers


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """models: loaded before the first request; others are when they are asked for."""

    home: Path
    join: Sequence[str] = ()
    models: Sequence[str] = ()
    host: str = "127.0.0.1"
    port: int = PORT
    keys: tuple[str, ...] = ()
    offline: bool = False

    def __post_init__(self) -> None:
        if any(not key.strip() or not key.isascii() for key in self.keys):
            raise UserError("a key is empty or not ASCII; make one: openssl rand -hex 16")
        if not self.keys and not is_here(self.host):
            raise UserError(
                f"--host {self.host} lets others reach this API: give it a --key "
                "(POTLUCK_API_KEY), or leave --host out"
            )


@dataclass(frozen=True, slots=True)
class Ready:
    """What an API says once it answers."""

    url: str
    models: tuple[str, ...]


def is_here(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def run_api(
    config: ApiConfig, *, task_status: TaskStatus[Ready] = trio.TASK_STATUS_IGNORED
) -> None:
    """Join, and answer until cancelled. Raises UserError for whatever the owner can mend."""
    bound = await listen(config.host, config.port)
    async with open_swarm(config.join, home=config.home, offline=config.offline) as swarm:
        await serve_swarm(swarm, bound, config, task_status=task_status)


async def serve_swarm(
    swarm: Swarm,
    bound: Bound,
    config: ApiConfig,
    *,
    task_status: TaskStatus[Ready] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer over a membership that is there already, as a node's is. Until cancelled."""
    async with open_worker(queued_max=STEPS_QUEUED_MAX) as worker, open_worker() as loader:
        backend = SwarmBackend(
            swarm, worker=worker, loader=loader, home=config.home, offline=config.offline
        )
        loaded = [(await backend.preload(ref)).voice.name for ref in config.models]
        host = f"[{config.host}]" if ":" in config.host else config.host
        task_status.started(Ready(f"http://{host}:{bound.port}/v1", tuple(loaded)))
        await serve(Api(backend, Guard(config.keys, here=not config.keys)), bound)
