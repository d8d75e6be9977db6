"""Where a prompt goes: to one of two that its beginning names, or where load says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.affinity import SLACK, SOON_S, Bid, Placing, bid_of, candidates, choose, key_of
from potluck.swarm.blocks import BlockRange
from potluck.swarm.view import Span

PEERS = st.lists(st.text("abcdef", min_size=1, max_size=3), unique=True, max_size=12)
FIRST, SECOND = BlockRange(0, 4), BlockRange(4, 8)


@given(key=st.binary(max_size=8), peers=PEERS, newcomer=st.text("xyz", min_size=1, max_size=3))
def test_who_joins_takes_places_and_changes_no_other(
    key: bytes, peers: list[str], newcomer: str
) -> None:
    before = candidates(key, peers)
    assert len(before) == min(2, len(peers)) == len(set(before))
    assert before == candidates(key, peers[::-1])
    after = candidates(key, [*peers, newcomer])
    assert newcomer in after or after == before
    assert {*after} - {newcomer} <= {*before}


def test_of_many_beginnings_a_newcomer_takes_about_two_in_n() -> None:
    """Of 400 beginnings among 10 peers the eleventh is named by 400 * 2 / 11 = 73, and 3.3 sigma of
    it, 27."""
    peers = [f"peer{number}" for number in range(10)]
    keys = [number.to_bytes(2) for number in range(400)]
    moved = sum("new" in candidates(key, [*peers, "new"]) for key in keys)
    assert 46 <= moved <= 100
    first = [candidates(key, peers)[0] for key in keys]
    assert all(20 <= first.count(peer) <= 64 for peer in peers)  # 40 each, 4 sigma


@given(
    bids=st.lists(st.tuples(st.floats(0.01, 60), st.integers(0, 5)), max_size=4),
    least_s=st.floats(0.01, 60),
)
def test_more_of_the_prompt_is_taken_where_that_is_soon_enough(
    bids: list[tuple[float, int]], least_s: float
) -> None:
    """And whoever holds nothing of it is never chosen above load, once that takes two seconds."""
    told = [Bid(str(place), ttft_s, held) for place, (ttft_s, held) in enumerate(bids)]
    best = choose(told, 5, least_s)
    soon = [bid for bid in told if bid.ttft_s <= max(SOON_S, (1 + 2 * bid.held / 5) * least_s)]
    assert SLACK == 3 and (best is None) == (not soon)
    if best is not None:
        assert best in soon and best.held == max(bid.held for bid in soon)
        assert best == next(bid for bid in soon if bid.held == best.held)
        assert best.held or best.ttft_s <= max(SOON_S, least_s)


def test_a_prompt_shorter_than_what_is_hashed_has_no_place() -> None:
    names = [bytes([one]) * 32 for one in range(4)]
    assert key_of(names[:3]) is None
    assert key_of(names) == key_of([*names, b"more"]) != key_of([*names[:3], b"other"])


def span(peer: str, blocks: BlockRange, queue_s: float = 0.0) -> Span:
    return Span(peer, blocks, block_s=0.001, rtt_s=0.01, queue_s=queue_s)


def placing(shared: bool, **held: int) -> Placing:
    """Of a prompt of 1,600 tokens. held: by peer."""
    return Placing(1600, b"key" if shared else None, lambda peer: held.get(peer, 0))


SPANS = [span(f"{peer}{blocks.start}", blocks) for blocks in (FIRST, SECOND) for peer in "abcd"]


def test_of_each_group_the_first_candidate_is_taken_to_hold_what_is_shared() -> None:
    asked = placing(True).asked(SPANS)
    assert len(asked) == 4
    chosen = placing(True).prefer(SPANS, 8)
    assert chosen is not None and [one.peer for one in chosen] == asked[::2]
    assert all(one.cached_tokens == 12 for one in chosen)


def test_what_is_not_shared_goes_where_it_was_brought_or_where_load_says() -> None:
    assert placing(False).asked(SPANS) == []
    assert placing(False).prefer(SPANS, 8) is None
    chosen = placing(False, b0=1536, c0=512).prefer(SPANS, 8)
    assert chosen is not None
    assert [one.peer for one in chosen] == ["b0", "a4", "b4", "c4", "d4"]
    assert placing(False, b0=1536, c0=512).asked(SPANS) == ["b0", "c0"]


def test_where_all_who_hold_it_are_overrun_load_decides_in_that_group() -> None:
    asked = placing(True).asked(SPANS)
    busy = [span(one.peer, one.blocks, 60.0 * (one.peer in asked)) for one in SPANS]
    assert placing(True).prefer(busy, 8) is None
    first = [one for one in busy if one.blocks == FIRST]
    half = placing(True).prefer([*first, *SPANS[4:]], 8)
    assert half is not None and len(half) == 4 + 1


def test_a_bid_counts_only_what_is_left_to_compute() -> None:
    one = span("a", FIRST, queue_s=0.5)
    assert abs(bid_of(one, 1600, 1500).ttft_s - (0.01 + 0.5 + 100 * 4 * 0.001)) < 1e-9
    assert bid_of(one, 1600, 1600).ttft_s > 0.51
