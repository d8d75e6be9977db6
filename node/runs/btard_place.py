"""Where a guarded group stands, what its run says of it, and what it tells of whom it convicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ...crypto.codec import encode
from ...crypto.digest import digest
from ...swarm.run.btard_events import CHECK_S, GATHER_S, PHASE_S, Done
from ...swarm.testimony import Contradiction
from ..compute.mixing import Vector
from .btard_numbers import NUMBER

ABSENT_MAX: Final = 3  # guess: steps; each of them waits for the absent


@dataclass(frozen=True, slots=True)
class Place:
    """Where a group stands between two steps: the same for all its members. coin: of the last step,
    at first the run's seed. roster: peer ids, in order. absent: of each, for how many steps in a
    row it was silent; () where nobody was."""

    epoch: int
    coin: bytes
    roster: tuple[str, ...]
    absent: tuple[int, ...] = ()

    def after(self, done: Done) -> Place:
        """What all members make of an outcome: who is silent for too long has no seat any more."""
        before = self.absent or (0,) * len(self.roster)
        absent = [
            count + 1 if seat in done.standing.silent else 0 for seat, count in enumerate(before)
        ]
        stay = [
            seat
            for seat, count in enumerate(absent)
            if seat not in done.standing.out_for_good and count < ABSENT_MAX
        ]
        roster = tuple(self.roster[seat] for seat in stay)
        return Place(self.epoch + 1, done.coin, roster, tuple(absent[seat] for seat in stay))


@dataclass(frozen=True, slots=True)
class Rules:
    """What a run says of its guarded groups. rate: of the outer step. tolerance: relative error
    between the contributions of two classes of numerics, 0 while no limit is known. The rest as in
    `Terms`."""

    radius: float
    far_most: float = 1e30
    rate: float = 1.0
    tolerance: float = 0.0
    numerics: str = "fp32"
    validators: int = 1
    gather_s: float = GATHER_S
    phase_s: float = PHASE_S
    check_s: float = CHECK_S


@dataclass(frozen=True, slots=True)
class Conviction:
    """Evidence against a peer: two claims that contradict each other, or a case file
    (btard_file.py); neither where more than half ruled before we came to it."""

    peer: str
    contradiction: Contradiction | None
    file: bytes


def anchor_digest(anchor: Vector) -> bytes:
    """What a pledge names the weights by that it was worked out from."""
    return digest("guarded anchor", anchor.numpy().astype(NUMBER).tobytes())


def place_digest(run: bytes, place: Place, anchor: Vector) -> bytes:
    """Of all that members who begin a step anew must have in common."""
    return digest("guarded place", run, encode(place), anchor_digest(anchor))


def contribution_of(anchor: Vector, weights: Vector) -> bytes:
    """How far the inner steps went, back: fp32."""
    found: np.ndarray[tuple[int], np.dtype[np.float32]] = (anchor - weights.detach()).numpy()
    return found.astype(NUMBER).tobytes()
