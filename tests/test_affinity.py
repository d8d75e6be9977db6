"""Where a prompt goes: to one of two that its beginning names, or where load says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.affinity import (
    SLACK,
    SOON_S,
    Bid,
    bid_of,
    candidates,
    choose,
    key_of,
    named,
    prefer,
)
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
    bids=st.lists(st.tuples(st.floats(0.01, 60), st.integers(0, 5)), max_size=2),
    least_s=st.floats(0.01, 60),
)
def test_more_of_the_prompt_is_taken_where_that_is_soon_enough(
    bids: list[tuple[float, int]], least_s: float
) -> None:
    told = [Bid(str(place), ttft_s, held) for place, (ttft_s, held) in enumerate(bids)]
    best = choose(told, least_s)
    limit_s = max(SOON_S, SLACK * least_s)
    if best is None:
        assert all(bid.ttft_s > limit_s for bid in told)
        return
    assert best.ttft_s <= limit_s
    for bid in told:
        if bid.ttft_s <= limit_s:
            assert (bid.held, -bid.ttft_s) <= (best.held, -best.ttft_s)


def test_a_prompt_shorter_than_what_is_hashed_has_no_place_and_secrets_differ() -> None:
    names = [bytes([one]) * 32 for one in range(4)]
    assert key_of(names[:3]) is None
    assert key_of(names) is not None
    assert key_of(names) == key_of([*names, b"more"]) != key_of(names, b"secret")


def span(peer: str, blocks: BlockRange, queue_s: float = 0.0) -> Span:
    return Span(peer, blocks, block_s=0.001, rtt_s=0.01, queue_s=queue_s)


def test_each_group_of_equal_spans_has_its_own_two_and_load_has_the_others() -> None:
    spans = [span(f"{blocks.start}{peer}", blocks) for blocks in (FIRST, SECOND) for peer in "abcd"]
    spans.append(span("odd", BlockRange(2, 6)))
    key = b"key"
    two = named(spans, key)
    assert len(two) == 5 and "odd" in two
    second = two[1]
    chosen = prefer(spans, key, 1600, lambda peer: 1536 if peer == second else 0)
    assert chosen is not None
    first_group = [one for one in chosen if one.blocks == FIRST]
    assert [one.peer for one in first_group] == [second]
    assert first_group[0].cached_tokens == 12
    assert len([one for one in chosen if one.blocks == SECOND]) == 1


def test_where_both_are_overrun_load_decides_in_that_group() -> None:
    quiet = [span(peer, FIRST) for peer in "abcdef"]
    two = candidates(b"key", [one.peer for one in quiet])
    busy = [span(one.peer, FIRST, 60.0 if one.peer in two else 0.0) for one in quiet]
    assert prefer(busy, b"key", 1600, lambda peer: 0) is None
    both = prefer([*busy, span("z", SECOND)], b"key", 1600, lambda peer: 0)
    assert both is not None and len(both) == 7
    held = prefer(busy, b"key", 1600, lambda peer: 1536)
    assert held is None  # however much of it they have: 60 s are too many


def test_a_bid_counts_only_what_is_left_to_compute() -> None:
    one = span("a", FIRST, queue_s=0.5)
    assert abs(bid_of(one, 1600, 1500).ttft_s - (0.01 + 0.5 + 100 * 4 * 0.001)) < 1e-9
    assert bid_of(one, 1600, 1600).ttft_s > 0.51
