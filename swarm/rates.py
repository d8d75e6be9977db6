"""How long a pass of so many rows takes on this device, learnt from the passes it served.

Rows are sorted into powers of two; of each a moving average of rows and seconds is kept, where an
old average weighs the less the older it is. Between two of them time is taken as linear, beyond
the last as proportional: too long rather than too short.

    seconds  │            ╱
             │      x────x        x: what was observed
             │ x───╱
             └─────────────── rows

What a node announces is drawn from the same averages: they fall back towards what was measured at
the start when nothing is served for minutes, so that one bad minute does not send everybody away
for good, and never fall below a floor, since nobody would come any more to show the difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PREFILL_ROWS = 128  # of a chunk of a prompt, as clients send them
_WEIGHT = 0.2  # of one observation among fresh ones; guess: a dozen passes to believe a change
_HALF_LIFE_S = 60.0  # guess: what a device did a minute ago says half as much of what it does now
_RETURN_S = 300.0  # guess: after that long without a pass, half way back to the start's measure
_FLOOR = 0.1  # of the start's measure: still worth a try when all others are full
_ROWS_MAX = 4096  # of one pass
PASS_S = 0.040  # with what a thread's turn takes, below the 50 ms within which streams are served
_PROMPT_SHARE = 0.4  # of a pass of tokens alone: what prompts may add to it


@dataclass(slots=True)
class _Average:
    rows: float
    seconds: float
    at_s: float


class PassTimes:
    """Seconds of a pass through all of a stage's blocks, by its rows."""

    def __init__(self, blocks: int, decode_tokens_s: float, prefill_tokens_s: float) -> None:
        """The two rates, tokens a second through one block, are those measured at the start."""
        self._blocks = blocks
        self._start = (decode_tokens_s, prefill_tokens_s)
        self._averages: dict[int, _Average] = {
            _bucket(1): _Average(1, blocks / decode_tokens_s, float("-inf")),
            _bucket(PREFILL_ROWS): _Average(
                PREFILL_ROWS, blocks * PREFILL_ROWS / prefill_tokens_s, float("-inf")
            ),
        }

    def observe(self, rows: int, seconds: float, now: float) -> None:
        """A pass of so many rows through all blocks took so long."""
        old = self._averages.get(_bucket(rows))
        if old is None:
            self._averages[_bucket(rows)] = _Average(rows, seconds, now)
            return
        weight = max(_WEIGHT, 1 - math.exp2(-max(0.0, now - old.at_s) / _HALF_LIFE_S))
        old.rows += (rows - old.rows) * weight
        old.seconds += (seconds - old.seconds) * weight
        old.at_s = now

    def seconds(self, rows: int) -> float:
        """How long a pass of so many rows would take."""
        below: _Average | None = None
        for bucket in sorted(self._averages):
            here = self._averages[bucket]
            if below is not None and here.seconds < below.seconds:
                continue  # noise: more rows are not faster
            if rows <= here.rows:
                if below is None:
                    return here.seconds
                share = (rows - below.rows) / (here.rows - below.rows)
                return below.seconds + (here.seconds - below.seconds) * share
            below = here
        assert below is not None
        return below.seconds * rows / below.rows

    def rows_within(self, seconds: float) -> int:
        """The most rows that such a pass can have; at least one."""
        low, high = 1, _ROWS_MAX
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(middle) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def announced(self, now: float) -> tuple[float, float]:
        """Tokens a second through one block: one at a time, and in chunks of a prompt."""
        decode, prefill = self._start
        return self._rate(1, decode, now), self._rate(PREFILL_ROWS, prefill, now)

    def _rate(self, rows: int, start: float, now: float) -> float:
        average = self._averages[_bucket(rows)]
        age_s = max(0.0, now - average.at_s)
        found = self._blocks * average.rows / average.seconds
        return max(start + (found - start) * math.exp2(-age_s / _RETURN_S), start * _FLOOR)


def pass_seconds(times: PassTimes, urgent_rows: int, *, decoding: bool) -> float:
    """How long the next pass may take while prompts wait.

    decoding: somebody waits for tokens, in this pass or between two of them. A token that comes
    just after a pass began waits for all of it and is then computed in another: two passes of 1.4
    times an idle one are 2.8 times the wait without the prompts. But whoever's tokens share a pass
    of many rows waits that long anyway, and a prompt adds no more than PASS_S.
    """
    if not decoding:
        return PASS_S
    alone_s = times.seconds(max(1, urgent_rows))
    return alone_s + min(PASS_S, alone_s * _PROMPT_SHARE)


def _bucket(rows: int) -> int:
    return rows.bit_length()
