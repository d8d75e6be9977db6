"""Our router in the simulator: the daemon's own objects, fed with what a client can know.

That is records that it pulled a while ago, the queues that peers told, and its own measurements:
Finder and PeerHistory do the rest.
"""

from __future__ import annotations

import math

import numpy as np

from ...errors import MissingBlocks
from ..blocks import BlockRange
from ..foresight import Shortfall
from ..history import PATIENCE_FLOOR_S, PeerHistory, Usual, aged_queue_s, believed_queue_s
from ..routing import ALTERNATES, Finder, Offer
from ..view import OBSERVATIONS_TO_TRUST, RTT_UNKNOWN_S, Columns, Floats, Ints
from .dice import Dice
from .request import Request
from .world import World

CHUNK_TOKENS = 128  # of a prefill in the daemon
STRANGER = PeerHistory()


class Client:
    """What one of our clients knows: rows of the world that it has records of."""

    __slots__ = (
        "busy", "columns", "finders", "heard_s", "histories", "in_flight_s", "known",
        "pulled_s", "shortfall", "told_s", "usual", "usual_tokens_s",
    )  # fmt: skip

    def __init__(self, world: World) -> None:
        size = world.size
        self.columns = Columns(
            name=world.name,
            start=np.zeros(size, dtype=np.int64),
            stop=np.ones(size, dtype=np.int64),
            block_s=np.ones(size),
            rtt_s=np.full(size, RTT_UNKNOWN_S),
            queue_s=np.zeros(size),
            room=np.full(size, 1e15),
            byte_s=np.zeros(size),
            cached=np.zeros(size),
        )
        self.known: dict[int, float] = {}  # when the record was read
        self.busy: Floats = np.zeros(size)  # until when not to ask
        self.histories: dict[int, PeerHistory] = {}
        self.usual = Usual()
        self.told_s: Floats = np.zeros(size)
        self.heard_s: Floats = np.full(size, -1e9)
        self.in_flight_s: Floats = np.zeros(size)
        self.pulled_s = -math.inf
        self.shortfall = Shortfall()
        self.usual_tokens_s = math.inf
        self.finders: dict[int, tuple[float, Finder]] = {}


class Ours:
    """The daemon's router: a finder over what is known, and every hop bound late."""

    def __init__(self, world: World, dice: Dice) -> None:
        self._world, self._dice = world, dice
        self.control_bytes = 0.0
        self._clients: dict[int, Client] = {}

    def choose(self, request: Request, now: float) -> tuple[int, int] | None:
        client = self.client(request.client)
        for forced in (False, True):
            self._pull(client, now, forced)
            finder = self._finder(client, request, now)
            if finder is None:
                continue
            offers = self._offers(client, finder, request, now)
            if offers:
                size = request.tokens / self._sized(request.tokens)
                short_s = size * client.shortfall.block_s()
                row, stop, cost_s = finder.bind(request.at, offers, size=size, short_s=short_s)
                blocks = stop - request.at
                client.shortfall.saw(finder.togo_s(request.at), cost_s, blocks * size)
                self.goes(client, row, stop, request, request.tokens)
                return row, stop
        return None

    def client(self, number: int) -> Client:
        """What a client knows; of a new one, nothing."""
        client = self._clients.get(number)
        if client is None:
            client = self._clients[number] = Client(self._world)
        return client

    def goes(self, client: Client, row: int, stop: int, request: Request, tokens: int) -> None:
        """The request goes there, where so many of its tokens are thought to be computed."""
        blocks = stop - request.at
        request.work_s = blocks * tokens * float(client.columns.block_s[row])
        client.in_flight_s[row] += request.work_s
        # Its step tells so; in life it does when it is there.
        self._world.promises(row).came(float(client.told_s[row]))

    def queues_s(self, client: Client, rows: Ints, now: float) -> Floats:
        """What these told of their queues, as it is likely to be now."""
        return aged_queue_s(client.told_s[rows], now - client.heard_s[rows])

    def _pull(self, client: Client, now: float, forced: bool) -> None:
        """Read some records; more of them the longer ago the last were read."""
        world, control = self._world, self._world.scenario.control
        missed = now - client.pulled_s
        if not forced and missed < control.pull_s:
            return
        living = world.living()
        client.finders.clear()
        first = control.view_max if not client.known else 0
        count = max(first, round(control.pull_records * min(max(missed / control.pull_s, 1), 4)))
        read = living if count >= len(living) else self._dice.sample(living, count)
        client.pulled_s = now
        client.usual_tokens_s = float(np.median(world.claims[read])) if read else math.inf
        self.control_bytes += 2 * len(read) * control.record_bytes
        for i in read:
            client.known.pop(i, None)
            client.known[i] = now
            self._note(client, i)
        while len(client.known) > control.view_max:
            gone = next(iter(client.known))
            self._forget(client, gone)

    def _note(self, client: Client, i: int) -> None:
        world, columns = self._world, client.columns
        columns.start[i], columns.stop[i] = world.start[i], world.stop[i]
        columns.byte_s[i] = world.byte_s[i]
        if client.busy[i] == math.inf:
            client.busy[i] = 0.0
        history = client.histories.get(i)
        claim = world.claim(i)
        columns.block_s[i] = (history or STRANGER).block_s(
            claim, CHUNK_TOKENS, usual_tokens_s=client.usual_tokens_s
        )

    def _forget(self, client: Client, i: int) -> None:
        client.known.pop(i, None)

    def _sized(self, tokens: int) -> float:
        """Steps of about one size share a finder."""
        return float(4 ** round(math.log2(max(tokens, 1)) / 2))

    def _finder(self, client: Client, request: Request, now: float) -> Finder | None:
        world = self._world
        sized = self._sized(request.tokens)
        key = int(sized)
        made = client.finders.get(key)
        if made is not None and now - made[0] < world.scenario.control.fresh_s:
            return made[1]
        rows = np.fromiter(client.known, np.int64, len(client.known))
        rows = rows[client.busy[rows] <= now]
        columns = client.columns
        told = self.queues_s(client, rows, now)
        columns.queue_s[rows] = np.maximum(told, client.in_flight_s[rows])
        try:
            finder = Finder(
                columns, BlockRange(0, world.total), rows=rows, tokens=sized,
                row_bytes=world.scenario.model.row_bytes, draw=self._draw,
            )  # fmt: skip
        except MissingBlocks:
            return None
        client.finders[key] = (now, finder)
        return finder

    def _draw(self, mean: float) -> float:
        return self._dice.expovariate(1.0 / mean)

    def _offers(self, client: Client, finder: Finder, request: Request, now: float) -> list[Offer]:
        """Ask the planned peer and some alternates for their queues, all at once."""
        world, at = self._world, request.at
        planned, _ = finder.planned(at)
        asked = [planned, *finder.alternates(at, ALTERNATES, self._dice.randrange)]
        self.control_bytes += 4 * len(asked) * world.scenario.control.probe_bytes
        offers = []
        for i in asked:
            if client.busy[i] > now:
                continue
            queue_s = self._ask(client, i, request, now)
            if queue_s is not None:
                in_flight_s = float(client.in_flight_s[i])
                offers.append(Offer(i, believed_queue_s(queue_s, in_flight_s)))
        return offers

    def _ask(self, client: Client, i: int, request: Request, now: float) -> float | None:
        """What a peer tells of its queue; None: it does not serve what it did."""
        world, at = self._world, request.at
        stop = int(world.stop[i])
        serves = world.start[i] <= at and stop >= client.columns.stop[i]
        if not serves or not world.alive[i]:
            self._forget(client, i)  # no answer, or "not mine any more"
            client.busy[i] = math.inf
            return None
        queue_s = world.told_queue_s(i, now)
        client.told_s[i], client.heard_s[i] = queue_s, now
        there_s = world.owd_s(i, request.access_s, request.place)
        client.columns.rtt_s[i] = 2 * there_s
        work_s = world.service_s(i, stop - at, request.tokens)
        world.promises(i).asked(work_s, queue_s, now, now + there_s)
        return queue_s

    def answered(self, request: Request, queue_s: float, now: float) -> None:
        client, i = self._clients[request.client], request.peer
        client.in_flight_s[i] = max(0.0, client.in_flight_s[i] - request.work_s)
        history = client.histories.get(i)
        if history is None:
            history = client.histories[i] = PeerHistory()
        history.rtt_s = 2 * self._world.owd_s(i, request.access_s, request.place)
        history.rtt_s += self._world.road_s(i, request.tokens)
        elapsed_s = now - request.sent_s
        blocks = request.stop - request.at
        # A long request is many steps to the daemon: each of its chunks is an observation.
        tokens = request.tokens - request.held  # what was computed
        chunks = min(1 + tokens // CHUNK_TOKENS, OBSERVATIONS_TO_TRUST)
        for _ in range(chunks):
            history.answered(elapsed_s, tokens, blocks, queue_s=request.waited_s)
            client.usual.answered(elapsed_s, tokens, blocks)
        client.columns.block_s[i] = history.block_s(
            self._world.claim(i), CHUNK_TOKENS, usual_tokens_s=client.usual_tokens_s
        )
        client.told_s[i], client.heard_s[i] = queue_s, now

    def failed(self, request: Request, now: float) -> None:
        client, i = self._clients[request.client], request.peer
        client.in_flight_s[i] = max(0.0, client.in_flight_s[i] - request.work_s)
        history = client.histories.setdefault(i, PeerHistory())
        history.failed(now)
        client.busy[i] = now + 60.0 if history.known else history.banned_until_s
        self._forget(client, i)

    def refused(self, request: Request, retry_after_s: float, now: float) -> None:
        client, i = self._clients[request.client], request.peer
        client.in_flight_s[i] = max(0.0, client.in_flight_s[i] - request.work_s)
        client.busy[i] = now + retry_after_s

    def patience_s(self, request: Request) -> float:
        """As long as the peer's own answers say, or until another would be asked beside it."""
        client, blocks = self._clients[request.client], request.stop - request.at
        history = client.histories.get(request.peer) or PeerHistory()
        patience_s = history.patience_s(request.tokens, blocks)
        return min(
            patience_s, max(history.hedge_s(request.tokens, blocks, client.usual), PATIENCE_FLOOR_S)
        )
