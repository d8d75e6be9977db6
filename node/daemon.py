"""One node, from its start to its end: opens every service, in order. Read this first.

    identity ▶ host ▶ directory ▶ weights ▶ server ▶ announcement ▶ serving ... SIGTERM ▶ drain

Ready means announced: whoever looks finds the node and is served. On a request to stop the record
is withdrawn first, then live sessions may end or are told to go, and only then the host closes.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from .. import __version__
from ..dht.record import Announcement
from ..errors import UserError
from ..swarm.admission import Admission, AdmissionConfig
from ..swarm.blocks import BlockRange, parse_blocks
from ..swarm.rates import PassTimes
from ..swarm.wire import PROTOCOL
from .compute.batch import Lane
from .compute.checkpoint import Checkpoint, open_checkpoint
from .compute.choice import Opened, StageWish, open_stage
from .compute.pages import Pool
from .compute.worker import Worker, open_worker
from .config import RUNNING, NodeConfig
from .home import hold_home, prepare_home, write_whole
from .identity import load_or_create, next_boot
from .library import find_model
from .log import get_logger
from .member import Member, open_member
from .net.nat import NatConfig
from .peerstore import keep_known, load_known
from .report import keep_report
from .server import Server

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

log = get_logger()

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
TELL_SIGNALS = (signal.SIGUSR1,) if sys.platform != "win32" else ()  # say what is open, as dd does
QUANTIZED = "quantized"  # in the home: blocks as they are served, for the next start
TRIM_EVERY_S = 15.0  # guess: pages that stay free that long are given back
MIB = 1 << 20
STEPS_QUEUED_MAX = 4096  # one for each session that may be admitted


@dataclass(frozen=True, slots=True)
class Ready:
    """What a node says once it serves."""

    peer: str
    name: str
    source: str
    model: str
    blocks: BlockRange
    total: int
    addresses: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Loaded:
    checkpoint: Checkpoint
    source: str
    name: str
    digest: str
    blocks: BlockRange
    stage: Opened


async def run_node(
    config: NodeConfig, *, task_status: TaskStatus[Ready] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until SIGTERM or SIGINT. Raises UserError for whatever the owner can mend."""
    began_s = time.monotonic()
    prepare_home(config.home)
    with hold_home(config.home):
        await _run(config, began_s, task_status)


async def _run(config: NodeConfig, began_s: float, task_status: TaskStatus[Ready]) -> None:
    key = load_or_create(config.home)
    boot = next_boot(config.home, time.time())
    async with (
        open_worker(threads=config.threads or None, queued_max=STEPS_QUEUED_MAX) as worker,
        open_member(
            key,
            listen=config.listen,
            join=config.join,
            boot=boot,
            serve=True,
            known=load_known(config.home),
            nat=NatConfig(relay=config.relay),
            access=config.access,
        ) as member,
    ):
        loaded = await worker.run(_load, config)
        await _refuse_namesake(member, loaded)
        stage = loaded.stage
        times = PassTimes(len(loaded.blocks), *stage.rates)
        worker.serve(Lane(stage.engine, times))
        admission = Admission(AdmissionConfig(stage.cache_tokens, stage.page_tokens))
        server = Server(stage.engine, worker, admission, loaded.digest)
        member.host.handle(PROTOCOL, server.serve)
        # Until here a signal has its usual effect, and ends us: nobody counts on us yet.
        with trio.open_signal_receiver(*STOP_SIGNALS, *TELL_SIGNALS) as signals:
            async with trio.open_nursery() as services:
                services.start_soon(keep_known, config.home, member.directory)
                services.start_soon(keep_report, config.home, member)
                services.start_soon(_keep_small, worker, stage.pool)
                kept = await services.start(
                    member.directory.keep, lambda: _announce(member, loaded, admission, times)
                )
                if not kept and member.directory.peers():
                    log.warning("no peer keeps our announcement: is this machine's clock right?")
                ready = _ready(member, loaded, time.monotonic() - began_s)
                try:
                    write_whole(config.home / RUNNING, json.dumps(_facts(ready)))
                    task_status.started(ready)
                    await _until_stopped(
                        signals, lambda: _counts(member, server, admission, stage.pool)
                    )
                    services.cancel_scope.cancel()
                finally:
                    (config.home / RUNNING).unlink(missing_ok=True)
                    with trio.CancelScope(shield=True):
                        with trio.move_on_after(2):
                            await member.directory.withdraw()
                        await server.drain(config.drain_s)


