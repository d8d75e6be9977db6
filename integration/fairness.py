"""Who gets a server that all want (issue D, bar 8): `python -m integration.fairness`.

The server's own rules, in virtual time: its book of leases (swarm/admission.py) and its lane
(node/compute/batch.py) with schedule and pace; pretended is what a pass takes, and the clients.
Each client opens sessions at random moments (Poisson), sends a prompt in chunks, then reads tokens
one by one; whoever is refused comes back when it was told to.

    shares      two clients want more than there is, one ten times as much as the other
    newcomers   at 90 % load each newcomer opens one session under a name never seen before
    riders      a contributor, by chance as above, against ten free riders that open another session
                as soon as one ends, two at a time each: its p95 time to first token, in times of
                what it is alone, with and without credit (issue E, bar 7); and what newcomers wait
                that come once, beside all of these
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest.mock import patch

from potluck.errors import Refused
from potluck.node.compute import batch
from potluck.swarm.admission import Admission, AdmissionConfig
from potluck.swarm.blocks import BlockRange
from potluck.swarm.favour import Favour
from potluck.swarm.rates import PassTimes
from potluck.swarm.schedule import URGENT_COST
from potluck.swarm.wire import Step

BLOCKS = BlockRange(0, 8)
PASS_S, ROW_S = 0.010, 0.0005  # of a pass, and of each row in it: 20 tokens/s alone, 1,800 rows/s
PROMPT, ANSWER = 384, 64  # tokens, means
CHUNK = 128
ROAD_S = 0.040  # a round trip to the client
CACHE_TOKENS = 48 * 1024 * len(BLOCKS)  # of some hundred sessions
WINDOW_S = 60.0
RIDERS = 10
NEWCOMERS = 0.02  # of the device


class Clock:
    """Virtual time, in the place of `time` for the lane."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass(eq=False)
class Work:
    """A step as the lane sees it."""

    cache: BlockRange
    hidden: range  # its rows
    left: int
    spent_s: float = 0.0

    @property
    def complete(self) -> bool:
        return self.left == 0

    def answer(self) -> memoryview:
        return memoryview(b"")


class Engine:
    """Takes its time, and computes nothing."""

    exact = True
    blocks = BLOCKS

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def begin(self, cache: Any, payload: memoryview, step: Step, dtype: str) -> Work:
        rows = sum(step.sizes)
        return Work(BLOCKS, range(rows), rows)

    def run(self, works: list[tuple[Work, int]]) -> None:
        self._clock.now += PASS_S + ROW_S * sum(rows for _, rows in works)
        for work, rows in works:
            work.left -= rows


class Owner:
    """A client that never gives up."""

    def claim(self) -> bool:
        return True

    def release(self) -> None: ...

    def given_up(self) -> bool:
        return False


@dataclass(eq=False)
class Session:
    """peer: whose it is. left: rows of the prompt, then tokens, still to be sent."""

    peer: str
    prompt: int
    answer: int
    born_s: float
    tokens: int
    first_s: float | None = None
    ended: Callable[[], None] = lambda: None


