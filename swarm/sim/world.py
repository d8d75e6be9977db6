"""The peers of a run: where they live, how fast they are, when they come and go, what they claim.

A world is the same for every router of one seed: all of it is drawn from dice of its own, lives
included, and a device is a queue in order of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..admission import Admission, AdmissionConfig
from ..ahead import READY_S, is_ready
from ..blocks import BlockRange
from ..foresight import Promises
from ..placement import Holding, believed_rate, join_window, usual_rate
from ..view import RELAYED, Floats
from .dice import DiceOf
from .optimum import layout_bound, optimum
from .prompts import PromptCaches
from .scenario import Scenario
from .table import TABLES, Table

HISTORY_LIVES = 5  # a slot's lives before the run, so that ages at its start are as usual
BITS = 8e-6  # seconds a byte takes at one Mbit/s


@dataclass(frozen=True, slots=True)
class Seat:
    """A peer that is there in life: the blocks that it serves, and its measured times."""

    blocks: BlockRange
    table: Table


class World:
    """Peers by number. A number is never used twice: who comes again is another peer."""

    def __init__(self, scenario: Scenario, dice: DiceOf, seats: Sequence[Seat] = ()) -> None:
        """seats: the first peers, as they are; by default they are drawn and choose blocks."""
        self.scenario = scenario
        self.table = TABLES[scenario.peers.table]
        self._seats = seats
        self._world_s = scenario.links.world_ms / 1000
        self._cores = [-math.inf] * scenario.peers.cores  # until when each is busy
        self.total = scenario.model.blocks
        self._dice = dice("world")
        self._churn = dice("churn")
        lives, self.births = self._lives(scenario)
        self.count = len(lives)  # at the start; later ones are born
        size = self.count + len(self.births)
        self.size = size
        self.start = np.zeros(size, dtype=np.int64)
        self.stop = np.ones(size, dtype=np.int64)
        self.pace: Floats = np.ones(size)  # times the table's time
        self.rate: Floats = np.zeros(size)  # blocks of a token a second
        self.busy_until: Floats = np.zeros(size)
        self.alive = np.zeros(size, dtype=np.bool_)
        self.born: Floats = np.zeros(size)
        self.dies: Floats = np.full(size, math.inf)
        self.length = [0] * size
        self.access_s = [0.0] * size
        self.place = [(0.0, 0.0)] * size
        self.up_byte_s = [0.0] * size
        self.down_byte_s = [0.0] * size
        self.relayed = np.zeros(size, dtype=np.bool_)
        self.boasts: Floats = np.ones(size)  # times its rate is what it claims
        self.lies_load = np.zeros(size, dtype=np.bool_)
        self.black_hole = np.zeros(size, dtype=np.bool_)
        self.prompts = PromptCaches(scenario)
        self._admissions: dict[int, Admission] = {}
        self._promises: dict[int, Promises] = {}
        self.versions = np.zeros(self.total, dtype=np.int64)  # of the layout, at each block
        self.load: Floats = np.zeros(self.total)  # of each block, by what records tell
        self.told: dict[int, BlockRange] = {}  # what the record of each peer says that it serves
        self._arriving: set[int] = set()  # newcomers that load
        tokens = self.mean_tokens()
        self._token_block_s = self.table.token_block_s(tokens)
        for i, (born, dies) in enumerate([*lives, *self.births]):
            self._draw(i)
            self.born[i], self.dies[i] = born, dies
        self.places: Floats = np.array(self.place)
        self.access: Floats = np.array(self.access_s)
        self.byte_s: Floats = np.array([self._byte_s(i) for i in range(size)])
        self.claims: Floats = np.array([self.claim(i) for i in range(size)])
        usual = usual_rate(self.claims[: self.count].tolist())
        self.believed = [believed_rate(claim, usual) for claim in self.claims.tolist()]
        order = list(range(self.count))
        self._dice.shuffle(order)
        for i in order:
            if i < len(seats):
                self.announce(i, seats[i].blocks)
                self.settle(i, seats[i].blocks)
            else:
                self.settle(i, self.join(i))

    def admission(self, i: int) -> Admission | None:
        """The server's own book of leases; None where the scenario bounds nothing."""
        tokens = self.scenario.peers.cache_tokens
        if tokens == 0:
            return None
        if i not in self._admissions:
            self._admissions[i] = Admission(AdmissionConfig(tokens))
        return self._admissions[i]

    def name(self, i: int) -> str:
        return f"peer{i}"

    def mean_tokens(self) -> float:
        load = self.scenario.load
        return float(
            load.tokens if load.lengths == "fixed" else load.request_mean + load.response_mean
        )

    def _draw(self, i: int) -> None:
        peers, links, liars, dice = (
            self.scenario.peers, self.scenario.links, self.scenario.liars, self._dice,
        )  # fmt: skip
        self.length[i] = peers.span_min + dice.randrange(peers.span_max - peers.span_min + 1)
        self.pace[i] = dice.lognormvariate(0.0, peers.spread)
        self.access_s[i] = dice.uniform(links.access_ms_min, links.access_ms_max) / 1000
        self.place[i] = (dice.random(), dice.random())
        self.relayed[i] = dice.random() < peers.relayed
        part = RELAYED if self.relayed[i] else 1.0
        self.up_byte_s[i] = BITS / (links.up_mbit * dice.lognormvariate(0.0, 0.5) * part)
        self.down_byte_s[i] = BITS / (links.down_mbit * dice.lognormvariate(0.0, 0.5) * part)
        if dice.random() < liars.share:
            if liars.what in ("rate", "both", "slow"):
                self.boasts[i] = liars.times
            self.lies_load[i] = liars.what in ("load", "both")
            self.black_hole[i] = liars.what == "blackhole"
            if liars.what == "slow":  # it is slow and says it is not
                self.pace[i] *= liars.times
        self.rate[i] = 1.0 / (self._token_block_s * self.pace[i])
        if i < len(self._seats):
            seat = self._seats[i]
            self.length[i], self.pace[i] = len(seat.blocks), 1.0
            tokens = self.mean_tokens()
            self.rate[i] = tokens * len(seat.blocks) / seat.table.seconds(len(seat.blocks), tokens)

    def claim(self, i: int) -> float:
        """The rate that the peer's record tells: tokens a second through one block."""
        return float(self.rate[i] * self.boasts[i])

    def _lives(
        self, scenario: Scenario
    ) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """(born, dies) of who is there at 0, and of who comes later, by birth."""
        churn, dice = scenario.churn, self._churn
        first: list[tuple[float, float]] = []
        later: list[tuple[float, float]] = []
        if churn.kind == "none":
            return [(-math.inf, math.inf)] * scenario.peers.count, []
        bursts = self._bursts(scenario)
        scale = churn.mean_s / math.gamma(1 + 1 / churn.shape)
        for _ in range(scenario.peers.count):
            now = -HISTORY_LIVES * churn.mean_s * dice.random()
            here = True
            while here or now < scenario.seconds:
                dies = now + dice.weibullvariate(scale, churn.shape)
                for at in bursts:
                    if now < at < dies and dice.random() < churn.burst_share:
                        dies = at + dice.uniform(0.0, churn.burst_s)
                        break
                if here and dies > 0:
                    # At the start the planned number is there: who would be away comes at once.
                    first.append((min(now, 0.0), dies))
                    here = False
                elif now > 0:
                    later.append((now, dies))
                now = dies + self._away_s(scenario, dies)
        later.sort()
        return first, later

    def _bursts(self, scenario: Scenario) -> list[float]:
        if scenario.churn.kind != "spot":
            return []
        at = 0.0
        found: list[float] = []
        while True:
            at += self._churn.expovariate(1 / scenario.churn.burst_every_s)
            if at > scenario.seconds:
                return found
            found.append(at)

    def _away_s(self, scenario: Scenario, now: float) -> float:
        away_s = self._churn.expovariate(1 / scenario.churn.away_s)
        if scenario.churn.kind == "diurnal":  # by night they come back late
            away_s *= 1.05 + math.sin(2 * math.pi * now / 86_400)
        return away_s

    def join(self, i: int) -> BlockRange:
        """Choose blocks for a newcomer, by the rule, and announce them."""
        blocks = join_window(self.load, self.length[i], self.name(i))
        self.announce(i, blocks)
        self._arriving.add(i)
        return blocks

    def move_s(self, i: int, blocks: BlockRange, now: float) -> float:
        """How long peer i takes to load these: who fetches ahead has some of them on its disk."""
        whole_s = self.scenario.placing.move_s
        ready = is_ready(self.name(i), self.total, len(blocks), now - float(self.born[i]))
        return min(whole_s, READY_S) if ready[blocks.start] else whole_s

    def announce(self, i: int, blocks: BlockRange | None) -> None:
        """The record of peer i says that it serves, or will serve, these blocks; None: gone."""
        old = self.told.pop(i, None)
        if old is not None:
            self.load[old.start : old.stop] -= self.believed[i] / len(old)
        if blocks is not None:
            self.told[i] = blocks
            self.load[blocks.start : blocks.stop] += self.believed[i] / len(blocks)
        np.maximum(self.load, 0.0, out=self.load)

    def settle(self, i: int, blocks: BlockRange) -> None:
        """Peer i serves these blocks from now on."""
        self.pause(i)
        self.start[i], self.stop[i] = blocks.start, blocks.stop
        self.alive[i] = True
        self._arriving.discard(i)
        self.versions[blocks.start : blocks.stop] += 1

    def pause(self, i: int) -> None:
        """Peer i serves nothing: it loads other blocks, or is dead."""
        self.alive[i] = False
        self._arriving.discard(i)
        self.versions[self.start[i] : self.stop[i]] += 1

    def living(self) -> Sequence[int]:
        found: list[int] = np.flatnonzero(self.alive).tolist()
        return found

    def holdings(self, now: float, moving: frozenset[int] = frozenset()) -> list[Holding]:
        """What the signed records say. moving: who is on its way already."""
        return [
            Holding(
                self.name(i), blocks, self.claim(i), now - float(self.born[i]),
                movable=bool(self.alive[i]) and i not in moving,
                arriving=i in self._arriving,
            )
            for i, blocks in self.told.items()
        ]  # fmt: skip

    def optimum(self) -> float:
        """Tokens a second that the layout of this instant could carry; liars count as they are."""
        rate = np.where(self.black_hole, 0.0, self.rate)[self.alive]
        return optimum(self.start[self.alive], self.stop[self.alive], rate, self.total)

    def here(self, now: float) -> Sequence[int]:
        """Who was born and has not died: all who serve, and all who still load."""
        found: list[int] = np.flatnonzero((self.born <= now) & (self.dies > now)).tolist()
        return found

    def bound(self) -> float:
        return layout_bound(self.rate[self.alive & ~self.black_hole], self.total)

    def owd_s(self, i: int, access_s: float, place: tuple[float, float]) -> float:
        """One way between a client there and peer i."""
        here, there = self.place[i], place
        plane_s = self._world_s * math.hypot(here[0] - there[0], here[1] - there[1])
        return access_s + self.access_s[i] + plane_s

    def _byte_s(self, i: int) -> float:
        """Seconds a byte takes between a client of median links and peer i: mean of both ways."""
        links = self.scenario.links
        there_s = max(BITS / links.up_mbit, self.down_byte_s[i])
        return (there_s + max(BITS / links.down_mbit, self.up_byte_s[i])) / 2

    def road_s(self, i: int, tokens: int) -> float:
        """Hidden states of so many tokens, to peer i and back."""
        return 2 * float(self.byte_s[i]) * tokens * self.scenario.model.row_bytes

    def service_s(self, i: int, blocks: int, tokens: int) -> float:
        table = self._seats[i].table if i < len(self._seats) else self.table
        return table.seconds(blocks, tokens) * float(self.pace[i])

    def occupy(self, i: int, service_s: float, now: float) -> float:
        """Put a hop into the queue of peer i; when it will be done."""
        begins_s = now + self.queue_s(i, now)
        if self._cores:
            # The core that idles least until then; where all are busy, the first to be free.
            free = [core for core, until_s in enumerate(self._cores) if until_s <= begins_s]
            until = self._cores.__getitem__
            core = max(free, key=until) if free else min(range(len(self._cores)), key=until)
            begins_s = max(begins_s, self._cores[core])
            self._cores[core] = begins_s + service_s
        self.busy_until[i] = begins_s + service_s
        return begins_s + service_s

    def queue_s(self, i: int, now: float) -> float:
        return max(0.0, float(self.busy_until[i]) - now)

    def told_queue_s(self, i: int, now: float) -> float:
        """What the peer says of its queue, and of the work that it expects."""
        if self.lies_load[i]:
            return 0.0
        promises = self._promises.get(i)
        return self.queue_s(i, now) + (promises.seconds(now) if promises else 0.0)

    def promises(self, i: int) -> Promises:
        """The server's own book of work that is to come."""
        found = self._promises.get(i)
        if found is None:
            found = self._promises[i] = Promises()
        return found
