"""Whether this machine may work for the swarm now: the manners of a guest on somebody's computer.

    signals, about each second ──▶ Guest ──▶ Decision: to serve, or to rest and why

               a rule holds                        none has held for its quiet time
    serving ───────────────▶ resting: the reasons ──────────────────────────────────▶ serving

A signal that this machine does not give (None) asks for nothing. Each rule ends later than it
begins: a rest costs others the time to move, and us that of loading the blocks again, so who looks
away for a moment, or a fan that has just caught up, starts nothing.

The rules and their defaults are BOINC's, where it has them (lib/prefs.cpp, GLOBAL_PREFS::defaults):

    hours       any                     start_hour = end_hour = 0
    user        GPUs rest, processors   run_gpu_if_user_active = false, run_if_user_active = true,
                do not; 3 minutes idle  idle_time_to_run = 3
    battery     rest                    run_on_batteries = false
    busy        25 %, while nobody is   suspend_cpu_usage = 25, niu_suspend_cpu_usage = 50
                there 50 %
    program     none named              exclusive_app, none by default
    heat        no limit on desktops    battery_max_temperature is for phones alone
    gpu, power  it has none: while another process computes on our GPU we rest; no limit
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from .hours import Hours, opens_in

Rule = Literal["asked", "hours", "user", "battery", "program", "gpu", "heat", "power", "busy"]

IDLE_S: Final = 180.0  # BOINC's idle_time_to_run
BUSY: Final = 0.25  # BOINC's suspend_cpu_usage
IDLE_BUSY_FACTOR: Final = 2.0  # BOINC's niu_suspend_cpu_usage is 50 %
COOLER_C: Final = 10.0  # guess: below the limit, before we warm it again
URGENT_S: Final = 1.0  # that sessions have to move while somebody waits for the device

# until a rule that does not hold any more counts as over; guesses, but for user: that is its limit
QUIET_S: Final[dict[Rule, float]] = {
    "asked": 0.0,
    "hours": 0.0,
    "user": 0.0,
    "battery": 10.0,  # a plug that is put in
    "program": 10.0,  # one that starts itself anew
    "gpu": 30.0,  # between two runs of somebody's work
    "heat": 120.0,  # a heat sink takes minutes
    "power": 300.0,  # what draws it is likely ours: else we would begin again at once
    "busy": 60.0,  # between two files that are compiled
}
URGENT: Final[frozenset[Rule]] = frozenset(("user", "program", "gpu"))


@dataclass(frozen=True, slots=True)
class Manners:
    """What the owner allows. hours: none: at any. while_active: None: on processors, not on GPUs.

    busy: share of all processors that others may use; 0: they may use all. programs: names, in
    lower case, while one of which runs we rest. share_gpu: beside another process that computes on
    our GPU. celsius, watts: of the device, and of the processors in degrees; 0: no limit.
    """

    hours: tuple[Hours, ...] = ()
    while_active: bool | None = None
    idle_s: float = IDLE_S
    on_battery: bool = False
    busy: float = BUSY
    programs: frozenset[str] = frozenset()
    share_gpu: bool = False
    celsius: float = 0.0
    watts: float = 0.0

    def watches_user(self, on_gpu: bool) -> bool:
        return on_gpu if self.while_active is None else not self.while_active


@dataclass(frozen=True, slots=True)
class Signals:
    """What there is to know now; None: this machine does not tell.

    minute: of the local week. asked_s: unix seconds until which the owner wants rest, math.inf
    until told otherwise; None: does not. idle_s: since keyboard or mouse were used. battery:
    whether it feeds the machine. busy: of all processors, what others used lately, 0..1. programs:
    that run, of those that were named. foreign: processes of others that compute on our GPU.
    celsius, watts: the hottest and the most thirsty of our devices.
    """

    minute: int
    asked_s: float | None = None
    asked_why: str = ""
    idle_s: float | None = None
    battery: bool | None = None
    busy: float | None = None
    programs: frozenset[str] = frozenset()
    foreign: tuple[str, ...] = ()
    celsius: float | None = None
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why we rest, for people. more_s: until it is over, as far as it is known; else infinite."""

    rule: Rule
    told: str
    more_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Decision:
    """reasons: none: serve."""

    reasons: tuple[Reason, ...] = ()

    @property
    def rests(self) -> bool:
        return bool(self.reasons)

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for the device: sessions have URGENT_S to move."""
        return any(one.rule in URGENT for one in self.reasons)

    @property
    def told(self) -> str:
        return "; ".join(one.told for one in self.reasons)


class Guest:
    """The rules and what they remember. on_gpu: whether we compute on one."""

    def __init__(self, manners: Manners, *, on_gpu: bool = False) -> None:
        self._manners = manners
        self._on_gpu = on_gpu
        self._held: dict[Rule, tuple[float, str]] = {}  # when last, and what was said

    def handle(self, seen: Signals, now: float, wall_s: float = 0.0) -> Decision:
        """Decide anew. now: by a clock that never goes back; wall_s: in unix seconds."""
        holding = dict(self._holding(seen, wall_s))
        for rule, (last_s, _) in list(self._held.items()):
            if rule not in holding and now - last_s >= QUIET_S[rule]:
                del self._held[rule]
        for rule, told in holding.items():
            self._held[rule] = (now, told)
        return Decision(
            tuple(
                Reason(rule, told, self._more_s(rule, seen, wall_s, now - last_s))
                for rule, (last_s, told) in self._held.items()
            )
        )

    def _holding(self, seen: Signals, wall_s: float) -> Iterator[tuple[Rule, str]]:
        """The rules that hold at this moment, in the order in which they are told."""
        manners = self._manners
        if seen.asked_s is not None and wall_s < seen.asked_s:
            yield "asked", seen.asked_why or "asked to"
        if opens_in(manners.hours, seen.minute):
            yield "hours", f"outside of {', '.join(one.told for one in manners.hours)}"
        if manners.watches_user(self._on_gpu) and self._somebody(seen):
            yield "user", "somebody uses this machine"
        if not manners.on_battery and seen.battery:
            yield "battery", "on battery"
        if running := sorted(seen.programs & manners.programs):
            yield "program", f"{', '.join(running)} runs"
        if not manners.share_gpu and seen.foreign:
            yield "gpu", f"{', '.join(seen.foreign[:3])} computes on the GPU"
        if self._over("heat", manners.celsius, seen.celsius, COOLER_C):
            yield "heat", f"{seen.celsius:.0f} °C, where {manners.celsius:.0f} are allowed"
        if self._over("power", manners.watts, seen.watts, 0.0):
            yield "power", f"{seen.watts:.0f} W, where {manners.watts:.0f} are allowed"
        limit = min(1.0, manners.busy * (1 if self._somebody(seen) else IDLE_BUSY_FACTOR))
        if manners.busy and seen.busy is not None and seen.busy > limit:
            yield "busy", f"other programs use {seen.busy:.0%} of the processors"

    def _over(self, rule: Rule, limit: float, seen: float | None, margin: float) -> bool:
        """Above the limit; once it was, until it is below by the margin."""
        if not limit or seen is None:
            return False
        return seen > limit - (margin if rule in self._held else 0.0)

    def _somebody(self, seen: Signals) -> bool:
        """Whether the machine is in use; not, where it does not tell."""
        return seen.idle_s is not None and seen.idle_s < self._manners.idle_s

    def _more_s(self, rule: Rule, seen: Signals, wall_s: float, quiet_s: float) -> float:
        """At least so long, if nothing else happens."""
        match rule:
            case "asked" if seen.asked_s is not None:
                return max(0.0, seen.asked_s - wall_s)
            case "hours":
                return 60.0 * opens_in(self._manners.hours, seen.minute)
            case "user" if seen.idle_s is not None:
                return max(0.0, self._manners.idle_s - seen.idle_s)
        return QUIET_S[rule] - quiet_s if quiet_s else math.inf
