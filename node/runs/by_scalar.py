"""A run by one byte a step, as `potluck finetune` has it: with a Tuner, a disk, and company.

    each round     two losses of the own sequences ─▶ a byte (scalar.py)
    each epoch     `training.inner_steps` rounds ─▶ progress, on disk and told
    at the end     the weights that all pages add up to ─▶ the adapter

Peers that know the same pages have the same weights to the bit, so a newcomer begins with what
several have (shared.py), and the run needs nobody in particular. Source: Malladi et al., 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ...crypto.keys import IdentityKey
from ...swarm.run.plan import Terms
from ...swarm.run.scalars import PROTOCOL, Sync
from ...swarm.run.seeds import Rules
from ...swarm.run.shards import Split
from ..compute.mixing import Vector
from ..compute.scalar import Loss, ScalarWeights, Scale, check_base
from ..net.host import Host
from ..net.stream import Stream
from .checkpoint import Progress, Shelf, State
from .company import Company
from .journal import Journal
from .scalar import Pace, ScalarRun
from .shared import Shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

EPOCH_ROUNDS: Final = 64  # between two snapshots; the same for all of a run


class Measures(Protocol):
    """What is needed of a Tuner."""

    def adopt(self, weights: Vector) -> None: ...
    def loss_of(self, weights: Vector, rows: Sequence[int]) -> float: ...


def rules_of(terms: Terms) -> Rules:
    said = terms.exchange.scalar
    falls = terms.training.schedule == "cosine"
    return Rules(
        terms.run, least=said.least, trim_percent=said.trim_percent,
        rounds=terms.steps if falls else 0, epoch_rounds=EPOCH_ROUNDS,
    )  # fmt: skip


class ByScalar:
    """exchange.Trains and exchange.Serves, for one run on one peer."""

    def __init__(
        self,
        host: Host,
        company: Company,
        key: IdentityKey,
        terms: Terms,
        start: Vector,
        tuner: Measures,
        split: Split,
        shelf: Shelf,
        *,
        dice: Random,
    ) -> None:
        """Raises UserError for a disk that refuses."""
        said, training, rules = terms.exchange.scalar, terms.training, rules_of(terms)
        self._host, self._company, self._key, self._terms = host, company, key, terms
        self._tuner, self._split, self._shelf = tuner, split, shelf
        self._shared = Shared(host, key, Path(shelf.folder), terms.run, host.blame)
        scale = Scale(training.learning_rate, said.probe, said.grain)
        self.weights = ScalarWeights(check_base(start), rules, scale)
        self._run = ScalarRun(
            host, key, rules, scale, self.weights, self._shared.kept, Journal(shelf.folder),
            self._shared.fetcher, peers=lambda: tuple(company.members), losses=self._losses,
            blame=host.blame, dice=dice, pace=Pace(said.round_s, said.most), talked=self._talked,
        )  # fmt: skip
        self._measured: list[float] = []  # in this epoch
        self._heard = trio.Event()
        self._heard_at_end: Sync | None = None

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service."""
        inner = self._terms.training.inner_steps
        self._company.epoch = lambda: self._run.round // inner
        self._host.handle(PROTOCOL, self._talk)
        self._shared.open()
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._shared.close()
            self._host.unhandle(PROTOCOL)

    async def pulled(self) -> None:
        """Until somebody talks to us again."""
        await self._heard.wait()

    async def train(self, tell: Callable[[Progress], None]) -> list[Progress]:
        """Raises UserError; TransportError where too few are there to begin with."""
        training, run = self._terms.training, self._terms.run
        state = await trio.to_thread.run_sync(self._shelf.load, run)
        history = [] if state is None else list(state.history)
        await self._run.begin()
        for epoch in range(self._run.round // training.inner_steps, training.epochs):
            began_s, first = trio.current_time(), self._run.round
            self._measured.clear()
            await self._run.run((epoch + 1) * training.inner_steps, of=self._terms.steps)
            rounds = self._run.round - first
            before = history[-1] if history else None
            history.append(self._progress(epoch, rounds, trio.current_time() - began_s, before))
            last = history[-1]
            await self._shelf.save(
                State(run, epoch + 1, last.tokens, last.loss, rounds, {}, history=tuple(history))
            )
            tell(last)
        await self._run.finish(self._terms.steps)
        await self._adopt()
        return history

    async def amended(self) -> bool:
        if self._heard_at_end == self._run.hearing.log.ask():
            return False
        await self._run.amend()
        await self._adopt()
        return True

    async def _adopt(self) -> None:
        self._heard_at_end = self._run.hearing.log.ask()
        self._tuner.adopt(await trio.to_thread.run_sync(self.weights.weights))

    def _progress(
        self, epoch: int, rounds: int, lasted_s: float, before: Progress | None
    ) -> Progress:
        training, hearing = self._terms.training, self._run.hearing
        losses = self._measured
        tokens = len(losses) * training.batch * self._terms.tokens
        return Progress(
            epoch=epoch + 1,
            epochs=training.epochs,
            loss=sum(losses) / len(losses) if losses else before.loss if before else 0.0,
            held_out=None,
            steps=rounds + (before.steps if before else 0),
            tokens=tokens + (before.tokens if before else 0),
            tokens_s=tokens / lasted_s if lasted_s > 0 else 0.0,
            share=1.0,
            peers=len(self._company.members),
            sent_bytes=hearing.sent_bytes,
            received_bytes=hearing.received_bytes,
        )

    def _talked(self, peer: str, answered: bool) -> None:
        """Who answers no more is soon not asked any more."""
        (self._company.met if answered else self._company.failed)(peer)

    def _losses(self, round_: int) -> Loss:
        """Of the sequences that are this peer's in this round."""
        size, me = self._terms.training.batch, self._key.peer_id
        rows = self._split.batch(self._terms.run, round_, me, 0, size=size)

        def loss(weights: Vector) -> float:
            found = self._tuner.loss_of(weights, rows)
            self._measured.append(found)
            return found

        return loss

    async def _talk(self, stream: Stream) -> None:
        self._heard.set()
        self._heard = trio.Event()
        await self._run.hearing.serve(stream)  # raises for whoever is of another run
        self._company.met(stream.peer)
