"""One stage in service: its blocks on a device, the thread that computes, the book of leases.

A node has one at a time; for the length of a move two: the new one loads, on a thread of its own,
while the old one serves, and the old one goes when its sessions have moved.

    serve_blocks ── loads ──▶ Serving, in service ── over.set() ──▶ the memory is given back
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from .. import __version__
from ..crypto.keys import IdentityKey
from ..dht.record import Announcement, State
from ..swarm.admission import Admission, AdmissionConfig
from ..swarm.blocks import BlockRange, parse_blocks
from ..swarm.demand import Asked
from ..swarm.rates import PassTimes
from .adapters import shelf_of
from .compute.batch import Lane
from .compute.checkpoint import Checkpoint, open_checkpoint
from .compute.choice import Opened, StageWish
from .compute.device import choose_device, devices_of
from .compute.gradients import Gradients
from .compute.hub import Supply
from .compute.joined import JoinedPools
from .compute.loading import fetch_blocks
from .compute.pages import Pages
from .compute.quant.larder import Larder
from .compute.room import give_back
from .compute.spread import count_that_fit, fits_beside, open_span, require_span
from .compute.worker import Worker, open_worker
from .config import AUTO, NodeConfig
from .credit.till import Metered, Till
from .leading import Chains
from .library import find_model
from .log import get_logger
from .server import Server
from .training import Training
from .wardrobe import Wardrobe

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

log = get_logger()

QUANTIZED = "quantized"  # in the home: blocks as they are served, for the next start
TRIM_EVERY_S = 15.0  # guess: pages that stay free that long are given back
MIB = 1 << 20
STEPS_QUEUED_MAX = 4096  # one for each session that may be admitted


@dataclass(frozen=True, slots=True)
class Model:
    """What a node serves blocks of, and how its owner wants them served."""

    checkpoint: Checkpoint
    source: str
    name: str
    digest: str
    wish: StageWish
    threads: int
    home: Path

    @property
    def total(self) -> int:
        return self.checkpoint.spec.blocks

    def open(self, blocks: BlockRange) -> Opened:
        """Load these blocks. Blocks the caller. Raises UserError."""
        kept = self.wish.cache_dir
        if kept is None or not Larder(kept).has(self.digest):  # quantized ones need no others
            fetch_blocks(self.checkpoint, blocks)  # all at once, from several peers
        return open_span(self.checkpoint, blocks, self.wish)

    def gradients(self, blocks: BlockRange, quantization: str) -> Gradients:
        """The same blocks, to be trained through. Blocks the caller. Raises UserError."""
        return Gradients.load(
            self.checkpoint,
            blocks,
            quantization=quantization,
            device=choose_device(devices_of(self.wish.device)[0]),
            cache_dir=self.wish.cache_dir,
        )

    def room(self) -> int:
        """How many blocks fit here. Blocks the caller. Raises UserError."""
        return count_that_fit(self.checkpoint, self.wish)

    def room_beside(self, blocks: BlockRange, held: int) -> bool:
        """Whether these fit while `held` others are served. Blocks the caller."""
        return fits_beside(self.checkpoint, blocks, self.wish, held)


def open_model(config: NodeConfig, supply: Supply | None = None) -> Model:
    """The files, of which nothing is loaded yet. Blocks. Raises UserError.

    supply: brings parts of the hub's files; None: they are downloaded whole.
    """
    shelf = find_model(config.model, config.home)
    checkpoint = open_checkpoint(
        shelf.source, offline=config.offline, home=config.home, supply=supply
    )
    wish = StageWish(
        device=config.device,
        dtype=config.dtype,
        engine=config.engine,
        quantization=config.quantization,
        threads=config.threads,
        memory_bytes=config.max_memory_mib * MIB,
        part_bytes=config.part_mib * MIB,
        cache_bytes=config.cache_mib * MIB,
        cache_bits=config.cache_bits,
        spill_bytes=None if config.spill_mib is None else config.spill_mib * MIB,
        cache_dir=config.home / QUANTIZED,
    )
    wish.check()
    if config.blocks != AUTO:  # before the files are read whole, for the digest
        require_span(checkpoint, parse_blocks(config.blocks, checkpoint.spec.blocks), wish)
    name = config.name or shelf.name
    return Model(
        checkpoint, shelf.source, name, checkpoint.digest(), wish, config.threads, config.home
    )


class Serving:
    """A stage that is loaded. `over` is set by whoever has drained its server."""

    def __init__(
        self,
        model: Model,
        stage: Opened,
        worker: Worker,
        key: IdentityKey,
        ended: trio.Event,
        till: Till | None = None,
        chains: Chains | None = None,
    ) -> None:
        self._model = model
        self.stage = stage
        self.blocks = stage.engine.blocks
        self.over = trio.Event()
        self.ended = ended  # its memory was given back
        self.times = PassTimes(len(self.blocks), *stage.rates)
        metered = Metered(till, worker, self.blocks, stage.engine.width) if till else None
        self.metered = metered
        worker.serve(Lane(stage.engine, self.times, metered.favour if metered else None))
        self.admission = Admission(
            AdmissionConfig(
                stage.cache_tokens, stage.page_tokens, stage.session_tokens_max, stage.parts
            ),
            (lambda: metered.funded) if metered else tuple,
        )
        device = metered or worker
        wardrobe = Wardrobe(
            stage.engine, self.admission, model.digest,
            token_bytes=stage.token_bytes, shelf=shelf_of(model.home),
        )  # fmt: skip
        self.server = Server(
            stage.engine, device, self.admission, model.digest, key, wardrobe,
            stage.prefixes, chains,
        )  # fmt: skip
        self.training = Training(
            partial(model.gradients, self.blocks, stage.quantization),
            device, self.admission, wardrobe,
            blocks=self.blocks, model=model.digest, context=stage.engine.context,
            token_bytes=stage.token_bytes, release=self.server.release,
            gave=metered.gave if metered else lambda peer, tokens, blocks: None,
        )  # fmt: skip
        self._asked = Asked(time.monotonic())

    def announcement(self, state: State, addresses: tuple[str, ...]) -> Announcement:
        """What the directory is told of it now."""
        stage, spec = self.stage, self._model.checkpoint.spec
        now = time.monotonic()
        decode, prefill = self.times.announced(now)
        return Announcement(
            model=self._model.digest,
            name=self._model.name,
            start=self.blocks.start,
            stop=self.blocks.stop,
            blocks=spec.blocks,
            state=state,
            device=f"{stage.device} {platform.machine()}"[:64],
            dtype=stage.dtype,
            quantization=stage.quantization,
            decode_tokens_s=decode,
            prefill_tokens_s=prefill,
            addresses=addresses[:8],
            cache_tokens_free=self.admission.free_tokens,
            context_tokens_max=spec.context,
            numerics=stage.engine.numerics,
            version=__version__,
            asked_tokens_s=self._asked.rate(self.server.tokens_served, now),
        )

    def queue_s(self) -> float:
        """How long a step that came now would wait: a pass of all rows that are here."""
        return self.times.seconds(self.server.rows) if self.server.rows else 0.0

    def step_s(self) -> float:
        """How long a step of usual size computes."""
        steps = max(1, self.server.steps_served)
        return self.times.seconds(max(1, round(self.server.tokens_served / steps)))

    async def drain(self, within_s: float) -> None:
        """Take nothing new, and see off who is here; once this has returned, or was cancelled,
        nobody is."""
        self.training.leave()
        await self.server.drain(within_s)

    def counts(self) -> dict[str, int]:
        """What is open in it now: a leak shows here."""
        return {
            "sessions": self.server.sessions,
            "leases": self.admission.sessions,
            "batches": self.training.requests,
            "free_tokens": self.admission.free_tokens,
            "pages": self._pages(),
        }

    def _pages(self) -> int:
        """That sessions have, or others once had that are not kept: none, when all have ended."""
        stage = self.stage
        if stage.pool is None:
            return 0
        if self.server.sessions or stage.prefixes is None:
            return stage.pool.used_pages
        return stage.pool.used_pages - stage.prefixes.pages


def joining(
    model: Model, blocks: BlockRange, rate: float, addresses: tuple[str, ...]
) -> Announcement:
    """What the directory is told while the blocks are loaded, so that others choose elsewhere."""
    return Announcement(
        model=model.digest,
        name=model.name,
        start=blocks.start,
        stop=blocks.stop,
        blocks=model.total,
        state="joining",
        device=platform.machine()[:64],
        dtype="",
        quantization="",
        decode_tokens_s=rate,
        prefill_tokens_s=rate,
        addresses=addresses[:8],
        cache_tokens_free=0,
        context_tokens_max=model.checkpoint.spec.context,
        numerics="",
        version=__version__,
    )


async def measure(model: Model, blocks: BlockRange) -> float:
    """Tokens a second through one block, tried on the first of these. Raises UserError."""
    one = BlockRange(blocks.start, blocks.start + 1)

    def rate() -> float:
        return model.open(one).rates[0]

    async with open_worker(threads=model.threads or None) as worker:
        return await worker.run(rate)


async def serve_blocks(
    model: Model,
    blocks: BlockRange,
    key: IdentityKey,
    till: Till | None = None,
    chains: Chains | None = None,
    *,
    task_status: TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Load these blocks and serve them until it is over. Raises UserError.

    key: for receipts. till: counts what is given, by whose credit turns go; None: all are alike.
    chains: for sessions that go from hop to hop.
    """
    ended = trio.Event()
    try:
        await _serve(model, blocks, key, till, chains, ended, task_status)
    finally:
        give_back()
        ended.set()


async def _serve(
    model: Model,
    blocks: BlockRange,
    key: IdentityKey,
    till: Till | None,
    chains: Chains | None,
    ended: trio.Event,
    task_status: TaskStatus[Serving],
) -> None:
    """Once this has returned nobody holds the stage any more."""
    async with open_worker(threads=model.threads or None, queued_max=STEPS_QUEUED_MAX) as worker:
        stage = await worker.run(model.open, blocks)
        log.info(
            "stage",
            blocks=str(blocks),
            numerics=stage.engine.numerics,
            why=stage.why,
            tokens=stage.cache_tokens,
        )
        serving = Serving(model, stage, worker, key, ended, till, chains)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_small, worker, stage.pool)
            if till is not None and serving.metered is not None:
                nursery.start_soon(till.attend, serving.metered)
            task_status.started(serving)
            await serving.over.wait()
            nursery.cancel_scope.cancel()


async def _keep_small(worker: Worker, pool: Pages | JoinedPools | None) -> None:
    """Have the memory of pages that nobody uses any more given back to the system."""
    while pool is not None:
        await trio.sleep(TRIM_EVERY_S)
        worker.post(pool.trim)
