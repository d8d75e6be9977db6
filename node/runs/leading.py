"""With which snapshot a member of a run goes on: most others' where ours is older or differs.

    ask ─▶ claims, signed ─▶ newer than our newest, said by most others ─────────────▶ fetched
                           └▶ of our newest's moment, what leads, our own voice with it ─▶ fetched

Of an older moment than our newest it decides nothing: what was said after that is folded into ours
and forgotten, so nobody could go on from there. The rules are swarm/run/claims.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from ...errors import RemoteError
from ...swarm.run.checkpoint import Shapes
from ...swarm.run.claims import Claim, agreed, holders, leading
from ..chunks.fetch import Blame, Fetcher, Host
from ..compute.snapshot import Snapshot
from .states import ask_states, take
from .store import Checkpoints, Mark


@dataclass(frozen=True, slots=True)
class Led:
    """begins: with which snapshot to begin; None: our own is right as far as is known. sure: all
    who answered have one of that moment, so whoever else asks finds the same."""

    begins: Snapshot | None
    sure: bool


async def led_by(
    host: Host,
    fetcher: Fetcher,
    kept: Checkpoints,
    me: str,
    peers: Sequence[str],
    shapes: Shapes,
    blame: Blame,
    *,
    least: int,
) -> Led:
    """Raises TransportError where a part is with nobody, RemoteError for the state of something
    else, UserError for our disk."""
    answers = await ask_states(host, peers, kept.run, blame)
    marks = await trio.to_thread.run_sync(kept.marks)
    claim = agreed(answers, least)
    if marks and (claim is None or claim.moment <= (marks[0].epoch, marks[0].step)):
        ours = _claim(kept.run, marks[0])
        claim = leading({**answers, me: (ours,)}, ours.moment, least)
        sure = all(any(one.moment == ours.moment for one in said) for said in answers.values())
        if claim is None or claim == ours:
            return Led(None, sure)
    elif claim is None:
        return Led(None, not any(answers.values()))
    mark = await take(fetcher, kept, claim, holders(answers, claim), shapes)
    found = await trio.to_thread.run_sync(kept.load, mark.manifest)
    if found is None:
        raise RemoteError("a snapshot that cannot be read")
    return Led(found, False)


def _claim(run: bytes, mark: Mark) -> Claim:
    return Claim(run, mark.epoch, mark.step, mark.shared.digest, mark.shared.size)
