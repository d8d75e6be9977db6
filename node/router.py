"""Keeps the picture of the swarm fresh, and answers with routes.

A view is made from verified announcements (the directory's business) and from what this process
saw of the peers itself (swarm/history.py). A read of the directory is shared by all who want it,
used for `FRESH_S`, and repeated at once when a route cannot be found.

Where no route is found, some who could serve may yet be there: those who failed us lately, whom a
pause of theirs, or of ours, has banned; and those of whom reads before told and this one does not,
because the keepers that answered it had not heard of them. They are asked for their queues, as a
sign of life, and whoever answers is used.

    missing ─▶ ask the banned and the unheard ─▶ a route by those who answer
       ▲                        │ nobody, or not enough
       └── for GRACE_S; while somebody answers, for ALIVE_S
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import trio

from ..dht.network import Prefixes, place_of
from ..dht.record import Announcement
from ..errors import MissingBlocks, Refused
from ..swarm.blocks import BlockRange
from ..swarm.history import PeerHistory, Usual
from ..swarm.prefix import Prompt
from ..swarm.routing import Plan, Route, find_route, plan_route, rebind
from ..swarm.view import RELAYED, RTT_UNKNOWN_S, Span, SwarmView
from .heard import Heard
from .homing import Homing
from .net.host import Host
from .net.ways import relays_told
from .queues import ask_queues

HISTORIES_MAX = 8192  # about 8 MB; strangers can make up as many peers as they like
FRESH_S = 2.0  # algorithms.md 2.5: a route may rest on a view of this age
HURRY_S = 60.0  # most peers of a minute ago are there still; one that is not costs one dial
GRACE_S = 3.0  # longer than a first ban: one hiccup of the only replica is survived
ALIVE_S = 15.0  # guess: so long for whoever answers, though not well: two more bans, doubled
LAST_ASKED_MAX = 32  # guess: of those who might be there yet, at once
HEDGE_SHARE = 0.05  # of the answered steps: guess; gRPC's examples allow a tenth
HEDGES_SAVED = 20.0  # guess: a session's hops may all be late at once
LOOK_AGAIN_S = 0.25  # between two looks for cover that is not there


class Directory(Protocol):
    """Where announcements are found."""

    async def find(self, model: str) -> tuple[Announcement, ...]: ...


class Standing(Protocol):
    """How far peers are trusted (trust/book.py)."""

    def cost_factor(self, peer: str) -> float:
        """What its times count: 1 for a stranger, infinitely for whom no route may lead to."""


class Hedges:
    """How many hedges this process may make: a share of the answers it had.

    Without it a slow swarm would be asked for everything twice, and be slower still. (The shape
    follows gRPC's retry throttling.)
    """

    def __init__(self) -> None:
        self._left = HEDGES_SAVED

    def earn(self) -> None:
        self._left = min(HEDGES_SAVED, self._left + HEDGE_SHARE)

    def take(self) -> bool:
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Router:
    """One for a process: all its sessions share what was seen of the peers."""

    def __init__(
        self,
        host: Host,
        directory: Directory,
        rng: random.Random,
        trust: Standing | None = None,
    ) -> None:
        """trust: None: all peers are strangers, and stay so."""
        self._host = host
        self._directory = directory
        self._rng = rng
        self._trust = trust
        self.hedges = Hedges()
        self.opens: Callable[[str], None] = lambda peer: None  # told of whom a hop is opened at,
        self.took: Callable[[str, int, float], None] = lambda peer, tokens, work: None  # and of
        # what it computed for us (credit/purse.py)
        self._known: dict[str, Heard] = {}
        self._histories: dict[str, PeerHistory] = {}
        self.usual = Usual()
        self.homing = Homing(host, self.history, rng)

    def history(self, peer: str) -> PeerHistory:
        """What we saw of this peer; the longest unseen are forgotten."""
        found = self._histories.pop(peer, None) or PeerHistory()
        self._histories[peer] = found  # put last: what is first was not asked for longest
        if len(self._histories) > HISTORIES_MAX:
            del self._histories[next(iter(self._histories))]
        return found

    def answered(
        self, peer: str, elapsed_s: float, tokens: int, blocks: int, *, queue_s: float
    ) -> None:
        """A step came back right. queue_s: what its answer tells of the queue; no step has waited
        there for longer than we have."""
        history = self.history(peer)
        queue_s = min(queue_s, elapsed_s)
        history.answered(elapsed_s, tokens, blocks, queue_s=queue_s)
        self.usual.answered(elapsed_s, tokens, blocks)
        history.told_queue(queue_s, trio.current_time())
        self.hedges.earn()

    async def announcements(
        self, model: str, *, within_s: float = FRESH_S
    ) -> tuple[Announcement, ...]:
        """Who says that they serve this model: verified, and read at most `within_s` ago."""
        known = self._known.setdefault(model, Heard())
        wanted_s = trio.current_time() - within_s
        if known.read_s <= wanted_s:
            async with known.reading:
                if known.read_s <= wanted_s:
                    began_s = trio.current_time()
                    known.read(await self._directory.find(model), began_s)
                    for told in known.found:
                        self.history(told.peer).announced(told.boot, told.seq)
                        self._host.learn(told.peer, told.addresses)
        return known.found

    async def view(self, model: str, blocks: int, *, within_s: float = FRESH_S) -> SwarmView:
        found = await self.announcements(model, within_s=within_s)
        return self._view(model, blocks, found)

    def _view(self, model: str, blocks: int, found: Sequence[Announcement]) -> SwarmView:
        serving = [
            told
            for told in found
            if told.state == "online" and told.blocks == blocks and self.may_serve(told.peer)
        ]
        claims = [told.decode_tokens_s for told in serving]
        usual_tokens_s = statistics.median(claims) if claims else math.inf
        now = trio.current_time()
        spans = tuple(self._span(told, usual_tokens_s, now) for told in serving)
        addresses = {told.peer: told.addresses for told in found}
        return SwarmView(model, BlockRange(0, blocks), spans, addresses)

    async def route(
        self,
        model: str,
        total: int,
        blocks: BlockRange,
        *,
        cache_tokens: int,
        wait_s: float = 0.0,
        hurry: bool = False,
        numerics: str = "",
        avoid: Collection[str] = (),
        prompt: Prompt | None = None,
    ) -> Route:
        """Hops for these blocks, around every peer that lately failed, and those to avoid, who may
        become more meanwhile.

        numerics: the class to stay in, if peers of it serve the blocks, so that an answer goes on
        bit for bit. hurry: somebody waits for this hop's successor, so an older view will do at
        first: the dead peer's neighbour is in it; else the route is bound late, to the cheapest of
        those that answer when asked for their queues. Where no route is found the directory is
        read again, twice at least, for GRACE_S or `wait_s`, whichever is longer (ALIVE_S, while
        somebody answers who has failed us); then MissingBlocks, or Refused when all that serve the
        blocks are full. prompt: is placed where its beginning is thought to be (affinity.py).
        """
        began_s = trio.current_time()
        deadline_s = began_s + max(GRACE_S, wait_s)
        within_s = HURRY_S if hurry else FRESH_S
        looks = 0
        while True:
            looks += 1
            view = await self.view(model, total, within_s=within_s)
            now = trio.current_time()
            try:
                plan = self._cheapest(
                    view, blocks, cache_tokens, self._out(view) | {*avoid}, numerics
                )
            except MissingBlocks as missing:
                wider, there = await self._still_there(view, blocks, avoid)
                with suppress(MissingBlocks):
                    out = self._out(wider, there) | {*avoid}
                    return self._cheapest(wider, blocks, cache_tokens, out, numerics).route
                now = trio.current_time()
                if there:
                    deadline_s = max(deadline_s, min(now + GRACE_S, began_s + ALIVE_S))
                if now >= deadline_s and looks > 1:
                    full = any(self._takes_nothing(view.model, span, now) for span in view.spans)
                    if full and not view.missing():
                        raise Refused(
                            f"every peer that serves {view.model[:12]} is full",
                            retry_after_s=LOOK_AGAIN_S,
                        ) from missing
                    raise
            else:
                if hurry:
                    return plan.route
                if prompt is not None and not numerics:
                    tired = self._out(view) | {*avoid}
                    placed = await self.homing.place(view, blocks, cache_tokens, tired, prompt)
                    if placed is not None:
                        return placed
                return await self._bind(view, plan, cache_tokens)
            within_s = LOOK_AGAIN_S
            await trio.sleep(LOOK_AGAIN_S)

    async def _still_there(
        self, view: SwarmView, blocks: BlockRange, avoid: Collection[str]
    ) -> tuple[SwarmView, Collection[str]]:
        """Who answers of those that failed us, and of those whom only a read before told of; the
        view with the latter beside."""
        known, now = self._known[view.model], trio.current_time()
        lacking = self._view(view.model, view.blocks.stop, known.lacking()).spans
        failed = [span for span in view.spans if self.history(span.peer).banned(now)]
        asked = [
            span.peer
            for span in (*failed, *lacking)
            if span.blocks.overlaps(blocks)
            and span.peer not in avoid
            and self.history(span.peer).may_recover()
            and not self._takes_nothing(view.model, span, now)
        ]
        if len(asked) > LAST_ASKED_MAX:
            asked = self._rng.sample(asked, LAST_ASKED_MAX)
        there = await ask_queues(self._host, view.model, asked)
        found = [span for span in lacking if span.peer in there]
        return replace(view, spans=(*view.spans, *found)), there

    def _out(self, view: SwarmView, there: Collection[str] = ()) -> set[str]:
        """Who takes nothing, and who failed us lately and may not be tried yet. there: who gave a
        sign of life just now."""
        now = trio.current_time()
        return {
            span.peer
            for span in view.spans
            if self._takes_nothing(view.model, span, now)
            or (
                (history := self.history(span.peer)).banned(now)
                and not (span.peer in there and history.may_be_tried(now))
            )
        }

    async def _bind(self, view: SwarmView, plan: Plan, cache_tokens: int) -> Route:
        """The cheapest of those that are there now, by the queues that they tell."""
        if len(plan.asked) == len(plan.route.hops):
            return plan.route  # nobody could stand in for anybody
        told = await ask_queues(self._host, view.model, plan.asked)
        now = trio.current_time()
        for peer, queue_s in told.items():
            self.history(peer).told_queue(queue_s, now)
        fresh = {peer: self.history(peer).queue_s(now) for peer in told}
        return rebind(view, plan.route, fresh, cache_tokens=cache_tokens, draw=self._draw)

    async def standby(
        self,
        model: str,
        total: int,
        blocks: BlockRange,
        *,
        cache_tokens: int,
        numerics: str,
        beside: str,
        avoid: Collection[str],
        within_s: float = HURRY_S,
    ) -> str | None:
        """The best peer that serves all of these blocks in this class alone, or None.

        beside: for whom it stands by; its class is the one where none is known yet, because it has
        not opened.
        """
        view = await self.view(model, total, within_s=within_s)
        now = trio.current_time()
        if not numerics:
            numerics = next((span.numerics for span in view.spans if span.peer == beside), "")
        fit = [
            span
            for span in view.spans
            if span.blocks.start <= blocks.start
            and blocks.stop <= span.blocks.stop
            and span.numerics == numerics
            and span.peer not in avoid
            and not self._takes_nothing(model, span, now)
        ]
        # a banned one may be well again, and nobody waits for it alone
        good = [span for span in fit if not self.history(span.peer).banned(now)] or fit
        if not good:
            return None
        alone = replace(view, spans=tuple(good))
        return find_route(alone, blocks, cache_tokens=cache_tokens, draw=self._draw).hops[0].peer

    def _cheapest(
        self, view: SwarmView, blocks: BlockRange, cache_tokens: int, avoid: set[str], numerics: str
    ) -> Plan:
        """The cheapest route inside the numerics class, else the cheapest of all."""
        others = {span.peer for span in view.spans if numerics and span.numerics != numerics}
        for excluded in (avoid | others, avoid):
            try:
                return plan_route(
                    view, blocks, cache_tokens=cache_tokens, avoid=excluded,
                    draw=self._draw, pick=self._rng.randrange,
                )  # fmt: skip
            except MissingBlocks:
                if excluded == avoid:
                    raise
        raise AssertionError("the last try returns or raises")

    def _takes_nothing(self, model: str, span: Span, now: float) -> bool:
        return self.history(span.peer).busy(now) or self._known[model].leaves(span, now)

    def span(self, model: str, peer: str) -> BlockRange | None:
        """What the peer's newest record tells that it serves."""
        known = self._known.get(model)
        return None if known is None else known.span(peer)

    def told(self, model: str, peer: str) -> Announcement | None:
        """The peer's newest record of this model."""
        known = self._known.get(model)
        return None if known is None else known.told(peer)

    def left(self, model: str, peer: str, span: BlockRange | None) -> None:
        """The peer said that it leaves this span: to go, to rest, or to move to another."""
        if span is not None and (known := self._known.get(model)) is not None:
            known.say_left(peer, span, trio.current_time())

    def _draw(self, mean: float) -> float:
        return self._rng.expovariate(1.0 / mean)

    def may_serve(self, peer: str) -> bool:
        """Whether we would have it compute for us: it is another, and neither barred nor banned."""
        if peer == self._host.peer_id or not self._host.welcomes(peer):
            return False
        return math.isfinite(self._weight(peer))

    def _weight(self, peer: str) -> float:
        return 1.0 if self._trust is None else self._trust.cost_factor(peer)

    def _is_relayed(self, told: Announcement) -> bool:
        """As it is now; of a peer that we are not connected to, as its record says it will be."""
        if self._host.rtt_s(told.peer) is None:
            return bool(relays_told(told.addresses))
        return self._host.relay_of(told.peer) is not None

    def _span(self, told: Announcement, usual_tokens_s: float, now: float) -> Span:
        history = self.history(told.peer)
        share = RELAYED if self._is_relayed(told) else 1.0
        return Span(
            peer=told.peer,
            blocks=BlockRange(told.start, told.stop),
            block_s=history.block_s(
                told.decode_tokens_s * share, usual_tokens_s=usual_tokens_s * share
            ),
            rtt_s=RTT_UNKNOWN_S if history.rtt_s is None else history.rtt_s,
            queue_s=history.queue_s(now),
            numerics=told.numerics,
            cache_tokens_free=told.cache_tokens_free,
            weight=self._weight(told.peer),
            network=self.place(told),
        )

    def place(self, told: Announcement) -> Prefixes:
        """The network that a peer is seen in, else the one where it says to be."""
        return place_of(told.addresses, self._host.where(told.peer))
