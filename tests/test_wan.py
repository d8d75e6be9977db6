"""What a wide area allows: the formulas of algorithms.md 9, and a prompt's chunks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.rows import CODECS
from potluck.swarm.wan import (
    CHUNK_TOKENS,
    CHUNKS,
    Shape,
    Stage,
    Way,
    best_guesses,
    choose_chunk,
    choose_codec,
    first_token_s,
    rate,
    rate_of,
    rate_together,
    step_s,
    tokens_a_step,
)


def way(
    hops: int = 4,
    rtt_s: float = 0.06,
    shape: Shape = "star",
    *,
    pass_s: float = 0.015,
    chunk_s: float = 0.1,
    bytes_s: float = math.inf,
    row_bytes: int = 8192,
    overhead_s: float = 0.0,
) -> Way:
    stage = Stage(rtt_s / 2, ((1, pass_s), (128, chunk_s)), bytes_s)
    return Way((stage,) * hops, row_bytes, shape, overhead_s)


ways = st.builds(
    way,
    st.integers(1, 8),
    st.floats(0.0, 0.3),
    st.sampled_from(["star", "chain"]),
    pass_s=st.floats(1e-4, 0.1),
    chunk_s=st.floats(0.1, 1.0),
    bytes_s=st.floats(1e5, 1e9),
)


@pytest.mark.parametrize(
    ("hops", "rtt_s", "plain", "guessed"),
    [
        (2, 0.06, 6.4, {0.6: 13.4, 0.75: 19.5, 0.9: 37}),
        (4, 0.06, 4.5, {0.6: 9.6, 0.75: 13.9, 0.9: 26.9}),
        (4, 0.1, 3.1, {0.6: 6.9, 0.75: 10.2, 0.9: 20.3}),
        (8, 0.1, 1.9, {0.6: 4.2, 0.75: 6.2, 0.9: 12.6}),
        (8, 0.2, 1.0, {0.6: 2.4, 0.75: 3.6, 0.9: 7.7}),
    ],
)
def test_the_published_table_comes_out(
    hops: int, rtt_s: float, plain: float, guessed: dict[float, float]
) -> None:
    """Section 9's: chains, 100 Mbit/s, rows of 8,192 int8, o = 2 ms, 60 ms of arithmetic for a
    token; a guess takes 2.4 ms beside the bytes, which is what its numbers leave for it."""
    table = Way((Stage(rtt_s / 2, ((1, 0.060 / hops),), 100e6 / 8),) * hops, 8192, "chain", 0.002)
    assert rate(table) == pytest.approx(plain, rel=0.03)
    for chance, tokens_s in guessed.items():
        best = best_guesses(table, chance, 0.0024)
        assert rate(table, chance, best, 0.0024) == pytest.approx(tokens_s, rel=0.03)


@given(ways)
def test_a_star_of_one_hop_is_a_chain_of_one_hop(one: Way) -> None:
    star, chain = (Way(one.stages[:1], one.row_bytes, shape) for shape in ("star", "chain"))
    assert step_s(star, 3) == pytest.approx(step_s(chain, 3))


@given(ways, st.floats(0, 1), st.integers(0, 32))
def test_the_best_number_of_guesses_is_the_best(one: Way, chance: float, other: int) -> None:
    best = best_guesses(one, chance)
    assert rate(one, chance, best) >= rate(one, chance, other) * (1 - 1e-12)
    assert best == 0 or chance > 0


@given(st.floats(0, 1), st.integers(0, 32))
def test_tokens_of_a_step_are_its_powers(chance: float, guesses: int) -> None:
    powers = math.fsum(chance**n for n in range(guesses + 1))
    assert tokens_a_step(chance, guesses) == pytest.approx(powers)


def test_an_answer_of_unlike_steps_is_their_mean() -> None:
    one = way()
    assert rate_of(one, 0.5, {3: 10}) == pytest.approx(rate(one, 0.5, 3))
    mixed = rate_of(one, 0.5, {0: 10, 3: 10})
    assert rate(one) < mixed < rate(one, 0.5, 3)


def test_chunks_overlap_and_store_and_forward_does_not() -> None:
    """16 chunks, 4 hops of 0.1 s: 19 times beside 64; and 8 ways of 30 ms on the star, 5 on the
    chain."""
    star, chain = way(), way(shape="chain")
    assert first_token_s(star, 2048) == pytest.approx(8 * 0.03 + 19 * 0.1)
    assert first_token_s(chain, 2048) == pytest.approx(5 * 0.03 + 19 * 0.1)
    assert first_token_s(star, 2048, cut_through=False) == pytest.approx(8 * 0.03 + 64 * 0.1)


def test_a_long_way_with_three_chunks_under_way_holds_the_next_one_up() -> None:
    """A hop that computes a chunk in 10 ms, 200 ms away: 3 chunks in 210 ms."""
    far = way(1, 0.2, chunk_s=0.01, pass_s=0.005)
    assert first_token_s(far, 1280, window=3) == pytest.approx(0.2 + 10 * 0.07)
    assert first_token_s(far, 1280) == pytest.approx(0.2 + 10 * 0.01)


@given(ways, st.integers(1, 4096), st.sampled_from([0, 3]))
def test_a_chosen_chunk_is_no_worse_than_the_usual_one(one: Way, tokens: int, window: int) -> None:
    chunk = choose_chunk(one, tokens, lambda _: window)
    assert chunk in (*CHUNKS, CHUNK_TOKENS)
    usual_s = first_token_s(one, tokens, CHUNK_TOKENS, window=window)
    assert first_token_s(one, tokens, chunk, window=window) <= usual_s


def test_far_and_fast_hops_take_large_chunks_and_near_and_many_small_ones() -> None:
    far = way(2, 0.2, chunk_s=0.02, pass_s=0.005)
    assert choose_chunk(far, 2048, lambda _: 3) == 512
    near = way(8, 0.001, chunk_s=0.5, pass_s=0.004)
    assert choose_chunk(near, 512, lambda _: 3) == 32
    wide = way(2, 0.2, chunk_s=0.02, pass_s=0.005, row_bytes=32 * 1024)
    assert choose_chunk(wide, 2048, lambda _: 3) == CHUNK_TOKENS, "4 MiB are the most"


def test_a_wide_road_is_sent_all_bits_and_a_narrow_one_fewer() -> None:
    """Rows of 4,096 numbers, a prompt of 1,024 tokens: 16 MiB a hop in f32, twice on a star."""

    def chosen(mbit: float) -> str:
        return choose_codec(way(2, bytes_s=mbit * 1e6 / 8), 4096, prompt=1024, answer=128)

    assert chosen(math.inf) == "f32"
    assert chosen(20_000) == "f32"
    assert chosen(100) == "int8"
    assert chosen(0.1) == "int4"
    sizes = [CODECS.index(chosen(2.0**power)) for power in range(20, -4, -1)]  # type: ignore[arg-type]
    assert sizes == sorted(sizes), "the narrower, the fewer"


def test_from_hop_to_hop_bytes_are_worth_less_than_by_star() -> None:
    """They cross half as many roads; so rows are rounded where roads are narrower than that."""
    for mbit, star, chain in ((16, "int8", "int8"), (28, "int8", "bf16"), (80, "bf16", "f32")):
        far = way(4, 0.1, chunk_s=0.2, bytes_s=mbit * 1e6 / 8)
        assert choose_codec(far, 4096, 1024, 512) == star, mbit
        assert choose_codec(far, 4096, 1024, 512, chain=True) == chain, mbit
    assert choose_codec(way(4), 4096, 1024, 512, chain=True) == "f32"


def test_bytes_that_are_paid_for_are_saved_on_any_road() -> None:
    fast = way(2)
    assert choose_codec(fast, 4096, 1024, 128) == "f32"
    assert choose_codec(fast, 4096, 1024, 128, byte_price_s=1e-5) in ("int8", "int4")
    assert choose_codec(fast, 4096, 1024, 128, byte_price_s=1e-5, codecs=("f32", "bf16")) == "bf16"


def test_steps_of_many_widths_take_what_their_guesses_take_to_make() -> None:
    """Ten steps of four guesses, all wrong, of 10 ms each: ten tokens."""
    far = way()
    alone = rate_of(far, 0.0, {4: 10})
    assert alone == pytest.approx(1 / step_s(far, 5))
    assert rate_of(far, 0.0, {4: 10}, 0.01) == pytest.approx(1 / (step_s(far, 5) + 0.04))


@pytest.mark.parametrize("shape", ["star", "chain"])
def test_few_sessions_wait_for_the_road_and_many_for_the_slowest_stage(shape: Shape) -> None:
    """Where a pass of eight takes eight times that of one, nothing is merged for nothing: sixteen
    come to 1 / max t, as long as the road lets them."""
    linear = way(shape=shape, pass_s=0.02, chunk_s=0.02 * 128)
    assert rate_together(linear, 1) == pytest.approx(rate(linear))
    assert rate_together(linear, 4) == pytest.approx(4 * rate(linear))
    assert rate_together(linear, 64) == pytest.approx(1 / 0.02)
    flat = way(shape=shape, pass_s=0.02, chunk_s=0.02)
    assert rate_together(flat, 64) == pytest.approx(64 * rate(flat)), "they share a pass"


@given(st.integers(1, 40))
def test_one_session_more_is_never_less(sessions: int) -> None:
    assert rate_together(way(), sessions + 1) >= rate_together(way(), sessions)
