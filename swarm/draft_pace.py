"""How many guesses to send with a token: what they bring against what they cost, measured online.

A step of K guesses brings E = (1 - a^(K+1)) / (1 - a) tokens where each is right with chance a
(Leviathan et al., 2023), and takes R(K+1) = r0 + r1 (K+1) seconds, and K times what a guess takes
to make. K is the best of 0..32 (algorithms.md 9). What is known of each comes from the answer:

    a      of each source: hits and misses, which fade. What was guessed and not sent is held
           against what came, too, so a text that begins to repeat itself is noticed for nothing
    r0 r1  a straight line through the times of the last steps; wider steps are tried bit by bit
    purse  what guesses have saved so far, in steps; never is more put at stake than that is

The purse begins with half a step, gains a hundredth with each, and holds eight: so whatever the
text does, guesses cost at most 1 % and half a step beyond what they have brought, as far as the
line is right. A fall of the share that is foreseen where it was high is told (`fell`): the text may
have left what it copied, or a server the model that it serves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

GUESSES_MAX: Final = 32  # algorithms.md 9

_FADE: Final = 1 - 1 / 24  # guess, for each token: a source is what it was two dozen tokens ago
_REST: Final = 1 - 1 / 64  # guess, for each step: what was seen long ago is tried again
_PRIOR: Final = {  # guess: chance that a first guess is right, before any was seen
    "said 1": 0.1,
    "said 2": 0.2,
    "said 3": 0.4,
    "said 4": 0.6,
    "said 8": 0.8,
    "said 16": 0.9,
}
_PRIOR_ELSE: Final = 0.5  # of a model
_PRIOR_WEIGHT: Final = 2.0  # guess: tokens
_CHANCE_MAX: Final = 0.995  # nothing is sure

_STEP_FADE: Final = 1 - 1 / 32  # guess: the line is that of the last few dozen steps
_SLOPE_PRIOR: Final = 1 / 32  # of a step of one row, for each: weights are read once for all rows
_SLOPE_WEIGHT: Final = 0.25  # guess: as of one step that is half a row wider
_OUTLIER: Final = 4.0  # times what the line says: the road was away, no more is learnt of it

_PURSE_FIRST: Final = 0.5  # steps
_PURSE_MAX: Final = 8.0
_PURSE_STEP: Final = 0.01  # half of what may be lost (issue G, bar 2: never below 0.98)

_FALL_KNOWN: Final = 64.0  # guess: tokens after which a share is something to fall from
_FALL_FROM: Final = 0.4  # guess: of tokens, foreseen
_FALL_TO: Final = 0.25  # guess: of that
_SLOW: Final = 1 - 1 / 256  # guess: of the share that it falls from
_FAST: Final = 1 - 1 / 16


@dataclass(slots=True)
class _Share:
    """Of what was guessed, how much was right. Fades by `fade` with each token."""

    fade: float
    right: float = 0.0
    seen: float = 0.0

    def add(self, hits: int, misses: int) -> None:
        self.fade_by(self.fade ** (hits + misses))
        self.right += hits
        self.seen += hits + misses

    def fade_by(self, kept: float) -> None:
        self.right *= kept
        self.seen *= kept

    def mean(self, prior: float = 0.0, weight: float = 0.0) -> float:
        return (self.right + prior * weight) / max(self.seen + weight, 1e-9)


@dataclass(slots=True)
class Line:
    """R(n) = r0 + r1 n through what steps of n rows took; before two widths are known, nearly
    flat."""

    weight: float = 0.0
    rows: float = 0.0  # sums, of what fades
    seconds: float = 0.0
    square: float = 0.0
    product: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        if self.weight > 2:
            seconds = min(seconds, _OUTLIER * self.at(rows))
        self.weight = self.weight * _STEP_FADE + 1
        self.rows = self.rows * _STEP_FADE + rows
        self.seconds = self.seconds * _STEP_FADE + seconds
        self.square = self.square * _STEP_FADE + rows * rows
        self.product = self.product * _STEP_FADE + rows * seconds

    def at(self, rows: float) -> float:
        """Seconds for a step of so many rows. Only once there was one."""
        mean_rows, mean_s = self.rows / self.weight, self.seconds / self.weight
        spread = self.square - self.rows * mean_rows
        together = self.product - self.seconds * mean_rows
        flat = mean_s * _SLOPE_PRIOR
        slope = (together + _SLOPE_WEIGHT * flat) / (spread + _SLOPE_WEIGHT)
        slope = min(max(slope, 0.0), mean_s / mean_rows)  # no step takes less than nothing
        return max(mean_s + slope * (rows - mean_rows), 1e-9)


@dataclass(slots=True)
class Pace:
    """One answer's. Told of each step (`took`), of each offer (`judged`), it chooses (`choose`).

    The caller owes `took` before the first `choose`; until then that gives 0.
    """

    line: Line = field(default_factory=Line)
    _shares: dict[str, _Share] = field(default_factory=dict)
    _making_s: dict[str, float] = field(default_factory=dict)  # of one guess
    _purse: float = _PURSE_FIRST  # in steps of one row
    _widest: int = 1  # rows of any step so far
    _slow: _Share = field(default_factory=lambda: _Share(_SLOW))
    _fast: _Share = field(default_factory=lambda: _Share(_FAST))
    _fallen: bool = False

    def took(self, rows: int, seconds: float) -> None:
        """A step of so many rows, from being sent to its answer."""
        self.line.add(rows, seconds)
        self._widest = max(self._widest, rows)

    def brought(self, rows: int, tokens: int, making_s: float = 0.0, *, foreseen: int = 0) -> None:
        """What came of that step. making_s: what its guesses took to make. foreseen: how many of
        these tokens were offered, sent or not."""
        self._slow.add(foreseen, tokens - foreseen)
        self._fast.add(foreseen, tokens - foreseen)
        for share in self._shares.values():
            share.fade_by(_REST)
        if not self.line.weight:
            return
        alone_s = self.line.at(1)
        gain = tokens * alone_s - self.line.at(rows) - making_s if rows > 1 else -making_s
        self._purse = min(_PURSE_MAX, self._purse + gain / alone_s + _PURSE_STEP)

    def made(self, source: str, guesses: int, seconds: float) -> None:
        """It took so long to make so many guesses."""
        each_s = seconds / max(guesses, 1)
        before = self._making_s.get(source, each_s)
        self._making_s[source] = before + (each_s - before) / 8

    def judged(self, source: str, hits: int, missed: bool) -> None:
        """Of an offer the first `hits` tokens came; missed: and then another one."""
        share = self._shares.setdefault(source, _Share(_FADE))
        share.add(hits, int(missed))

    def chance(self, source: str) -> float:
        """That a guess of this source is right, where those before it were."""
        share = self._shares.get(source) or _Share(_FADE)
        found = share.mean(_PRIOR.get(source, _PRIOR_ELSE), _PRIOR_WEIGHT)
        return min(found, _CHANCE_MAX)

    def choose(self, source: str, most: int) -> int:
        """How many guesses of this source to send, at most so many."""
        return self.plan(source, most)[0]

    def plan(self, source: str, most: int) -> tuple[int, float]:
        """The same, and the tokens a second that come of it."""
        if not self.line.weight:
            return 0, 0.0
        chance, making_s = self.chance(source), self._making_s.get(source, 0.0)
        alone_s = self.line.at(1)
        best, rate, tokens, power = 0, 1 / alone_s, 1.0, 1.0
        for guesses in range(1, min(most, GUESSES_MAX, 2 * self._widest - 1) + 1):
            power *= chance
            tokens += power
            step_s = self.line.at(1 + guesses) + making_s * guesses
            if step_s - alone_s > self._purse * alone_s:
                break  # a wider step stakes more still
            if tokens / step_s > rate:
                best, rate = guesses, tokens / step_s
        return best, rate

    def fell(self) -> bool:
        """True once when the share of tokens that are foreseen, which was high, has become low."""
        before, now = self._slow.mean(), self._fast.mean()
        high = self._slow.seen >= _FALL_KNOWN and before > _FALL_FROM
        low = now < _FALL_TO * before
        if low and high and not self._fallen:
            self._fallen = True
            return True
        if now > _FALL_FROM:
            self._fallen = False
        return False
