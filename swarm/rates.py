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
_LIKE = 3  # guess: passes of up to eight times the rows, or an eighth, tell of the same limit
_ROWS_MAX = 2048  # of one pass
PASS_S = 0.040  # with what a thread's turn takes, below the 50 ms within which streams are served
_PROMPT_SHARE = 0.4  # of a pass of tokens alone: what prompts may add to it
_LEAST_ROWS = {False: 32, True: 1}  # guess: so many share one reading of the weights well
_ALONE_EVERY = 16  # passes with prompts


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

    def announced(self, now: float) -> tuple[float, float]:
        """Tokens a second through one block: one at a time, and in chunks of a prompt."""
        decode, prefill = self._start
        return self._rate(1, decode, now), self._rate(PREFILL_ROWS, prefill, now)

    def _rate(self, rows: int, start: float, now: float) -> float:
        """Of passes of so many rows; where there are none of late, of the likest: a prompt comes in
        slices as long as a pass may take, and tokens come together."""

        def weight(bucket: int) -> float:
            return math.exp2(-max(0.0, now - self._averages[bucket].at_s) / _RETURN_S)

        like = (one for one in self._averages if abs(one - _bucket(rows)) <= _LIKE)
        likest = max(like, key=lambda one: weight(one) * math.exp2(-abs(one - _bucket(rows))))
        average = self._averages[likest]
        found = start * self._start_seconds(average.rows) / average.seconds
        return max(start + (found - start) * weight(likest), start * _FLOOR)

    def _start_seconds(self, rows: float) -> float:
        """What a pass of so many rows took at the start: on a line through the two measures."""
        decode, prefill = self._start
        one_s = self._blocks / decode
        chunk_s = max(one_s, self._blocks * PREFILL_ROWS / prefill)
        return one_s + (chunk_s - one_s) * (rows - 1) / (PREFILL_ROWS - 1)


class Pace:
    """How many rows of prompts the next pass may have.

    While somebody waits for tokens, a prompt may make a pass longer than tokens alone would by
    _PROMPT_SHARE of that: a token that comes just after a pass began waits for all of it and is
    then computed in another, and two passes of 1.4 times an idle one are 2.8 times the wait
    without the prompts. Whoever's tokens share a pass of many rows waits that long anyway, and a
    prompt adds no more than PASS_S. With nobody waiting a pass takes PASS_S, or twice that of one
    row where that is more: below, weights would be read for next to nothing.

    The rows grow by a quarter while passes are short enough and fall at once when one was not, as
    TCP's window does: what a device did lately is all that can be known of it, and whoever always
    asks a little more never stays too low because of one bad pass.
    """

    def __init__(self, times: PassTimes) -> None:
        self._times = times
        self._rows = {False: 64.0, True: 8.0}  # guesses, corrected within a dozen passes
        self._since_alone = 0

    def rows(self, urgent_rows: int, *, decoding: bool) -> int:
        """Of prompts, for a pass with so many rows of tokens.

        decoding: somebody waits for tokens, in this pass or between two of them. Now and then a
        pass of tokens has none, to show what tokens alone take now.
        """
        if urgent_rows and self._since_alone >= _ALONE_EVERY:
            return 0
        return max(_LEAST_ROWS[decoding], int(self._rows[decoding]))

    def took(self, urgent_rows: int, prompt_rows: int, seconds: float, *, decoding: bool) -> None:
        """A pass of these rows took so long. decoding: as it was asked for."""
        if not prompt_rows:
            self._since_alone = 0
            return
        self._since_alone += 1
        fits = self._longest_s(urgent_rows, decoding) / seconds
        allowed = self._rows[decoding]
        if fits < 1:
            allowed = min(allowed, prompt_rows) * max(0.5, fits)
        elif prompt_rows >= int(allowed):
            allowed = allowed * min(1.25, fits) + 1
        self._rows[decoding] = min(max(allowed, float(_LEAST_ROWS[decoding])), _ROWS_MAX)

    def _longest_s(self, urgent_rows: int, decoding: bool) -> float:
        alone_s = self._times.seconds(max(1, urgent_rows))
        if not decoding:
            return max(PASS_S, 2 * alone_s)
        return alone_s + min(PASS_S, alone_s * _PROMPT_SHARE)


def _bucket(rows: int) -> int:
    return rows.bit_length()
