"""A scenario of kind "strangers": who lies, by which rule each is caught, and what it cost.

Each lie has its act (lies.py). `work` and `hearsay` share one town: peers of every lie among honest
ones, who ask each other, audit, accuse and attest (town.py, work.py, hearing.py). `views` floods
peer sampling, `credit` sends Sybils to a busy device, `pace` has the router meet liars under load
(run.py). One seed gives one report, whose trace tells it from every other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

import numpy as np

from . import shares
from .dice import DiceOf
from .hearing import Hearing
from .lies import Told, told_in
from .run import Simulation
from .scenario import Liars, Scenario
from .town import NOW, Town
from .views import Flood
from .work import Chunks, Clients

FIRST, LAST = 0.1, 0.5  # parts of the time, at its two ends, in which wrong work is counted
VIEW_MOST: Final = 0.6  # of a view: bar 4
GAIN_MOST: Final = 1.05  # of Sybils, and of who splits: bar 7
GOODPUT_LEAST: Final = 0.95  # of what it is without liars: algorithms.md 8.5
WARM: Final = 0.6  # of the time, as in liars.toml: cold clients learn the peers
PACE: Final = {
    "false_rate": "rate", "false_load": "load", "black_hole": "blackhole", "drip": "slow",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one lie. shunned: by how much of those it met; found: in words; holds: whether
    the rules held against it."""

    lie: str
    act: str
    liars: int
    shunned: float | None
    first_s: float | None
    last_s: float | None
    grounds: str
    found: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Report:
    """honest_banned: by anybody; wrong_first, wrong_last: the share of chunks that stayed wrong,
    at the beginning and at the end."""

    rows: tuple[Row, ...]
    honest: int
    liars: int
    honest_banned: int
    chunks: int
    wrong: int
    wrong_first: float
    wrong_last: float
    audits: int
    canaries: int
    trace: str

    @property
    def holds(self) -> bool:
        return not self.honest_banned and all(row.holds for row in self.rows)


def run_strangers(
    plan: Scenario, dice: DiceOf, tell: Callable[[str], None] = lambda act: None
) -> Report:
    """tell: takes each act before it is played. Raises UserError."""
    told = told_in(plan.strangers.lies)
    acts = {one.line.act for one in told}
    rows: list[Row] = []
    stage = _Stage(plan, told, dice)
    if acts & {"work", "hearsay"}:
        tell("work and hearsay")
        stage.play()
        rows += stage.rows()
    for act, play in (("views", _views), ("credit", _credit), ("pace", _pace)):
        if act in acts:
            tell(act)
            rows += play(plan, [one for one in told if one.line.act == act], dice)
    return stage.report(tuple(rows))


class _Stage:
    """The town, and what happened in it."""

    def __init__(self, plan: Scenario, told: tuple[Told, ...], dice: DiceOf) -> None:
        self._seconds = plan.seconds
        self._told = [one for one in told if one.line.act in ("work", "hearsay")]
        strangers = plan.strangers
        self.town = Town(
            plan.peers.count, strangers.parts, tuple(self._told), strangers.each, dice("town")
        )
        self.hearing = Hearing(self.town)
        self.clients = Clients(
            self.town, self.hearing, strangers.clients, strangers.chunk_s, dice("clients")
        )

    def play(self) -> None:
        self.hearing.begin()
        self.town.clock.run(NOW + self._seconds)

    def rows(self) -> Iterator[Row]:
        for one in self._told:
            yield self._row(one)

    def _row(self, told: Told) -> Row:
        lie, act, town = told.line.lie, told.line.act, self.town
        liars = [peer.id for peer in town.liars(lie)]
        minds = self.clients.minds if act == "work" else list(town.minds.values())
        bans = [ban for ban in town.bans if ban.peer in liars]
        numbers = {mind.peer.number for mind in minds}
        shunned = {(ban.by, ban.peer) for ban in bans if ban.by in numbers}
        share = len(shunned) / (len(numbers) * len(liars))
        times = [ban.at_s for ban in bans]
        grounds = Counter(ban.grounds for ban in bans)
        chunks = self.clients.by_lie.get(lie, Chunks())
        if act == "work":
            found = f"{chunks.sent} chunks, {chunks.wrong} stayed wrong"
            holds = share >= 0.5 if lie != "false_receipt" else not chunks.wrong
        else:
            found = f"said {self.hearing.said[lie]} times, {self.hearing.taken[lie]} believed"
            holds = not self.hearing.taken[lie] and bool(bans)
        return Row(
            lie, act, len(liars), share, min(times, default=None), max(times, default=None),
            ", ".join(f"{name} {count}" for name, count in grounds.most_common()), found, holds,
        )  # fmt: skip

    def report(self, rows: tuple[Row, ...]) -> Report:
        town, chunks = self.town, self.clients.chunks
        honest = town.honest()
        trace = blake2b(digest_size=16)
        for ban in town.bans:
            trace.update(f"{ban.by} {ban.peer} {ban.at_s!r} {ban.grounds}\n".encode())
        for row in rows:
            trace.update(f"{row!r}\n".encode())
        return Report(
            rows, len(honest), len(town.peers) - len(honest),
            len({ban.peer for ban in town.bans if ban.peer in honest}),
            chunks.sent, chunks.wrong, chunks.share(0.0, FIRST * self._seconds),
            chunks.share(LAST * self._seconds, self._seconds),
            self.clients.audits, self.clients.canaries, trace.hexdigest(),
        )  # fmt: skip


