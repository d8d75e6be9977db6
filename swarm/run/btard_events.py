"""What the machine of a guarded step (btard.py) takes in and gives out.

The machine holds digests, not numbers: whoever drives it keeps the loads by their digest and does
the jobs, on another thread if they are long.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from ...errors import LocalError
from ..machine import Fired, SetTimer
from .btard_record import Case, Standing
from .btard_wire import GROUP_MAX, Heard, Message, Phase, Proof

GATHER_S: Final = 120.0  # guess: by how much the slowest may be behind with its own steps
PHASE_S: Final = 10.0  # guess: a part there and back over 5 Mbit/s, beside the others'
CHECK_S: Final = 120.0  # guess: as long as the own steps take, once more


@dataclass(frozen=True, slots=True)
class Terms:
    """What all members of a step know alike, but `numerics`.

    anchor: digest of the weights that all began from. coin: of the step before, which fixed
    everybody's batches. radius: beyond which a share is clipped; far_most: a part from whose result
    more than half are farther is judged. validators: pairs that are drawn in each attempt.
    """

    run: bytes
    epoch: int
    roster: tuple[str, ...]
    anchor: bytes
    coin: bytes
    radius: float
    far_most: float
    numerics: str
    validators: int = 1
    gather_s: float = GATHER_S
    phase_s: float = PHASE_S
    check_s: float = CHECK_S
    show_s: float = PHASE_S  # for one member to send all of its numbers to all others

    def __post_init__(self) -> None:
        if not 2 <= len(self.roster) <= GROUP_MAX:
            raise LocalError(f"a guarded group of {len(self.roster)}; it has 2 to {GROUP_MAX}")
        if list(self.roster) != sorted(set(self.roster)):
            raise LocalError("a roster is in order of peer ids, each once")
        if not self.radius > 0 or not self.far_most > 0:
            raise LocalError("a radius and a farthest distance are above zero")


@dataclass(frozen=True, slots=True)
class Transcript:
    """An attempt as far as it got: what everything in it can be judged by. coin: once drawn."""

    standing: Standing
    heard: tuple[Heard, ...]
    coin: bytes | None

    @property
    def members(self) -> tuple[int, ...]:
        return self.standing.members

    def of(self, phase: Phase) -> dict[str, Heard]:
        """By peer."""
        return {one.peer: one for one in self.heard if phase == one.body.TAG}


# ---- jobs, and what the caller hands in as their outcome


@dataclass(frozen=True, slots=True)
class Cut:
    """The own contribution in so many parts, kept as loads: their digests, a tuple."""

    parts: int


@dataclass(frozen=True, slots=True)
class Clip:
    """CenteredClip of these loads, kept as a load: its digest; None if one is no finite part."""

    sources: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Measure:
    """Of each (part, share, result), loads: a tuple of (sum, norm, the result's norm)."""

    shares: tuple[tuple[int, bytes, bytes], ...]
    coin: bytes


@dataclass(frozen=True, slots=True)
class Judge:
    """Who is guilty in this case: `Found`."""

    case: Case
    transcript: Transcript


@dataclass(frozen=True, slots=True)
class Found:
    """guilty: seats, in order. parts: in which the accused's shares are false, so that whoever
    reduced them may be in it too. sure: whether nobody else could find somebody guilty."""

    guilty: tuple[int, ...]
    parts: tuple[int, ...] = ()
    sure: bool = True


Job = Cut | Clip | Measure | Judge
Measured = tuple[tuple[float, float, float], ...]
Outcome = tuple[bytes, ...] | bytes | None | Measured | Found


# ---- events


@dataclass(frozen=True, slots=True)
class Came:
    """An event: a message, by whichever member's stream."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Loaded:
    """An event: a load is kept that was wanted (`Guard.wants`)."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class Worked:
    """An event: the job of this key is done."""

    key: Hashable
    outcome: Outcome


# ---- effects


@dataclass(frozen=True, slots=True)
class Send:
    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class SendLoad:
    """Send what is kept under this digest."""

    peer: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Work:
    """Do this job, and say `Worked` with the key."""

    key: Hashable
    job: Job


@dataclass(frozen=True, slots=True)
class Convict:
    """A peer is guilty: by two claims, or by a case. filed: who accused, and who ruled so."""

    peer: str
    proof: Proof | None
    case: Case | None = None
    transcript: Transcript | None = None
    filed: tuple[Heard, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """All members say the same. results: digests, of each member's part in order; coin: for the
    next step's batches. settled: what they signed. attempts: how often it was begun."""

    standing: Standing
    results: tuple[bytes, ...]
    coin: bytes
    settled: tuple[Heard, ...]
    attempts: int


@dataclass(frozen=True, slots=True)
class Over:
    """This step has no outcome for us: we are out of it, or too few are left."""

    reason: str
    standing: Standing


Event = Came | Loaded | Worked | Fired
Effect = Send | SendLoad | Work | SetTimer | Convict | Done | Over
