"""The most that any router could get out of a layout: the LP optimum, in closed form.

The linear programme (algorithms.md 8.3): a peer i that computes c_i blocks of a token a second
spreads x_il over the blocks l of its span; all blocks carry the same flow of F tokens a second.

    max F   with   sum over l of x_il <= c_i,    sum over i of x_il >= F for each l

For a given F this is a transport problem; by max-flow min-cut it can be done if and only if every
set S of blocks has F |S| <= the c of all peers that touch S (Gale, 1957). So F is the least of
c(S) / |S| over all sets S. A span is an interval, so a peer touches S in a first block, and c(S) is
a sum over pairs of neighbours in S: who starts behind the one and serves the other. The best S for
a given F is then a shortest path over blocks, and Dinkelbach's iteration finds the least ratio.
tests/test_sim.py holds it against every set of blocks, and against the LP where scipy is there.
"""

from __future__ import annotations

import numpy as np

from ..view import Floats, Ints

ROUNDS_MAX = 64  # Dinkelbach converges superlinearly: five rounds are usual


def optimum(start: Ints, stop: Ints, rate: Floats, total: int) -> float:
    """Tokens a second that this layout can carry at most. rate: blocks of a token a second."""
    edge = np.zeros((total + 1, total + 1))
    np.add.at(edge, (start, start), rate)
    np.add.at(edge, (start, stop), -rate)
    serving = np.cumsum(edge, axis=1)[:total, :total]  # [s, j]: start at s, serve j
    # from below: all who start at i or behind it and serve j
    added = np.cumsum(serving[::-1], axis=0)[::-1]
    flow = float(rate.sum()) / total
    for _ in range(ROUNDS_MAX):
        weight, size = _least_set(added, flow)
        if size == 0 or weight / size >= flow * (1 - 1e-12):
            return flow
        flow = weight / size
    return flow


def _least_set(added: Floats, flow: float) -> tuple[float, int]:
    """The set of blocks with the least c(S) - flow |S|: its c(S), and |S|."""
    total = len(added)
    best = np.zeros(total + 1)  # best[j + 1]: of sets whose last block is j
    before = np.zeros(total + 1, dtype=np.int64)
    weight = np.zeros(total + 1)
    size = np.zeros(total + 1, dtype=np.int64)
    for j in range(total):
        # The block before j in S is i - 1, or there is none (i = 0).
        price = best[: j + 1] + added[: j + 1, j] - flow
        i = int(price.argmin())
        best[j + 1], before[j + 1] = price[i], i
        weight[j + 1], size[j + 1] = weight[i] + added[i, j], size[i] + 1
    last = int(best[1:].argmin()) + 1
    return float(weight[last]), int(size[last])


def layout_bound(rate: Floats, total: int) -> float:
    """What the best layout could carry if peers could be cut at will: all rates over all blocks."""
    return float(rate.sum()) / total
