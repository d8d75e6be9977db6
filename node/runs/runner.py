"""One peer's part in a run, from its first step to its last: steps, exchange, steps, exchange ...

    kept? joined? ─▶ epoch: H steps, or as many as its time holds ─▶ exchange ─▶ adopt ─▶ next ...
                                                          └▶ checkpoint

Which kind of exchange it is, the run's file says; here they are all alike (exchange.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from ...errors import MissingBlocks, Refused, RemoteError, TransportError, UserError
from ...swarm.run.plan import Terms, rate_at
from ...swarm.run.shards import Split
from ..compute.mixing import Vector
from ..log import get_logger
from .checkpoint import Progress, Shelf, State
from .exchange import Calls, Carries, Exchange, Exchanged, Joins, Overlaps, Signs, Worked, Works

TRIES_MAX: Final = 10  # of a step or a loss, when nobody computes it
FINAL_SEQUENCES: Final = 256  # held out, for the loss at the end
AGAIN_S: Final = 5.0  # guess: until what failed is tried again
AGAIN_MOST_S: Final = 60.0  # whatever a peer says that refuses

T = TypeVar("T")

log = get_logger()


class Tunes(Protocol):
    """What takes the steps (compute/tuning.py). Every call blocks."""

    def step(self, rows: Sequence[int], rate: float) -> float: ...
    def weights(self) -> Vector: ...
    def adopt(self, weights: Vector) -> None: ...
    def loss_of(self, weights: Vector, rows: Sequence[int]) -> float: ...
    def carried(self) -> dict[str, Vector]: ...
    def carry_on(self, kept: dict[str, Vector]) -> None: ...


class Runner:
    """Of one run, on one peer. tell: hears of each epoch."""

    def __init__(
        self,
        terms: Terms,
        tuner: Tunes,
        split: Split,
        shelf: Shelf,
        *,
        me: str,
        tell: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._terms = terms
        self._run = terms.run
        self._tuner = tuner
        self._split = split
        self._shelf = shelf
        self._me = me
        self._tell = tell
        self._held = split.held_out(terms.exchange.gate_sequences)
        self._exchange: Exchange | None = None
        self._epoch = 0
        self._worked = Worked(0, 0, 0.0, 0.0)
        self._measured: tuple[Vector, float] | None = None  # the last held-out loss
        self.history: list[Progress] = []

    async def run(self, exchange: Exchange) -> None:
        """To the last epoch. Raises UserError when the training has diverged; what a swarm raises
        when nobody computes its blocks any more."""
        self._exchange = exchange
        epochs, lead = self._terms.training.epochs, 0
        at_exchange = await self._begin()
        while self._epoch < epochs:
            began_s = trio.current_time()
            if not at_exchange and isinstance(exchange, Works):
                self._worked = await exchange.work(self._epoch)
            elif not at_exchange:
                self._worked = await self._work(self._epoch, lead)
            at_exchange = False
            if not isinstance(exchange, Signs):
                await self.keep()
            weights = self._tuner.weights()
            found = await exchange.exchange(self._epoch, weights, self._worked.tokens)
            self._tuner.adopt(found.weights)
            self._note(found, trio.current_time() - began_s)
            self._epoch = min(found.next or self._epoch + 1, epochs)
            lead = found.lead
        await self._take_in()
        await self.keep()

    async def keep(self) -> bool:
        """Write down where we stand; whether it is on disk."""
        exchange = self._exchange
        vectors = self._tuner.carried()
        statement, told = b"", b""
        if isinstance(exchange, Carries):
            vectors |= {f"exchange.{name}": one for name, one in exchange.carried().items()}
        if isinstance(exchange, Signs):
            statement, told = exchange.signed or (b"", b"")
        worked = self._worked
        return await self._shelf.save(
            State(
                self._run, self._epoch, worked.tokens, worked.loss, worked.steps, vectors,
                statement, told, tuple(self.history),
            )
        )  # fmt: skip

    async def loss_of(self, weights: Vector) -> float:
        """On what is held out, which must be something."""
        loss = await self.compute(partial(self._tuner.loss_of, weights, self._held))
        self._measured = weights, loss
        return loss

    async def final_loss(self) -> float:
        """Of the weights at the end, on more of what is held out than the gate looks at."""
        held = self._split.held_out(min(FINAL_SEQUENCES, self._split.scored))
        return await self.compute(partial(self._tuner.loss_of, self._tuner.weights(), held))

    async def compute(self, work: Callable[[], T]) -> T:
        """In a thread; again for a while, if nobody of the swarm computes it. Raises what the swarm
        does, after that."""
        for left in reversed(range(TRIES_MAX)):
            try:
                return await trio.to_thread.run_sync(work)
            except (MissingBlocks, Refused, TransportError, RemoteError) as error:
                if not left:
                    raise
                log.warning("it is tried again", why=str(error))
                wait_s = error.retry_after_s if isinstance(error, Refused) else AGAIN_S
                wait_s = min(wait_s, AGAIN_MOST_S)
                await trio.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    async def _begin(self) -> bool:
        """From our own disk, from others, or from the start; whether an exchange comes first."""
        state = await trio.to_thread.run_sync(self._shelf.load, self._run)
        exchange = self._exchange
        if state is None:
            if isinstance(exchange, Joins) and (joined := await exchange.join()) is not None:
                self._epoch = min(joined[0], self._terms.training.epochs)
                self._tuner.adopt(joined[1])
                log.info("joined a run that was under way", epoch=self._epoch)
            return False
        inner = {name: one for name, one in state.vectors.items() if "." not in name}
        outer = {name.partition(".")[2]: one for name, one in state.vectors.items() if "." in name}
        try:
            self._tuner.carry_on(inner)
            if isinstance(exchange, Carries):
                exchange.carry_on(outer, state.epoch)
            if isinstance(exchange, Signs) and state.statement:
                exchange.resign(state.statement, state.told)
        except (UserError, RemoteError) as error:
            where = self._shelf.folder
            raise UserError(f"{where}: {error}; remove it to begin this run anew") from error
        self._epoch = state.epoch
        self._worked = Worked(state.steps, state.tokens, state.loss, 0.0)
        self.history = list(state.history)
        log.info("going on from our own checkpoint", epoch=self._epoch)
        return True

    async def _work(self, epoch: int, lead: int) -> Worked:
        """The steps of an epoch, `lead` times more of them than are due; fewer when its time is
        over, or the others would go on without us."""
        training = self._terms.training
        wanted = training.inner_steps * (1 + lead)
        began_s = trio.current_time()
        total, taken, waited_s = 0.0, 0, 0.0
        while taken < wanted:
            spent_s = trio.current_time() - began_s - waited_s
            if taken and (spent_s >= training.epoch_s or self._called(taken, wanted, spent_s)):
                break
            if isinstance(self._exchange, Overlaps) and taken == self._exchange.overlap > 0:
                waited_s = await self._take_in()
            rows = self._split.batch(self._run, epoch, self._me, taken, size=training.batch)
            rate = rate_at(training, (epoch + taken / wanted) * training.inner_steps)
            total += await self.compute(partial(self._tuner.step, rows, rate))
            taken += 1
        tokens = taken * training.batch * self._terms.tokens
        lasted_s = trio.current_time() - began_s - waited_s
        return Worked(taken, tokens, total / taken, lasted_s)

    def _called(self, taken: int, wanted: int, spent_s: float) -> bool:
        exchange = self._exchange
        return isinstance(exchange, Calls) and exchange.called((wanted - taken) * spent_s / taken)

    async def _take_in(self) -> float:
        """What an exchange has brought that went on beside the steps; the seconds of waiting."""
        exchange = self._exchange
        if not isinstance(exchange, Overlaps) or not exchange.overlap:
            return 0.0
        began_s = trio.current_time()
        found = await exchange.settle(self._tuner.weights())
        self._tuner.adopt(found.weights)
        if self.history:
            last = self.history[-1]
            self.history[-1] = replace(
                last,
                peers=max(last.peers, len(found.peers)),
                sent_bytes=last.sent_bytes + found.sent_bytes,
                received_bytes=last.received_bytes + found.received_bytes,
            )
        return trio.current_time() - began_s

    def _note(self, found: Exchanged, lasted_s: float) -> None:
        worked, before = self._worked, self.history[-1] if self.history else None
        measured = self._measured
        own = measured is not None and measured[0] is found.weights
        progress = Progress(
            epoch=self._epoch + 1,
            epochs=self._terms.training.epochs,
            loss=worked.loss,
            held_out=measured[1] if own and measured is not None else None,
            steps=worked.steps + (before.steps if before else 0),
            tokens=worked.tokens + (before.tokens if before else 0),
            tokens_s=worked.tokens / worked.seconds if worked.seconds else 0.0,
            share=min(1.0, worked.seconds / lasted_s) if lasted_s > 0 else 0.0,
            peers=len(found.peers),
            sent_bytes=found.sent_bytes + (before.sent_bytes if before else 0),
            received_bytes=found.received_bytes + (before.received_bytes if before else 0),
        )
        self.history.append(progress)
        self._tell(progress)