async def _until_stopped(signals: AsyncIterator[int], counts: Callable[[], dict[str, int]]) -> None:
    async for number in signals:
        if number not in TELL_SIGNALS:
            log.info("stopping", signal=signal.Signals(number).name)
            return
        log.info("counts", **counts())


def _load(config: NodeConfig) -> _Loaded:
    """The weights of this node's blocks. Blocks; runs on the worker's thread."""
    shelf = find_model(config.model, config.home)
    checkpoint = open_checkpoint(shelf.source, offline=config.offline, home=config.home)
    spec = checkpoint.spec
    blocks = parse_blocks(config.blocks, spec.blocks)
    stage = open_stage(
        checkpoint,
        blocks,
        StageWish(
            device=config.device,
            dtype=config.dtype,
            engine=config.engine,
            quantization=config.quantization,
            threads=config.threads,
            memory_bytes=config.max_memory_mib * MIB,
            cache_bytes=config.cache_mib * MIB,
            cache_bits=config.cache_bits,
            cache_dir=config.home / QUANTIZED,
        ),
    )
    log.info("stage", numerics=stage.engine.numerics, why=stage.why, tokens=stage.cache_tokens)
    name = config.name or shelf.name
    return _Loaded(checkpoint, shelf.source, name, checkpoint.digest(), blocks, stage)


async def _keep_small(worker: Worker, pool: Pool | None) -> None:
    """Have the memory of pages that nobody uses any more given back to the system."""
    while pool is not None:
        await trio.sleep(TRIM_EVERY_S)
        worker.post(pool.trim)


async def _refuse_namesake(member: Member, loaded: _Loaded) -> None:
    """Two models under one name would mix in every reader's mind: the second has to be renamed."""
    for offer in await member.directory.models():
        if offer.name != loaded.name or offer.model == loaded.digest:
            continue
        told = await member.directory.find(offer.model)  # a name on a list alone bars nobody
        if any(one.name == loaded.name and one.state == "online" for one in told):
            raise UserError(
                f"the swarm already serves another model as {loaded.name} "
                f"(digest {offer.model[:12]}, this one is {loaded.digest[:12]}): "
                "serve the same files, or give this one a name by --name"
            )


def _announce(
    member: Member, loaded: _Loaded, admission: Admission, times: PassTimes
) -> Announcement:
    stage = loaded.stage
    decode, prefill = times.announced(time.monotonic())
    return Announcement(
        model=loaded.digest,
        name=loaded.name,
        start=loaded.blocks.start,
        stop=loaded.blocks.stop,
        blocks=loaded.checkpoint.spec.blocks,
        state="online",
        device=f"{stage.device} {platform.machine()}"[:64],
        dtype=stage.dtype,
        quantization=stage.quantization,
        decode_tokens_s=decode,
        prefill_tokens_s=prefill,
        addresses=member.host.addresses()[:8],
        cache_tokens_free=admission.free_tokens,
        context_tokens_max=loaded.checkpoint.spec.context,
        numerics=stage.engine.numerics,
        version=__version__,
    )


def _counts(
    member: Member, server: Server, admission: Admission, pool: Pool | None
) -> dict[str, int]:
    """What is open now: a leak shows here."""
    return {
        "sessions": server.sessions,
        "leases": admission.sessions,
        "free_tokens": admission.free_tokens,
        "pages": pool.used_pages if pool else 0,
        "streams": member.host.streams,
        "connections": len(member.host.connected()),
    }


def _ready(member: Member, loaded: _Loaded, seconds: float) -> Ready:
    return Ready(
        member.host.peer_id,
        loaded.name,
        loaded.source,
        loaded.digest,
        loaded.blocks,
        loaded.checkpoint.spec.blocks,
        member.host.addresses(),
        seconds,
    )


def _facts(ready: Ready) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "peer": ready.peer,
        "name": ready.name,
        "source": ready.source,
        "model": ready.model,
        "blocks": [ready.blocks.start, ready.blocks.stop],
        "total": ready.total,
        "addresses": list(ready.addresses),
        "seconds": round(ready.seconds, 3),
    }
