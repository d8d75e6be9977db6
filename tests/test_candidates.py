"""Who is looked at where a route enters: many networks, and whoever is there where they are few."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.dht.network import NOWHERE, PER_NETWORK, Prefixes, diverse, prefixes_of, wide_max
from potluck.swarm.blocks import BlockRange
from potluck.swarm.candidates import (
    CANDIDATES_BEST,
    CANDIDATES_RANDOM,
    POOL_DEPTH,
    candidates,
    pool,
)
from potluck.swarm.routing import plan_route
from potluck.swarm.view import Span, SwarmView, columns_of

MOST = CANDIDATES_BEST + CANDIDATES_RANDOM
WHOLE = BlockRange(0, 8)
MODEL = "ab" * 32


def at(*numbers: int) -> Prefixes:
    return prefixes_of(f"/ip4/{'.'.join(map(str, numbers))}/tcp/1")


def span(name: str, network: Prefixes, *, block_s: float = 0.01, start: int = 0) -> Span:
    blocks = BlockRange(start, WHOLE.stop)
    return Span(name, blocks, block_s=block_s, rtt_s=0.01, network=network)


def crowd(count: int) -> list[Span]:
    """Of one /24, and all of them say that they are fast."""
    return [span(f"liar{n}", at(8, 8, 8, n % 250 + 1), block_s=1e-4) for n in range(count)]


def others(count: int) -> list[Span]:
    return [span(f"peer{n}", at(20 + n % 200, n // 200, 1, 1)) for n in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(MOST + 1, 120), st.booleans())
def test_of_each_boundary_they_are_the_best_that_diverse_would_take(
    seed: int, count: int, by_lot: bool
) -> None:
    """By lot beside the best too: of all of the list no network has more than its part, as long as
    there are others to fill it."""
    dice = random.Random(seed)
    places = [at(50 + dice.randrange(3), dice.randrange(3), dice.randrange(3), 1) for _ in range(9)]
    spans = [
        span(f"p{n}", dice.choice([NOWHERE, *places]) if n % 3 else at(90 + n, 1, 1, 1))
        for n in range(count)
    ]
    covers = np.array([[dice.random() < 0.9 for _ in spans] for _ in range(4)])
    score = np.where(covers, [[dice.random() for _ in spans] for _ in range(4)], np.inf)
    rows = np.arange(count)
    draw = (lambda mean: dice.expovariate(1 / mean)) if by_lot else None
    found = candidates(columns_of(spans), rows, covers, score, draw)
    for line, chosen in enumerate(found.tolist()):
        ranked = [n for n in np.argsort(score[line]).tolist() if covers[line, n]]
        wanted = diverse(((n, (spans[n].network,)) for n in ranked), MOST)
        serving = {n for n in chosen if covers[line, n]}
        if not by_lot:
            assert serving == set(wanted)
            continue
        fits = diverse(((n, (spans[n].network,)) for n in ranked), len(ranked))[: len(serving)]
        if all(spans[n].network == NOWHERE for n in fits):
            continue
        narrow = Counter(spans[n].network[2] for n in serving if spans[n].network != NOWHERE)
        middle = Counter(spans[n].network[1] for n in serving if spans[n].network != NOWHERE)
        able = sum(
            min(PER_NETWORK, wide_max(MOST), many)
            for many in Counter(spans[n].network[1] for n in ranked).values()
        )
        if able >= 2 * MOST:
            assert max(narrow.values(), default=0) <= PER_NETWORK
            assert max(middle.values(), default=0) <= wide_max(MOST)


def lists(spans: list[Span], seed: int) -> list[list[str]]:
    columns, dice = columns_of(spans), random.Random(seed)
    lines = np.ones((3, len(spans)), dtype=np.bool_)
    score = np.broadcast_to(columns.block_s, lines.shape).astype(np.float64)
    found = candidates(
        columns, np.arange(len(spans)), lines, score, lambda mean: dice.expovariate(1 / mean)
    )
    return [[spans[n].peer for n in sorted(set(line))] for line in found.tolist()]


def test_a_crowd_of_one_network_has_two_seats_however_fast_it_says_it_is() -> None:
    for seed in range(20):
        for line in lists(crowd(200) + others(60), seed):
            assert sum(peer.startswith("liar") for peer in line) <= PER_NETWORK


def test_a_swarm_within_one_network_or_at_home_is_looked_at_as_ever() -> None:
    one = [span(f"p{n}", at(8, 8, 8, n + 1), block_s=0.001 * (1 + n)) for n in range(60)]
    home = [span(f"p{n}", NOWHERE, block_s=0.001 * (1 + n)) for n in range(60)]
    assert columns_of(home).networks is None
    for spans in (one, home):
        for line in lists(spans, 1):
            assert {f"p{n}" for n in range(CANDIDATES_BEST - 1)} <= set(line)


def test_of_few_spans_all_are_used_wherever_they_are() -> None:
    view = SwarmView(MODEL, WHOLE, tuple(crowd(MOST)))
    plan = plan_route(view, WHOLE, pick=random.Random(1).randrange)
    assert plan.route.hops and len(plan.asked) > 2


def test_a_crowd_is_not_all_whom_a_client_asks_for_their_queues() -> None:
    """Without the limit every candidate to stand in is the crowd's."""
    view = SwarmView(MODEL, WHOLE, tuple(crowd(200) + others(60)))
    dice = random.Random(2)
    for _ in range(20):
        plan = plan_route(
            view, WHOLE, draw=lambda mean: dice.expovariate(1 / mean), pick=dice.randrange
        )
        assert sum(peer.startswith("liar") for peer in plan.asked) <= PER_NETWORK
        assert len(plan.asked) >= 4


def pooled(spans: list[Span]) -> list[Span]:
    columns = columns_of(spans)
    score = columns.block_s + columns.rtt_s
    found = pool(columns, np.arange(len(spans)), WHOLE, score, None)
    return [spans[n] for n in found.tolist()]


def test_no_crowd_fills_the_pool_whatever_its_spans() -> None:
    dice = random.Random(3)
    liars = [
        span(f"liar{n}", at(8, 8, 8, n % 250 + 1), block_s=1e-4, start=dice.randrange(8))
        for n in range(2000)
    ]
    found = pooled(liars + others(300))
    for block in range(WHOLE.stop):
        there = [one for one in found if one.blocks.start <= block]
        assert len(there) >= POOL_DEPTH
        assert sum(one.peer.startswith("liar") for one in there) <= PER_NETWORK


def test_the_pool_is_filled_up_where_there_is_one_network_only() -> None:
    found = pooled(crowd(400))
    assert len(found) >= POOL_DEPTH
