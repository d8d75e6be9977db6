"""What the device does between two calls: one pass over what waits.

A lane holds the steps of all sessions that wait for one stage. A turn asks the schedule for the
next pass, runs it, and says which steps are complete. On an exact stage a pass holds the rows of
many sessions, tokens and slices of prompts together; on an inexact one it is one step, or as many
of a replay's as fit. How many rows a pass may have follows from how long passes took.

    waiting ── Schedule.next(rows) ──▶ slices ── Engine.run ──▶ complete ──▶ answers
                     ▲                                     └──▶ the rest waits on
                     └── Pace.rows ◀── Pace.took, PassTimes.observe

Here is the worker's thread, between whose passes a session may take its step back: a step is
claimed for each pass anew.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import outcome

from ...errors import Refused, RemoteError
from ...swarm.favour import Favour, Lead
from ...swarm.rates import PASS_S, Pace, PassTimes
from ...swarm.schedule import URGENT_ROWS, URGENT_ROWS_MAX, Schedule, Slice
from ...swarm.wire import Step
from .engine import Engine, Work

DECODING_S = 1.0  # guess: whoever had a token within this time waits for the next
READERS_MAX = 256  # whose last token is remembered, if it is older
HARDLY = 0.01  # so much longer is a pass with whom it is not for, too
_RETRY_AFTER_S = 1.0  # guess: of a step that waited for all of its time

Answer = tuple[memoryview, float]  # the payload, and the seconds in the blocks


class Owner(Protocol):
    """Who waits for a step."""

    def claim(self) -> bool:
        """Whether it may be run now: false once its session has taken it back."""

    def release(self) -> None:
        """It may be taken back again."""

    def given_up(self) -> bool:
        """Its session has ended meanwhile, and waits only for the pass at hand."""


@dataclass(slots=True, eq=False)
class Order:
    """One step of a session. `payload` is not written to. until_s: by time.monotonic."""

    cache: Any
    peer: str
    payload: memoryview
    step: Step
    dtype: str
    until_s: float
    owner: Any  # an Owner; whoever made it knows more of it


@dataclass(slots=True)
class _Waiting:
    order: Order
    work: Work


Outcome = outcome.Value[Answer] | outcome.Error | None  # None: given up
Done = list[tuple[Order, Outcome]]


@dataclass(slots=True)
class Served:
    """Counts, for whoever asks."""

    passes: int = 0
    rows: int = 0
    rows_max: int = 0
    pass_s_max: float = 0.0


class Lane:
    """The steps that wait for one engine. Everything but `served` is the worker's thread's."""

    def __init__(self, engine: Engine, times: PassTimes, favour: Favour | None = None) -> None:
        """favour: of peers with credit; without, all are alike."""
        self.engine = engine
        self.times = times
        self.served = Served()
        self._pace = Pace(times)
        self._schedule: Schedule[Order] = Schedule(favour)
        self._waiting: dict[Order, _Waiting] = {}
        self._decoded_s: dict[str, float] = {}  # when each peer had a token

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, order: Order) -> Done:
        """Take in a step; one that no honest client sends is done at once."""
        step = order.step
        try:
            work = self.engine.begin(order.cache, order.payload, step, order.dtype)
        except RemoteError as error:
            return [(order, outcome.Error(error))] if order.owner.claim() else []
        self._waiting[order] = _Waiting(order, work)
        self._schedule.add(
            order, order.peer, step.sizes, cut=self.engine.exact, until_s=order.until_s
        )
        return []

    def drop(self, order: Order) -> None:
        """Its session has taken this step back."""
        if order in self._waiting:
            self._forget(order)

    def turn(self) -> Done:
        """Run one pass; the steps that are done with it, in whatever way."""
        began_s = time.monotonic()
        done: Done = []
        lead = self._schedule.lead(began_s)
        urgent = self._schedule.urgent_rows(lead)
        decoding = urgent > 0 or self.is_read(lead, began_s)
        slices = self._schedule.next(
            self._rows(urgent, decoding),
            began_s,
            steps_max=None if self.engine.exact else 1,
            lead=lead,
            spare=self._spare,
        )
        for key in self._schedule.expired():
            done += self._expire(key)
        chosen = [one for one in slices if self._claim(one)]
        if chosen:
            shape = self._shape(chosen)
            works = [(self._waiting[one.key].work, one.rows) for one in chosen]
            result = outcome.capture(self.engine.run, works)
            if isinstance(result, outcome.Error):
                return done + [(self._forget(one.key), result) for one in chosen]
            now = time.monotonic()
            self._learn(works, shape, now, began_s, decoding=decoding)
            self._note_readers(chosen, now)
            self._schedule.took(now - began_s, now)
        for one in chosen:
            done += self._settle(one)
        return done

    def _forget(self, order: Order) -> Order:
        del self._waiting[order]
        self._schedule.drop(order)
        return order

    def _rows(self, urgent: int, decoding: bool) -> int:
        """Of the next pass, tokens and prompts."""
        if not self._schedule.prompts_wait:
            return 1  # it bounds prompts alone
        if self.engine.exact:
            return urgent + self._pace.rows(urgent, decoding=decoding)
        return max(1, int(PASS_S / self.times.seconds(1)))  # a replay's pieces are mostly of one

    def _spare(self, rows: int) -> int:
        """How many rows more make a pass of so many hardly longer."""
        most_s = (1 + HARDLY) * self.times.seconds(max(1, rows))
        more = URGENT_ROWS_MAX
        while more and self.times.seconds(rows + more) > most_s:
            more //= 2
        return more

    def is_read(self, lead: Lead | None, now: float) -> bool:
        """Whether somebody waits for tokens between two passes: of those with credit, if the pass
        is for them."""
        return any(
            now - at_s < DECODING_S
            for peer, at_s in self._decoded_s.items()
            if lead is None or not lead.by_credit or peer in lead.peers
        )

    def _note_readers(self, chosen: list[Slice[Order]], now: float) -> None:
        works = [self._waiting[one.key] for one in chosen]
        tokens = [one.order.peer for one in works if len(one.work.hidden) <= URGENT_ROWS]
        self._decoded_s |= dict.fromkeys(tokens, now)
        if len(self._decoded_s) > READERS_MAX:
            self._decoded_s = {
                peer: at_s for peer, at_s in self._decoded_s.items() if now - at_s < DECODING_S
            }

    def _claim(self, one: Slice[Order]) -> bool:
        """False, and forgotten, when the session has taken its step back."""
        if self._waiting[one.key].order.owner.claim():
            return True
        self._forget(one.key)
        return False

    def _settle(self, one: Slice[Order]) -> Done:
        waiting = self._waiting[one.key]
        order, work = waiting.order, waiting.work
        if work.complete:
            del self._waiting[order]
            return [(order, outcome.Value((work.answer(), work.spent_s)))]
        if order.owner.given_up():
            return [(self._forget(order), None)]
        order.owner.release()
        return []

    def _expire(self, order: Order) -> Done:
        del self._waiting[order]
        if not order.owner.claim():
            return []
        late = Refused("the step waited too long", retry_after_s=_RETRY_AFTER_S)
        return [(order, outcome.Error(late))]

    def _learn(
        self,
        works: list[tuple[Work, int]],
        shape: tuple[int, int] | None,
        now: float,
        began_s: float,
        *,
        decoding: bool,
    ) -> None:
        """What this pass says of the next ones. decoding: as it was planned."""
        rows, seconds = sum(count for _, count in works), now - began_s
        tokens = sum(count for work, count in works if len(work.hidden) <= URGENT_ROWS)
        if shape is not None:
            self.times.observe(shape[0], seconds / shape[1], now)
            self._pace.took(tokens, rows - tokens, seconds, decoding=decoding)
        served = self.served
        served.passes += 1
        served.rows += rows
        served.rows_max = max(served.rows_max, rows)
        served.pass_s_max = max(served.pass_s_max, seconds)

    def _shape(self, slices: list[Slice[Order]]) -> tuple[int, int] | None:
        """Rows of one product, and how many such there are; None if not all blocks are run."""
        whole = (self.engine.blocks.start, self.engine.blocks.stop)
        works = [self._waiting[one.key].work for one in slices]
        if any((work.cache.start, work.cache.stop) != whole for work in works):
            return None
        rows = sum(one.rows for one in slices)
        pieces = 1 if self.engine.exact else len(works[0].pieces(rows))
        return max(1, rows // pieces), pieces
