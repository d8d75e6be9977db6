"""Microbatches over the swarm and back: each goes on until it is through, and counts once.

The rules are the ledger's (swarm/wiring.py): who takes which piece next, what becomes of what was
lost. Here is what waits: requests to peers, timers, the directory. As many microbatches as there
are go at the same time, each at its own stage; so the stages compute side by side.

    forward() ─▶ Submitted ─▶ Run, Run ... ─▶ Through ─▶ hidden states, kept at each boundary
    backward() ─▶ Turned ───▶ Run, Run ... ─▶ Done ────▶ gradients of the attempts that count
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from ..errors import MissingBlocks, PotluckError, Refused, RemoteError, TransportError, UserError
from ..swarm.blocks import BlockRange
from ..swarm.machine import Fired, SetTimer, StopTimer
from ..swarm.microbatch import FP32_BYTES, Brought, Microbatch
from ..swarm.routing import Hop
from ..swarm.spare import BACKWARD_COST
from ..swarm.tally import work_of
from ..swarm.wire import TRAINING_PROTOCOL, Train
from ..swarm.wiring import (
    Answered,
    Done,
    Dropped,
    Event,
    Failed,
    Full,
    Ledger,
    Member,
    Refreshed,
    Run,
    Submitted,
    Through,
    Turned,
    Wheels,
)
from .compute.tensor import check_hidden, payload_bytes
from .log import get_logger
from .net.host import Host
from .router import Router
from .timers import Timers
from .training_call import ask

if TYPE_CHECKING:
    from random import Random

log = get_logger()

PATIENCE_S: Final = 30.0  # guess: for an answer, beside what the work should take
SLACK: Final = 4.0  # guess: so many times what the work should take, behind all that is under way
REFRESH_S: Final = 10.0  # guess: records are renewed each 30 s
WAIT_S: Final = 60.0  # guess: for cover, when nobody serves a block
REFUSED_S: Final = 5.0  # guess: for others, when whoever served a block found fault with the batch


@dataclass(slots=True, eq=False)
class _Flight:
    """One that is under way. states: hidden states by boundary; grads: theirs."""

    batch: Microbatch
    states: dict[int, memoryview]
    grads: dict[int, memoryview] = field(default_factory=dict)
    rests: dict[int, memoryview] = field(default_factory=dict)  # by attempt: the other gradients
    scopes: dict[int, trio.CancelScope] = field(default_factory=dict)  # of attempts
    landed: trio.Event = field(default_factory=trio.Event)
    counted: tuple[tuple[Hop, int], ...] = ()
    error: PotluckError | None = None
    fault: RemoteError | None = None  # the last that a peer found with it, or we with a peer
    refusal: str = ""  # why who was asked last had no room
    stranded_s: float | None = None  # since when nobody takes it


class Trainer:
    """Of one model, for as long as `run` does."""

    def __init__(
        self,
        host: Host,
        router: Router,
        dice: Random,
        *,
        model: str,
        name: str,
        blocks: int,
        width: int,
        wait_s: float = WAIT_S,
    ) -> None:
        """model: its digest; name: what people call it. wait_s: for cover."""
        self._host = host
        self._router = router
        self._model = model
        self._name = name
        self._blocks = BlockRange(0, blocks)
        self._width = width
        self._wait_s = wait_s
        self._wheels = Wheels(dice.random)
        self._ledger = Ledger(self._blocks, self._wheels, self._patience_s, pauses=True)
        self._timers = Timers(self._fire)
        self._flights: dict[int, _Flight] = {}
        self._numbers = count(1)
        self._nursery: trio.Nursery | None = None
        self._running = trio.Event()
        self._ended = False
        self.resent = 0  # pieces that were sent once more, since the start

    async def run(self) -> None:
        """A service. Once it has ended, whatever was under way has failed."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._timers.run)
                self._running.set()
                while True:
                    await trio.sleep(REFRESH_S)
                    if self._flights:
                        await self._refresh()
                        self._handle(Refreshed())
        finally:
            self._ended = True
            self._running.set()
            for flight in self._flights.values():
                flight.error = TransportError("the client is leaving")
                flight.landed.set()

    async def forward(self, batch: Microbatch) -> tuple[int, memoryview]:
        """Its number, and the hidden states that come out. Raises MissingBlocks, RemoteError or
        Refused. It is open until `backward` or `drop`."""
        await self._running.wait()
        if self._ended:
            raise TransportError("the client has left")
        if not self._flights:
            await self._refresh()
        number = next(self._numbers)
        flight = self._flights[number] = _Flight(batch, {self._blocks.start: batch.hidden})
        through = False
        try:
            self._handle(Submitted(number, batch.rows))
            await self._landed(flight)
            through = True
        finally:
            if not through:
                self.drop(number)
        return number, flight.states[self._blocks.stop]

    async def backward(self, number: int, grad: memoryview) -> Brought:
        """grad: of what came out of its forward. Raises as `forward`; after it nothing is open."""
        flight = self._flights.get(number)
        if flight is None:
            raise UserError("a batch goes backward once: run the model on it again")
        if self._ended:
            raise TransportError("the client has left")
        flight.grads[self._blocks.stop] = grad
        flight.landed = trio.Event()
        try:
            self._handle(Turned(number))
            await self._landed(flight)
        finally:
            self.drop(number)
        pieces = [(hop.blocks, flight.rests[attempt]) for hop, attempt in flight.counted]
        return Brought(flight.grads[self._blocks.start], tuple(pieces))

    def drop(self, number: int) -> None:
        """Nobody wants it any more. Unknown ones are ignored."""
        flight = self._flights.pop(number, None)
        if flight is not None:
            for scope in flight.scopes.values():
                scope.cancel()
            self._handle(Dropped(number))

    async def _landed(self, flight: _Flight) -> None:
        await flight.landed.wait()
        if flight.error is not None:
            raise flight.error

    # ---- the ledger's effects

    def _handle(self, event: Event) -> None:
        now = trio.current_time()
        for effect in self._ledger.handle(event, now):
            match effect:
                case Run():
                    assert self._nursery is not None
                    self._nursery.start_soon(self._attempt, effect)
                case SetTimer(key, at_s):
                    self._timers.set(key, at_s)
                case StopTimer(key):
                    self._timers.stop(key)
                case Through(number):
                    self._flights[number].landed.set()
                case Done(number, backward):
                    flight = self._flights[number]
                    flight.counted = backward
                    flight.landed.set()
        self._note_stranded(now)

    def _note_stranded(self, now: float) -> None:
        """Whoever has waited enough for somebody to take it is told so."""
        for number in self._ledger.stranded:
            flight = self._flights[number]
            patience_s = self._wait_s if flight.fault is None else min(REFUSED_S, self._wait_s)
            if flight.stranded_s is None:
                flight.stranded_s = now
            elif now - flight.stranded_s >= patience_s:
                flight.error = flight.fault or self._missing(flight.refusal)
                flight.landed.set()

    def _fire(self, key: Hashable) -> None:
        if key == "look again":
            assert self._nursery is not None
            self._nursery.start_soon(self._look_again)
            return
        for flight in self._flights.values():
            if isinstance(key, int) and key in flight.scopes:
                flight.scopes[key].cancel()
                self.resent += 1
        self._handle(Fired(key))

    async def _look_again(self) -> None:
        """For who serves what nobody served, or had room for, a moment ago."""
        await self._refresh()
        self._handle(Fired("look again"))

    def _missing(self, refusal: str) -> PotluckError:
        spans = sorted((one.blocks.start, one.blocks.stop) for one in self._wheels.serving())
        missing, at = [], self._blocks.start
        for start, stop in [*spans, (self._blocks.stop, self._blocks.stop)]:
            if start > at:
                missing.append((at, start))
            at = max(at, stop)
        if missing:
            return MissingBlocks(self._name, tuple(missing))
        why = f"no peer that serves {self._name} has room ({refusal or 'none said why'})"
        return Refused(why, retry_after_s=REFRESH_S)

    async def _refresh(self) -> None:
        with suppress(TransportError):  # the view that we have will do
            found = await self._router.announcements(self._model)
            self._wheels.update(
                {
                    told.peer: Member(BlockRange(told.start, told.stop), (told.boot, told.seq))
                    for told in found
                    if told.state == "online"
                    and told.blocks == self._blocks.stop
                    and self._router.may_serve(told.peer)
                }
            )

    def _patience_s(self, hop: Hop, work: float) -> float:
        each_s = self._wheels.pace_s(hop.peer) * work * len(hop.blocks)
        return PATIENCE_S + SLACK * each_s * max(1, len(self._flights))

    # ---- one piece of the way

    async def _attempt(self, run: Run) -> None:
        flight = self._flights.get(run.number)
        if flight is None:
            return  # dropped before it began
        event: Event
        with trio.CancelScope() as scope:
            flight.scopes[run.attempt] = scope
            try:
                await self._send(flight, run)
                event = Answered(run.attempt)
                flight.stranded_s = flight.fault = None
            except Refused as refusal:
                flight.refusal = refusal.reason
                event = Full(run.attempt, refusal.retry_after_s)
            except (RemoteError, TransportError) as error:
                log.info("a piece is sent again", peer=run.hop.peer, reason=str(error))
                if isinstance(error, RemoteError):
                    flight.fault = error
                event = Failed(run.attempt)
        del flight.scopes[run.attempt]
        if not scope.cancelled_caught:
            if not isinstance(event, Answered):
                self.resent += 1
            self._handle(event)

    async def _send(self, flight: _Flight, run: Run) -> None:
        """Have it computed; what comes of it is kept. Raises RemoteError, TransportError or
        Refused."""
        batch, hop, backward = flight.batch, run.hop, run.phase == "backward"
        blocks, work = hop.blocks, batch.rows * (BACKWARD_COST if backward else 1)
        worn = batch.worn if batch.worn is not None and batch.worn.manifest.of(blocks) else None
        asked = Train(
            run.phase, self._model, blocks.start, blocks.stop, batch.batch, batch.tokens,
            batch.dtype, self._patience_s(hop, work), batch.prompts,
            b"" if worn is None else worn.name,
            0 if worn is None else worn.manifest.size(blocks),
        )  # fmt: skip
        payload = [flight.states[blocks.start]]
        if backward:
            payload.append(flight.grads[blocks.stop])
        payload.append(batch.deep_of(blocks))
        rows_bytes = payload_bytes(batch.rows, self._width, batch.dtype)
        sought = batch.sought(blocks) if backward else 0
        self._router.opens(hop.peer)
        stream = await self._host.open_stream(hop.peer, TRAINING_PROTOCOL)
        answer = await ask(stream, asked, payload, worn, rows_bytes + FP32_BYTES * sought)
        rows, rest = answer[:rows_bytes], answer[rows_bytes:]
        check_hidden(rows, batch.rows, self._width, batch.dtype)
        if sought:
            check_hidden(rest, 1, sought, "f32")
        self._router.took(hop.peer, work, work_of(work, len(blocks), self._width))
        if backward:
            flight.grads[blocks.start] = rows
            flight.rests[run.attempt] = rest
        else:
            flight.states[blocks.stop] = rows
