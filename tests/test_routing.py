"""Routing against brute force over every chain of hops."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.errors import MissingBlocks
from potluck.swarm.blocks import BlockRange
from potluck.swarm.routing import HOP_OVERHEAD_S, NO_ROOM_S, Route, find_route
from potluck.swarm.view import Span, SwarmView

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


def cost_s(view: SwarmView, route: Route, tokens: int) -> float:
    spans = {span.peer: span for span in view.spans}
    return sum(
        spans[hop.peer].rtt_s
        + HOP_OVERHEAD_S
        + spans[hop.peer].queue_s
        + len(hop.blocks) * tokens * spans[hop.peer].block_s
        for hop in route.hops
    )


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
                    min(
                        s.rtt_s + HOP_OVERHEAD_S + s.queue_s + len(p) * tokens * s.block_s
                        for s in spans
                    )
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
