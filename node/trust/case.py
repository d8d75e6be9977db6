"""One chunk that is audited, and what each peer that was asked makes of it (swarm/audit.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from ...swarm.audit import Dispute, Judged, Outcome, judge
from ...swarm.ledger import Work
from ...swarm.tolerance import EXACT, Tolerance
from ..compute.compare import errors_of
from ..compute.tensor import Payload
from .again import Again, took_last
from .limits import Limits


class Runner(Protocol):
    """The worker's thread."""

    async def run(self, fn: Callable[..., list[float]], *args: object) -> list[float]: ...


class Case:
    """One chunk, and what each peer that was asked makes of it."""

    def __init__(self, work: Work, limits: Limits) -> None:
        self.work = work
        self.again: list[Again] = []
        self.asked: list[str] = []
        self.failures = 0
        self.open = False  # too few tokens to say that it is wrong
        self.known: frozenset[str] = frozenset()  # who had answered before it was asked
        self.judged: dict[str, tuple[Judged, float]] = {}  # the work beside each one's, and limits
        self._took = took_last(work)
        self._limits = limits
        self._dispute: Dispute | None = None

    def comparable(self, numerics: str) -> bool:
        """Whether a limit is known between this class and those of all answers so far."""
        return all(self._tolerance(one, numerics) is not None for one in self._classes())

    async def add(self, again: Again, worker: Runner) -> None:
        """Compare it with all answers so far. One that cannot be compared, because it has too few
        tokens for its class, leaves the first audit open, and is of no use to a dispute."""
        work = self.work
        against: list[tuple[str, str, Payload]] = [(work.peer, work.numerics, work.gave)]
        against += [(one.peer, one.numerics, one.gave) for one in self.again]
        found: dict[str, Judged] = {}
        for peer, numerics, gave in against:
            tolerance = self._tolerance(numerics, again.numerics)
            found[peer] = judge(await self._errors(worker, gave, again), tolerance)
        few = any(judged.verdict == "open" for judged in found.values())
        if few and self.again:
            self.failures += 1
            return
        self.open = few
        self.again.append(again)
        limit = self._tolerance(work.numerics, again.numerics)
        self.judged[again.peer] = found[work.peer], 0.0 if limit is None else limit.limit
        if self._dispute is None:
            self._dispute = Dispute(work.peer, again.peer)
        else:
            self._dispute.add(again.peer)
        for peer, judged in found.items():
            if judged.verdict == "right":
                self._dispute.agree(peer, again.peer)

    def outcome(self, trust: Callable[[str], float]) -> Outcome:
        assert self._dispute is not None, "nobody has computed it again"
        return self._dispute.outcome(trust)

    async def _errors(self, worker: Runner, gave: Payload, again: Again) -> list[float]:
        rows, width = self.work.rows, self.work.account.opening.width
        return await worker.run(
            errors_of, self._took, gave, again.gave, rows, width, self.work.dtype
        )

    def _classes(self) -> Iterable[str]:
        return [self.work.numerics, *(one.numerics for one in self.again)]

    def _tolerance(self, one: str, other: str) -> Tolerance | None:
        """With an adapter on, only where equal steps give equal bits: no limit was measured with
        one, and nobody is convicted by one that was measured without."""
        model = self.work.account.opening.model.hex()
        found = self._limits.of(model, one, other, self.work.dtype, len(self.work.blocks))
        return None if self.work.adapter and found != EXACT else found
