"""Our router where prompts begin alike: the daemon's rule (swarm/affinity.py), hop by hop.

What a client knows of who holds what is what it brought there itself; it is wrong where that has
been let go since. Requests without a common beginning go as `ours` sends them.
"""

from __future__ import annotations

import numpy as np

from ..affinity import Bid, candidates, choose
from ..history import believed_queue_s
from .dice import Dice
from .ours import Client, Ours
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
        bids = [
            self._bid(i, request, stop, first=i == two[0])
            for i in two
            if self._ask(client, i, request, now) is not None
        ]
        least_s = self._least_s(client, request, now) * (stop - request.at)
        share = (stop - request.at) / self._world.total
        best = choose(bids, request.tokens, least_s, share)
        if best is None:
            return None
        row = names[best.peer]
        self.goes(client, row, stop, request, request.tokens - best.held)
        return row, stop

    def _least_s(self, client: Client, request: Request, now: float) -> float:
        """What a block takes by load alone, as far as the client knows."""
        columns, at = client.columns, request.at
        rows = np.fromiter(client.known, np.int64, len(client.known))
        serves = (
            (columns.start[rows] <= at) & (columns.stop[rows] > at) & (client.busy[rows] <= now)
        )
        rows = rows[serves]
        queue_s = np.maximum(self.queues_s(client, rows, now), client.in_flight_s[rows])
        wait_s = (columns.rtt_s[rows] + queue_s) / (columns.stop[rows] - at)
        return float((wait_s + columns.block_s[rows] * request.tokens).min(initial=np.inf))

    def _bid(self, i: int, request: Request, stop: int, *, first: bool) -> Bid:
        known, whole = self.client(request.client), self._world.scenario.load.prompt_tokens
        has = first or (i, request.prompt) in self._brought.get(request.client, ())
        held = whole if has else 0
        wait_s = believed_queue_s(float(known.told_s[i]), float(known.in_flight_s[i]))
        work_s = float(known.columns.block_s[i]) * (stop - request.at) * (request.tokens - held)
        return Bid(self._world.name(i), float(known.columns.rtt_s[i]) + wait_s + work_s, held)

    def answered(self, request: Request, queue_s: float, now: float) -> None:
        super().answered(request, queue_s, now)
        if request.prompt >= 0:
            self._brought.setdefault(request.client, set()).add((request.peer, request.prompt))
