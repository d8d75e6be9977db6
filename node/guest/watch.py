"""Looks at the owner's machine and says when its node has to rest: probes, and the rule.

    probes ──▶ Signals ──▶ swarm/guest.py ──▶ Decision ──▶ holders rest, or serve again
    rest.json ──┘                                └──▶ node.json, for `potluck status`

A probe looks from time to time only, in a thread, and only where a rule needs it. One that fails
tells nothing, and says so once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import trio

from ...swarm.guest import URGENT_S, Decision, Guest, Manners, Signals
from ...swarm.hours import DAY_MIN
from ..log import get_logger
from ..rest import LOOK_S, Rest, asked_rest
from .gpu import Cards
from .idle import probe_of, ways_here
from .neighbours import WINDOW_S, Busy, Programs
from .power import Battery, Heat

log = get_logger()

USER_S: Final = 1.0  # whoever comes back to the machine shall not wait for it
CARDS_S: Final = 0.5  # nor a game
PROGRAMS_S: Final = 2.0  # some ms of a processor for some hundreds of processes
BATTERY_S: Final = 5.0
HEAT_S: Final = 5.0

FREE: Final = Manners(while_active=True, on_battery=True, busy=0.0, share_gpu=True)  # heeds nothing

Look = Callable[[Signals], Signals]


@dataclass(slots=True)
class Probe:
    """every_s: how often it looks."""

    name: str
    look: Look
    every_s: float
    next_s: float = field(default=-math.inf)
    failed: bool = False


def probes_for(manners: Manners, *, on_gpu: bool, holds: Callable[[], bool]) -> list[Probe]:
    """Those that these manners need. holds: whether we hold memory of a GPU now."""
    found = []
    if manners.watches_user(on_gpu) or manners.busy:
        every_s = USER_S if manners.watches_user(on_gpu) else WINDOW_S  # it bounds who is busy
        found.append(Probe("user", probe_of(ways_here()), every_s))
    if not manners.on_battery:
        found.append(Probe("battery", Battery(), BATTERY_S))
    if manners.busy:
        found.append(Probe("processors", Busy(), WINDOW_S))
    if manners.programs:
        found.append(Probe("programs", Programs(manners.programs), PROGRAMS_S))
    if manners.celsius or manners.watts:
        found.append(Probe("heat", Heat(on_gpu=on_gpu), HEAT_S))
    if on_gpu and (not manners.share_gpu or manners.celsius or manners.watts):
        found.append(Probe("cards", Cards(holds), CARDS_S))
    return found


class Watch:
    """What the holders of a node ask (rest.py's Wishes)."""

    def __init__(
        self,
        home: Path,
        manners: Manners = FREE,
        probes: Sequence[Probe] = (),
        *,
        on_gpu: bool = False,
        wall: Callable[[], float] = time.time,
        local: Callable[[float], time.struct_time] = time.localtime,
    ) -> None:
        self._home = home
        self._guest = Guest(manners, on_gpu=on_gpu)
        self._probes = tuple(probes)
        self._wall = wall
        self._local = local
        self._seen = Signals(0)
        self._decided = Decision()
        self._change = trio.Event()
        self.on_change: Callable[[], None] = lambda: None

    def rest(self) -> Rest | None:
        decided = self._decided
        if not decided.rests:
            return None
        return Rest(self._until_s(), decided.told, URGENT_S if decided.urgent else math.inf)

    async def changed(self) -> None:
        with trio.move_on_after(LOOK_S):
            await self._change.wait()

    def facts(self) -> dict[str, Any] | None:
        """What asks for rest, as JSON has it; None: nothing."""
        if not self._decided.rests:
            return None
        until_s = self._until_s()
        return {
            "why": self._decided.told,
            "rules": [one.rule for one in self._decided.reasons],
            "until_s": round(until_s, 1) if math.isfinite(until_s) else None,
        }

    async def run(self) -> None:
        """A service: look, decide, say so when it has changed."""
        while True:
            await self.look()
            await trio.sleep(LOOK_S)

    async def look(self) -> None:
        """Once."""
        now = trio.current_time()
        due = [one for one in self._probes if one.next_s <= now]
        for one in due:
            one.next_s = now + one.every_s
        if due:
            self._seen = await trio.to_thread.run_sync(_looked, due, self._seen)
        wall_s = self._wall()
        asked, at = asked_rest(self._home, wall_s), self._local(wall_s)
        seen = replace(
            self._seen,
            minute=at.tm_wday * DAY_MIN + at.tm_hour * 60 + at.tm_min,
            asked_s=None if asked is None else asked.until_s,
            asked_why="" if asked is None else asked.why,
        )
        before, self._decided = self._decided, self._guest.handle(seen, now, wall_s)
        if _said(before) == _said(self._decided):
            return
        log.info("manners", rests=self._decided.rests, why=self._decided.told or "nothing any more")
        self._change.set()
        self._change = trio.Event()
        self.on_change()

    def _until_s(self) -> float:
        """Unix seconds, as far as it is known."""
        return self._wall() + max((one.more_s for one in self._decided.reasons), default=0.0)


def _said(decision: Decision) -> list[str]:
    return [one.rule for one in decision.reasons]


def _looked(probes: Sequence[Probe], seen: Signals) -> Signals:
    """Blocks for files and for programs that are asked."""
    for one in probes:
        try:
            seen = one.look(seen)
        except (OSError, ValueError) as error:
            if not one.failed:
                log.warning("cannot look", at=one.name, why=str(error))
            one.failed = True
    return seen
