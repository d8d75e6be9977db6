"""What we saw of each peer: how long its answers take, how it failed, how long to wait for it.

An answer's time is modelled as `step_s` (a step of few tokens, all of the hop's blocks) and, for
long chunks, `token_block_s` for each token and block; both are moving averages with a moving mean
deviation, as TCP keeps its round-trip time (RFC 6298). A deadline is max(3 mu, mu + 4 sigma), with
a floor (algorithms.md 6.1). Failures ban a peer for a doubling time; any good answer, or a restart
of the peer, ends the ban. Of a peer that never answered they grow faster, and longer: whoever takes
work and does none gets a few tries from each client, not one a minute. Where nobody else is left,
whoever gives a sign of life is tried earlier.

What a step cost the peer's device is what we waited, less the round trip and less the queue that
the peer told of in its reply: whoever claims a long queue to hide a slow device is believed, and is
then not asked. The queue that the next step would meet is the last one told, aged, and what we have
in flight there ourselves (algorithms.md 2.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .view import OBSERVATIONS_TO_TRUST, Floats

SMOOTHING = 0.125  # RFC 6298's alpha
DEVIATION_SMOOTHING = 0.25  # RFC 6298's beta
FEW_TOKENS = 8  # up to here a step costs about what one token costs: the weights are read once

# Before a peer's own history: one token through a block of a 7B model in fp32 takes a slow CPU
# about 40 ms, a token of a long chunk 10 ms; doubled.
FIRST_STEP_S = 5.0
FIRST_TOKEN_BLOCK_S = 0.02
PATIENCE_FLOOR_S = 2.0  # guess: above any pause of a busy two-core machine; a hedge comes first
PATIENCE_CEILING_S = 120.0
HEDGE_FLOOR_S = 0.15  # algorithms.md 6.1
STRANGER = 2.0  # guess: of what others take, for a device that may be far slower than theirs
STRANGER_FLOOR_S = 0.5  # guess: a round trip across the world, and a pass before ours

BAN_FIRST_S = 2.0  # guess; Petals has 15 s, too long for a peer that only restarted
BAN_LONGEST_S = 60.0
STRANGER_BAN_LONGEST_S = 600.0  # guess: of whoever never answered; it may be there to take work
CHANCES = 5  # guess: after so many failures in a row no sign of life shortens a ban
BUSY_LEAST_S = 0.5  # as servers say it (admission.py): who says less would be asked without end
LOAD_TAU_S = 2.0  # algorithms.md 2.5: what a peer told of its queue fades with this time
CARRIED_LEAST_BYTES = 16 * 1024  # guess: of less, what it takes is lost in what else happens
BYTE_LEAST_S = 1e-10  # 10 GB/s: nothing is faster
CHUNK_ROWS = 128  # of a prompt's chunk, as PassTimes has it
CHUNK_LEAST_ROWS = 32  # the smallest chunk of a prompt (wan.py)
QUEUE_TOLD_MAX_S = 3600.0  # whatever a peer says, it is not asked for longer than that


Number = TypeVar("Number", float, Floats)


def aged_queue_s(told_s: Number, age_s: Number) -> Number:
    """What is left of a queue told `age_s` ago. Of one peer, or of many at once.

    A queue of W seconds is another after about so long: it fades with 2 s and W. It fades to
    nothing, not to what is usual: hope makes us ask, and the answer is fresh (in the simulator
    fading to the mean queue made p50 a fifth longer, and fading with 2 s alone, where a hop takes
    half a minute, p95 by half).
    """
    left: Number = told_s * np.exp(-age_s / (LOAD_TAU_S + told_s))
    return left


def believed_queue_s(told_s: float, in_flight_s: float) -> float:
    """What the queue of a peer that was asked just now counts for.

    in_flight_s: the work that we ourselves have on the way there. Whoever tells of less has not
    heard of it yet, or lies; and a liar that is asked again and again, always for nothing, would
    get all that a client has: with this a fifth of such liars lowers goodput by 0.7 % in the
    simulator, without by 8 %.
    """
    return max(told_s, in_flight_s)


@dataclass(slots=True)
class _Average:
    mean: float = 0.0
    deviation: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        if self.count == 0:
            self.mean, self.deviation = value, value / 2
        else:
            error = abs(value - self.mean)
            self.deviation += DEVIATION_SMOOTHING * (error - self.deviation)
            self.mean += SMOOTHING * (value - self.mean)
        self.count += 1

    def well_beyond(self) -> float:
        """algorithms.md 6.1"""
        return max(3 * self.mean, self.mean + 4 * self.deviation)


def _well_beyond_s(step: _Average, chunk: _Average, tokens: int, blocks: int) -> float | None:
    """What such a step takes, and well beyond; None: too few were seen. One of many tokens is
    waited for as long as one of few is: a step of some guesses is mostly its round trip."""
    few = step.well_beyond() * blocks if step.count >= OBSERVATIONS_TO_TRUST else None
    if tokens <= FEW_TOKENS:
        return few
    if chunk.count < OBSERVATIONS_TO_TRUST:
        return None
    return max(chunk.well_beyond() * tokens * blocks, few or 0.0)


class Usual:
    """What steps took at all peers together, as one client saw it. Seconds."""

    __slots__ = ("_step_per_block", "_token_block")

    def __init__(self) -> None:
        self._step_per_block = _Average()
        self._token_block = _Average()

    def answered(self, elapsed_s: float, tokens: int, blocks: int) -> None:
        """A step of `tokens` through `blocks` was answered rightly after `elapsed_s`."""
        if tokens <= FEW_TOKENS:
            self._step_per_block.add(elapsed_s / blocks)
        else:
            self._token_block.add(elapsed_s / (tokens * blocks))

    def late_s(self, tokens: int, blocks: int) -> float:
        """After how long another is asked beside a stranger."""
        wait_s = _well_beyond_s(self._step_per_block, self._token_block, tokens, blocks)
        if wait_s is None:
            return PATIENCE_CEILING_S
        return min(max(STRANGER * wait_s, STRANGER_FLOOR_S), PATIENCE_CEILING_S)


class PeerHistory:
    """One peer, as one client saw it. Times are seconds on the caller's clock."""

    __slots__ = (
        "_banned_at",
        "_banned_until",
        "_busy_until",
        "_byte",
        "_chunk_pass",
        "_chunk_service",
        "_chunk_work_out",
        "_failures",
        "_order",
        "_queue_told_at",
        "_queue_told_s",
        "_step_blocks",
        "_step_pass",
        "_step_per_block",
        "_step_service",
        "_steps_out",
        "_token_block",
        "misled",
        "rtt_s",
    )

    def __init__(self) -> None:
        self.misled = False  # its record told of another class than it computes in
        self._step_per_block = _Average()
        self._token_block = _Average()
        self._step_service = _Average()
        self._chunk_service = _Average()
        self._step_pass = _Average()
        self._chunk_pass = _Average()
        self._byte = _Average()
        self._chunk_work_out = 0  # tokens times blocks, sent and not answered
        self._steps_out = 0
        self._step_blocks = 0
        self._queue_told_s = 0.0
        self._queue_told_at = -math.inf
        self._failures = 0
        self._banned_at = -math.inf
        self._banned_until = 0.0
        self._busy_until = 0.0
        self._order = (0, 0)  # of its newest record: its run, its number
        self.rtt_s: float | None = None

    def answered(self, elapsed_s: float, tokens: int, blocks: int, *, queue_s: float = 0.0) -> None:
        """A step of `tokens` through `blocks` was answered rightly after `elapsed_s`.

        queue_s: of those, what the peer says that the step waited for its device.
        """
        service_s = max(elapsed_s - (self.rtt_s or 0.0) - max(queue_s, 0.0), 0.0)
        if tokens <= FEW_TOKENS:
            self._step_per_block.add(elapsed_s / blocks)
            self._step_service.add(service_s / blocks)
        else:
            self._token_block.add(elapsed_s / (tokens * blocks))
            self._chunk_service.add(service_s / (tokens * blocks))
        self._failures = 0
        self._banned_until = 0.0

    def served(self, pass_s: float, tokens: int, blocks: int) -> None:
        """How long a step's pass took, by the peer's own word: for how to send, not whom to ask."""
        if tokens <= FEW_TOKENS:
            self._step_pass.add(pass_s / blocks)
        elif tokens >= CHUNK_LEAST_ROWS:  # a step of guesses takes longer for each of its rows
            self._chunk_pass.add(pass_s / (tokens * blocks))

    def carried(self, size: int, seconds: float) -> None:
        """So many bytes went there and back, alone, in so long: with a round trip, and nothing
        else that the peer tells of."""
        if size >= CARRIED_LEAST_BYTES and self.rtt_s is not None:
            self._byte.add(max(0.0, seconds - self.rtt_s) / size)

    @property
    def bytes_s(self) -> float | None:
        """What the road to it carries, each direction like the other; None: nobody knows."""
        return 1 / max(self._byte.mean, BYTE_LEAST_S) if self._byte.count else None

    def passes(self, blocks: int) -> tuple[tuple[int, float], ...]:
        """What its passes took of late, as (rows, seconds); empty while it is not known both of
        single tokens and of chunks."""
        if not self._step_pass.count or not self._chunk_pass.count:
            return ()
        one_s = self._step_pass.mean * blocks
        return (1, one_s), (
            CHUNK_ROWS,
            max(one_s, self._chunk_pass.mean * CHUNK_ROWS * blocks),
        )

    def told_queue(self, queue_s: float, now: float) -> None:
        """The peer's reply says how long the next step would wait for its device."""
        self._queue_told_s = min(max(queue_s, 0.0), QUEUE_TOLD_MAX_S)
        self._queue_told_at = now

    def sent(self, tokens: int, blocks: int) -> None:
        """A step of `tokens` through `blocks` is on its way."""
        self._in_flight(tokens, blocks, 1)

    def ended(self, tokens: int, blocks: int) -> None:
        """That step was answered, or given up."""
        self._in_flight(tokens, blocks, -1)

    def _in_flight(self, tokens: int, blocks: int, one: int) -> None:
        if tokens <= FEW_TOKENS:
            self._steps_out += one
            self._step_blocks = blocks
        else:
            self._chunk_work_out += one * tokens * blocks

    def queue_s(self, now: float) -> float:
        """What a step sent now is expected to wait.

        Of what we have in flight there, chunks add up; steps of few tokens share a pass, so that
        one more waits for one of them, however many there are.
        """
        told_s = float(aged_queue_s(self._queue_told_s, now - self._queue_told_at))
        ours_s = self._chunk_work_out * self._chunk_service.mean
        if self._steps_out:
            ours_s += self._step_blocks * self._step_service.mean
        return told_s + ours_s

    def failed(self, now: float, begun_s: float = -math.inf) -> None:
        """The peer died, stalled or answered rubbish. begun_s: since when what failed was tried.

        What fails while it is banned is of the same trouble: all sessions that it serves lose it at
        once, as when our own road was away for a moment, and that is one failure. Unless it was
        begun when the peer could be tried again.
        """
        if self.banned(now) and begun_s < self._banned_at + BAN_FIRST_S:
            return
        growth, longest_s = (2, BAN_LONGEST_S) if self.known else (4, STRANGER_BAN_LONGEST_S)
        ban_s = min(BAN_FIRST_S * growth**self._failures, longest_s)
        self._failures = min(self._failures + 1, 10)
        self._banned_at, self._banned_until = now, now + ban_s

    def refused(self, now: float, retry_after_s: float) -> None:
        """The peer is full, or leaves: no fault, but nothing to ask for until then, or until it
        announces itself anew."""
        self._busy_until = now + min(max(retry_after_s, BUSY_LEAST_S), BAN_LONGEST_S)

    def announced(self, boot: int, seq: int) -> None:
        """A verified record of the peer was read; a newer boot is a peer that began anew."""
        known, _ = self._order
        if (boot, seq) <= self._order:
            return
        self._order = boot, seq
        if known:
            self._busy_until = 0.0  # whoever left that moment has come back, or moved
        if 0 < known < boot:
            self._failures, self._banned_until = 0, 0.0

    @property
    def banned_until_s(self) -> float:
        """Until when it is not to be asked."""
        return self._banned_until

    @property
    def known(self) -> bool:
        """Whether it ever answered."""
        return bool(self._step_per_block.count or self._token_block.count)

    def banned(self, now: float) -> bool:
        return now < self._banned_until

    def may_recover(self) -> bool:
        """Whether a sign of life may shorten its ban."""
        return self._failures <= CHANCES

    def may_be_tried(self, now: float) -> bool:
        """Whether it may be asked, where nobody else is left, once it has given a sign of life: not
        as long as a first ban lasts."""
        return self.may_recover() and now >= self._banned_at + BAN_FIRST_S

    def busy(self, now: float) -> bool:
        return now < self._busy_until

    def patience_s(self, tokens: int, blocks: int) -> float:
        """How long an answer may take before the peer counts as stalled."""
        wait_s = self._wait_s(tokens, blocks)
        if wait_s is None:
            rest_s = FIRST_TOKEN_BLOCK_S * tokens * blocks if tokens > FEW_TOKENS else 0.0
            return min(FIRST_STEP_S + rest_s, PATIENCE_CEILING_S)
        return min(max(wait_s, PATIENCE_FLOOR_S), PATIENCE_CEILING_S)

    def hedge_s(self, tokens: int, blocks: int, usual: Usual) -> float:
        """How long an answer may take before another peer is asked too (algorithms.md 6.1). usual:
        what the others take, by which one who never answered is late: else whoever takes work and
        does none would hold each newcomer up for as long as the slowest device may take."""
        wait_s = self._wait_s(tokens, blocks)
        return usual.late_s(tokens, blocks) if wait_s is None else max(wait_s, HEDGE_FLOOR_S)

    def _wait_s(self, tokens: int, blocks: int) -> float | None:
        return _well_beyond_s(self._step_per_block, self._token_block, tokens, blocks)

    def block_s(
        self, claimed_tokens_s: float, tokens: int = 1, *, usual_tokens_s: float = math.inf
    ) -> float:
        """Seconds for one token through one block, from what we saw, else from the claim.

        claimed_tokens_s: tokens per second through one block, as the peer announces for steps of
        this many tokens. Until it was observed it counts half, and for no more than is usual:
        usual_tokens_s, the median of what is claimed (a fifth of liars cannot move it). After that
        it never counts above what was observed.
        """
        claimed_s = 1.0 / max(claimed_tokens_s, 1e-3)
        seen = self._step_service if tokens <= FEW_TOKENS else self._chunk_service
        if seen.count < OBSERVATIONS_TO_TRUST:
            # Step by step: else whoever was timed five times, a liar even, looks twice as fast as
            # an honest peer that was timed four times, and draws all who could time the other.
            stranger_s = max(2.0 * claimed_s, 1.0 / usual_tokens_s)
            known = seen.count / OBSERVATIONS_TO_TRUST
            return known * max(claimed_s, seen.mean) + (1 - known) * stranger_s
        return max(claimed_s, seen.mean)
