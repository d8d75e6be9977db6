"""The API, from its start to its end: bind, join, load, answer."""

from __future__ import annotations

import ipaddress
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ...errors import UserError
from ..client import Swarm, open_swarm
from ..compute.worker import open_worker
from ..dashboard.page import Page
from ..dashboard.sight import Sight
from ..dashboard.watch import Watch
from ..log import get_logger
from .app import Api
from .asking import Guard
from .backend import SwarmBackend
from .batches import Batches
from .filing import Filing
from .http import Bound, Server, listen
from .office import Office, open_office
from .routes import Route
from .tunings import Tunings

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

log = get_logger()

PORT = 11545
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
DRAIN_S = 10.0  # for the answers at hand, as a node's sessions have
STEPS_QUEUED_MAX = 4096  # tokens that may wait for the head: more than all choices of all answers


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """models: loaded before the first request; others are when they are asked for. adapters: as
    BASE:NAME=PATH, each a model of its own."""

    home: Path
    join: Sequence[str] = ()
    models: Sequence[str] = ()
    adapters: Sequence[str] = ()
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
    """Join, and answer until SIGTERM or SIGINT. Raises UserError for what the owner can mend."""
    bound = await listen(config.host, config.port)
    async with open_swarm(config.join, home=config.home, offline=config.offline) as swarm:
        # Until here a signal has its usual effect, and ends us: nobody counts on us yet.
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                stopping = trio.Event()

                async def answer(*, task_status: TaskStatus[Ready]) -> None:
                    await serve_swarm(swarm, bound, config, stopping, task_status=task_status)
                    nursery.cancel_scope.cancel()

                task_status.started(await nursery.start(answer))
                async for number in signals:
                    if stopping.is_set():  # asked twice: it is urgent
                        nursery.cancel_scope.cancel()
                    log.info("stopping", signal=signal.Signals(number).name)
                    stopping.set()
                    nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S


async def serve_beside(
    config: ApiConfig,
    addresses: tuple[str, ...],
    counts: Callable[[], dict[str, int]],
    stopping: trio.Event,
    *,
    task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The API in a node's own process (daemon.py, Beside); tells where the page is.

    It asks as any client does, under a name of its own, because a node routes nothing through
    itself; and on the node's account, as the same home's.
    """
    bound = await listen(config.host, config.port)
    async with (
        open_swarm(addresses, home=config.home, offline=config.offline) as swarm,
        trio.open_nursery() as nursery,
    ):
        ready = await nursery.start(
            partial(serve_swarm, swarm, bound, config, stopping, inside=counts)
        )
        task_status.started(ready.url)


async def serve_swarm(
    swarm: Swarm,
    bound: Bound,
    config: ApiConfig,
    stopping: trio.Event,
    *,
    inside: Callable[[], Mapping[str, int]] | None = None,
    task_status: TaskStatus[Ready] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer over a membership that is there already.

    Once `stopping` is set, nothing new is taken, and it returns with the last answer. inside: what
    a node of this process counts, for the page.
    """
    async with (
        open_worker(queued_max=STEPS_QUEUED_MAX) as worker,
        open_worker() as loader,
        open_office(config.home, tuple(config.join), offline=config.offline) as office,
    ):
        backend = SwarmBackend(
            swarm, worker=worker, loader=loader, home=config.home, offline=config.offline
        )
        loaded = [(await backend.preload(ref)).voice.name for ref in config.models]
        loaded += [(await backend.dress(told)).voice.name for told in config.adapters]
        sight = Sight(swarm, backend.flows)
        watch = Watch(
            swarm, sight, office.jobs, home=config.home, joined=tuple(config.join),
            inside=inside,
        )  # fmt: skip
        page = Page(watch, stopping, keyed=bool(config.keys))
        more = (*job_routes(office, backend), *page.routes())
        api = Api(backend, Guard(config.keys, here=not config.keys), more=more)
        watch.counts(api.metrics.generated, lambda: api.answers)
        server = Server(api, bound)
        host = f"[{config.host}]" if ":" in config.host else config.host
        async with trio.open_nursery() as nursery, trio.open_nursery() as services:
            services.start_soon(office.run)
            services.start_soon(watch.run)
            nursery.start_soon(server.run)
            task_status.started(Ready(f"http://{host}:{bound.port}/v1", tuple(loaded)))
            await stopping.wait()
            services.cancel_scope.cancel()
            server.retire()


def job_routes(office: Office, backend: SwarmBackend) -> tuple[Route, ...]:
    """Files, batches and runs; what runs have made is a model from then on."""
    tunings = Tunings(office, backend)
    backend.tuned = tunings.models
    batches = Batches(office, backend)
    return (*Filing(office).routes(), *batches.routes(), *tunings.routes())
