"""When a guarded step of which nobody has the outcome is begun anew: in another life.

Whoever was killed inside a step, or found too few left in it, says nothing more in it, for it could
contradict itself; it waits until others have the outcome. Where that befalls most of a group at
once, in a power cut, nobody has one. So members tell each other in which life of the step they may
speak, and begin it anew in the one that more than half of the roster have come to:

    life 0    the step. Then 1, 2, ...: from the same weights, on the same batches, by the same
              members, under another number: what was said in one life is nothing in another
    Where ──▶ each member ──▶ Stands(life): in which it is, or the next in which it may speak;
                              0: in the first, or elsewhere, or it has the outcome

Of more than half, one at least is honest, and those who have the outcome are fewer than half: they
go on alone with nobody, and follow the others. As in the step itself (btard.py), two groups do not
go on apart while fewer than half lie and the roads keep their deadlines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from ...crypto.codec import Range
from .btard_wire import Digest

PROTOCOL: Final = "/potluck/guarded/lives/1"
LETTER_BYTES_MAX: Final = 256
LIVES_MAX: Final = 255
_EPOCH_BITS: Final = 32  # of a number: more epochs than a run has


@dataclass(frozen=True, slots=True)
class Where:
    """place: of the step, its roster and its weights, by digest."""

    TAG: ClassVar[str] = "where"

    place: Digest


@dataclass(frozen=True, slots=True)
class Stands:
    TAG: ClassVar[str] = "stands"

    life: Annotated[int, Range(0, LIVES_MAX + 1)]


def number_of(epoch: int, life: int) -> int:
    """Under which all is said in this life of a step. In the first it is the epoch."""
    return life << _EPOCH_BITS | epoch


def moment_of(number: int) -> tuple[int, int]:
    """Epoch and life: in order of time."""
    return number & (1 << _EPOCH_BITS) - 1, number >> _EPOCH_BITS


def life_of(mine: int, told: Mapping[str, int], roster: Sequence[str]) -> int | None:
    """In which life this step is begun anew, now; None while it is not. mine: the next in which we
    may speak; told: of the others, by peer id, who need not be of the roster."""
    if len(roster) < 2 or mine > LIVES_MAX:
        return None
    lives = sorted((told.get(peer, 0) for peer in roster), reverse=True)
    found = lives[len(roster) // 2]  # so many and one more are more than half
    return found if max(1, mine) <= found <= LIVES_MAX else None
