"""The routers that ours is measured against.

They get more than they would have in life, so that a win over them is one:

    petals   the shortest path by round trip and claimed rate (algorithms.md 2.2); of load it knows
             whether a cache is full; reads all records each 60 s, knows every round trip
    swarm    our own Wheels, which are SWARM's IWRR; all records each 30 s
    random   any living peer that serves the block
    po3      of three such peers, by what they tell of their queues, the soonest per block
    greedy   of all of them, by their queues and all that is on the way to them: an oracle
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..blocks import BlockRange
from ..view import Floats, Ints
from ..wiring import Member, Wheels
from .dice import Dice
from .request import Request
from .world import World

PETALS_HOP_S = 0.018  # sequence_manager.py: "empirically measured"
PETALS_REFRESH_S = 60.0
PETALS_BAN_S = 15.0
PETALS_NO_ROOM_S = 10.0  # for a cache with less than twice what the session needs
SWARM_REFRESH_S = 30.0


@dataclass(frozen=True, slots=True)
class _Serving:
    """The peers of one block, and what of them stays until the layout changes."""

    rows: Ints
    blocks: Ints  # left to the end of their spans
    token_s: Floats  # one token through those
    places: Floats
    access_s: Floats


class _Layout:
    """Who serves a block at this instant."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._found: dict[int, tuple[int, _Serving]] = {}

    def at(self, block: int) -> _Serving:
        world = self._world
        version, found = self._found.get(block, (-1, None))
        if found is None or version != world.versions[block]:
            rows = np.flatnonzero(world.alive & (world.start <= block) & (world.stop > block))
            blocks = world.stop[rows] - block
            found = _Serving(
                rows, blocks, blocks / world.claims[rows], world.places[rows], world.access[rows]
            )
            self._found[block] = int(world.versions[block]), found
        return found


class _Fresh:
    """random, po3 and greedy: by the peers of this instant; they learn nothing."""

    def __init__(self, world: World, dice: Dice) -> None:
        self._world, self._dice = world, dice
        self._layout = _Layout(world)
        self.control_bytes = 0.0

    def answered(self, request: Request, queue_s: float, now: float) -> None:
        pass

    def failed(self, request: Request, now: float) -> None:
        pass

    def refused(self, request: Request, retry_after_s: float, now: float) -> None:
        pass  # it draws again

    def patience_s(self, request: Request) -> float:
        return 60.0


class Drawn(_Fresh):
    """The best of a few that are drawn: of one, random; of three, po3."""

    def __init__(self, world: World, dice: Dice, count: int) -> None:
        super().__init__(world, dice)
        self._count = count

    def choose(self, request: Request, now: float) -> tuple[int, int] | None:
        world = self._world
        serving = self._layout.at(request.at)
        if not len(serving.rows):
            return None
        drawn = [self._dice.randrange(len(serving.rows)) for _ in range(self._count)]
        if self._count > 1:
            self.control_bytes += 4 * self._count * world.scenario.control.probe_bytes

        def block_s(place: int) -> float:
            i = int(serving.rows[place])
            eta_s = world.owd_s(i, request.access_s, request.place) + world.told_queue_s(i, now)
            eta_s += request.tokens * float(serving.token_s[place])
            return eta_s / float(serving.blocks[place])

        best = int(serving.rows[min(drawn, key=block_s)])
        return best, int(world.stop[best])


class Greedy(_Fresh):
    """An oracle of the next hop: all queues of this instant, all roads, all work on the way.

    Without the last all go to the same best peer until the first of them has arrived: at 10,000
    peers and hidden states that travel for seconds a tenth then got no answer at all.
    """

    def __init__(self, world: World, dice: Dice) -> None:
        super().__init__(world, dice)
        self._free_at: Floats = np.zeros(world.size)  # by what was sent

    def choose(self, request: Request, now: float) -> tuple[int, int] | None:
        world = self._world
        serving = self._layout.at(request.at)
        rows = serving.rows
        if not len(rows):
            return None
        x, y = serving.places.T
        there_s = np.hypot(x - request.place[0], y - request.place[1])
        there_s *= world.scenario.links.world_ms / 1000
        there_s += serving.access_s + request.access_s
        there_s += request.tokens * world.scenario.model.row_bytes * world.byte_s[rows]
        seen_at = np.where(world.lies_load[rows], 0.0, world.busy_until[rows])
        ends_s = np.maximum(np.maximum(seen_at, self._free_at[rows]) - now, there_s)
        ends_s += request.tokens * serving.token_s
        place = int(((ends_s + there_s) / serving.blocks).argmin())
        best = int(rows[place])
        self._free_at[best] = now + ends_s[place]
        return best, int(world.stop[best])


