"""One run: a heap of events for a clock, one world, one router, one mover.

    arrive      a request is born at a client: its router chooses a hop
    serve       it reaches a peer, waits for the device, is computed
    back        its hidden states are at the client again: the next hop, or done
    ended       the device is done with a hop: its place in the cache is free
    refused     the cache was full: the client asks elsewhere
    fail        the client gives a hop up: another is chosen, the input is sent again
    born, loaded, dies, look, sample        peers, movers, the optimum of the instant

The run goes on, under load, until what came before `seconds` is done or late, so that there is no
edge at the end. Everything that happens to a request goes into the trace hash: one seed, one hash.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from struct import pack

import numpy as np

from ...errors import Refused
from ..blocks import BlockRange
from ..placement import join_window
from ..view import Floats
from .dice import Dice, DiceOf
from .movers import mover_of
from .request import Request
from .routers import router_of
from .scenario import Moving, Scenario
from .world import Seat, World

SAMPLE_S = 10.0
LAYOUT_SAMPLE_S = 60.0  # a layout made anew costs ten milliseconds and more
AUTO: dict[str, Moving] = {"ours": "ours", "petals": "petals", "swarm": "swarm"}


@dataclass(slots=True)
class Outcome:
    """What a run measured. Shares are 0..1."""

    router: str
    offered: int = 0  # requests that came when it counted
    good: int = 0  # of them, answered within their deadline
    done: int = 0
    latencies_s: list[float] = field(default_factory=list)
    retries: int = 0
    hops: int = 0
    flow: float = 0.0  # mean over time: the optimum of the layout, over the bound of all layouts
    flow_best: float = 0.0  # ... over a layout made anew from the same peers
    flow_here: float = 0.0  # ... over one of those who still load, too: in reach of nobody
    flow_low: float = 0.0  # 5th percentile in time of the first
    uncovered: float = 0.0  # share of time in which some block was served by nobody
    load: float = 0.0  # what was offered, over the optimum of the instant, mean
    moves_per_hour: float = 0.0  # of one peer
    peers: float = 0.0  # mean
    control_kbit_s: float = 0.0  # of one peer, both directions
    hit: float = math.nan  # of hops of requests with a common prompt, where it was there already
    trace: str = ""
    events: int = 0

    def goodput(self) -> float:
        return self.good / self.offered if self.offered else math.nan

    def latency_s(self, share: float) -> float:
        """Of all that were offered: infinite where so many were not answered at all."""
        if not self.offered:
            return math.nan
        rank = max(0, math.ceil(share * self.offered) - 1)
        return sorted(self.latencies_s)[rank] if rank < len(self.latencies_s) else math.inf


class Simulation:
    """One router through one scenario."""

    def __init__(
        self,
        scenario: Scenario,
        router: str,
        dice: DiceOf,
        *,
        seats: Sequence[Seat] = (),
        rate: float = 0.0,
    ) -> None:
        """seats, rate: of a twin, its peers and its requests a second, instead of a share."""
        self._scenario = scenario
        self._world = World(scenario, dice, seats)
        self._dice = dice("load")
        self._router = router_of(router, self._world, dice("router"))
        moving = scenario.placing.moving
        if moving == "auto":
            # Layouts: who has no rule of its own stands for nobody moving. Requests: routers are
            # compared on layouts made by one rule.
            moving = AUTO.get(router, "none" if scenario.kind == "layout" else "ours")
        self._mover = mover_of(moving, self._world, dice("mover"))
        self._heap: list[tuple[float, int, str, object]] = []
        self._count = 0
        self._moving: set[int] = set()
        self._trace = blake2b(digest_size=16)
        self._moves = 0
        self._number = 0
        self._open = 0  # requests that count and are not done
        self._stopped = False
        self._flow: list[tuple[float, float, float, float, float]] = []
        self._joins_and_leaves = 0
        self.ended_s = 0.0  # virtual time
        self.outcome = Outcome(router)
        load = scenario.load
        self._rate = rate
        if scenario.kind == "requests" and not rate:
            # Who lies of rate or load is offered what the honest layout of the same peers could do.
            honest = self._world
            if scenario.liars.share and scenario.liars.what in ("rate", "load", "both"):
                honest = World(replace(scenario, liars=replace(scenario.liars, share=0.0)), dice)
            self._rate = load.share * honest.optimum() / honest.mean_tokens()

    def run(self) -> Outcome:
        world = self._world
        self._at(self._mover.first_s(), "look", None)
        self._at(self._scenario.warm_s, "sample", None)
        for i in range(world.count):
            self._at(float(world.dies[i]), "dies", i)
        for i in range(world.count, world.size):
            self._at(float(world.born[i]), "born", i)
        if self._rate > 0:
            self._at(self._gap_s(0.0), "arrive", None)
        now = 0.0
        while self._heap:
            now, _, kind, what = heapq.heappop(self._heap)
            if now >= self._scenario.seconds and self._open <= 0:
                break
            self.outcome.events += 1
            match kind:
                case "serve":
                    self._serve(what, now)  # type: ignore[arg-type]
                case "back":
                    self._back(what, now)  # type: ignore[arg-type]
                case "fail":
                    self._fail(what, now)  # type: ignore[arg-type]
                case "arrive":
                    self._arrive(now)
                case "again":
                    self._next(what, now)  # type: ignore[arg-type]
                case _:
                    self._change(kind, what, now)
        self.ended_s = max(now, self._scenario.seconds)
        return self._finish(self.ended_s)

    def _at(self, at_s: float, kind: str, what: object) -> None:
        if at_s < math.inf:
            self._count += 1
            heapq.heappush(self._heap, (at_s, self._count, kind, what))

    def _gap_s(self, now: float) -> float:
        load = self._scenario.load
        rate = self._rate
        if load.flash_at_s <= now < load.flash_at_s + load.flash_s:
            rate *= load.flash_times
        if now < load.ramp_s:
            rate *= max(0.1, now / load.ramp_s)
        if load.arrivals == "poisson":
            return self._dice.expovariate(rate)
        return self._dice.gammavariate(load.shape, 1 / (rate * load.shape))

    def _tokens(self) -> int:
        load, dice = self._scenario.load, self._dice
        if load.lengths == "fixed":
            return load.tokens
        return min(
            _pareto(load.request_mean, load.tail, load.tokens_max, dice)
            + _pareto(load.response_mean, load.tail, load.tokens_max, dice),
            load.tokens_max,
        )

    def _arrive(self, now: float) -> None:
        scenario, dice = self._scenario, self._dice
        self._at(now + self._gap_s(now), "arrive", None)
        self._number += 1
        tokens = self._tokens()
        links = scenario.links
        client = dice.randrange(scenario.load.clients)
        request = Request(
            self._number, client, tokens, now,
            now + scenario.load.deadline_s + tokens * scenario.load.deadline_token_s,
            access_s=dice.uniform(links.access_ms_min, links.access_ms_max) / 1000,
            place=(dice.random(), dice.random()),
        )  # fmt: skip
        if scenario.load.prompts and dice.random() < scenario.load.prompt_share:
            request.prompt = dice.randrange(scenario.load.prompts)
        if self._counts(request):
            self.outcome.offered += 1
            self._open += 1
        self._at(now + scenario.load.open_s, "again", request)

    def _counts(self, request: Request) -> bool:
        return self._scenario.warm_s <= request.born_s < self._scenario.seconds

    def _next(self, request: Request, now: float) -> None:
        """Choose the next hop and send."""
        patience_s = self._scenario.load.give_up * (request.deadline_s - request.born_s)
        if now - request.born_s > patience_s:
            self._open -= self._counts(request)
            return
        chosen = self._router.choose(request, now)
        if chosen is None:
            self._at(now + 1.0, "again", request)
            return
        request.peer, request.stop = chosen
        request.sent_s = now
        world = self._world
        owd_s = world.owd_s(request.peer, request.access_s, request.place)
        there_s = owd_s + world.road_s(request.peer, request.tokens) / 2
        if there_s > owd_s:  # the header comes first, and tells what will come
            work_s = world.service_s(request.peer, request.stop - request.at, request.tokens)
            world.promises(request.peer).expect(work_s, now + owd_s, now + there_s)
        if self._scenario.links.loss and self._dice.random() < self._scenario.links.loss:
            there_s += 2 * there_s
        self._at(now + there_s, "serve", request)

    def _serve(self, request: Request, now: float) -> None:
        world, i = self._world, request.peer
        detect_s = self._scenario.links.detect_s
        if now >= world.dies[i] or not world.alive[i] or world.stop[i] < request.stop:
            self._at(now + detect_s, "fail", request)
            return
        if world.black_hole[i]:
            self._at(request.sent_s + self._router.patience_s(request), "fail", request)
            return
        if not self._admit(request, now):
            return
        request.held = world.prompts.serve(i, request, counts=self._counts(request))
        tokens = request.tokens - request.held
        service_s = world.service_s(i, request.stop - request.at, tokens)
        ends = world.occupy(i, service_s, now)
        request.waited_s = 0.0 if world.lies_load[i] else ends - service_s - now
        if world.admission(i) is not None:
            self._at(ends, "ended", (i, self._lease(request)))
        if ends > world.dies[i]:
            self._at(float(world.dies[i]) + detect_s, "fail", request)
            return
        back_s = world.owd_s(i, request.access_s, request.place)
        self._at(ends + back_s + world.road_s(i, request.tokens) / 2, "back", request)

    def _lease(self, request: Request) -> tuple[int, int]:
        return request.number, request.hops + request.retries  # never the same twice

    def _admit(self, request: Request, now: float) -> bool:
        """A hop is a session of its own here; whoever is refused asks elsewhere."""
        i = request.peer
        admission = self._world.admission(i)
        if admission is None:
            return True
        blocks, client = BlockRange(request.at, request.stop), f"client{request.client}"
        try:
            admission.admit(self._lease(request), client, blocks, request.tokens, now)
        except Refused as full:
            back_s = self._world.owd_s(i, request.access_s, request.place)
            self._at(now + back_s, "refused", (request, full.retry_after_s))
            return False
        return True

    def _refused(self, request: Request, retry_after_s: float, now: float) -> None:
        self._trace.update(pack("<dqqd", now, request.number, -request.peer, retry_after_s))
        request.retries += 1
        self._router.refused(request, retry_after_s, now)
        self._next(request, now)

    def _back(self, request: Request, now: float) -> None:
        world, i = self._world, request.peer
        self._trace.update(pack("<dqqq", now, request.number, i, request.stop))
        self._router.answered(request, world.told_queue_s(i, now), now)
        request.hops += 1
        request.at = request.stop
        if request.at < world.total:
            self._next(request, now)
            return
        if self._counts(request):
            outcome = self.outcome
            self._open -= 1
            outcome.done += 1
            outcome.good += now <= request.deadline_s
            outcome.latencies_s.append(now - request.born_s)
            outcome.retries += request.retries
            outcome.hops += request.hops

    def _fail(self, request: Request, now: float) -> None:
        self._trace.update(pack("<dqq", now, request.number, -request.peer))
        request.retries += 1
        self._router.failed(request, now)
        self._next(request, now)

    def _change(self, kind: str, what: object, now: float) -> None:
        """Peers come and go, move, and are measured."""
        world, placing = self._world, self._scenario.placing
        self._trace.update(pack("<d", now) + f"{kind} {what}".encode())
        match kind, what:
            case "dies", int(i):
                world.pause(i)
                self._moving.discard(i)
                self._joins_and_leaves += 1
                self._at(now + placing.tell_s, "missed", i)
            case "missed", int(i):
                world.announce(i, None)
            case "born", int(i):
                self._joins_and_leaves += 1
                self._at(now + placing.move_s, "loaded", (i, world.join(i)))
                self._at(float(world.dies[i]), "dies", i)
            case "loaded", (int(i), BlockRange() as blocks) if now < world.dies[i]:
                self._moving.discard(i)
                world.settle(i, blocks)
            case "ended", (int(i), lease) if (admission := world.admission(i)) is not None:
                admission.release(lease, now)
            case "refused", (Request() as request, float(retry_after_s)):
                self._refused(request, retry_after_s, now)
            case "look", _:
                moves, again_s = self._mover.look(now, frozenset(self._moving))
                self._at(again_s, "look", None)
                for i, blocks in moves:
                    self._moving.add(i)
                    world.announce(i, blocks)
                    self._moves += self._scenario.warm_s <= now < self._scenario.seconds
                    if not self._mover.serves_while_loading:
                        world.pause(i)
                    # The baselines' peers fetch nothing ahead, as those of SWARM and Petals.
                    ahead = self._mover.serves_while_loading
                    move_s = world.move_s(i, blocks, now) if ahead else placing.move_s
                    self._at(now + move_s, "loaded", (i, blocks))
            case "sample", _:
                self._sample(now)

    def _sample(self, now: float) -> None:
        if now >= self._scenario.seconds:
            return
        world = self._world
        flow, bound = world.optimum(), world.bound()
        best = here = 1.0
        every_s = SAMPLE_S
        if self._scenario.kind == "layout":
            best = _best_layout(world, world.living())
            here = _best_layout(world, world.here(now))
            every_s = LAYOUT_SAMPLE_S
        self._flow.append((flow, bound, best, float(world.alive.sum()), here))
        self._at(now + every_s, "sample", None)

    def _finish(self, ended_s: float) -> Outcome:
        outcome, scenario, world = self.outcome, self._scenario, self._world
        flows: Floats = np.array(self._flow)
        if len(flows):
            ratio = flows[:, 0] / np.maximum(flows[:, 1], 1e-12)
            outcome.flow = float(ratio.mean())
            outcome.flow_low = float(np.quantile(ratio, 0.05))
            if scenario.kind == "layout":
                outcome.flow_best = float((flows[:, 0] / np.maximum(flows[:, 2], 1e-12)).mean())
                outcome.flow_here = float((flows[:, 0] / np.maximum(flows[:, 4], 1e-12)).mean())
            outcome.uncovered = float((flows[:, 0] <= 0).mean())
            outcome.peers = float(flows[:, 3].mean())
            offered = self._rate * world.mean_tokens()
            outcome.load = float((offered / np.maximum(flows[:, 0], 1e-12)).mean())
        hours = (scenario.seconds - scenario.warm_s) / 3600
        outcome.moves_per_hour = self._moves / max(outcome.peers, 1) / hours
        outcome.control_kbit_s = (
            self._control_bytes(ended_s) * 8e-3 / ended_s / max(outcome.peers, 1)
        )
        if world.prompts.hops:
            outcome.hit = world.prompts.held / world.prompts.hops
        outcome.trace = self._trace.hexdigest()
        return outcome

    def _control_bytes(self, ended_s: float) -> float:
        """Records put and refreshed at all their keepers, reads, probes: sent and received."""
        control = self._scenario.control
        puts = (
            self.outcome.peers * ended_s / control.refresh_s + self._joins_and_leaves + self._moves
        )
        return 2 * puts * control.copies * control.record_bytes + self._router.control_bytes


def _pareto(mean: float, tail: float, most: int, dice: Dice) -> int:
    """Heavy-tailed, bounded, of about this mean: Zipf's continuous sister."""
    least = mean * (tail - 1) / tail
    drawn: float = least * (1 - dice.random()) ** (-1 / tail)
    return max(1, min(most, round(drawn)))


def _best_layout(world: World, peers: Sequence[int]) -> float:
    """What these could carry if all were placed anew, the fastest first."""
    load = np.zeros(world.total)
    for i in sorted(peers, key=lambda i: -world.rate[i] / world.length[i]):
        blocks = join_window(load, world.length[i])
        load[blocks.start : blocks.stop] += world.rate[i] / len(blocks)
    return float(load.min())
