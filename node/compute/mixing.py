"""The arithmetic of a peer's exchanges: its weights as bytes, others' back, what comes of them.

    weights ─ reference ──▶ bytes ──▶ others             reference: that all of a run have
    others' bytes ──▶ weights, or none ──▶ rule ──▶ shift ──▶ outer step ──▶ anchor, momentum

Peers have no weights in common but those of the run's start: so it is against these that weights
are rounded, with what rounding took away kept for the next time (codec.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ...errors import RemoteError, UserError
from .average.aggregator import JUDGED, NAMES, aggregator
from .average.codec import Bits, Feedback, decode, size_of
from .average.flat import Flat
from .average.outer import Outer, pull_of
from .average.rules import middle
from .panel import Panel

Vector = Tensor  # [d], fp32: all that a run trains


class Mixer:
    """For one run, on one peer. Every call computes."""

    def __init__(
        self,
        flat: Flat,
        start: Vector,
        panel: Panel | None = None,
        *,
        rule: str,
        asked: int,
        liars: int,
        bits: int,
    ) -> None:
        """start: the run's first weights. panel: what `judged` weights are judged by. Raises
        UserError for a rule that is not there, or that lacks what it judges by."""
        self._bits = bits_of(bits)
        self._count = flat.count
        self._asked = asked
        self._liars = liars
        self._pull = pull_of(liars)
        self._start = start
        self._panel = panel if rule == JUDGED else None
        self._shift = aggregator(rule, flat.sizes, self._panel)
        self._feedback = Feedback(self._bits)
        self._outer = Outer.begin(start)

    @property
    def size(self) -> int:
        """Of weights on the wire."""
        return size_of(self._count, self._bits)

    @property
    def anchor(self) -> Vector:
        """Where the last exchange ended."""
        return self._outer.anchor

    def encode(self, weights: Vector) -> bytes:
        """Once for each epoch. Raises UserError for weights that have diverged."""
        if not bool(torch.isfinite(weights).all()):
            raise UserError(
                "a weight is infinite or none: the training has diverged; begin anew with a smaller"
                " training.learning_rate"
            )
        return self._feedback.encode(weights - self._start)

    def decode(self, raw: bytes | memoryview) -> Vector:
        """Raises RemoteError for what is not this run's."""
        return decode(raw, self._count, self._bits) + self._start

    def mixed(self, weights: Vector, pulled: Sequence[Vector]) -> Outer:
        """Where the next steps would begin. pulled: of those who were asked, whose replies came.
        Where they are judged, that raises what the panel does; nothing has changed then."""
        if not pulled:
            return self.alone(weights)
        asked = self._asked
        if self._panel is not None:
            self._panel.convene()
            asked = len(pulled)  # who did not reply need not be judged
        theirs = torch.full((asked, self._count), torch.nan)
        for at, one in enumerate(pulled):
            theirs[at] = one
        since = weights - self._outer.anchor
        shift = self._shift(weights, theirs, since, self._liars)
        return self._outer.step(weights, shift, self._pull)

    def alone(self, weights: Vector) -> Outer:
        """The same without anybody else."""
        return self._outer.step(weights, torch.zeros_like(weights), self._pull)

    def back(self) -> Outer:
        """The last anchor, at rest."""
        return Outer.begin(self._outer.anchor)

    def adopt(self, outer: Outer) -> Vector:
        """Go on from there."""
        self._outer = outer
        return outer.anchor

    def middle(self, pulled: Sequence[Vector]) -> Outer:
        """Where others are: in the middle of them, at rest. Raises RemoteError for nobody."""
        if not pulled:
            raise RemoteError("nobody tells its weights")
        return Outer.begin(middle(torch.stack(list(pulled))))

    def carried(self) -> dict[str, Vector]:
        """What has to be kept to go on after a stop. What rounding took away last is not."""
        return {"anchor": self._outer.anchor, "momentum": self._outer.momentum}

    def carry_on(self, kept: dict[str, Vector]) -> None:
        """Raises UserError for what is not this run's."""
        anchor, momentum = (kept.get(name) for name in ("anchor", "momentum"))
        if anchor is None or momentum is None or not self._fits(anchor, momentum):
            raise UserError("a checkpoint of another adapter")
        self._outer = Outer(anchor, momentum)

    def _fits(self, *vectors: Vector) -> bool:
        return all(one.shape == (self._count,) for one in vectors)


def check_aggregator(name: str) -> None:
    """Raises UserError for one that is unknown."""
    if name not in NAMES:
        raise UserError(f"exchange.aggregator is {name!r}: there are {', '.join(NAMES)}")


def bits_of(said: int) -> Bits:
    """As a run's file says it, which was read (swarm/run/plan.py)."""
    assert said in (4, 8, 32)
    return cast(Bits, said)
