"""One generation along a route: steps in, outputs out, whatever dies on the way.

The session keeps, for each block boundary at which one of its hops begins, the input of every step
that went over it. That journal is the whole of failover: when a hop dies, stalls or answers
rubbish, its blocks become a gap; the gap gets new hops; and each new hop is sent again only the
steps that it lacks, in their original sizes. Steps whose outputs are known downstream are replayed
without an answer. Steps go down the hops as soon as they are there, so that the chunks of a
long prompt overlap.

      boundary 0           3                6              8
      journal  i0 i1 i2    i0 i1 i2         i0 i1          (delivered: i0)
      segment  ├─ link A ──┼── link B ──────┼── gap ───────┤

    segment:  gap ── Routed ──▶ link, opening ── Opened ──▶ link, live
               ▲                    │                           │
               └──── Lost, Fired, a wrong answer ───────────────┘   (neighbouring gaps become one)

Petals (Borzunov et al., 2023) replays a client's history too, but keeps it per connection and
loses its place; keyed by (boundary, step), a hop may be split, merged or moved at any time.

The caller owes: perform effects in order; after `FindRoute` hand in `Routed` for that gap (or give
the session up); after `OpenLink` hand in `Opened` or `Lost`; hand in answers of a link in order;
after `CloseLink` nothing of that link needs to be handed in (it is ignored).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .blocks import BlockRange
from .machine import Fired, SetTimer, StopTimer
from .routing import Hop

Payload = bytes | bytearray | memoryview

FRAMES_IN_FLIGHT = 3  # guess: one computed, one on the wire, one waiting at the device
SIZES_MAX = 1024  # steps in one replay frame: keeps its header below 4 KiB


@dataclass(frozen=True, slots=True)
class Feed:
    """An event: the next step, `tokens` rows of input at position `at`.

    An `at` below the session's length takes everything from there on back. rows: how many of the
    step's last rows of output are wanted.
    """

    at: int
    tokens: int
    rows: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class Routed:
    """An event: these hops shall cover the gap."""

    gap: int
    hops: tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """An event: the server at the other end of the link holds its cache."""

    link: int


@dataclass(frozen=True, slots=True)
class Answered:
    """An event: the next answer on this link."""

    link: int
    at: int
    rows: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class Lost:
    """An event: the link is of no more use."""

    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class FindRoute:
    """An effect: find hops for these blocks; `avoid` failed this session, the latest last."""

    gap: int
    blocks: BlockRange
    avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenLink:
    """An effect: open a stream to this hop and have it reserve its cache."""

    link: int
    hop: Hop


@dataclass(frozen=True, slots=True)
class SendStep:
    """An effect: send these inputs, one payload a size, the first at position `at`."""

    link: int
    at: int
    sizes: tuple[int, ...]
    rows: int
    payloads: tuple[Payload, ...]


@dataclass(frozen=True, slots=True)
class CloseLink:
    """An effect: close the link's stream. `reason` is empty when the peer is not at fault."""

    link: int
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """An effect: the output of step `index`, its last `rows` rows. Each index comes once."""

    index: int
    payload: Payload


Event = Feed | Routed | Opened | Answered | Lost | Fired
Effect = FindRoute | OpenLink | SendStep | CloseLink | Deliver | SetTimer | StopTimer


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """row_bytes: bytes of one token's hidden state. group_tokens: rows in one replay frame.

    patience_s: (hop, tokens) -> seconds that an answer may take. open_patience_s: hop -> seconds
    that a dial and the reservation of cache may take.
    """

    blocks: BlockRange
    row_bytes: int
    group_tokens: int
    patience_s: Callable[[Hop, int], float]
    open_patience_s: Callable[[Hop], float]


@dataclass(slots=True)
class _Step:
    at: int
    tokens: int
    rows: int


@dataclass(slots=True)
class _Frame:
    """Steps `first` to `first + count` on their way; a take-back lowers `count`, never the rest."""

    first: int
    count: int
    at: int
    tokens: int
    rows: int


@dataclass(slots=True, eq=False)
class _Link:
    number: int
    hop: Hop
    live: bool = False
    sent: int = 0
    in_flight: deque[_Frame] = field(default_factory=deque)

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
        self._steps: list[_Step] = []
        self._journal: dict[int, list[Payload]] = {config.blocks.start: []}
        self._segments: list[_Link | _Gap] = []
        self._links: dict[int, _Link] = {}
        self._delivered = 0
        self._numbers = 0
        self._avoid: list[str] = []
        self._length = 0

    @property
    def length(self) -> int:
        """The position after the last step fed."""
        return self._length

    @property
    def route(self) -> tuple[Hop, ...]:
        """The hops as they are now; blocks in a gap have none."""
        return tuple(segment.hop for segment in self._segments if isinstance(segment, _Link))

    @property
    def idle(self) -> bool:
        """True when every step fed has been delivered."""
        return self._delivered == len(self._steps)

    def start(self, now: float) -> list[Effect]:
        return self._open_gap(self._config.blocks, 0)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Feed(at, tokens, rows, payload):
                return self._feed(_Step(at, tokens, rows), payload, now)
            case Answered(link, at, rows, payload) if link in self._links:
                return self._answered(self._links[link], at, rows, payload, now)
            case Routed(gap, hops):
                return self._routed(gap, hops, now)
            case Opened(link) if link in self._links and not self._links[link].live:
                self._links[link].live = True
                return [StopTimer(link), *self._pump(self._links[link], now)]
            case Lost(link, reason) if link in self._links:
                return self._lose(self._links[link], reason)
            case Fired(int(link)) if link in self._links:
                return self._lose(self._links[link], "no answer before its deadline")
        return []

    def _feed(self, step: _Step, payload: Payload, now: float) -> list[Effect]:
        if not 0 <= step.at <= self._length:
            raise ValueError(f"a step at {step.at} leaves a hole after {self._length}")
        if len(payload) != step.tokens * self._config.row_bytes or step.tokens < 1:
            raise ValueError("the payload is not what the step says")
        if step.at < self._length:
            self._take_back(step.at)
        self._steps.append(step)
        self._length = step.at + step.tokens
        self._journal[self._config.blocks.start].append(payload)
        first = self._segments[0]
        return self._pump(first, now) if isinstance(first, _Link) else []

    def _take_back(self, at: int) -> None:
        """Forget the steps that begin at `at` or later; one that began before keeps its size,
        for a replay must have its shape, and the next step's `at` truncates what it overran."""
        if not self.idle:
            raise ValueError("only a session at rest can be taken back")
        while self._steps and self._steps[-1].at >= at:
            self._steps.pop()
        kept = len(self._steps)
        self._delivered = kept
        for payloads in self._journal.values():
            del payloads[kept:]
        for link in self._links.values():
            link.sent = min(link.sent, kept)
            for frame in link.in_flight:  # a replay may still run behind a session at rest
                frame.count = max(0, min(frame.count, kept - frame.first))

    def _pump(self, link: _Link, now: float) -> list[Effect]:
        """Send what this link lacks and may have."""
        effects: list[Effect] = []
        blocks = link.blocks
        inputs = self._journal[blocks.start]
        while link.live and len(link.in_flight) < FRAMES_IN_FLIGHT and link.sent < len(inputs):
            frame = self._next_frame(link, len(inputs))
            if not link.in_flight:
                patience_s = self._config.patience_s(link.hop, frame.tokens)
                effects.append(SetTimer(link.number, now + patience_s))
            link.in_flight.append(frame)
            link.sent = frame.first + frame.count
            steps = self._steps[frame.first : link.sent]
            effects.append(
                SendStep(
                    link.number,
                    frame.at,
                    tuple(step.tokens for step in steps),
                    frame.rows,
                    tuple(inputs[frame.first : link.sent]),
                )
            )
        return effects

    def _next_frame(self, link: _Link, available: int) -> _Frame:
        """The longest run of steps from `link.sent` on that may travel together.

        Together go steps that follow each other without a truncation between, of which either
        every output is known downstream already (rows 0), or every output is wanted whole.
        """
        first = link.sent
        last_hop = link.blocks.stop == self._config.blocks.stop
        known = self._delivered if last_hop else len(self._journal[link.blocks.stop])
        if first < known:
            stop = min(known, available)
        elif last_hop:
            stop = first + 1
        else:
            stop = available
        tokens = count = 0
        for step in self._steps[first:stop]:
            follows = count == 0 or step.at == self._steps[first].at + tokens
            fits = count == 0 or tokens + step.tokens <= self._config.group_tokens
            if not follows or not fits or count == SIZES_MAX:
                break
            tokens += step.tokens
            count += 1
        wanted = self._steps[first].rows if last_hop else tokens
        rows = 0 if first < known else wanted
        return _Frame(first, count, self._steps[first].at, tokens, rows)

    def _answered(
        self, link: _Link, at: int, rows: int, payload: Payload, now: float
    ) -> list[Effect]:
        if not link.in_flight:
            return self._lose(link, "an answer to nothing")
        frame = link.in_flight[0]
        if (at, rows) != (frame.at, frame.rows) or len(payload) != rows * self._config.row_bytes:
            return self._lose(link, "an answer of the wrong shape")
        link.in_flight.popleft()
        effects: list[Effect] = []
        if link.in_flight:
            patience_s = self._config.patience_s(link.hop, link.in_flight[0].tokens)
            effects.append(SetTimer(link.number, now + patience_s))
        else:
            effects.append(StopTimer(link.number))
        effects += self._pass_on(link, frame, payload, now)
        effects += self._pump(link, now)
        return effects

    def _pass_on(self, link: _Link, frame: _Frame, payload: Payload, now: float) -> list[Effect]:
        stop = link.blocks.stop
        if stop == self._config.blocks.stop:
            if frame.count == 0 or frame.first < self._delivered:
                return []
            assert frame.first == self._delivered
            self._delivered = frame.first + frame.count
            return [Deliver(frame.first, payload)]
        outputs = self._journal[stop]
        whole = memoryview(payload)
        offset = 0
        for index in range(frame.first, frame.first + frame.count if frame.rows else frame.first):
            size = self._steps[index].tokens * self._config.row_bytes
            if index == len(outputs):
                outputs.append(whole[offset : offset + size])
            offset += size
        following = next(segment for segment in self._segments if segment.blocks.start == stop)
        return self._pump(following, now) if isinstance(following, _Link) else []

    def _lose(self, link: _Link, reason: str) -> list[Effect]:
        peer = link.hop.peer
        if peer in self._avoid:
            self._avoid.remove(peer)
        self._avoid.append(peer)
        del self._links[link.number]
        place = self._segments.index(link)
        return [
            StopTimer(link.number),
            CloseLink(link.number, peer, reason),
            *self._open_gap(link.blocks, place),
        ]

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
        self._keep_journals()
        effects: list[Effect] = []
        for link in links:
            self._links[link.number] = link
            effects.append(SetTimer(link.number, now + self._config.open_patience_s(link.hop)))
            effects.append(OpenLink(link.number, link.hop))
        return effects

    def _keep_journals(self) -> None:
        """A journal for each boundary where a segment begins, and for no other."""
        starts = [segment.blocks.start for segment in self._segments]
        self._journal = {start: self._journal.get(start, []) for start in starts}

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers
