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
from ..swarm.wire import PROTOCOL
from .compute.cache import bytes_per_token
from .compute.checkpoint import Checkpoint, open_checkpoint
from .compute.engine import StageEngine
from .compute.memory import free_bytes
from .compute.stage import Stage
from .compute.worker import open_worker
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
CACHE_SHARE = 0.25  # of free memory, for sessions: the rest is the owner's
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
    stage: Stage
    blocks: BlockRange
    rates: tuple[float, float]
    cache_tokens: int


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
        admission = Admission(AdmissionConfig(loaded.cache_tokens))
        server = Server(StageEngine(loaded.stage), worker, admission, loaded.digest)
        member.host.handle(PROTOCOL, server.serve)
        # Until here a signal has its usual effect, and ends us: nobody counts on us yet.
        with trio.open_signal_receiver(*STOP_SIGNALS, *TELL_SIGNALS) as signals:
            async with trio.open_nursery() as services:
                services.start_soon(keep_known, config.home, member.directory)
                services.start_soon(keep_report, config.home, member)
                kept = await services.start(
                    member.directory.keep, lambda: _announce(config, member, loaded, admission)
                )
                if not kept and member.directory.peers():
                    log.warning("no peer keeps our announcement: is this machine's clock right?")
                ready = _ready(member, loaded, time.monotonic() - began_s)
                try:
                    write_whole(config.home / RUNNING, json.dumps(_facts(ready)))
                    task_status.started(ready)
                    await _until_stopped(signals, lambda: _counts(member, server, admission))
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
    stage = Stage.load(
        checkpoint, blocks.start, blocks.stop, device=config.device, dtype=config.dtype or None
    )
    token_bytes = bytes_per_token(spec, 1, stage.dtype.itemsize)
    free = free_bytes(stage.device)
    if config.cache_mib * MIB > free:
        raise UserError(
            f"--cache-mib {config.cache_mib} is more than the {free // MIB} MiB that are free: "
            "give less, or 0 for a quarter of what is free"
        )
    cache_bytes = config.cache_mib * MIB or int(free * CACHE_SHARE)
    cache_tokens = cache_bytes // token_bytes
    if cache_tokens < len(blocks):
        raise UserError(
            f"{cache_bytes / MIB:.1f} MiB of cache hold not one position of {len(blocks)} blocks: "
            "give more by --cache-mib, or serve fewer blocks"
        )
    return _Loaded(
        checkpoint,
        shelf.source,
        config.name or shelf.name,
        checkpoint.digest(),
        stage,
        blocks,
        stage.measure(),
        cache_tokens,
    )


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
    config: NodeConfig, member: Member, loaded: _Loaded, admission: Admission
) -> Announcement:
    decode, prefill = loaded.rates
    return Announcement(
        model=loaded.digest,
        name=loaded.name,
        start=loaded.blocks.start,
        stop=loaded.blocks.stop,
        blocks=loaded.checkpoint.spec.blocks,
        state="online",
        device=f"{loaded.stage.device.type} {platform.machine()}"[:64],
        dtype=str(loaded.stage.dtype).removeprefix("torch."),
        quantization="none",
        decode_tokens_s=decode,
        prefill_tokens_s=prefill,
        addresses=member.host.addresses()[:8],
        cache_tokens_free=admission.free_tokens,
        context_tokens_max=loaded.checkpoint.spec.context,
        numerics=loaded.stage.numerics,
        version=__version__,
    )


def _counts(member: Member, server: Server, admission: Admission) -> dict[str, int]:
    """What is open now: a leak shows here."""
    return {
        "sessions": server.sessions,
        "leases": admission.sessions,
        "free_tokens": admission.free_tokens,
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
