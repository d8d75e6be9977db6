"""Our router where prompts begin alike: the daemon's rule (swarm/affinity.py), hop by hop.

What a client knows of who holds what is what it brought there itself; it is wrong where that has
been let go since. Requests without a common beginning go as `ours` sends them.
"""

from __future__ import annotations

import numpy as np

from ..affinity import Bid, candidates, choose
from ..history import believed_queue_s
from .dice import Dice
from .ours import Ours
from .request import Request
from .world import World


class Affine(Ours):
    """`ours`, which for a prompt looks at the two peers that its beginning names first."""

    def __init__(self, world: World, dice: Dice) -> None:
        super().__init__(world, dice)
        self._brought: dict[int, set[tuple[int, int]]] = {}  # by client: (peer, prompt)

    def choose(self, request: Request, now: float) -> tuple[int, int] | None:
        chosen = self._placed(request, now) if request.prompt >= 0 else None
        return super().choose(request, now) if chosen is None else chosen

    def _placed(self, request: Request, now: float) -> tuple[int, int] | None:
        """One of the two candidates among those whose spans begin here and are alike."""
        client = self.client(request.client)
        self._pull(client, now, False)
        columns, known = client.columns, client.known
        group = [i for i in known if columns.start[i] == request.at and client.busy[i] <= now]
        stops = {int(columns.stop[i]) for i in group}
        if len(stops) != 1:
            return None
        stop = stops.pop()
        names = {columns.name(i): i for i in group}
        two = [names[name] for name in candidates(b"%d" % request.prompt, list(names))]
        self.control_bytes += 4 * len(two) * self._world.scenario.control.probe_bytes
        asked = {i for i in two if self._ask(client, i, request, now) is not None}
        rows = np.array([i for i in group if i not in two or i in asked], dtype=np.int64)
        if not asked or not len(rows):
            return None
        queue_s = np.maximum(self.queues_s(client, rows, now), client.in_flight_s[rows])
        cold_s = columns.rtt_s[rows] + queue_s
        cold_s += columns.block_s[rows] * ((stop - request.at) * request.tokens)
        bids = [self._bid(i, request, stop) for i in two if i in asked]
        best = choose(bids, float(min(cold_s.min(), *(bid.ttft_s for bid in bids))))
        if best is None:
            return None
        row = names[best.peer]
        self.goes(client, row, stop, request, request.tokens - best.held)
        return row, stop

    def _bid(self, i: int, request: Request, stop: int) -> Bid:
        known = self.client(request.client)
        has = (i, request.prompt) in self._brought.get(request.client, ())
        held = self._world.scenario.load.prompt_tokens if has else 0
        wait_s = believed_queue_s(float(known.told_s[i]), float(known.in_flight_s[i]))
        work_s = float(known.columns.block_s[i]) * (stop - request.at) * (request.tokens - held)
        return Bid(self._world.name(i), float(known.columns.rtt_s[i]) + wait_s + work_s, held)

    def answered(self, request: Request, queue_s: float, now: float) -> None:
        super().answered(request, queue_s, now)
        if request.prompt >= 0:
            self._brought.setdefault(request.client, set()).add((request.peer, request.prompt))
