"""One node, from its start to its end: opens every service, in order. Read this first.

    identity ▶ host ▶ directory ▶ model ▶ blocks (holder.py) ▶ announcement ▶ serving ... SIGTERM
                                                                        seeing off ▶ gone ◀──┘

Ready means announced: whoever looks finds the node and is served. On a request to stop nobody new
is taken, live sessions are handed to others, and only then the host closes; on a second one they
have no time left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from ..crypto.keys import IdentityKey
from ..dht.directory import Directory
from ..errors import LocalError, UserError
from ..swarm.blocks import BlockRange
from ..swarm.sampling_events import Member as Seat
from ..swarm.wire import (
    CHAIN_PROTOCOL,
    CODED_PROTOCOL,
    EARLY_CHAIN_PROTOCOL,
    PROTOCOL,
    REMEMBERING_PROTOCOL,
    TRAINING_PROTOCOL,
    WEARING_PROTOCOL,
)
from .compute.device import choose_device, devices_of
from .compute.hub import Supply
from .config import RUNNING, NodeConfig
from .credit.till import open_till
from .errands import start_errands
from .gossip.capability import Capabilities
from .gossip.crowd import Crowd
from .gossip.segment import Segment
from .guest.disk import keep_disk
from .guest.watch import FREE, Watch, probes_for
from .holder import WITHDRAW_S, Holder
from .home import hold_home, prepare_home, write_whole
from .house import House, Room
from .identity import load_or_create, next_boot
from .log import get_logger
from .member import Member, open_member
from .net.nat import NatConfig
from .net.pace import Pace
from .peerstore import load_known
from .rest import end_rest
from .trust.evidence import Court, open_court
from .trust.limits import load_limits
from .trust.recompute import Recomputer
from .trust.vouching import open_vouching
from .wanted import open_models
from .weights.library import hold_weights
from .weights.poison import Poisoners
from .weights.root import HubRoot
from .weights.service import open_weights, whole_files

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

log = get_logger()

KIB = 1024
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
TELL_SIGNALS = (signal.SIGUSR1,) if sys.platform != "win32" else ()  # say what is open, as dd does


@dataclass(frozen=True, slots=True)
class Held:
    """Blocks of one model that a node serves."""

    name: str
    source: str
    model: str
    blocks: BlockRange
    total: int


@dataclass(frozen=True, slots=True)
class Ready:
    """What a node says once it serves. others: what it serves beside its first model. url: of its
    API, if it has one."""

    peer: str
    name: str
    source: str
    model: str
    blocks: BlockRange
    total: int
    addresses: tuple[str, ...]
    seconds: float
    others: tuple[Held, ...] = ()
    url: str = ""


class Beside(Protocol):
    """What else a node's process does, once it serves: the API (api/service.py)."""

    async def __call__(
        self,
        addresses: tuple[str, ...],
        counts: Callable[[], dict[str, int]],
        stopping: trio.Event,
        *,
        task_status: TaskStatus[str],
    ) -> None:
        """A service, that tells its URL. addresses: the node's own. stopping: the node will end,
        and nothing new is to be taken."""


