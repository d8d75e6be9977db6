"""What we saw of each peer: how long its answers take, how it failed, how long to wait for it.

An answer's time is modelled as `step_s` (a step of few tokens, all of the hop's blocks) and, for
long chunks, `token_block_s` for each token and block; both are moving averages with a moving mean
deviation, as TCP keeps its round-trip time (RFC 6298). A deadline is max(3 mu, mu + 4 sigma), with
a floor (algorithms.md 6.1). Failures ban a peer for a doubling time; any good answer, or a restart
of the peer, ends the ban.
"""

from __future__ import annotations

from dataclasses import dataclass

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

BAN_FIRST_S = 2.0  # guess; Petals has 15 s, too long for a peer that only restarted
BAN_LONGEST_S = 60.0
OBSERVATIONS_TO_TRUST = 5  # algorithms.md 2.5


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


class PeerHistory:
    """One peer, as one client saw it. Times are seconds on the caller's clock."""

    __slots__ = (
        "_banned_until",
        "_boot",
        "_busy_until",
        "_failures",
        "_step_per_block",
        "_token_block",
        "rtt_s",
    )

    def __init__(self) -> None:
        self._step_per_block = _Average()
        self._token_block = _Average()
        self._failures = 0
        self._banned_until = 0.0
        self._busy_until = 0.0
        self._boot = 0
        self.rtt_s: float | None = None

    def answered(self, elapsed_s: float, tokens: int, blocks: int) -> None:
        """A step of `tokens` through `blocks` was answered rightly after `elapsed_s`."""
        if tokens <= FEW_TOKENS:
            self._step_per_block.add(elapsed_s / blocks)
        else:
            self._token_block.add(elapsed_s / (tokens * blocks))
        self._failures = 0
        self._banned_until = 0.0

    def failed(self, now: float) -> None:
        """The peer died, stalled or answered rubbish."""
        ban_s = min(BAN_FIRST_S * 2**self._failures, BAN_LONGEST_S)
        self._failures = min(self._failures + 1, 10)
        self._banned_until = now + ban_s

    def refused(self, now: float, retry_after_s: float) -> None:
        """The peer is full: no fault, but nothing to ask for until then."""
        self._busy_until = now + min(max(retry_after_s, 0.0), BAN_LONGEST_S)

    def announced(self, boot: int) -> None:
        """A verified record of the peer was read; a newer boot is a peer that began anew."""
        if boot > self._boot:
            if self._boot:
                self._failures, self._banned_until = 0, 0.0
            self._boot = boot

    def banned(self, now: float) -> bool:
        return now < self._banned_until

    def busy(self, now: float) -> bool:
        return now < self._busy_until

    def patience_s(self, tokens: int, blocks: int) -> float:
        """How long an answer may take before the peer counts as stalled."""
        step, chunk = self._step_per_block, self._token_block
        if tokens <= FEW_TOKENS:
            known, scale, first_s = step, float(blocks), FIRST_STEP_S
        else:
            known, scale = chunk, float(tokens * blocks)
            first_s = FIRST_STEP_S + FIRST_TOKEN_BLOCK_S * scale
        if known.count < OBSERVATIONS_TO_TRUST:
            return min(first_s, PATIENCE_CEILING_S)
        wait_s = scale * max(3 * known.mean, known.mean + 4 * known.deviation)
        return min(max(wait_s, PATIENCE_FLOOR_S), PATIENCE_CEILING_S)

    def hedge_s(self, tokens: int, blocks: int) -> float:
        """How long an answer may take before another peer is asked too (algorithms.md 6.1)."""
        known = self._step_per_block if tokens <= FEW_TOKENS else self._token_block
        if known.count < OBSERVATIONS_TO_TRUST:
            return PATIENCE_CEILING_S
        scale = float(blocks if tokens <= FEW_TOKENS else tokens * blocks)
        wait_s = scale * max(3 * known.mean, known.mean + 4 * known.deviation)
        return max(wait_s, HEDGE_FLOOR_S)

    def block_s(self, claimed_tokens_s: float) -> float:
        """Seconds for one token through one block, from what we saw, else from the claim.

        claimed_tokens_s: tokens per second through one block, as the peer announces; it counts
        half, and never above what was observed.
        """
        claimed_s = 1.0 / max(claimed_tokens_s, 1e-3)
        if self._step_per_block.count < OBSERVATIONS_TO_TRUST:
            return 2.0 * claimed_s
        return max(claimed_s, self._step_per_block.mean)
