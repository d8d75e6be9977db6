"""Chaos on a running testnet: faults by a plan, readers under them, and the rules that must hold.

    questions are answered undisturbed ▶ readers read, faults come and go ▶ all is mended ▶ accounts

What must hold all the time, as far as the plan leaves capacity: no session fails, and none loses or
changes a token; a new session is served within `COVERED_S` of any fault (p95); what the directory
tells covers every block; nobody dies whom we did not kill. And at the end: where nodes choose their
blocks, the last that moves was elected at most `REST_EPOCHS` after the last fault was undone;
nobody has told of a fault of its own, no cache is still reserved, and no process is left over.
"""

from __future__ import annotations

import math
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from ...errors import PotluckError, UserError
from ...swarm.blocks import BlockRange
from ...swarm.chaos import KINDS, Fault, Kind, plan_faults, uncovered
from ..client import Swarm, open_swarm
from ..process import marked
from .breaker import Breaker
from .launcher import MARK, LocalSwarm
from .logs import LOG, broke, counts, log_bytes, logged, moves
from .readers import Load, Toll

QUESTIONS = 8
COVERED_S = 5.0  # the bar: p95, from a fault to a new session's first token
COVERED_MOST_S = 180.0  # then nobody will be: a node that left may take 120 s to be back
WATCH_EVERY_S = 1.0
BARE_MAX_S = 5.0  # for so long the directory may lack what is there: the same bar
REST_EPOCHS = 3  # the bar: from the last fault's end to the last election of a mover
WATCHED_EPOCHS = 3  # that many more, in which nobody may move
FREED_S = 45.0  # a stream that was cut lingers 30 s at most
COUNT_S = 20.0  # for a node to say what is open in it
LOOK_EVERY_S = 0.05
PROBE_AGAIN_S = 0.1

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What chaos is asked for. sessions: readers at once."""

    seed: int
    seconds: float
    kinds: tuple[Kind, ...] = KINDS
    sessions: int = 8
    uncover: bool = False

    @property
    def wait_s(self) -> float:
        """How long a session waits for cover: not at all beyond the router's own grace, where
        every block is always held."""
        return 120.0 if self.uncover else 0.0


@dataclass(slots=True)
class Made:
    """A fault, and what it cost. postponed_s: after its time in the plan. covered_s: until a new
    session had its first token."""

    fault: Fault
    toll: Toll
    postponed_s: float
    covered_s: float | None = None

    @property
    def stalls_s(self) -> list[float]:
        return sorted(self.toll.longest_s.values())


@dataclass(slots=True)
class Outcome:
    """How it went. Times in seconds; bare_s: the longest that the directory lacked a block.

    moves: in all. moves_after: elected in each epoch that began after the last fault was undone;
    None where nodes are told what to serve.
    """

    made: list[Made] = field(default_factory=list)
    skipped: list[Fault] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    sessions: int = 0
    finished: int = 0
    tokens: int = 0
    losses: int = 0
    waits_s: list[float] = field(default_factory=list)
    calm_s: list[float] = field(default_factory=list)
    bare_s: float = 0.0
    moves: int = 0
    moves_after: list[int] | None = None

    @property
    def covered_s(self) -> list[float]:
        return [made.covered_s for made in self.made if made.covered_s is not None]


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that this share of them does not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


async def run_chaos(net: LocalSwarm, wish: Wish, tell: Tell) -> Outcome:
    """Break a testnet and mend it. Raises UserError when it is not whole to begin with."""
    _check(net, wish)
    outcome = Outcome()
    began: list[float] = []

    def say(line: str) -> None:
        tell(f"{trio.current_time() - began[0]:6.1f} s  {line}" if began else line)

    def failed(line: str) -> None:
        outcome.failures.append(line)
        say(f"BROKEN: {line}")

    breaker = Breaker(net, say, uncover=wish.uncover)
    folder = net.roster.folder
    said = {name: log_bytes(folder, name) for name in logged(folder)}
    async with open_swarm(net.join, home=folder.parent, threads=1) as swarm:
        load = Load(swarm, net.roster.source, wait_s=wish.wait_s, failed=failed)
        await load.learn(random.Random(f"{wish.seed} questions"), QUESTIONS)
        say(f"{QUESTIONS} questions answered undisturbed; now {wish.sessions} sessions at a time")
        began.append(trio.current_time())
        run = _Run(net, wish, swarm, load, breaker, outcome, say, failed)
        try:
            await run.all()
        finally:
            breaker.abandon()
        outcome.sessions, outcome.finished = load.begun, load.finished
        outcome.tokens, outcome.losses = load.tokens, load.losses
        outcome.waits_s, outcome.calm_s = load.waits_s, load.calm_s
    p95 = quantile(outcome.covered_s, 0.95)
    if p95 is not None and p95 > COVERED_S and not wish.uncover:
        failed(f"a new session waited {p95:.1f} s after a fault (p95), {COVERED_S:.0f} s allowed")
    if net.roster.epoch_s:
        await see_rest(net, said, outcome, run.mended_s, say, failed)
    await _settle(net, failed)
    for name in logged(folder):
        if broke(folder, name, said.get(name, 0)):
            failed(f"{name} has told of a fault of its own: {folder / name / LOG}")
    return outcome


def _check(net: LocalSwarm, wish: Wish) -> None:
    if sys.platform == "win32":
        raise UserError("chaos stops and continues processes, which this system cannot")
    if not wish.kinds:
        raise UserError("no kind of fault: ask for --kill, --stall, ...")
    if "partition" in wish.kinds and not net.roster.isolated:
        raise UserError(
            "nodes of one network cannot be cut off: start it by potluck testnet up --isolated"
        )
    net.look()
    for seat in net.seats:
        if seat.state == "stopped":
            net.send(seat.name, signal.SIGCONT)
        elif seat.state != "serving":
            raise UserError(f"{seat.name} is {seat.state}: potluck testnet restart {seat.name}")
    if not wish.uncover and set(wish.kinds) != {"join"}:
        spans = {seat.name: BlockRange(seat.start, seat.stop) for seat in net.seats}
        spared = [
            name
            for name in spans
            if not uncovered([spans[one] for one in spans if one != name], net.roster.blocks)
        ]
        if not spared:
            raise UserError(
                "every node is the only one for some block: start it by potluck testnet up "
                "--replicas 2, or allow for it by --uncover"
            )


@dataclass(slots=True)
class _Run:
    net: LocalSwarm
    wish: Wish
    swarm: Swarm
    load: Load
    breaker: Breaker
    outcome: Outcome
    say: Tell
    failed: Tell
    died: set[str] = field(default_factory=set)
    mended_s: float = 0.0  # unix seconds: when the last fault was undone

    async def all(self) -> None:
        """Until the last session is read and the last fault is undone."""
        wish = self.wish
        plan = plan_faults(
            random.Random(f"{wish.seed} faults"),
            {seat.name: BlockRange(seat.start, seat.stop) for seat in self.net.seats},
            kinds=wish.kinds, within_s=wish.seconds - 2, uncover=wish.uncover,
        )  # fmt: skip
        began_s, self.mended_s = trio.current_time(), time.time()
        async with trio.open_nursery() as watching:
            watching.start_soon(self._watch)
            async with trio.open_nursery() as nursery:
                for number in range(wish.sessions):
                    dice = random.Random(f"{wish.seed} reader {number}")
                    nursery.start_soon(self.load.read, dice, began_s + wish.seconds)
                for fault in plan:
                    await trio.sleep_until(began_s + fault.at_s)
                    if await self.breaker.may_begin(fault, until_s=began_s + wish.seconds):
                        late_s = trio.current_time() - began_s - fault.at_s
                        nursery.start_soon(self._do, fault, late_s, nursery)
                    else:
                        self.outcome.skipped.append(fault)
                        self.say(f"{fault.kind} of {fault.node} left out: others are not back yet")
            watching.cancel_scope.cancel()

    async def _do(self, fault: Fault, late_s: float, nursery: trio.Nursery) -> None:
        peer = self.net.seat(fault.node).peer if fault.kind != "join" else ""

        def begun() -> None:
            toll = self.load.charge(peer, trio.current_time(), fault.for_s)
            self.outcome.made.append(made := Made(fault, toll, late_s))
            if fault.kind != "join":
                hit = len(toll.longest_s)
                self.say(
                    f"{fault.node} ({fault.blocks}): {WORDS[fault.kind]}, for {fault.for_s:.1f} s; "
                    f"it served {hit} session{'' if hit == 1 else 's'}"
                )
            nursery.start_soon(self._cover, made)

        try:
            await self.breaker.perform(fault, begun)
        except PotluckError as error:
            self.failed(str(error))
        self.mended_s = time.time()

    async def _cover(self, made: Made) -> None:
        """How long until a new session is served."""
        refused = 0
        with trio.move_on_after(COVERED_MOST_S):
            while not await self.load.probe():
                refused += 1
                if refused == 1 and not self.wish.uncover:
                    self.failed(f"a new session was refused while {made.fault.node} was out")
                await trio.sleep(PROBE_AGAIN_S)
            made.covered_s = trio.current_time() - made.toll.began_s
            return
        self.failed(
            f"no new session was served in {COVERED_MOST_S:.0f} s since {made.fault.node} was out, "
            f"{refused} were refused"
        )

    async def _watch(self) -> None:
        """Who died by himself, and what the directory lacks though somebody serves it."""
        voice = await self.swarm.voice(self.net.roster.source)
        bare_since: float | None = None
        while True:
            await trio.sleep(WATCH_EVERY_S)
            self.net.look()
            for seat in self.net.seats:
                if seat.name in self.breaker.broken or seat.name in self.died or seat.process:
                    continue
                self.died.add(seat.name)
                self.failed(f"{seat.name} died by itself: potluck testnet logs {seat.name}")
            there = self.breaker.serving()
            total = self.net.roster.blocks
            try:
                told = await self.swarm.spans(voice.digest)
            except PotluckError:
                told = ()
            held = [
                BlockRange(one.start, one.stop)
                for one in told
                if one.state == "online" and one.peer in there
            ]
            now = trio.current_time()
            capable = [BlockRange(seat.start, seat.stop) for seat in there.values()]
            if not uncovered(held, total) or uncovered(capable, total):
                bare_since = None
                continue
            bare_since = now if bare_since is None else bare_since
            self.outcome.bare_s = max(self.outcome.bare_s, now - bare_since)
            if now - bare_since > BARE_MAX_S:
                blocks = uncovered(held, total)
                self.failed(f"the directory tells of nobody for blocks {blocks}, who are served")
                bare_since = None


WORDS: dict[Kind, str] = {
    "kill": "killed",
    "stall": "stopped",
    "slow": "slowed down",
    "partition": "cut off",
    "join": "comes",
    "leave": "told to leave",
}


async def see_rest(
    net: LocalSwarm, said: Mapping[str, int], outcome: Outcome, mended_s: float, tell: Tell,
    failed: Tell,
) -> None:  # fmt: skip
    """See whether those who choose their blocks come to rest. said: where their logs were."""
    epoch_s = net.roster.epoch_s
    last = int(mended_s // epoch_s)  # the epoch in which the last fault was undone
    epochs = REST_EPOCHS + WATCHED_EPOCHS
    tell(f"nothing is disturbed any more; {epochs} epochs of {epoch_s:g} s")
    await trio.sleep(max(0.0, (last + epochs + 1) * epoch_s - time.time()))
    names = [seat.name for seat in net.seats]
    elected = [
        epoch for name in names for epoch in moves(net.roster.folder, name, said.get(name, 0))
    ]
    outcome.moves = len(elected)
    outcome.moves_after = [elected.count(last + number) for number in range(1, epochs + 1)]
    if late := sum(outcome.moves_after[REST_EPOCHS:]):
        failed(f"{late} moves were elected more than {REST_EPOCHS} epochs after the last fault")


async def _settle(net: LocalSwarm, failed: Tell) -> None:
    """Wait until nothing is reserved on any node, and look for processes that nobody knows."""
    deadline_s = time.monotonic() + FREED_S
    left = {seat.name: "" for seat in net.seats}
    while left and time.monotonic() < deadline_s:
        for name in list(left):
            if net.seat(name).process is None:
                del left[name]  # its state is told below
                continue
            held = await _counts(net, name)
            if held is None:
                left[name] = "it does not say what is open in it"
            elif held["leases"] or held["sessions"] or held["pages"]:
                left[name] = f"{held['leases']} leases and {held['pages']} pages are still held"
            else:
                del left[name]
        await trio.sleep(LOOK_EVERY_S)
    for name, what in left.items():
        failed(f"{name}: {what}, {FREED_S:.0f} s after the last session ended")
    known = {seat.pid for seat in net.seats}
    for process in marked(MARK, str(net.roster.folder)):
        if process.pid not in known:
            failed(f"process {process.pid} is left over")
    for seat in net.seats:
        if seat.state != "serving":
            failed(f"{seat.name} is {seat.state} at the end")


async def _counts(net: LocalSwarm, name: str) -> dict[str, int] | None:
    since = log_bytes(net.roster.folder, name)
    try:
        net.send(name, signal.SIGUSR1)
    except UserError:  # dead: that is told elsewhere
        return None
    with trio.move_on_after(COUNT_S):
        while True:
            if (said := counts(net.roster.folder, name, since)) is not None:
                return said
            await trio.sleep(LOOK_EVERY_S)
    return None
