"""How long a device takes: rows of (blocks, tokens) to milliseconds, as `potluck bench` measures.

    {"name": "...", "source": "...", "rows": [[blocks, tokens, ms], ...]}

Between the rows time is linear in tokens, and beyond the last it grows as between the last two;
blocks beside the measured ones count in proportion. The tables below are from measurements of two
cores (an AMD EPYC, Zen 3) with our fused int8 block until `potluck bench` writes better ones.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right

from ...errors import UserError


class Table:
    """rows: (blocks, tokens, ms)."""

    __slots__ = ("_ms", "_sizes", "_through_s", "_tokens", "name")

    def __init__(self, name: str, rows: tuple[tuple[int, int, float], ...]) -> None:
        self.name = name
        self._sizes = sorted({row[0] for row in rows})
        lines = [sorted((t, ms) for b, t, ms in rows if b == size) for size in self._sizes]
        # A measured single size is drawn out to the origin: time in proportion to tokens.
        lines = [line if len(line) > 1 else [(0, 0.0), *line] for line in lines]
        self._tokens = [[t for t, _ in line] for line in lines]
        self._ms = [[ms for _, ms in line] for line in lines]
        self._through_s: dict[tuple[int, float], float] = {}  # of a row's size and tokens, as found

    def seconds(self, blocks: float, tokens: float) -> float:
        """Of one step of `tokens` tokens through `blocks` blocks."""
        near = max(0, bisect_right(self._sizes, blocks) - 1)
        through_s = self._through_s.get((near, tokens))
        if through_s is None:
            through_s = self._through_s[near, tokens] = self._line_s(near, tokens)
        return through_s * blocks / self._sizes[near]

    def _line_s(self, size: int, tokens: float) -> float:
        """Along the line of one measured size, by its number."""
        at, ms = self._tokens[size], self._ms[size]
        i = min(max(1, bisect_left(at, tokens)), len(at) - 1)
        slope = (ms[i] - ms[i - 1]) / (at[i] - at[i - 1])
        return (ms[i - 1] + slope * (max(tokens, at[0]) - at[i - 1])) / 1000

    def token_block_s(self, tokens: float) -> float:
        """Seconds for one token through one block, in steps of this many tokens."""
        return self.seconds(1, tokens) / tokens


def parse_table(text: str, where: str) -> Table:
    """Raises UserError, in one line, when the text is no table."""
    try:
        told = json.loads(text)
        rows = tuple(sorted((int(b), int(t), float(ms)) for b, t, ms in told["rows"]))
        name = str(told["name"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where} is no compute table ({error!r}): run potluck bench") from None
    if not rows or any(b < 1 or t < 1 or ms <= 0 for b, t, ms in rows):
        raise UserError(f"{where}: a compute table needs rows [blocks, tokens, ms] above zero")
    return Table(name, rows)


# hidden 4096: 6.0 ms a block at one token (measured, fused block); the other sizes by the ratios
# measured on the 1.1B model: 16 streams 3.6, prefill of 128 tokens 4.7 times the single rate.
# hidden 8192: four times the weights, and so four times the time (computed).
TABLES = {
    "cpu-int8-4096": Table(
        "cpu-int8-4096", ((1, 1, 6.04), (1, 16, 26.8), (1, 128, 164.0), (1, 1024, 1312.0))
    ),
    "cpu-int8-8192": Table(
        "cpu-int8-8192", ((1, 1, 24.2), (1, 16, 107.0), (1, 128, 658.0), (1, 1024, 5264.0))
    ),
    # 150 us a token and block whatever the size: the device of our first route simulations.
    "even-150us": Table("even-150us", ((1, 1, 0.15), (1, 1024, 153.6))),
    "even-1500us": Table("even-1500us", ((1, 1, 1.5), (1, 1024, 1536.0))),  # ten such in one stage
}