def _views(plan: Scenario, told: list[Told], dice: DiceOf) -> Iterator[Row]:
    views = plan.strangers
    for one in told:
        lie = one.line.lie
        story = "eclipse" if lie == "eclipse" else "spread"
        seed = dice(lie).randrange(1 << 32)
        flood = Flood(story, views.view_peers, views.view_slots, np.random.default_rng(seed))
        most = 0.0
        for number in range(1, views.view_rounds + 1):
            flood.round(number)
            most = max(most, float(flood.shares().max()))
        found = flood.shares()
        alone = int((found == 1).sum())
        words = (
            f"of {flood.honest} views liars hold {found.mean():.2f}, of one at most "
            f"{found.max():.2f} (once {most:.2f}); {alone} isolated"
        )
        holds = float(found.max()) < VIEW_MOST and not alone
        yield Row(lie, "views", flood.liars, None, None, None, "ranked slots", words, holds)


def _credit(plan: Scenario, told: list[Told], dice: DiceOf) -> Iterator[Row]:
    """Without dice: the schedule has none."""
    passes = plan.strangers.passes
    sybils = {k: v for k, v in shares.sybils(passes).items() if isinstance(v, dict)}
    gain = max(one["gain_in_its_place"] for one in sybils.values())
    split = max(shares.split(passes // 2).values())
    for one in told:
        words = f"{shares.SYBILS} get {gain:.2f} times what one gets; who splits, {split:.2f}"
        holds = gain <= GAIN_MOST and split <= GAIN_MOST
        yield Row(
            one.line.lie, "credit", shares.SYBILS, None, None, None, "even parts", words, holds
        )


def _pace(plan: Scenario, told: list[Told], dice: DiceOf) -> Iterator[Row]:
    """The daemon's router, with a share of such peers, and the same world without."""
    share = plan.strangers.pace_share
    honest = Simulation(_paced(plan, Liars()), "ours", dice).run()
    for one in told:
        liars = Liars(share=share, what=PACE[one.line.lie])  # type: ignore[arg-type]
        outcome = Simulation(_paced(plan, liars), "ours", dice).run()
        words = (
            f"answers in time {outcome.goodput():.3f}, without liars {honest.goodput():.3f}; "
            f"p95 {outcome.latency_s(0.95):.2f} s, {honest.latency_s(0.95):.2f} s"
        )
        holds = outcome.goodput() >= GOODPUT_LEAST * honest.goodput()
        count = round(share * plan.strangers.pace_peers)
        yield Row(one.line.lie, "pace", count, None, None, None, "its measured times", words, holds)


def _paced(plan: Scenario, liars: Liars) -> Scenario:
    strangers = plan.strangers
    return replace(
        plan, kind="requests", liars=liars,
        seconds=strangers.pace_s, warm_s=WARM * strangers.pace_s,
        peers=replace(plan.peers, count=strangers.pace_peers),
    )  # fmt: skip
