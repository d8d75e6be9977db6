"""The swarm as one sees it from here: who is there, by which road, what is served, what flows.

    directory ── offers, spans ──┐
    host ── links, round trips ──┼──▶ Scene ──▶ as JSON, whenever it has changed (watch.py)
    API ── answers, tokens ──────┘

A peer's record outlives it, so a look is more than a read: we hold a connection to everybody in
the picture. One that a peer's end closes is dialled again at once, and who does not answer counts
no more as serving; a process that is killed is out of the picture within a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import trio

from ...dht.directory import ModelOffer
from ...dht.record import Announcement
from ...errors import MissingBlocks, Refused, RemoteError, TransportError
from ...swarm.blocks import BlockRange, replicas, uncovered
from ..api.backend import Flow
from ..client import Swarm
from ..net.ways import relays_told

LOOK_S: Final = 0.5  # a kill is seen within two seconds: a look, a dial, and a page's own turn
READ_S: Final = 1.0  # guess: a newcomer shows within this
OFFERS_S: Final = 3.0  # guess: a model that is new, the same
KNOCK_S: Final = 1.5  # for a peer to be reached again
KNOCKS_MAX: Final = 16  # at a time
AGAIN_S, AGAIN_MOST_S = 1.0, 30.0  # between two knocks at a door that stays shut
PEERS_MAX: Final = 128  # in the picture; guess: beyond it nobody can tell them apart
MODELS_MAX: Final = 16
FLOWS_MAX: Final = 64
KEPT: Final = "in the picture"

Facts = dict[str, Any]


@dataclass(slots=True)
class Road:
    """Our road to one peer. kind: unknown, until it was tried; direct, relayed or unreachable."""

    kind: str = "unknown"
    rtt_s: float | None = None
    relay: str | None = None
    next_s: float = 0.0
    wait_s: float = AGAIN_S
    knocking: bool = False


class Sight:
    """One for a process, over its membership. `look` until it is cancelled."""

    def __init__(self, swarm: Swarm, flows: Mapping[int, Flow]) -> None:
        """flows: the answers that are being made."""
        self._swarm = swarm
        self._flows = flows
        self.changed: Callable[[], None] = lambda: None  # something may have
        self._roads: dict[str, Road] = {}
        self._found: dict[ModelOffer, tuple[Announcement, ...]] = {}
        self._offers: tuple[ModelOffer, ...] = ()

    async def look(self) -> None:
        """A service, for as long as somebody looks at the picture."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                while True:
                    self._walk(nursery)
                    self.changed()
                    await trio.sleep(LOOK_S)
        finally:
            self._swarm.member.host.keep(KEPT, set())

    async def _read(self) -> None:
        """What the directory tells; while it does not, the last stands."""
        offers_s = 0.0
        while True:
            try:
                if trio.current_time() >= offers_s:
                    self._offers = (await self._swarm.models())[:MODELS_MAX]
                    offers_s = trio.current_time() + OFFERS_S
                for offer in self._offers:
                    self._found[offer] = await self._swarm.router.announcements(
                        offer.model, within_s=READ_S
                    )
                for gone in set(self._found) - set(self._offers):
                    del self._found[gone]
            except (TransportError, RemoteError, Refused, MissingBlocks):
                pass  # a road that fails is what a picture shows anyway
            await trio.sleep(READ_S)

    def _walk(self, nursery: trio.Nursery) -> None:
        """Which roads stand now; knock where none does."""
        host, now = self._swarm.member.host, trio.current_time()
        spans = {one.peer: one for one in self._spans()}
        for gone in self._roads.keys() - spans.keys():
            del self._roads[gone]
        host.keep(KEPT, set(spans))
        knocking = sum(one.knocking for one in self._roads.values())
        for peer, span in spans.items():
            road = self._roads.setdefault(peer, Road(relay=_relay_told(span)))
            if host.best(peer) is not None:
                relay = host.relay_of(peer)
                road.kind, road.relay = ("relayed" if relay else "direct"), relay
                road.rtt_s, road.wait_s, road.next_s = host.rtt_s(peer), AGAIN_S, 0.0
            elif not road.knocking and now >= road.next_s and knocking < KNOCKS_MAX:
                road.knocking = True
                knocking += 1
                nursery.start_soon(self._knock, span, road)

    async def _knock(self, span: Announcement, road: Road) -> None:
        failed = True
        with trio.move_on_after(KNOCK_S):
            try:
                await self._swarm.member.host.connect(span.addresses)
                failed = False
            except (TransportError, RemoteError):
                pass
        road.knocking = False
        if failed:
            road.kind, road.rtt_s, road.relay = "unreachable", None, _relay_told(span)
            road.next_s = trio.current_time() + road.wait_s
            road.wait_s = min(2 * road.wait_s, AGAIN_MOST_S)
        self.changed()

    def _spans(self) -> list[Announcement]:
        """The first PEERS_MAX peers' spans, by name, so that the picture does not jump."""
        every = [span for found in self._found.values() for span in found]
        drawn = set(sorted({span.peer for span in every})[:PEERS_MAX])
        return [span for span in every if span.peer in drawn]

    # ---- what is seen

    def facts(self) -> Facts:
        """As JSON has it."""
        spans = self._spans()
        return {
            "me": self._swarm.member.host.peer_id,
            "peers": [self._peer(peer, spans) for peer in sorted({one.peer for one in spans})],
            "unseen": len({one.peer for found in self._found.values() for one in found})
            - len({one.peer for one in spans}),
            "models": [self._model(offer, found) for offer, found in self._found.items()],
            "flows": [_flow(one) for one in list(self._flows.values())[:FLOWS_MAX]],
        }

    def _peer(self, peer: str, spans: Iterable[Announcement]) -> Facts:
        mine = [one for one in spans if one.peer == peer]
        road = self._roads.get(peer, Road())
        return {
            "peer": peer,
            "road": road.kind,
            "relay": road.relay,
            "rtt_s": None if road.rtt_s is None else round(road.rtt_s, 4),
            "device": mine[0].device,
            "version": mine[0].version,
            "banned": self._swarm.trust.banned(peer),
            "spans": [
                {
                    "model": one.model,
                    "start": one.start,
                    "stop": one.stop,
                    "state": one.state,
                    "tokens_s": one.decode_tokens_s / (one.stop - one.start),
                    "asked_tokens_s": one.asked_tokens_s,
                    "cache_tokens_free": one.cache_tokens_free,
                }
                for one in mine
            ],
        }

    def _model(self, offer: ModelOffer, found: Iterable[Announcement]) -> Facts:
        """A peer that cannot be reached serves nothing; one that was not tried yet may."""
        whole = BlockRange(0, offer.blocks)
        served = [
            BlockRange(one.start, one.stop)
            for one in found
            if one.state == "online"
            and one.blocks == offer.blocks
            and self._roads.get(one.peer, Road()).kind != "unreachable"
            and not self._swarm.trust.banned(one.peer)
        ]
        return {
            "name": offer.name,
            "model": offer.model,
            "blocks": offer.blocks,
            "replicas": list(replicas(whole, served)),
            "missing": [list(gap) for gap in uncovered(whole, served)],
        }


def _flow(one: Flow) -> Facts:
    return {
        "number": one.number,
        "model": one.model,
        "tokens": one.answer.tokens,
        "seconds": round(trio.current_time() - one.began_s, 1),
        "recoveries": len(one.answer.recoveries),
        "hops": [
            {"peer": hop.peer, "start": hop.blocks.start, "stop": hop.blocks.stop}
            for hop in one.answer.route
        ],
    }


def _relay_told(span: Announcement) -> str | None:
    return next(iter(relays_told(span.addresses)), None)
