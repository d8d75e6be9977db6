"""One generation along a route: steps in, outputs out, whatever dies on the way.

The session keeps, for each block boundary at which one of its hops begins, the input of every step
that went over it. That journal (journal.py) is the whole of failover: when a hop dies, stalls or
answers rubbish, its blocks become a gap; the gap gets new hops; and each new hop is sent again only
the steps that it lacks, in their original sizes. Steps whose outputs are known downstream are
replayed without an answer. Steps go down the hops as soon as they are there, so that the chunks of
a long prompt overlap.

      boundary 0           3                6              8
      journal  i0 i1 i2    i0 i1 i2         i0 i1          (delivered: i0)
      segment  ├─ link A ──┼── link B ──────┼── gap ───────┤

    segment:  gap ── Routed ──▶ link, opening ── Opened ──▶ link, live
               ▲                    │                           │
               └──── Lost, Fired, a wrong answer ───────────────┘   (neighbouring gaps become one)

A link may have a standby: a second peer with the same blocks. It is asked for when the link is
late, with an answer or to open (then both are sent all, and the first valid answer wins: a hedge),
when the link's server leaves (it takes over once it holds all), or when the session is long (then
it is sent what was answered already, in large chunks, so that a sudden death costs the replay of
one chunk). A lost link's standby takes its place at once.

    link ── Fired, once ──▶ late, with a standby ── an answer of the standby ──▶ the standby

Petals (Borzunov et al., 2023) replays a client's history too, but keeps it per connection and
loses its place; keyed by (boundary, step), a hop may be split, merged or moved at any time.

The caller owes: perform effects in order; after `FindRoute` hand in `Routed` for that gap (or give
the session up); after `OpenLink` hand in `Opened` or `Lost`; hand in answers of a link in order;
after `FindStandby` hand in `StandbyFound`; after `CloseLink` nothing of that link needs to be
handed in (it is ignored).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .blocks import BlockRange
from .journal import Frame, Journal, Step
from .machine import Fired, SetTimer, StopTimer
from .routing import Hop
from .session_events import (
    Answered,
    CloseLink,
    Effect,
    Event,
    Feed,
    FindRoute,
    FindStandby,
    Leaving,
    Lost,
    Opened,
    OpenLink,
    Payload,
    Routed,
    SendStep,
    SessionConfig,
    StandbyFound,
    Why,
)

FRAMES_IN_FLIGHT = 3  # guess: one computed, one on the wire, one waiting at the device


@dataclass(slots=True, eq=False)
class _Link:
    number: int
    hop: Hop
    live: bool = False
    sent: int = 0
    in_flight: deque[Frame] = field(default_factory=deque)
    late: bool = False  # past its hedge's time, and not yet past its patience
    leaving: bool = False
    asked_at: int | None = None  # the session's length when a standby was last looked for
    standby: _Link | None = None
    of: _Link | None = None  # whose standby this is

    @property
    def hurried(self) -> bool:
        """Its standby shall hold all that it holds, at once."""
        return self.late or self.leaving

    @property
    def blocks(self) -> BlockRange:
        return self.hop.blocks


@dataclass(slots=True, eq=False)
class _Gap:
    number: int
    blocks: BlockRange


class Session:
    """The machine. See the module's docstring for its picture and the caller's duties."""

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        self._journal = Journal(config.blocks, config.row_bytes, config.group_tokens)
        self._segments: list[_Link | _Gap] = []
        self._links: dict[int, _Link] = {}
        self._numbers = 0
        self._avoid: list[str] = []

    @property
    def length(self) -> int:
        """The position after the last step fed."""
        return self._journal.length

    @property
    def route(self) -> tuple[Hop, ...]:
        """The hops as they are now; blocks in a gap have none."""
        return tuple(segment.hop for segment in self._segments if isinstance(segment, _Link))

    @property
    def idle(self) -> bool:
        """True when every step fed has been delivered."""
        return self._journal.idle

    def start(self, now: float) -> list[Effect]:
        return self._open_gap(self._config.blocks, 0)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Feed(at, tokens, rows, payload):
                return self._feed(Step(at, tokens, rows), payload, now)
            case Answered(link, at, rows, payload) if link in self._links:
                return self._answered(self._links[link], at, rows, payload, now)
            case Routed(gap, hops):
                return self._routed(gap, hops, now)
            case Opened(link) if link in self._links and not self._links[link].live:
                self._links[link].live = True
                return [StopTimer(link), *self._pump(self._links[link], now)]
            case StandbyFound(link, peer) if link in self._links:
                return self._standby_found(self._links[link], peer, now)
            case Leaving(link) if link in self._links:
                return self._leaving(self._links[link], now)
            case Lost(link, reason) if link in self._links:
                return self._lose(self._links[link], reason, now)
            case Fired(int(link)) if link in self._links:
                return self._fired(self._links[link], now)
        return []

    def _feed(self, step: Step, payload: Payload, now: float) -> list[Effect]:
        self._journal.check(step, payload)
        if step.at < self.length:
            self._take_back(step.at)
        self._journal.add(step, payload)
        return self._pump_segment(self._segments[0], now)

    def _take_back(self, at: int) -> None:
        kept = self._journal.take_back(at)
        for link in self._links.values():
            link.sent = min(link.sent, kept)
            for frame in link.in_flight:  # a replay may still run behind a session at rest
                frame.take_back(kept)

    def _pump_segment(self, segment: _Link | _Gap, now: float) -> list[Effect]:
        """Send what this segment lacks, and its standby."""
        if isinstance(segment, _Gap):
            return []
        effects = self._pump(segment, now)
        if segment.standby is not None:
            effects += self._pump(segment.standby, now)
        elif self._wants_standby(segment):
            effects += self._find_standby(segment)
        return effects

    def _pump(self, link: _Link, now: float) -> list[Effect]:
        """Send what this link lacks and may have."""
        effects: list[Effect] = []
        held = self._journal.held(link.blocks)
        stop = held if link.of is None or link.of.hurried else self._due(link, held)
        while link.live and len(link.in_flight) < FRAMES_IN_FLIGHT and link.sent < stop:
            frame = self._journal.next_frame(link.blocks, link.sent, stop)
            if not link.in_flight:
                effects.append(self._deadline(link, frame.tokens, now))
            link.in_flight.append(frame)
            link.sent = frame.first + frame.count
            sizes, payloads = self._journal.pieces(link.blocks, frame)
            effects.append(SendStep(link.number, frame.at, sizes, frame.rows, payloads))
        return effects

    def _due(self, standby: _Link, held: int) -> int:
        """The steps that a standby at leisure shall hold: what is known, a chunk at a time."""
        known = min(self._journal.known(standby.blocks), held)  # a boundary just cut has few yet
        lacking = self._journal.tokens(standby.sent, known)
        return known if lacking >= self._config.standby_chunk else standby.sent

    def _deadline(self, link: _Link, tokens: int, now: float) -> SetTimer:
        """When the oldest frame of this link is late; a standby has but its patience."""
        wait_s = self._config.patience_s(link.hop, tokens)
        if self._config.hedge_s is not None and link.of is None and not link.late:
            wait_s = min(wait_s, self._config.hedge_s(link.hop, tokens))
        return SetTimer(link.number, now + wait_s)

    def _open_deadline(self, link: _Link, now: float) -> SetTimer:
        """The same of its opening."""
        wait_s = self._config.open_patience_s(link.hop)
        if self._config.open_hedge_s is not None and link.of is None:
            wait_s = min(wait_s, self._config.open_hedge_s(link.hop))
        return SetTimer(link.number, now + wait_s)

    def _answered(
        self, link: _Link, at: int, rows: int, payload: Payload, now: float
    ) -> list[Effect]:
        if not link.in_flight:
            return self._lose(link, "an answer to nothing", now)
        frame = link.in_flight[0]
        if at != frame.at or not self._journal.fits(frame, rows, payload):
            return self._lose(link, "an answer of the wrong shape", now)
        link.in_flight.popleft()
        link.late = False
        effects: list[Effect] = []
        if link.in_flight:
            effects.append(self._deadline(link, link.in_flight[0].tokens, now))
        else:
            effects.append(StopTimer(link.number))
        known = self._journal.known(link.blocks)
        effects += self._pass_on(link, frame, payload, now)
        effects += self._pump(link, now)
        if link.of is not None:
            first = self._journal.known(link.blocks) > known
            return effects + self._overtaken(link.of, link, first=first, now=now)
        return effects + self._rest(link)

    # ---- standbys

    def _fired(self, link: _Link, now: float) -> list[Effect]:
        rest_s = self._rest_s(link)
        if rest_s is None:
            return self._lose(link, "no answer before its deadline", now)
        link.late = True
        return [SetTimer(link.number, now + max(0.0, rest_s)), *self._hurry(link, now)]

    def _rest_s(self, link: _Link) -> float | None:
        """How much longer a link is waited for once a standby is asked; None: it has had that."""
        if link.of is not None or link.late:
            return None
        hop, config = link.hop, self._config
        if not link.live and config.open_hedge_s is not None:
            return config.open_patience_s(hop) - config.open_hedge_s(hop)
        if config.hedge_s is None or not link.in_flight:
            return None
        tokens = link.in_flight[0].tokens
        return config.patience_s(hop, tokens) - config.hedge_s(hop, tokens)

    def _leaving(self, link: _Link, now: float) -> list[Effect]:
        if link.of is not None:
            return self._lose(link, "", now)
        if link.leaving:
            return []
        link.leaving = True
        return self._hurry(link, now)

    def _hurry(self, link: _Link, now: float) -> list[Effect]:
        if link.standby is None:
            return self._find_standby(link)
        effects = self._pump(link.standby, now)
        return effects + self._overtaken(link, link.standby, first=False, now=now)

    def _wants_standby(self, link: _Link) -> bool:
        begins = self._config.standby_from
        if begins is None or self.length < begins or link.of is not None or not link.live:
            return False
        return link.asked_at is None or self.length >= link.asked_at + self._config.standby_chunk

    def _find_standby(self, link: _Link) -> list[Effect]:
        link.asked_at = self.length
        used = [segment.hop.peer for segment in self._segments if isinstance(segment, _Link)]
        avoid = [*self._avoid, *(peer for peer in used if peer not in self._avoid)]
        why: Why = "leaving" if link.leaving else "late" if link.hurried else "long"
        return [FindStandby(link.number, link.blocks, tuple(avoid), why)]

    def _standby_found(self, link: _Link, peer: str | None, now: float) -> list[Effect]:
        if peer is None or link.standby is not None or link.of is not None:
            return []
        hop = Hop(peer, link.blocks)
        link.standby = standby = _Link(self._number(), hop, of=link)
        self._links[standby.number] = standby
        return [self._open_deadline(standby, now), OpenLink(standby.number, hop)]

    def _overtaken(self, link: _Link, standby: _Link, *, first: bool, now: float) -> list[Effect]:
        """The standby was the first with an answer, or it holds all that a leaving one holds."""
        holds_all = standby.live and not standby.in_flight
        holds_all = holds_all and standby.sent == self._journal.held(link.blocks)
        if first and link.late:
            return self._lose(link, "its standby answered first", now)
        if link.leaving and (first or holds_all):
            return self._lose(link, "", now)
        return []

    def _rest(self, link: _Link) -> list[Effect]:
        """Its standby is not needed any more: a short session keeps none."""
        standby, begins = link.standby, self._config.standby_from
        if standby is None or link.hurried or (begins is not None and self.length >= begins):
            return []
        link.standby = None
        del self._links[standby.number]
        return [StopTimer(standby.number), CloseLink(standby.number, standby.hop.peer, "")]

    def _pass_on(self, link: _Link, frame: Frame, payload: Payload, now: float) -> list[Effect]:
        delivered = self._journal.take(link.blocks, frame, payload)
        stop = link.blocks.stop
        if stop == self._config.blocks.stop:
            return [*delivered]
        following = next(segment for segment in self._segments if segment.blocks.start == stop)
        return self._pump_segment(following, now)

    def _lose(self, link: _Link, reason: str, now: float) -> list[Effect]:
        peer = link.hop.peer
        if peer in self._avoid:
            self._avoid.remove(peer)
        self._avoid.append(peer)
        del self._links[link.number]
        effects: list[Effect] = [StopTimer(link.number), CloseLink(link.number, peer, reason)]
        if link.of is not None:
            link.of.standby = None
            return effects + (self._find_standby(link.of) if link.of.hurried else [])
        place = self._segments.index(link)
        if link.standby is None:
            return effects + self._open_gap(link.blocks, place)
        self._segments[place] = standby = link.standby
        standby.of = None
        return effects + self._take_over(standby, now)

    def _take_over(self, standby: _Link, now: float) -> list[Effect]:
        """It had its patience while another was asked too; alone, it is raced as any link is."""
        if not standby.live:
            return [self._open_deadline(standby, now)]
        effects: list[Effect] = []
        if standby.in_flight:
            effects.append(self._deadline(standby, standby.in_flight[0].tokens, now))
        return effects + self._pump(standby, now)

    def _open_gap(self, blocks: BlockRange, place: int) -> list[Effect]:
        """Put a gap where segment `place` was, one with the gaps beside it."""
        first, last = place, min(place + 1, len(self._segments))
        if first > 0 and isinstance(before := self._segments[first - 1], _Gap):
            blocks, first = BlockRange(before.blocks.start, blocks.stop), first - 1
        if last < len(self._segments) and isinstance(after := self._segments[last], _Gap):
            blocks, last = BlockRange(blocks.start, after.blocks.stop), last + 1
        gap = _Gap(self._number(), blocks)
        self._segments[first:last] = [gap]
        return [FindRoute(gap.number, blocks, tuple(self._avoid))]

    def _routed(self, number: int, hops: tuple[Hop, ...], now: float) -> list[Effect]:
        place = next(
            (
                index
                for index, segment in enumerate(self._segments)
                if isinstance(segment, _Gap) and segment.number == number
            ),
            None,
        )
        if place is None:
            return []  # the gap grew meanwhile, and asked again
        gap = self._segments[place]
        assert isinstance(gap, _Gap)
        edges = [gap.blocks.start, *(hop.blocks.stop for hop in hops)]
        if [hop.blocks.start for hop in hops] != edges[:-1] or edges[-1] != gap.blocks.stop:
            raise ValueError(f"{hops} do not cover {gap.blocks}")
        links = [_Link(self._number(), hop) for hop in hops]
        self._segments[place : place + 1] = links
        self._journal.keep(segment.blocks.start for segment in self._segments)
        effects: list[Effect] = []
        for link in links:
            self._links[link.number] = link
            effects += [self._open_deadline(link, now), OpenLink(link.number, link.hop)]
        return effects

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers
