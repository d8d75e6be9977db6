"""Which peer takes a microbatch next, and what becomes of every microbatch.

SWARM's stochastic wiring (Ryabinin et al., 2023; algorithms.md 1.1): at each boundary the peers who
serve the next block stand on a wheel, a heap of loads. The least loaded takes the microbatch, and
its load grows by the time that the work should take it: interleaved weighted round robin. How long
a peer takes is a moving average of seconds per token and block, as spans differ (SWARM's stages do
not); a newcomer enters at the least load on the wheel; a peer that fails is off every wheel until a
fresher record of it is read; a timeout alone costs it nothing but the retry.

A peer has one load, whatever wheels it stands on. In SWARM it serves one stage and stands on one
wheel; here a span is entered at many boundaries, and with a load for each of them every wheel deals
its first rounds evenly, to the slowest peer too, and none sees what the others dealt (sim, spans of
3 to 28 blocks, 0.6 of the optimum, from the 300th second on, one seed: .96 of the
answers in time with one load, .41 with one for each wheel).

    Submitted ─▶ forward over hops ─▶ backward over the same boundaries, in reverse ─▶ Done, once
                   │ failed, silent            │ failed, silent
                   └─ another peer             └─ another peer, with the inputs that forward kept

Where the gradient of the last boundary is the caller's to say (a loss that autograd knows),
`Through` stands between the two, and backward begins with `Turned`; a microbatch may be `Dropped`
at any time.

Every send is a new attempt; an answer counts only for the attempt that is waited for. So a
microbatch is never lost while somebody serves its blocks, never done twice, and `Done` names for
each hop the one attempt whose backward counts: a server that keeps gradients drops the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .blocks import BlockRange
from .machine import Fired, SetTimer, StopTimer
from .routing import Hop

SMOOTHING = 0.1  # SWARM's performance_ema.py
BACKWARD_WEIGHT = 2.5  # SWARM's balancer.py: backward computes the inputs anew
FIRST_TOKEN_BLOCK_S = 1e-3  # guess; a newcomer enters at the least load anyway
LOOK_AGAIN_S = 5.0  # SWARM's wait when no peer is left for a block


@dataclass(slots=True)
class _Pace:
    """Bias-corrected moving average of seconds per token and block."""

    weighted: float = 0.0
    count: int = 0

    def add(self, token_block_s: float) -> None:
        self.weighted += SMOOTHING * (token_block_s - self.weighted)
        self.count += 1

    def mean_s(self) -> float:
        if self.count == 0:
            return FIRST_TOKEN_BLOCK_S
        return self.weighted / (1 - (1 - SMOOTHING) ** self.count)


@dataclass(frozen=True, slots=True)
class Member:
    """A peer on the wheels. order: of its record (boot, seq); a greater one is fresher."""

    blocks: BlockRange
    order: tuple[int, int]


class Wheels:
    """One trainer's wheels, one for each boundary that it came to. Draws break ties."""

    def __init__(self, lot: Callable[[], float]) -> None:
        self._lot = lot
        self._members: dict[str, Member] = {}
        self._pace: dict[str, _Pace] = {}
        self._banned: dict[str, tuple[int, int]] = {}
        self._loads: dict[str, float] = {}
        self._wheels: dict[int, set[str]] = {}
        self._heaps: dict[int, list[tuple[float, float, str]]] = {}

    def update(self, members: Mapping[str, Member]) -> None:
        """The peers of the newest view. A fresher record ends a ban."""
        self._members = dict(members)
        for peer, order in list(self._banned.items()):
            if peer not in members or members[peer].order > order:
                del self._banned[peer]
        self._pace = {peer: pace for peer, pace in self._pace.items() if peer in members}
        self._loads = {peer: load for peer, load in self._loads.items() if peer in members}
        for at in self._wheels:
            self._refill(at)

    def choose(
        self, at: int, stop: int, tokens: float, *, avoid: Collection[str] = (), whole: bool = False
    ) -> Hop | None:
        """Who takes `tokens` tokens at block `at`, as far as it can but not beyond `stop`.

        whole: only a peer that serves all of at:stop. None when nobody outside `avoid` can.
        """
        if at not in self._wheels:
            self._wheels[at] = set()
            self._refill(at)
        wheel, heap = self._wheels[at], self._heaps[at]
        passed: list[tuple[float, float, str]] = []
        found: Hop | None = None
        while heap:
            load, lot, peer = heapq.heappop(heap)
            if peer not in wheel:
                continue  # it left
            if load < self._loads[peer]:  # loads only grow: on other wheels it took more since
                heapq.heappush(heap, (self._loads[peer], self._lot(), peer))
                continue
            served = self._members[peer].blocks.stop
            if peer in avoid or (whole and served < stop):
                passed.append((load, lot, peer))
                continue
            blocks = BlockRange(at, min(stop, served))
            self._loads[peer] = load + self.pace_s(peer) * tokens * len(blocks)
            heapq.heappush(heap, (self._loads[peer], self._lot(), peer))
            found = Hop(peer, blocks)
            break
        for entry in passed:
            heapq.heappush(heap, entry)
        return found

    def answered(self, peer: str, elapsed_s: float, tokens: float, blocks: int) -> None:
        self._pace.setdefault(peer, _Pace()).add(elapsed_s / (tokens * blocks))

    def failed(self, peer: str) -> None:
        """Ban the peer until a fresher record of it is read."""
        if peer in self._members:
            self._banned[peer] = self._members[peer].order
            for wheel in self._wheels.values():
                wheel.discard(peer)

    def banned(self, peer: str) -> bool:
        return peer in self._banned

    def serving(self) -> list[Member]:
        """Those that may be asked."""
        return [one for peer, one in self._members.items() if peer not in self._banned]

    def pace_s(self, peer: str) -> float:
        pace = self._pace.get(peer)
        return pace.mean_s() if pace else FIRST_TOKEN_BLOCK_S

    def _refill(self, at: int) -> None:
        """Put who serves block `at` on its wheel; who comes stands at the least load there."""
        wheel = self._wheels[at]
        serving = {
            peer
            for peer, member in self._members.items()
            if member.blocks.start <= at < member.blocks.stop and peer not in self._banned
        }
        least = min((self._loads[peer] for peer in serving & wheel), default=None)
        if least is None:
            least = min((self._loads[p] for p in serving if p in self._loads), default=0.0)
        for peer in sorted(serving - wheel):
            self._loads[peer] = max(self._loads.get(peer, 0.0), least)
        self._wheels[at] = serving
        heap = [(self._loads[peer], self._lot(), peer) for peer in sorted(serving)]
        heapq.heapify(heap)
        self._heaps[at] = heap


Phase = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Submitted:
    """An event: run this microbatch of `tokens` tokens. Numbers are never used twice."""

    number: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Answered:
    """An event: attempt `attempt` brought its answer, which the caller keeps."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An event: the peer of this attempt died, or answered rubbish."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Full:
    """An event: the peer of this attempt has no room, and may have in so many seconds."""

    attempt: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Turned:
    """An event: the gradient of what came out of this microbatch's forward is known."""

    number: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """An event: nobody wants this microbatch any more. What is answered still is ignored."""

    number: int


@dataclass(frozen=True, slots=True)
class Refreshed:
    """An event: the view changed (`Wheels.update` was called); try what nobody served."""


@dataclass(frozen=True, slots=True)
class Run:
    """An effect: send a microbatch to a hop. Backward carries the hop's inputs too."""

    attempt: int
    number: int
    phase: Phase
    hop: Hop
    tokens: int


@dataclass(frozen=True, slots=True)
class Through:
    """An effect: the forward of a microbatch is through; `Turned` or `Dropped` is waited for."""

    number: int


@dataclass(frozen=True, slots=True)
class Done:
    """An effect: a microbatch is through. backward: the attempts whose gradients count."""

    number: int
    backward: tuple[tuple[Hop, int], ...]


Event = Submitted | Answered | Failed | Full | Turned | Dropped | Refreshed | Fired
Effect = Run | Through | Done | SetTimer | StopTimer


@dataclass(slots=True)
class _Microbatch:
    number: int
    tokens: int
    starts: list[int]  # boundaries whose hidden states are kept, the last is where to go on
    end: int | None = None  # the boundary whose gradient is known, once forward is through
    counted: list[tuple[Hop, int]] = field(default_factory=list)
    attempt: int = 0  # the one waited for; 0 when nobody serves the next block
    phase: Phase = "forward"  # of that attempt
    hop: Hop | None = None
    sent_s: float = 0.0
    tried: list[str] = field(default_factory=list)  # for this piece, without success
    full_until_s: float = 0.0  # those of them that had no room
    resting: bool = False  # through, and not turned yet


class Ledger:
    """What becomes of each microbatch. patience_s(hop, tokens): how long an attempt may take.

    pauses: between forward and backward, until `Turned`.
    """

    def __init__(
        self,
        blocks: BlockRange,
        wheels: Wheels,
        patience_s: Callable[[Hop, float], float],
        *,
        pauses: bool = False,
    ) -> None:
        self._pauses = pauses
        self._blocks = blocks
        self._wheels = wheels
        self._patience_s = patience_s
        self._open: dict[int, _Microbatch] = {}
        self._waited: dict[int, _Microbatch] = {}
        self._attempts = 0

    @property
    def open(self) -> tuple[int, ...]:
        """The microbatches that are not through."""
        return tuple(self._open)

    @property
    def stranded(self) -> tuple[int, ...]:
        """Those of them whose next block nobody serves."""
        return tuple(batch.number for batch in self._stranded())

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Submitted(number, tokens):
                assert number not in self._open
                batch = self._open[number] = _Microbatch(number, tokens, [self._blocks.start])
                return self._send(batch, now)
            case Answered(attempt) if attempt in self._waited:
                return self._answered(self._waited.pop(attempt), now)
            case Failed(attempt) if attempt in self._waited:
                return self._again(self._waited.pop(attempt), now, ban=True)
            case Fired(int(attempt)) if attempt in self._waited:
                return self._again(self._waited.pop(attempt), now, ban=False)
            case Full(attempt, retry_after_s) if attempt in self._waited:
                batch = self._waited.pop(attempt)
                batch.full_until_s = max(batch.full_until_s, now + retry_after_s)
                return self._again(batch, now, ban=False)
            case Turned(number) if number in self._open and self._open[number].resting:
                self._open[number].resting = False
                return self._send(self._open[number], now)
            case Dropped(number) if number in self._open:
                attempt = self._open.pop(number).attempt
                return [StopTimer(attempt)] if self._waited.pop(attempt, None) else []
            case Refreshed() | Fired("look again"):
                return [effect for one in self._stranded() for effect in self._send(one, now)]
        return []

    def _stranded(self) -> list[_Microbatch]:
        return [one for one in self._open.values() if one.attempt == 0 and not one.resting]

    def _send(self, batch: _Microbatch, now: float) -> list[Effect]:
        """Hand the next piece of this microbatch to whom the wheel says."""
        hop = self._choose(batch, batch.tried)
        if hop is None and batch.tried and now >= batch.full_until_s:
            batch.tried.clear()  # all were tried: begin again with whom is not banned
            hop = self._choose(batch, ())
        batch.hop, batch.attempt = hop, 0
        if hop is None:
            wait_s = batch.full_until_s - now
            return [SetTimer("look again", now + (wait_s if wait_s > 0 else LOOK_AGAIN_S))]
        self._attempts += 1
        batch.attempt, batch.sent_s = self._attempts, now
        self._waited[batch.attempt] = batch
        return [
            SetTimer(batch.attempt, now + self._patience_s(hop, self._work(batch))),
            Run(batch.attempt, batch.number, batch.phase, hop, batch.tokens),
        ]

    def _choose(self, batch: _Microbatch, avoid: Collection[str]) -> Hop | None:
        """Backward on a peer that serves the whole piece; where nobody does, forward through a
        part of it once more, so that the hidden states at a boundary between are known too."""
        at = batch.starts[-1]
        if batch.end is not None:
            batch.phase = "backward"
            work = self._work(batch)
            hop = self._wheels.choose(at, batch.end, work, avoid=avoid, whole=True)
            if hop is not None:
                return hop
        batch.phase = "forward"
        stop = self._blocks.stop if batch.end is None else batch.end
        return self._wheels.choose(at, stop, self._work(batch), avoid=avoid)

    def _work(self, batch: _Microbatch) -> float:
        return batch.tokens * (BACKWARD_WEIGHT if batch.phase == "backward" else 1.0)

    def _answered(self, batch: _Microbatch, now: float) -> list[Effect]:
        hop, attempt = batch.hop, batch.attempt
        assert hop is not None
        elapsed_s = max(now - batch.sent_s, 1e-9)
        self._wheels.answered(hop.peer, elapsed_s, self._work(batch), len(hop.blocks))
        batch.tried.clear()
        batch.full_until_s = 0.0
        if batch.phase == "forward":
            if hop.blocks.stop == self._blocks.stop and batch.end is None:
                batch.end = self._blocks.stop
                if self._pauses:
                    batch.resting, batch.attempt, batch.hop = True, 0, None
                    return [StopTimer(attempt), Through(batch.number)]
            elif hop.blocks.stop != batch.end:
                batch.starts.append(hop.blocks.stop)
        else:
            batch.end = batch.starts.pop()
            batch.counted.append((hop, attempt))
            if not batch.starts:
                del self._open[batch.number]
                return [StopTimer(attempt), Done(batch.number, tuple(reversed(batch.counted)))]
        return [StopTimer(attempt), *self._send(batch, now)]

    def _again(self, batch: _Microbatch, now: float, *, ban: bool) -> list[Effect]:
        assert batch.hop is not None
        peer, attempt = batch.hop.peer, batch.attempt
        if ban:
            self._wheels.failed(peer)
        batch.tried.append(peer)
        return [StopTimer(attempt), *self._send(batch, now)]
