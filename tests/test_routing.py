"""Routing against brute force over every chain of hops."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.errors import MissingBlocks
from potluck.swarm.blocks import BlockRange
from potluck.swarm.routing import (
    ALTERNATES,
    HOP_OVERHEAD_S,
    NO_ROOM_S,
    Finder,
    Offer,
    Route,
    find_route,
    plan_route,
    rebind,
)
from potluck.swarm.view import Span, SwarmView, columns_of

LENGTH = 5
WHOLE = BlockRange(0, LENGTH)
MODEL = "ab" * 32


@st.composite
def views(draw: st.DrawFn) -> SwarmView:
    spans = []
    for number in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, LENGTH - 1))
        stop = draw(st.integers(start + 1, LENGTH))
        spans.append(
            Span(
                f"peer{number}",
                BlockRange(start, stop),
                block_s=draw(st.sampled_from([0.001, 0.01, 0.1])),
                rtt_s=draw(st.sampled_from([0.0, 0.01, 0.2])),
                queue_s=draw(st.sampled_from([0.0, 0.05])),
            )
        )
    return SwarmView(MODEL, WHOLE, tuple(spans))


def hop_s(span: Span, blocks: int, tokens: int) -> float:
    """What a hop through so many blocks of this span costs, its toll included."""
    toll_s = span.queue_s * blocks / len(span.blocks)
    return span.rtt_s + HOP_OVERHEAD_S + span.queue_s + toll_s + blocks * tokens * span.block_s


def cost_s(view: SwarmView, route: Route, tokens: int) -> float:
    spans = {span.peer: span for span in view.spans}
    return sum(hop_s(spans[hop.peer], len(hop.blocks), tokens) for hop in route.hops)


def brute_force(view: SwarmView, tokens: int) -> float:
    """The least cost over every way to cut the model and give each piece to a peer."""
    least = math.inf
    for cuts in itertools.product([False, True], repeat=LENGTH - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), LENGTH]
        pieces = [BlockRange(a, b) for a, b in itertools.pairwise(edges)]
        able = [[s for s in view.spans if s.blocks.covers(piece)] for piece in pieces]
        if all(able):
            least = min(
                least,
                sum(
                    min(hop_s(s, len(p), tokens) for s in spans)
                    for p, spans in zip(pieces, able, strict=True)
                ),
            )
    return least


@settings(max_examples=300, deadline=None)
@given(view=views(), tokens=st.sampled_from([1, 128]))
def test_no_route_is_cheaper(view: SwarmView, tokens: int) -> None:
    best = brute_force(view, tokens)
    if math.isinf(best):
        with pytest.raises(MissingBlocks) as caught:
            find_route(view, WHOLE, tokens=tokens)
        assert caught.value.missing == view.missing()
        return
    route = find_route(view, WHOLE, tokens=tokens)
    assert [hop.blocks.start for hop in route.hops] == [
        0,
        *(hop.blocks.stop for hop in route.hops[:-1]),
    ]
    assert route.hops[-1].blocks.stop == LENGTH
    assert route.cost_s == pytest.approx(best)
    assert cost_s(view, route, tokens) <= best + 1e-9


def view_of(*spans: tuple[str, int, int, float]) -> SwarmView:
    return SwarmView(
        MODEL,
        WHOLE,
        tuple(Span(p, BlockRange(a, b), block_s=s, rtt_s=0.01) for p, a, b, s in spans),
    )


def test_a_peer_to_avoid_is_not_used_and_its_blocks_are_named() -> None:
    view = view_of(("a", 0, 5, 0.001), ("b", 0, 3, 0.001))
    with pytest.raises(MissingBlocks) as caught:
        find_route(view, WHOLE, avoid={"a"})
    assert caught.value.missing == ((3, 5),)
    assert "3:5" in str(caught.value)


def test_a_route_through_part_of_the_model_uses_parts_of_spans() -> None:
    view = view_of(("a", 0, 5, 0.001))
    (hop,) = find_route(view, BlockRange(2, 4)).hops
    assert (hop.peer, hop.blocks) == ("a", BlockRange(2, 4))


def test_a_peer_without_cache_room_comes_last_but_comes() -> None:
    full = Span("full", WHOLE, block_s=0.001, rtt_s=0.0, cache_tokens_free=10)
    roomy = Span("roomy", WHOLE, block_s=1.0, rtt_s=0.2)
    view = SwarmView(MODEL, WHOLE, (full, roomy))
    assert find_route(view, WHOLE, cache_tokens=100).hops[0].peer == "roomy"
    alone = find_route(SwarmView(MODEL, WHOLE, (full,)), WHOLE, cache_tokens=100)
    assert alone.hops[0].peer == "full" and alone.cost_s > NO_ROOM_S


def test_the_draw_spreads_clients_over_equal_peers() -> None:
    """Two equal peers, a surcharge drawn for each: whoever draws less is taken."""
    view = view_of(("a", 0, 5, 0.001), ("b", 0, 5, 0.001))
    for draws, taken in (((0.0, 1.0), "a"), ((1.0, 0.0), "b")):
        rest = iter(draws)
        route = find_route(view, WHOLE, draw=lambda mean, rest=rest: next(rest))
        assert route.hops[0].peer == taken


def many_spans(count: int, seed: int) -> tuple[Span, ...]:
    dice = random.Random(seed)
    found = []
    for number in range(count):
        start = dice.randrange(20)
        found.append(
            Span(
                f"peer{number}",
                BlockRange(start, min(24, start + 1 + dice.randrange(8))),
                block_s=dice.lognormvariate(-7, 0.6),
                rtt_s=dice.uniform(0.02, 0.2),
                queue_s=dice.expovariate(5),
            )
        )
    return (*found, Span("floor", BlockRange(0, 24), block_s=0.1))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.sampled_from([40, 400, 2000]))
def test_of_many_spans_a_few_candidates_find_nearly_the_cheapest_route(
    seed: int, count: int
) -> None:
    """Within 2 % of the cheapest over every span and every pair of boundaries."""
    view = SwarmView(MODEL, BlockRange(0, 24), many_spans(count, seed))
    route = find_route(view, view.blocks, tokens=128)
    exact = exact_cost_s(view, 128)
    assert exact - 1e-9 <= route.cost_s <= 1.02 * exact
    dice = random.Random(seed)
    drawn = find_route(view, view.blocks, tokens=128, draw=lambda mean: dice.expovariate(1 / mean))
    assert drawn.cost_s >= exact - 1e-9
    assert drawn.hops[0].blocks.start == 0 and drawn.hops[-1].blocks.stop == 24


def exact_cost_s(view: SwarmView, tokens: int) -> float:
    """Over all pairs of boundaries and all spans."""
    togo = {24: 0.0}
    for at in range(23, -1, -1):
        togo[at] = min(
            hop_s(s, stop - at, tokens) + togo[stop]
            for s in view.spans
            if s.blocks.start <= at < s.blocks.stop
            for stop in range(at + 1, s.blocks.stop + 1)
        )
    return togo[0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), at=st.integers(0, 23))
def test_the_rest_from_any_block_is_what_was_planned(seed: int, at: int) -> None:
    view = SwarmView(MODEL, BlockRange(0, 24), many_spans(25, seed))
    finder = Finder(columns_of(view.spans), view.blocks, tokens=128)
    route = finder.route(at)
    assert route.hops[0].blocks.start == at and route.hops[-1].blocks.stop == 24
    row, stop = finder.planned(at)
    assert (route.hops[0].peer, route.hops[0].blocks.stop) == (f"peer{row}", stop) or row == 25
    others = finder.alternates(at, 3, random.Random(seed).randrange)
    assert len({row, *others}) == 1 + len(others)
    assert all(view.spans[i].blocks.start <= at < view.spans[i].blocks.stop for i in others)


def test_late_binding_takes_the_offer_that_ends_soonest() -> None:
    """The plan's peer has filled up since; another, planned for nothing, is idle."""
    spans = view_of(("planned", 0, 5, 0.001), ("idle", 0, 5, 0.002), ("half", 0, 2, 0.001)).spans
    finder = Finder(columns_of(spans), WHOLE, tokens=10)
    assert finder.planned(0) == (0, 5)
    offers = [Offer(0, queue_s=9.0), Offer(1, 0.0)]
    assert finder.bind(0, offers, short_s=0.02)[:2] == (1, 5)
    # Who trusts the plan, which knows of no queue at the first, goes there as soon as it can.
    assert finder.bind(0, offers)[:2] == (1, 2)
    assert finder.bind(0, [Offer(0, queue_s=0.01), Offer(1, 0.0)])[0] == 0
    # The one that serves two blocks needs a successor, whom the plan knows.
    assert finder.bind(0, [Offer(2, 0.0), Offer(1, 9.0)])[:2] == (2, 2)


def test_a_long_queue_is_left_early_for_whom_has_time_and_a_short_one_is_not() -> None:
    """Nobody else serves the first two blocks; for the rest there is an idle peer."""
    spans = view_of(("scarce", 0, 5, 0.001), ("idle", 2, 5, 0.001)).spans
    finder = Finder(columns_of(spans), WHOLE, tokens=10)
    assert finder.bind(0, [Offer(0, queue_s=2.0)], short_s=0.02)[:2] == (0, 2)
    assert finder.bind(0, [Offer(0, queue_s=0.05)], short_s=0.02)[:2] == (0, 5)
    waiting = tuple(replace(s, queue_s=2.0 if s.peer == "scarce" else 0.0) for s in spans)
    route = find_route(SwarmView(MODEL, WHOLE, waiting), WHOLE, tokens=10)
    assert [(hop.peer, len(hop.blocks)) for hop in route.hops] == [("scarce", 2), ("idle", 3)]


def test_a_plan_has_its_peers_asked_and_some_others_that_could_stand_in_for_each() -> None:
    view = view_of(*((f"p{n:02}", n % 2 * 2, 2 + n % 2 * 3, 0.001) for n in range(40)))
    plan = plan_route(view, WHOLE, pick=random.Random(1).randrange)
    assert plan.route == find_route(view, WHOLE)
    assert {hop.peer for hop in plan.route.hops} <= {*plan.asked}
    assert len(plan.asked) == len({*plan.asked})
    serves = {span.peer: span.blocks for span in view.spans}
    for start in (0, 2):
        assert 3 <= sum(serves[peer].start == start for peer in plan.asked) <= 1 + ALTERNATES
    alone = plan_route(view, WHOLE, avoid=[f"p{n:02}" for n in range(2, 40)], pick=lambda n: 0)
    assert alone.asked == ("p00", "p01")


def test_of_a_long_route_fewer_are_asked_for_each_hop_and_one_at_least() -> None:
    """40 hops, each with eight peers: not 240 dials at once."""
    whole = BlockRange(0, 40)
    spans = [
        Span(f"p{n}", BlockRange(n % 40, n % 40 + 1), block_s=0.01, rtt_s=0.01) for n in range(320)
    ]
    plan = plan_route(SwarmView(MODEL, whole, tuple(spans)), whole, pick=random.Random(1).randrange)
    assert len(plan.route.hops) == 40
    assert 60 < len(plan.asked) <= 80


def test_a_session_is_bound_among_those_that_answered_and_else_as_planned() -> None:
    view = view_of(("a", 0, 5, 0.001), ("b", 0, 5, 0.002), ("c", 0, 3, 0.001))
    plan = find_route(view, WHOLE)
    assert plan.hops[0].peer == "a"
    assert rebind(view, plan, {"a": 5.0, "b": 0.0}).hops[0].peer == "b"
    assert rebind(view, plan, {"c": 0.0}) == plan


def test_a_relayed_peer_counts_for_a_fifth_and_a_narrow_road_for_its_bytes() -> None:
    near = Span("near", WHOLE, block_s=0.01, rtt_s=0.01)
    for other, wins in (
        (Span("relayed", WHOLE, block_s=0.003, rtt_s=0.01, relayed=True), "near"),
        (Span("direct", WHOLE, block_s=0.003, rtt_s=0.01), "direct"),
        (Span("narrow", WHOLE, block_s=0.003, rtt_s=0.01, bytes_s=1e4), "near"),
    ):
        view = SwarmView(MODEL, WHOLE, (near, other))
        assert find_route(view, WHOLE, tokens=10, row_bytes=1000).hops[0].peer == wins


def test_a_peer_that_has_the_prefix_is_preferred() -> None:
    cold = Span("cold", WHOLE, block_s=0.001, rtt_s=0.01)
    warm = Span("warm", WHOLE, block_s=0.002, rtt_s=0.01, cached_tokens=90)
    view = SwarmView(MODEL, WHOLE, (cold, warm))
    assert find_route(view, WHOLE, tokens=100).hops[0].peer == "warm"
    assert find_route(view, WHOLE, tokens=400).hops[0].peer == "cold"
