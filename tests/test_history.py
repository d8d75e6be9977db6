"""What is remembered of a peer: its time, its failures, and how long it is waited for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.history import (
    BAN_FIRST_S,
    BAN_LONGEST_S,
    FIRST_STEP_S,
    LOAD_TAU_S,
    OBSERVATIONS_TO_TRUST,
    PATIENCE_CEILING_S,
    PATIENCE_FLOOR_S,
    STRANGER,
    STRANGER_BAN_LONGEST_S,
    STRANGER_FLOOR_S,
    PeerHistory,
    Usual,
    believed_queue_s,
)


def taught(elapsed_s: float, *, tokens: int = 1, blocks: int = 4) -> PeerHistory:
    history = PeerHistory()
    for _ in range(OBSERVATIONS_TO_TRUST):
        history.answered(elapsed_s, tokens, blocks)
    return history


def test_a_stranger_gets_time_for_a_slow_machine() -> None:
    assert PeerHistory().patience_s(1, 8) == FIRST_STEP_S
    assert PeerHistory().patience_s(128, 8) > FIRST_STEP_S


def test_a_known_peer_is_waited_for_three_times_its_own_time() -> None:
    assert taught(4.0).patience_s(1, 4) >= 12.0
    assert taught(0.002).patience_s(1, 4) == PATIENCE_FLOOR_S
    assert taught(1000.0).patience_s(1, 4) == PATIENCE_CEILING_S


def test_time_scales_with_the_blocks_asked_for() -> None:
    assert taught(4.0, blocks=4).patience_s(1, 8) == 2 * taught(4.0, blocks=4).patience_s(1, 4)


def test_a_step_of_some_guesses_is_waited_for_as_long_as_one_of_none() -> None:
    """A token takes 0.3 s there, nearly all of it on the road, and a chunk of a prompt 0.4 s: 12
    rows by what a row of the chunk took would be late after 0.15 s."""
    history = taught(0.3)
    assert history.hedge_s(12, 4, Usual()) == PATIENCE_CEILING_S, "no step of so many was seen"
    for _ in range(OBSERVATIONS_TO_TRUST):
        history.answered(0.4, 128, 4)
    few = history.hedge_s(1, 4, Usual())
    assert history.hedge_s(12, 4, Usual()) == few == pytest.approx(0.9)
    assert history.hedge_s(1280, 4, Usual()) > few


def test_a_jittery_peer_is_waited_for_longer_than_a_steady_one() -> None:
    steady, jittery = taught(4.0), PeerHistory()
    for elapsed_s in (1.0, 7.0) * 20:
        jittery.answered(elapsed_s, 1, 4)
    assert jittery.patience_s(1, 4) > steady.patience_s(1, 4)


def test_a_stranger_is_raced_by_what_the_others_take() -> None:
    """Before it would have been waited for as long as the slowest device may take."""
    usual, stranger = Usual(), PeerHistory()
    assert stranger.hedge_s(128, 4, usual) == PATIENCE_CEILING_S, "nobody is known yet"
    for _ in range(OBSERVATIONS_TO_TRUST):
        usual.answered(0.5, 128, 4)
    assert stranger.hedge_s(128, 4, usual) == pytest.approx(STRANGER * 3 * 0.5)
    assert stranger.hedge_s(128, 2, usual) == pytest.approx(STRANGER * 3 * 0.25)
    assert stranger.hedge_s(9, 1, usual) == STRANGER_FLOOR_S
    assert stranger.patience_s(128, 4) > stranger.hedge_s(128, 4, usual), "late is not stalled"
    slow = PeerHistory()
    for _ in range(OBSERVATIONS_TO_TRUST):
        slow.answered(20.0, 128, 4)
    assert slow.hedge_s(128, 4, usual) == pytest.approx(60.0), "who is known is known"


@given(failures=st.integers(1, 40), known=st.booleans())
def test_bans_grow_up_to_a_longest_and_faster_for_who_never_answered(
    failures: int, known: bool
) -> None:
    history, now = taught(1.0) if known else PeerHistory(), 100.0
    growth, longest_s = (2, BAN_LONGEST_S) if known else (4, STRANGER_BAN_LONGEST_S)
    for number in range(failures):
        assert not history.banned(now)
        history.failed(now)
        ban_s = min(BAN_FIRST_S * growth**number, longest_s)
        assert history.banned(now + ban_s - 0.01)
        now += ban_s
    assert not history.banned(now)


def test_what_all_sessions_lose_at_once_has_failed_once() -> None:
    history = PeerHistory()
    for number in range(8):
        history.failed(100.0 + 0.1 * number)
    assert not history.banned(100.0 + BAN_FIRST_S)


def test_an_answer_or_a_restart_ends_a_ban_and_an_old_record_does_not() -> None:
    for pardon, still_banned in (
        (lambda h: h.answered(0.1, 1, 1), False),
        (lambda h: h.announced(8, 0), False),
        (lambda h: h.announced(7, 4), True),
        (lambda h: h.announced(6, 9), True),
    ):
        history = PeerHistory()
        history.announced(7, 3)
        history.failed(0.0)
        pardon(history)
        assert history.banned(0.1) == still_banned


def test_being_full_is_no_failure_and_ends_by_itself() -> None:
    history = PeerHistory()
    history.refused(10.0, 1.5)
    assert history.busy(11.0) and not history.busy(11.6) and not history.banned(11.0)


@pytest.mark.parametrize(
    "boot, seq, busy", [(7, 3, True), (7, 2, True), (6, 9, True), (7, 4, False), (8, 0, False)]
)
def test_who_announces_itself_anew_is_asked_again_though_it_refused_for_longer(
    boot: int, seq: int, busy: bool
) -> None:
    """It left, and said for half a minute; it was back after a quarter of one."""
    history = PeerHistory()
    history.announced(7, 3)
    history.refused(0.0, 30.0)
    history.announced(boot, seq)
    assert history.busy(15.0) == busy


def test_a_claim_counts_half_until_the_peer_was_seen_and_never_above_what_was_seen() -> None:
    stranger = PeerHistory()
    assert stranger.block_s(1000.0) == 2 / 1000
    slow = taught(0.4, blocks=4)
    assert slow.block_s(1e9) == 0.1  # claims the moon, was seen to take 100 ms a block


def test_a_queue_that_the_peer_told_of_is_no_fault_of_its_device() -> None:
    history = PeerHistory()
    history.rtt_s = 0.1
    for _ in range(OBSERVATIONS_TO_TRUST):
        history.answered(1.3, 1, 4, queue_s=0.8)
    assert abs(history.block_s(1e9) - 0.1) < 1e-9  # 1.3 less 0.1 less 0.8, over 4 blocks
    assert history.patience_s(1, 4) >= 3 * 1.3  # but it is waited for as long as it took


def test_a_told_queue_fades_and_what_is_in_flight_does_not() -> None:
    history = taught(1.0, tokens=100, blocks=5)
    assert history.queue_s(5.0) == 0.0
    history.told_queue(1.0, 10.0)
    assert history.queue_s(10.0) == 1.0
    assert 0.3 < history.queue_s(11.0 + LOAD_TAU_S) < 0.4  # 1 / e of it after 2 s and 1 s
    history.sent(50, 5)
    assert 0.5 <= history.queue_s(100.0) < 0.501
    history.ended(50, 5)
    assert history.queue_s(100.0) < 0.001


def test_of_many_tokens_in_flight_the_next_waits_for_one_and_of_chunks_for_all() -> None:
    history = taught(0.2)
    for _ in range(20):
        history.sent(1, 4)
    assert history.queue_s(0.0) == pytest.approx(0.2)
    chunks = taught(1.0, tokens=100, blocks=5)
    for _ in range(3):
        chunks.sent(100, 5)
    assert chunks.queue_s(0.0) == pytest.approx(3.0)


def test_prefill_and_decode_are_learnt_apart() -> None:
    history = PeerHistory()
    for _ in range(OBSERVATIONS_TO_TRUST):
        history.answered(1.0, 100, 10)
    assert history.block_s(1e9, tokens=100) == 0.001
    assert history.block_s(1000.0) == 2 / 1000  # of single tokens nothing was seen yet


def test_a_stranger_counts_for_no_more_than_is_usual() -> None:
    """Else ten liars draw every client until each has timed each of them five times."""
    assert PeerHistory().block_s(1e9, usual_tokens_s=100.0) == 0.01
    assert PeerHistory().block_s(50.0, usual_tokens_s=100.0) == 2 / 50
    fast = taught(0.004, blocks=4)
    assert abs(fast.block_s(2000.0, usual_tokens_s=100.0) - 0.001) < 1e-9


def test_a_queue_just_told_counts_for_no_less_than_what_we_have_on_the_way() -> None:
    assert believed_queue_s(0.0, in_flight_s=0.7) == 0.7
    assert believed_queue_s(0.9, in_flight_s=0.7) == 0.9


def test_what_a_road_carried_is_told_of_large_steps_alone() -> None:
    history = PeerHistory()
    history.carried(10**6, 1.1)
    assert history.bytes_s is None, "of whom no round trip is known"
    history.rtt_s = 0.1
    history.carried(1000, 5.0)
    assert history.bytes_s is None, "a small one took what else happened"
    for _ in range(50):
        history.carried(10**6, 1.1)
    assert history.bytes_s == pytest.approx(1e6)
    history.carried(10**6, 0.0)
    assert history.bytes_s is not None and history.bytes_s < 2e6


def test_passes_are_known_once_tokens_and_chunks_were_seen() -> None:
    """By the peer's own word, of its blocks: one row in 8 ms, 128 in 64; chunks of any size say
    what a row of them takes."""
    history = PeerHistory()
    history.served(0.008, 1, 4)
    history.served(0.5, 9, 4)
    assert history.passes(4) == (), "a step of guesses is neither"
    history.served(0.032, 64, 4)
    assert history.passes(4) == ((1, pytest.approx(0.008)), (128, pytest.approx(0.064)))
    assert history.passes(2)[0] == (1, pytest.approx(0.004))