async def run_node(
    config: NodeConfig,
    *,
    hold: type[Holder] = Holder,
    beside: Beside | None = None,
    task_status: TaskStatus[Ready] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGTERM or SIGINT. Raises UserError for whatever the owner can mend.

    hold: what holds the blocks; in a testnet perhaps what lies about them (testnet/liars.py).
    """
    began_s = time.monotonic()
    prepare_home(config.home)
    with hold_home(config.home), hold_weights(config.home):
        await _run(config, hold, beside, began_s, task_status)


async def _run(
    config: NodeConfig,
    hold: type[Holder],
    beside: Beside | None,
    began_s: float,
    task_status: TaskStatus[Ready],
) -> None:
    key = load_or_create(config.home)
    boot = next_boot(config.home, time.time())
    end_rest(config.home)  # whoever starts a node wants it to serve
    poisoners = await trio.to_thread.run_sync(Poisoners, config.home)
    async with (
        open_member(
            key,
            listen=config.listen,
            join=config.join,
            boot=boot,
            serve=True,
            known=load_known(config.home),
            nat=NatConfig(relay=config.relay),
            access=config.access,
            pins=config.pins,
            pace=Pace(config.up_kib_s * KIB, config.down_kib_s * KIB),
            chained=True,
        ) as member,
        open_weights(
            member.host, member.directory, key, config.home, poisoners,
            pinned=[pin.peer for pin in config.pins], share=config.neighbours,
            disk_bytes=config.max_weights_mib << 20,
            root=None if config.offline else HubRoot,
        ) as weights,
        trio.open_nursery() as stages,
    ):  # fmt: skip
        court = await open_court(member, config.home)
        _shun_poisoners(member, court, poisoners)
        supply = weights if config.neighbours else None
        house = await _open_house(config, hold, member, court, key, boot, stages, supply)
        joining, joined = trio.CancelScope(), trio.Event()
        stages.start_soon(_end_on_signal, member.directory, joining, joined)
        await house.take()
        for holder in house.holders if config.neighbours else ():
            files = partial(whole_files, holder.model.checkpoint, holder.model.name)
            weights.give(files)
        for protocol in (PROTOCOL, WEARING_PROTOCOL, REMEMBERING_PROTOCOL, CODED_PROTOCOL):
            member.host.handle(protocol, house.serve)
        member.host.handle(TRAINING_PROTOCOL, house.train)
        if member.chains is not None:
            for protocol in (CHAIN_PROTOCOL, EARLY_CHAIN_PROTOCOL):
                member.host.handle(protocol, member.chains.serve)
        house.tell_queues(member.host)
        joining.cancel()
        await joined.wait()  # a receiver that is closed later would take the signals from the next
        with trio.open_signal_receiver(*STOP_SIGNALS, *TELL_SIGNALS) as signals:
            await _serve(config, member, court, house, beside, began_s, signals, task_status)


async def _open_house(
    config: NodeConfig,
    hold: type[Holder],
    member: Member,
    court: Court,
    key: IdentityKey,
    boot: int,
    stages: trio.Nursery,
    supply: Supply | None,
) -> House:
    """The models' files are there, and nothing is loaded. Raises UserError."""
    wanted = await open_models(config, member.directory, time.time, supply)
    till = await open_till(member.host, key, config.home)
    till.on_fork = court.take
    finds = court.cleared(member.directory)
    dice = random.SystemRandom()
    rooms: list[Room] = []
    for one, model in wanted:
        segment = Segment(member.host, finds, key, model.digest, boot, dice)
        holder = hold(one, member, model, stages, dice, finds=segment, till=till)
        rooms.append(Room(holder, segment))
    return House(rooms)


def _shun_poisoners(member: Member, court: Court, poisoners: Poisoners) -> None:
    """Who gave false weights has nothing more to do with us: no route, no word, no connection."""

    def caught(peer: str) -> None:
        court.trust.convict(peer)
        member.host.shun(court.banned)
        for tell in court.told:
            tell(peer)

    court.poisoned = poisoners.banned
    poisoners.caught.append(caught)
    member.host.shun(court.banned)


async def _end_on_signal(
    directory: Directory, joining: trio.CancelScope, joined: trio.Event
) -> None:
    """A signal ends us at once, whatever is being loaded: nobody counts on us yet. But others
    choose elsewhere because we said that we join, and shall hear that we do not."""
    with joining, trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async for number in signals:
            with trio.CancelScope(shield=True), trio.move_on_after(WITHDRAW_S):
                await directory.withdraw()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
    joined.set()


async def _serve(
    config: NodeConfig,
    member: Member,
    court: Court,
    house: House,
    beside: Beside | None,
    began_s: float,
    signals: AsyncIterator[int],
    task_status: TaskStatus[Ready],
) -> None:
    """Every service, until a signal; then see the sessions off."""

    def counts() -> dict[str, int]:
        """What is open now: a leak shows here."""
        host = member.host
        open_ = {"streams": host.streams, "connections": len(host.connected())}
        known = {**crowd.counts(), **court.counts(), **vouching.counts()}
        return {**house.counts(), **known, **open_}

    def tell() -> None:
        facts = _facts(ready, house) | {"rest": watch.facts()}
        write_whole(config.home / RUNNING, json.dumps(facts))

    def retell() -> None:
        try:
            tell()
        except UserError as error:  # a full disk shall end nobody's answer
            log.warning("not written down", why=str(error))

    watch = _watch(config, house)
    pinned = [Seat(pin.peer, pin.address) for pin in config.pins]
    crowd = Crowd(member, random.SystemRandom(), shunned=court.banned, pinned=pinned)
    crowd.registrar.proved.append(court.take)
    court.told.append(crowd.shun)
    court.met = crowd.sampler.met
    capabilities = Capabilities(court.gossip, crowd.registrar, shunned=court.banned)
    court.capability = capabilities.judge
    member.directory.signed.append(capabilities.tell)
    names = [pin.peer for pin in config.pins]
    vouching = await open_vouching(member.host, court.trust, config.home, names, court.banned)
    limits = await trio.to_thread.run_sync(load_limits, config.home)
    recomputer = Recomputer(member.host, house.serving, house.serve, limits)
    stopping = trio.Event()
    async with trio.open_nursery() as services:
        services.start_soon(crowd.run)
        services.start_soon(vouching.run)
        services.start_soon(court.run, house.serving, recomputer.compute)
        start_errands(
            services, config.home, member,
            ban=config.ban, allow_only=config.allow_only, sampled=crowd.known,
        )  # fmt: skip
        kept = await house.keep(services)
        if not kept and member.directory.peers():
            log.warning("no peer keeps our announcement: is this machine's clock right?")
        ready = _ready(member, house, time.monotonic() - began_s)
        try:
            tell()
            watch.on_change = retell
            services.start_soon(watch.run)
            services.start_soon(keep_disk, config.home, config.max_disk_mib << 20)
            house.keep_places(services, retell, watch)
            if beside is not None:
                url = await services.start(beside, ready.addresses, counts, stopping)
                ready = replace(ready, url=url)
            task_status.started(ready)
            await _until_stopped(signals, counts)
        finally:
            (config.home / RUNNING).unlink(missing_ok=True)
            stopping.set()
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as ending:
                    ending.start_soon(_hurry_on_signal, signals, house, counts)
                    await house.leave(config.drain_s)
                    ending.cancel_scope.cancel()
            services.cancel_scope.cancel()


def _watch(config: NodeConfig, house: House) -> Watch:
    """What says when we have to rest."""
    manners = config.manners or FREE
    on_gpu = any(choose_device(one).type != "cpu" for one in devices_of(config.device))
    probes = probes_for(manners, on_gpu=on_gpu, holds=lambda: house.holds)
    return Watch(config.home, manners, probes, on_gpu=on_gpu)


async def _until_stopped(signals: AsyncIterator[int], counts: Callable[[], dict[str, int]]) -> None:
    async for number in signals:
        if number not in TELL_SIGNALS:
            log.info("stopping", signal=signal.Signals(number).name)
            return
        log.info("counts", **counts())


async def _hurry_on_signal(
    signals: AsyncIterator[int], house: House, counts: Callable[[], dict[str, int]]
) -> None:
    """Asked to stop once more: sessions that have not moved yet have no time left."""
    await _until_stopped(signals, counts)
    house.hurry()


def _ready(member: Member, house: House, seconds: float) -> Ready:
    first, *others = (_held(holder) for holder in house.holders)
    return Ready(
        member.host.peer_id,
        first.name,
        first.source,
        first.model,
        first.blocks,
        first.total,
        member.host.addresses(),
        seconds,
        tuple(others),
    )


def _held(holder: Holder) -> Held:
    model, serving = holder.model, holder.current
    if serving is None:
        raise LocalError("ready without a stage")
    return Held(model.name, model.source, model.digest, serving.blocks, model.total)


def _facts(ready: Ready, house: House) -> dict[str, object]:
    first = house.first
    blocks = ready.blocks if first.current is None else first.current.blocks
    return {
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "peer": ready.peer,
        "name": ready.name,
        "source": ready.source,
        "model": ready.model,
        "blocks": [blocks.start, blocks.stop],
        "total": ready.total,
        "state": house.state,
        "trouble": house.trouble,
        "addresses": list(ready.addresses),
        "seconds": round(ready.seconds, 3),
        "others": [{"name": one.name, "source": one.source} for one in ready.others],
    }
