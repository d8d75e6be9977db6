"""Who trains on what: each sequence once in a turn, the held-out never, and anybody can say it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.run.shards import Split, permuted

RUN = bytes(range(32))
keys = st.binary(min_size=32, max_size=32)
counts = st.integers(2, 600)


@given(keys, counts)
def test_a_permutation_hits_every_place_once(key: bytes, count: int) -> None:
    assert sorted(permuted(key, place, count) for place in range(count)) == list(range(count))


@given(counts, st.floats(0, 0.5), st.integers(0, 2**63 - 1), st.integers(1, 9))
def test_one_turn_sees_all_that_is_not_held_out_once(
    count: int, share: float, seed: int, size: int
) -> None:
    split = Split.of(count, share, seed)
    held = split.held_out(count)
    assert len(set(held)) == len(held) == split.held < count
    assert bool(held) == (share > 0)
    steps = -(-split.training // size)
    seen = [one for step in range(steps) for one in split.batch(RUN, 3, "p", step, size=size)]
    turn = seen[: split.training]
    assert sorted(turn + list(held)) == list(range(count))


@given(st.integers(0, 1 << 40), st.integers(0, 100), st.sampled_from(["alice", "bob"]))
def test_a_batch_follows_from_run_epoch_peer_and_step_alone(
    epoch: int, step: int, peer: str
) -> None:
    one, other = (Split.of(1000, 0.1, 5).batch(RUN, epoch, peer, step, size=4) for _ in range(2))
    assert one == other
    assert len(set(one)) == 4


def test_each_of_run_epoch_peer_and_seed_gives_another_order() -> None:
    """Of 900 sequences, 8: that two draws are the same by chance happens once in 10^23."""
    split = Split.of(1000, 0.1, 5)
    drawn = {
        split.batch(RUN, 0, "alice", 0, size=8),
        split.batch(bytes(32), 0, "alice", 0, size=8),
        split.batch(RUN, 1, "alice", 0, size=8),
        split.batch(RUN, 0, "bob", 0, size=8),
        Split.of(1000, 0.1, 6).batch(RUN, 0, "alice", 0, size=8),
    }
    assert len(drawn) == 5


def test_what_is_held_out_does_not_depend_on_the_run() -> None:
    """Two runs of one seed are compared on the same sequences."""
    assert Split.of(50, 0.2, 9).held_out(10) == Split.of(50, 0.2, 9).held_out(10)
    assert Split.of(50, 0.2, 9).held_out(3) == Split.of(50, 0.2, 9).held_out(10)[:3]


def test_the_order_is_this_one_for_ever() -> None:
    """A validator of another version draws the same."""
    split = Split.of(1000, 0.1, 7)
    assert split.held_out(4) == (604, 492, 268, 884)
    assert split.batch(RUN, 2, "alice", 5, size=4) == (19, 969, 361, 165)
