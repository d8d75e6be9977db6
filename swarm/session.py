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

Where receipts are wanted (`cut_tokens`) every link, a standby too, is asked to sign behind the same
steps; a signature is waited for as an answer is, and whoever leaves signs before it is left.
`Counted` says whose answer was the first.

Petals (Borzunov et al., 2023) replays a client's history too, but keeps it per connection and
loses its place; keyed by (boundary, step), a hop may be split, merged or moved at any time.

The caller owes: perform effects in order; after `FindRoute` hand in `Routed` for that gap (or give
the session up); after `OpenLink` hand in `Opened` or `Lost`; hand in answers of a link in order;
after `FindStandby` hand in `StandbyFound`; after `AskSign` hand in `Signed` once the receipts were
found right; after `CloseLink` nothing of that link needs to be handed in (it is ignored).
"""

from __future__ import annotations

from .blocks import BlockRange
from .journal import Frame, Journal, Step
from .machine import Fired, SetTimer, StopTimer
from .routing import Hop
from .session_events import (
    Answered,
    AskSign,
    CloseLink,
    Counted,
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
    Settle,
    Signed,
    StandbyFound,
    TakeBack,
    Uncounted,
    Why,
)
from .session_links import Gap, Link


class Session:
    """The machine. See the module's docstring for its picture and the caller's duties."""

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        self._journal = Journal(
            config.blocks, config.row_bytes, config.group_tokens, config.cut_tokens
        )
        self._segments: list[Link | Gap] = []
        self._links: dict[int, Link] = {}
        self._numbers = 0
        self._avoid: list[str] = []

    @property
    def length(self) -> int:
        """The position after the last step fed."""
        return self._journal.length

    @property
    def route(self) -> tuple[Hop, ...]:
        """The hops as they are now; blocks in a gap have none."""
        return tuple(segment.hop for segment in self._segments if isinstance(segment, Link))

    @property
    def idle(self) -> bool:
        """True when every step fed has been delivered."""
        return self._journal.idle

    @property
    def settled(self) -> bool:
        """True when every step fed has been delivered, and was signed for by all hops."""
        return self.idle and all(
            isinstance(one, Link) and not one.in_flight and one.asked == self._journal.steps
            for one in self._segments
        )

    def start(self, now: float) -> list[Effect]:
        return self._open_gap(self._config.blocks, 0)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Feed(at, tokens, rows, payload, splits):
                return self._feed(Step(at, tokens, rows, splits=splits), payload, now)
            case TakeBack(at):
                self._journal.check_back(at)
                self._take_back(at)
                return []
            case Answered(link, at, rows, payload) if link in self._links:
                return self._answered(self._links[link], at, rows, payload, now)
            case Signed(link) if link in self._links:
                return self._signed(self._links[link], now)
            case Settle():
                return self._settle(now)
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
            link.take_back(kept)

    def _settle(self, now: float) -> list[Effect]:
        self._journal.cut()
        return [effect for one in self._segments for effect in self._pump_segment(one, now)]

    def _pump_segment(self, segment: Link | Gap, now: float) -> list[Effect]:
        """Send what this segment lacks, and its standby."""
        if isinstance(segment, Gap):
            return []
        effects = self._pump(segment, now)
        if segment.standby is not None:
            effects += self._pump(segment.standby, now)
        elif self._wants_standby(segment):
            effects += self._find_standby(segment)
        return effects

    def _pump(self, link: Link, now: float) -> list[Effect]:
        """Send what this link lacks and may have."""
        effects = self._ask_sign(link, now)
        held = self._journal.held(link.blocks)
        stop = held if link.of is None or link.of.hurried else self._due(link, held)
        stop = link.sent if link.parted else stop
        while link.live and link.sent < stop and link.has_room(self._config):
            frame = self._journal.next_frame(link.blocks, link.sent, stop)
            effects += self._put_in_flight(link, frame, now)
            link.sent, link.length = frame.first + frame.count, frame.at + frame.tokens
            sizes, payloads = self._journal.pieces(link.blocks, frame)
            torn = self._journal.end(frame.first) > frame.at
            effects.append(SendStep(link.number, frame.at, sizes, frame.rows, payloads, torn))
            effects += self._ask_sign(link, now)
        return effects

    def _ask_sign(self, link: Link, now: float) -> list[Effect]:
        """Have it sign where all do, if this is what it was sent last."""
        if not self._config.cut_tokens or not link.live or link.asked == link.sent:
            return []
        if not self._journal.cut_at(link.sent):
            return []
        link.asked = link.sent
        link.signs += 1
        mark = Frame(link.sent, 0, self.length, tokens=1, rows=0, sign=True)  # a token's patience
        end = self._journal.end(link.sent)
        back, link.length = (end if end < link.length else None), end
        return [*self._put_in_flight(link, mark, now), AskSign(link.number, back)]

    def _put_in_flight(self, link: Link, frame: Frame, now: float) -> list[Effect]:
        link.in_flight.append(frame)
        return [link.deadline(self._config, now)] if len(link.in_flight) == 1 else []

    def _due(self, standby: Link, held: int) -> int:
        """The steps that a standby at leisure shall hold: what is known, a chunk at a time."""
        known = min(self._journal.known(standby.blocks), held)  # a boundary just cut has few yet
        lacking = self._journal.tokens(standby.sent, known)
        return known if lacking >= self._config.standby_chunk else standby.sent

    def _answered(
        self, link: Link, at: int, rows: int, payload: Payload, now: float
    ) -> list[Effect]:
        if not link.in_flight:
            return self._lose(link, "an answer to nothing", now)
        frame = link.in_flight[0]
        if at != frame.at or frame.sign or not self._journal.fits(frame, rows, payload):
            return self._lose(link, "an answer of the wrong shape", now)
        effects = self._next_in_flight(link, now)
        known = self._journal.known(link.blocks)
        effects += self._pass_on(link, frame, payload, now)
        effects += self._pump(link, now)
        first = self._journal.known(link.blocks) > known
        return effects + self._after_answer(link, first=first, now=now)

    def _signed(self, link: Link, now: float) -> list[Effect]:
        if not link.in_flight or not link.in_flight[0].sign:
            return self._lose(link, "receipts that nobody asked for", now)
        link.signs -= 1
        effects = self._next_in_flight(link, now)
        return effects + self._after_answer(link, first=False, now=now)

    def _next_in_flight(self, link: Link, now: float) -> list[Effect]:
        """The oldest is answered: the next one's time begins."""
        link.in_flight.popleft()
        link.late = False
        if link.in_flight:
            return [link.deadline(self._config, now)]
        return [StopTimer(link.number)]

    def _after_answer(self, link: Link, *, first: bool, now: float) -> list[Effect]:
        """first: nobody has answered this before."""
        if link.of is not None:
            return self._overtaken(link.of, link, first=first, now=now)
        if link.parted and link.standby is not None:
            return self._overtaken(link, link.standby, first=first, now=now)
        return self._rest(link)

    # ---- standbys

    def _fired(self, link: Link, now: float) -> list[Effect]:
        rest_s = link.rest_s(self._config)
        if rest_s is None:
            return self._lose(link, "no answer before its deadline", now)
        link.late = True
        return [SetTimer(link.number, now + max(0.0, rest_s)), *self._hurry(link, now)]

    def _leaving(self, link: Link, now: float) -> list[Effect]:
        if link.of is not None:
            return self._lose(link, "", now)
        if link.leaving:
            return []
        link.leaving = True
        self._journal.cut()  # it goes before the next one
        return [*self._ask_sign(link, now), *self._hurry(link, now)]

    def _hurry(self, link: Link, now: float) -> list[Effect]:
        if link.standby is None:
            return self._find_standby(link)
        effects = self._pump(link.standby, now)
        return effects + self._overtaken(link, link.standby, first=False, now=now)

    def _wants_standby(self, link: Link) -> bool:
        begins = self._config.standby_from
        if begins is None or self.length < begins or link.of is not None or not link.live:
            return False
        return link.asked_at is None or self.length >= link.asked_at + self._config.standby_chunk

    def _find_standby(self, link: Link) -> list[Effect]:
        link.asked_at = self.length
        used = [segment.hop.peer for segment in self._segments if isinstance(segment, Link)]
        avoid = [*self._avoid, *(peer for peer in used if peer not in self._avoid)]
        why: Why = "leaving" if link.leaving else "late" if link.hurried else "long"
        return [FindStandby(link.number, link.blocks, tuple(avoid), why)]

    def _standby_found(self, link: Link, peer: str | None, now: float) -> list[Effect]:
        if peer is None or link.standby is not None or link.of is not None:
            return []
        hop = Hop(peer, link.blocks)
        link.standby = standby = Link(self._number(), hop, of=link)
        self._links[standby.number] = standby
        return [standby.open_deadline(self._config, now), OpenLink(standby.number, hop)]

    def _overtaken(self, link: Link, standby: Link, *, first: bool, now: float) -> list[Effect]:
        """The standby was the first with an answer, or it holds all that a leaving one holds."""
        holds_all = standby.live and not standby.in_flight
        holds_all = holds_all and standby.sent == self._journal.held(link.blocks)
        if first and link.late:
            return self._lose(link, "its standby answered first", now)
        if not link.leaving or not (first or holds_all):
            return []
        if link.in_flight and len(link.in_flight) == link.signs:
            return []  # it has nothing to do but sign
        if self._config.cut_tokens and not link.in_flight and link.asked < link.sent:
            link.parted = True
            self._journal.cut(link.sent)
            return self._ask_sign(link, now)
        return self._lose(link, "", now)

    def _rest(self, link: Link) -> list[Effect]:
        """Its standby is not needed any more: a short session keeps none."""
        standby, begins = link.standby, self._config.standby_from
        if standby is None or link.hurried or (begins is not None and self.length >= begins):
            return []
        link.standby = None
        del self._links[standby.number]
        return [StopTimer(standby.number), CloseLink(standby.number, standby.hop.peer, "")]

    def _pass_on(self, link: Link, frame: Frame, payload: Payload, now: float) -> list[Effect]:
        journal, stop = self._journal, link.blocks.stop
        before = journal.known(link.blocks)
        effects: list[Effect] = [*journal.take(link.blocks, frame, payload)]
        known = journal.known(link.blocks)
        if self._config.cut_tokens and known > before:
            last = stop == self._config.blocks.stop
            new = before if last else max(before, journal.passed(stop))
            if known > new:
                effects.append(Counted(link.number, journal.place(new), journal.end(known)))
        if stop == self._config.blocks.stop:
            return effects
        following = next(segment for segment in self._segments if segment.blocks.start == stop)
        return effects + self._pump_segment(following, now)

    def _lose(self, link: Link, reason: str, now: float) -> list[Effect]:
        peer = link.hop.peer
        if peer in self._avoid:
            self._avoid.remove(peer)
        self._avoid.append(peer)
        del self._links[link.number]
        effects: list[Effect] = [StopTimer(link.number), CloseLink(link.number, peer, reason)]
        if link.of is not None:
            link.of.standby, link.of.parted = None, False
            effects += self._pump(link.of, now)
            return effects + (self._find_standby(link.of) if link.of.hurried else [])
        self._journal.cut()
        place = self._segments.index(link)
        if link.standby is None:
            return effects + self._open_gap(link.blocks, place)
        self._segments[place] = standby = link.standby
        standby.of = None
        return effects + self._take_over(standby, now)

    def _take_over(self, standby: Link, now: float) -> list[Effect]:
        """It had its patience while another was asked too; alone, it is raced as any link is."""
        if not standby.live:
            return [standby.open_deadline(self._config, now)]
        effects: list[Effect] = []
        if standby.in_flight:
            effects.append(standby.deadline(self._config, now))
        return effects + self._pump(standby, now)

    def _open_gap(self, blocks: BlockRange, place: int) -> list[Effect]:
        """Put a gap where segment `place` was, one with the gaps beside it."""
        first, last = place, min(place + 1, len(self._segments))
        if first > 0 and isinstance(before := self._segments[first - 1], Gap):
            blocks, first = BlockRange(before.blocks.start, blocks.stop), first - 1
        if last < len(self._segments) and isinstance(after := self._segments[last], Gap):
            blocks, last = BlockRange(blocks.start, after.blocks.stop), last + 1
        gap = Gap(self._number(), blocks)
        self._segments[first:last] = [gap]
        return [FindRoute(gap.number, blocks, tuple(self._avoid))]

    def _routed(self, number: int, hops: tuple[Hop, ...], now: float) -> list[Effect]:
        place = next(
            (
                index
                for index, segment in enumerate(self._segments)
                if isinstance(segment, Gap) and segment.number == number
            ),
            None,
        )
        if place is None:
            return []  # the gap grew meanwhile, and asked again
        gap = self._segments[place]
        assert isinstance(gap, Gap)
        edges = [gap.blocks.start, *(hop.blocks.stop for hop in hops)]
        if [hop.blocks.start for hop in hops] != edges[:-1] or edges[-1] != gap.blocks.stop:
            raise ValueError(f"{hops} do not cover {gap.blocks}")
        links = [Link(self._number(), hop) for hop in hops]
        self._segments[place : place + 1] = links
        forgotten = self._journal.keep(segment.blocks.start for segment in self._segments)
        effects: list[Effect] = [
            Uncounted(block, self._journal.place(self._journal.passed(block)))
            for block in forgotten
        ]
        for link in links:
            self._links[link.number] = link
            effects += [link.open_deadline(self._config, now), OpenLink(link.number, link.hop)]
        return effects

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers
