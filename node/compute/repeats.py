"""An epoch's steps that anybody takes to the same bits: from given weights, on drawn sequences.

    anchor, seed, epoch ─▶ fresh AdamW ─▶ H steps on the sequences that the seed draws ─▶ weights

What a member of a guarded group hands in is checked by taking the same steps again. So nothing of a
peer's own goes in: the optimizer begins anew with each epoch, and there are always H steps. Whether
two machines get the same bits is found out by trying: their class of numerics is the digest of what
a few steps from the run's start come to. Source: Gorbunov et al., 2022 (validators recompute).
"""

from __future__ import annotations

from threading import Lock
from typing import Final, Protocol

from ...crypto.digest import digest
from ...errors import UserError
from ...swarm.run.plan import Training, rate_at
from ...swarm.run.shards import Split
from .mixing import Vector

TRIED_STEPS: Final = 2  # the optimizer's second step has moments behind it
CLASS_CHARS: Final = 16  # of a digest, as a run's file bears it
_TRIAL: Final = digest("numerics trial")


class Tunes(Protocol):
    """What is needed of a Tuner."""

    def step(self, rows: tuple[int, ...], rate: float) -> float: ...
    def weights(self) -> Vector: ...
    def adopt(self, weights: Vector) -> None: ...
    def forget(self) -> None: ...
    def carried(self) -> dict[str, Vector]: ...
    def carry_on(self, kept: dict[str, Vector]) -> None: ...


class Repeats:
    """Of one run, at one peer, whose own steps are taken one by one (`begin`, `step`) while others'
    may be taken again on another thread. Every call blocks."""

    def __init__(self, tuner: Tunes, training: Training, split: Split) -> None:
        self._tuner = tuner
        self._training = training
        self._split = split
        self._lock = Lock()

    def begin(self, anchor: Vector) -> None:
        with self._lock:
            self._tuner.forget()
            self._tuner.adopt(anchor)

    def step(self, seed: bytes, epoch: int, number: int) -> float:
        """The own next one; the loss before it."""
        with self._lock:
            return self._step(seed, epoch, number)

    def again(self, anchor: Vector, seed: bytes, epoch: int, steps: int | None = None) -> Vector:
        """The weights after all steps, or after so many; what was trained here stays as it is."""
        with self._lock:
            mine = self._tuner.carried()
            try:
                self._tuner.forget()
                self._tuner.adopt(anchor)
                for number in range(self._training.inner_steps if steps is None else steps):
                    self._step(seed, epoch, number)
                return self._tuner.weights().clone()
            finally:
                self._tuner.forget()
                self._tuner.carry_on(mine)

    def numerics(self, start: Vector) -> str:
        """The class of this machine."""
        found = self.again(start, _TRIAL, 0, TRIED_STEPS)
        return digest("numerics", found.numpy().tobytes()).hex()[:CLASS_CHARS]

    def _step(self, seed: bytes, epoch: int, number: int) -> float:
        training = self._training
        rows = self._split.batch(seed, epoch, "", number, size=training.batch)
        return self._tuner.step(rows, rate_at(training, epoch * training.inner_steps + number))


def check_numerics(mine: str, wanted: str) -> None:
    """Raises UserError where a run's members get other bits than this machine."""
    if mine != wanted:
        raise UserError(
            f"this machine's arithmetic is of class {mine}, and exchange.guarded.numerics is"
            f" {wanted or 'not said'}: members of a guarded group must get the same bits, so take"
            " part with a machine like theirs, or choose another exchange.kind"
        )
