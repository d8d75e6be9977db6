"""When to ask a line again, and when its failure is its answer.

A job has time: what the swarm lacks is waited for, without end. What the question itself is at
fault for is its answer at once. Between them is the road that breaks: a swarm that is down must not
cost a thousand lines their answers, and one line that brings down whoever takes it must not hold up
the job for ever. So a broken road counts against a line only when the swarm is seen to answer
others meanwhile.

    UserError, Problem       the line's own fault        recorded
    MissingBlocks, Refused   the swarm lacks something   again, later
    Transport-, RemoteError  a road or a peer failed     again; recorded after TRIES_MAX that count
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...errors import MissingBlocks, PotluckError, Refused, UserError

TRIES_MAX: Final = 5  # guess: each leads over other peers, as the router shuns whoever failed
FIRST_S: Final = 0.5
LONGEST_S: Final = 30.0  # guess: a swarm that comes back is noticed within this


@dataclass(frozen=True, slots=True)
class Again:
    """Ask once more, after so many seconds. waits_for: what a person should know meanwhile."""

    after_s: float
    waits_for: str = ""


class Patience:
    """Of one line."""

    def __init__(self) -> None:
        self._failures = 0
        self._counted = 0

    def judge(self, error: PotluckError, *, others_answered: bool) -> Again | None:
        """None: this is the line's answer. others_answered: since this line was asked, the swarm
        has answered something else."""
        if isinstance(error, UserError):
            return None
        self._failures += 1
        backoff_s = min(LONGEST_S, FIRST_S * 2.0 ** min(self._failures - 1, 10))
        match error:
            case MissingBlocks():
                return Again(backoff_s, str(error))
            case Refused():
                told_s = min(max(error.retry_after_s, backoff_s), LONGEST_S)
                return Again(told_s, f"the swarm is full ({error.reason})")
            case _:
                self._counted += others_answered
                if self._counted >= TRIES_MAX:
                    return None
                return Again(backoff_s, f"the swarm cannot be reached ({error})")