@dataclass
class Server:
    """One server and its clients, from event to event."""

    seed: int
    favour: Favour | None = None
    clock: Clock = field(default_factory=Clock)
    served: dict[str, dict[int, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )
    wanted: dict[str, dict[int, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )  # cost by client and the second in which it was asked for
    waits_s: list[tuple[float, str, float]] = field(
        default_factory=list
    )  # born, whose, first token
    refusals: int = 0

    def __post_init__(self) -> None:
        self.dice = Random(self.seed)
        self._admission = Admission(AdmissionConfig(CACHE_TOKENS))
        self._lane = batch.Lane(
            Engine(self.clock),  # type: ignore[arg-type]
            PassTimes(len(BLOCKS), len(BLOCKS) / (PASS_S + ROW_S), len(BLOCKS) / ROW_S),
            self.favour,
        )
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._sessions: dict[batch.Order, Session] = {}

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when_s, self._count, what))

    def client(self, name: Callable[[], str], sessions_s: float, until_s: float) -> None:
        """Somebody who opens so many sessions a second."""

        def come() -> None:
            prompt = self._length(PROMPT)
            answer = self._length(ANSWER)
            born_s, whose = self.clock.now, name()
            self.wanted[whose][int(born_s)] += prompt + answer * URGENT_COST
            self._open(Session(whose, prompt, answer, born_s, prompt + answer))
            if (next_s := born_s + self.dice.expovariate(sessions_s)) < until_s:
                self.at(next_s, come)

        self.at(self.dice.expovariate(sessions_s), come)

    def rider(self, name: Callable[[], str]) -> None:
        """Somebody who opens a session whenever one has ended, and changes nobody's chances."""
        dice = Random(self._count)

        def come() -> None:
            prompt, answer = self._length(PROMPT, dice), self._length(ANSWER, dice)
            self._open(Session(name(), prompt, answer, self.clock.now, prompt + answer, ended=come))

        self.at(dice.uniform(0, 1), come)

    def _length(self, mean: int, dice: Random | None = None) -> int:
        return (dice or self.dice).randint(mean // 2, mean * 3 // 2)

    def run(self, until_s: float) -> None:
        with patch.object(batch, "time", self.clock):
            while self.clock.now < until_s:
                while self._heap and self._heap[0][0] <= self.clock.now:
                    heapq.heappop(self._heap)[2]()
                if self._lane.waiting:
                    for order, _ in self._lane.turn():
                        self._answered(order)
                elif self._heap:
                    self.clock.now = max(self.clock.now, self._heap[0][0])
                else:
                    return

    def _open(self, session: Session) -> None:
        now = self.clock.now
        try:
            self._admission.admit(session, session.peer, BLOCKS, session.tokens, now)
        except Refused as refusal:
            self.refusals += 1
            self.at(now + refusal.retry_after_s, lambda: self._open(session))
        else:
            self.at(now + ROAD_S, lambda: self._send(session))

    def _send(self, session: Session) -> None:
        rows = min(session.prompt, CHUNK) or 1
        step = Step(0, (rows,), 1)
        order = batch.Order(
            BLOCKS, session.peer, memoryview(b""), step, "f32", float("inf"), Owner()
        )
        self._sessions[order] = session
        self._lane.add(order)

    def _answered(self, order: batch.Order) -> None:
        session, now = self._sessions.pop(order), self.clock.now
        rows = sum(order.step.sizes)
        prompt = session.prompt > 0
        self.served[session.peer][int(now)] += rows if prompt else rows * URGENT_COST
        if prompt:
            session.prompt -= rows
        else:
            session.answer -= 1
        if not session.prompt and session.first_s is None:
            session.first_s = now + ROAD_S / 2
            self.waits_s.append((session.born_s, session.peer, session.first_s - session.born_s))
        if session.prompt or session.answer > 0:
            # chunks are sent ahead, so the road is paid for tokens alone
            self.at(now + (0.0 if session.prompt else ROAD_S), lambda: self._send(session))
        else:
            self._admission.release(session, now)
            session.ended()


def capacity(seed: int = 1) -> float:
    """Sessions a second that one server gets through."""
    server = Server(seed)
    for number in range(8):
        server.client(lambda number=number: f"c{number}", 2.0, 120.0)  # type: ignore[misc]
    server.run(120.0)
    cost = sum(sum(one.values()) for one in server.served.values())
    return cost / 120.0 / (PROMPT + ANSWER * URGENT_COST)


def shares(rate: float, *, wants: float, seed: int, seconds: float = 300.0) -> dict[str, Any]:
    """wants: of the smaller client, of what there is; the greedy one wants ten times that."""
    server = Server(seed)
    server.client(lambda: "modest", wants * rate, seconds)
    server.client(lambda: "greedy", 10 * wants * rate, seconds)
    server.run(seconds)
    ratios = []
    for begin in range(int(WINDOW_S), int(seconds - WINDOW_S)):
        window = range(begin, begin + int(WINDOW_S))
        got = {name: sum(one[at] for at in window) for name, one in server.served.items()}
        total = got["modest"] + got["greedy"]
        # max-min: the modest one gets what it asked for, or half; what it left over comes on top
        asked = sum(server.wanted["modest"][at] for at in window)
        fair = max(total / 2, total - asked)
        ratios.append(got["greedy"] / fair)
    return {
        "wants": wants,
        "greedy_over_fair_max": round(max(ratios), 3),
        "greedy_over_fair_min": round(min(ratios), 3),
        "refusals": server.refusals,
    }


def newcomers(rate: float, *, load: float, seed: int, seconds: float = 600.0) -> dict[str, Any]:
    server = Server(seed)
    numbers = iter(range(10**9))
    share = 0.05  # of the load comes from newcomers
    for number in range(10):
        server.client(
            lambda number=number: f"c{number}",
            (1 - share) * load * rate / 10,
            seconds,  # type: ignore[misc]
        )
    server.client(lambda: f"new{next(numbers)}", share * load * rate, seconds)
    server.run(seconds)
    counted = [(who, wait_s) for born_s, who, wait_s in server.waits_s if born_s > WINDOW_S]
    median_s = statistics.median(wait_s for _, wait_s in counted)
    new = sorted(wait_s for who, wait_s in counted if who.startswith("new"))
    p95_s = new[int(0.95 * len(new))]
    return {
        "load": load,
        "newcomers": len(new),
        "median_s": round(median_s, 3),
        "newcomer_p95_s": round(p95_s, 3),
        "p95_over_median": round(p95_s / median_s, 2),
        "refusals": server.refusals,
    }


def busy(
    rate: float,
    *,
    load: float,
    seed: int,
    riders: int,
    credit: bool,
    fresh: bool = False,
    newcomers: float = 0.0,
    seconds: float = 600.0,
) -> Server:
    """What a contributor and riders did. fresh: riders come under another name, from another
    network, each time. newcomers: of the device, by others that come once."""
    favour = Favour()
    favour.fund({"giver": 1e12} if credit else {})
    server = Server(seed, favour)
    favour.place("giver", ("new", "own/16", "own/24"))
    numbers = iter(range(10**9))

    def place(number: int, kind: str = "rider") -> str:
        name = f"{kind} {number}"
        favour.place(name, ("new", f"{name}/16", f"{name}/24"))
        return name

    for number in range(riders):
        name = place(number)
        for _ in range(2):
            server.rider((lambda: place(next(numbers))) if fresh else (lambda name=name: name))  # type: ignore[misc]
    server.client(lambda: "giver", load * rate, seconds)
    if newcomers:
        server.client(lambda: place(next(numbers), "new"), newcomers * rate, seconds)
    server.run(seconds)
    return server


def p95_s(servers: list[Server], who: str) -> float:
    """Of the times to first token, by run, on the mean; endless where hardly any came."""
    found = [
        [
            wait_s
            for born_s, name, wait_s in one.waits_s
            if name.startswith(who) and born_s > WINDOW_S
        ]
        for one in servers
    ]
    if min(map(len, found)) < 2:
        return math.inf
    return statistics.mean(statistics.quantiles(one, n=20)[-1] for one in found)


def riders(rate: float, *, load: float, seeds: int, fresh: bool = False) -> dict[str, Any]:
    def waits_s(count: int, *, credit: bool, newcomers: float = 0.0, who: str = "giver") -> float:
        runs = [
            busy(
                rate, load=load, seed=seed, riders=count,
                credit=credit, fresh=fresh, newcomers=newcomers,
            )
            for seed in range(1, seeds + 1)
        ]  # fmt: skip
        return p95_s(runs, who)

    alone_s, among_s = waits_s(0, credit=True), waits_s(RIDERS, credit=True)
    without_s = waits_s(RIDERS, credit=False)
    newcomers_s = waits_s(RIDERS, credit=True, newcomers=NEWCOMERS, who="new")
    return {
        "load": load,
        "fresh_names": fresh,
        "p95_alone_s": round(alone_s, 3),
        "p95_among_riders_s": round(among_s, 3),
        "ratio": round(among_s / alone_s, 2),
        "ratio_without_credit": round(without_s / alone_s, 2),
        "newcomers_p95_s": round(newcomers_s, 3),
    }


def measure(seeds: int = 3) -> dict[str, Any]:
    rate = capacity()
    return {
        "sessions_s": round(rate, 2),
        "shares": [
            shares(rate, wants=wants, seed=seed)
            for wants in (0.3, 0.6)
            for seed in range(1, seeds + 1)
        ],
        "newcomers": [newcomers(rate, load=0.9, seed=seed) for seed in range(1, seeds + 1)],
        "riders": [
            riders(rate, load=load, seeds=seeds, fresh=fresh)
            for load in (0.3, 0.5, 0.8)
            for fresh in (False, True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    print(json.dumps(measure(parser.parse_args().seeds), indent=1))


if __name__ == "__main__":
    main()