class Petals:
    """The shortest path, a server always run to its span's end; bans double from 15 s."""

    def __init__(self, world: World, dice: Dice) -> None:
        self._world = world
        self.control_bytes = 0.0
        self._read_s: dict[int, float] = {}
        self._next: dict[int, list[int]] = {}
        self._banned: dict[tuple[int, int], tuple[float, int]] = {}

    def choose(self, request: Request, now: float) -> tuple[int, int] | None:
        client = request.client
        if now - self._read_s.get(client, -math.inf) >= PETALS_REFRESH_S:
            self._plan(request, now)
        peer = self._next[client][request.at]
        if peer < 0:
            self._plan(request, now)
            peer = self._next[client][request.at]
        return None if peer < 0 else (peer, int(self._world.stop[peer]))

    def _plan(self, request: Request, now: float) -> None:
        world, client = self._world, request.client
        self._read_s[client] = now
        control = world.scenario.control
        living = np.flatnonzero(world.alive)
        self.control_bytes += 2 * len(living) * control.record_bytes
        free = [i for i in living.tolist() if self._banned.get((client, i), (0.0, 0))[0] <= now]
        rows = np.array(free, dtype=np.int64)
        start, stop = world.start[rows], world.stop[rows]
        rtt = np.array([2 * world.owd_s(i, request.access_s, request.place) for i in free])
        rtt += np.where(self._full(rows, request), PETALS_NO_ROOM_S, 0.0)
        unit = request.tokens / world.claims[rows]
        togo = np.full(world.total + 1, np.inf)
        togo[-1] = 0.0
        chosen = [-1] * world.total
        for at in range(world.total - 1, -1, -1):
            cost = np.where(
                (start <= at) & (stop > at), rtt + PETALS_HOP_S + (stop - at) * unit, np.inf
            )
            if len(cost):
                cost = cost + togo[stop]
                i = int(cost.argmin())
                if math.isfinite(cost[i]):
                    togo[at], chosen[at] = cost[i], free[i]
        self._next[client] = chosen

    def _full(self, rows: Ints, request: Request) -> list[bool]:
        wanted = 2 * request.tokens * (self._world.stop[rows] - self._world.start[rows])
        books = [self._world.admission(i) for i in rows.tolist()]
        return [
            book is not None and need > book.free_tokens
            for book, need in zip(books, wanted.tolist(), strict=True)
        ]

    def answered(self, request: Request, queue_s: float, now: float) -> None:
        self._banned.pop((request.client, request.peer), None)

    def failed(self, request: Request, now: float) -> None:
        key = (request.client, request.peer)
        fails = self._banned.get(key, (0.0, 0))[1]
        self._banned[key] = (now + PETALS_BAN_S * 2**fails, min(fails + 1, 8))
        self._read_s[request.client] = -math.inf

    def refused(self, request: Request, retry_after_s: float, now: float) -> None:
        self.failed(request, now)

    def patience_s(self, request: Request) -> float:
        return 60.0


class Swarm:
    """SWARM's wiring: a wheel per boundary and client."""

    def __init__(self, world: World, dice: Dice) -> None:
        self._world, self._dice = world, dice
        self.control_bytes = 0.0
        self._wheels: dict[int, Wheels] = {}
        self._read_s: dict[int, float] = {}

    def choose(self, request: Request, now: float) -> tuple[int, int] | None:
        world, client = self._world, request.client
        wheels = self._wheels.get(client)
        if wheels is None:
            wheels = self._wheels[client] = Wheels(self._dice.random)
        if now - self._read_s.get(client, -math.inf) >= SWARM_REFRESH_S:
            self._read(client, wheels, now)
        hop = wheels.choose(request.at, world.total, request.tokens)
        if hop is None:
            self._read(client, wheels, now)
            hop = wheels.choose(request.at, world.total, request.tokens)
        return None if hop is None else (int(hop.peer), hop.blocks.stop)

    def _read(self, client: int, wheels: Wheels, now: float) -> None:
        world = self._world
        self._read_s[client] = now
        order = (1, int(now))
        wheels.update(
            {
                str(i): Member(BlockRange(int(world.start[i]), int(world.stop[i])), order)
                for i in world.living()
            }
        )
        self.control_bytes += 2 * len(world.living()) * world.scenario.control.record_bytes

    def answered(self, request: Request, queue_s: float, now: float) -> None:
        blocks = request.stop - request.at
        elapsed_s = now - request.sent_s
        self._wheels[request.client].answered(str(request.peer), elapsed_s, request.tokens, blocks)

    def failed(self, request: Request, now: float) -> None:
        self._wheels[request.client].failed(str(request.peer))

    def refused(self, request: Request, retry_after_s: float, now: float) -> None:
        pass  # the wheel has turned: another is next

    def patience_s(self, request: Request) -> float:
        return 60.0
