"""How fast a stage is, tried on the stage itself: what it announces until traffic tells better."""

import time
from collections.abc import Callable

_MEASURE_S = 0.2  # in all, of a slow stage: short enough for a start
_RUNS = 25  # of a fast one: of so many the median stands, though a neighbour takes our turn
_DECODE_BLOCKS = 8
_PREFILL_TOKENS = 128


def decode_and_prefill(rate: Callable[[int, int], float], context: int) -> tuple[float, float]:
    """Tokens per second and block: decoding one by one, and in a prefill of 128.

    rate: of so many tokens at once through so many blocks. Decoding goes through several blocks,
    whose weights do not all fit the processor's cache; a prefill uses each weight often, so that
    one block is enough.
    """
    return rate(1, _DECODE_BLOCKS), rate(min(_PREFILL_TOKENS, context), 1)


def median_s(run: Callable[[], object]) -> float:
    """Seconds of a run, the median of some; the first, which also pays for memory, is not one."""
    run()
    spent: list[float] = []
    while sum(spent) < _MEASURE_S and len(spent) < _RUNS:
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    spent.sort()
    return spent[len(spent) // 2]
