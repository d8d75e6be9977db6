"""Spare time: slices between others' steps, few enough; and turns of those who wait for it."""

from __future__ import annotations

from collections import Counter

import pytest

from potluck.swarm.spare import PASSES, PASSES_HELD, SHARE, Spare, Turns


@pytest.mark.parametrize("slice_s", [0.002, 0.012, 0.018, 0.1, 1.0])
@pytest.mark.parametrize("busy", [False, True])
def test_of_a_stage_one_token_in_a_hundred_comes_late_and_training_has_its_share(
    slice_s: float, busy: bool
) -> None:
    """Somebody reads a token each 20 ms, of which the device computes 10 ms; or so many read that
    it never rests. Slices are always there. What fits into the rest holds nobody up."""
    spare, now, late, slices, tokens = Spare(), 0.0, 0, 0, 20_000
    for token in range(tokens):
        due_s = now if busy else 0.02 * token
        while spare.may(now, served=True, waits=now >= due_s):
            waits = now >= due_s
            now += slice_s
            spare.took(slice_s, now, held=waits or now > due_s)
            slices += 1
        late += now > due_s  # it waited for a slice, or for those whom a slice held up
        now = max(now, due_s) + 0.01
        spare.passed()
    fits = slice_s < 0.01 and not busy
    passes = PASSES if fits else PASSES_HELD
    assert slices >= 0.9 * min(tokens / passes, SHARE * now / slice_s)
    assert slices <= tokens / passes + 1
    if slice_s <= 0.02:
        assert late <= (1 if fits else tokens / PASSES_HELD + 1)


def test_nobody_served_is_all_the_time_there_is() -> None:
    spare = Spare()
    for turn in range(10):
        assert spare.may(float(turn), served=False, waits=False)
        spare.took(0.5, turn + 0.5, held=True)


def test_who_has_had_least_goes_next_and_who_comes_is_owed_nothing() -> None:
    turns: Turns[int] = Turns()
    for number in range(40):
        turns.add(number, "many", 1.0)
    assert [turns.next() for _ in range(20)] == list(range(20))
    for number in range(100, 104):
        turns.add(number, "dear", 5.0)
    found = [turns.next() for _ in range(14)]
    counted = Counter("dear" if one is not None and one >= 100 else "many" for one in found)
    assert counted["dear"] >= 2 and counted["many"] >= 10  # five of ours for one of theirs
    assert found[:2] != [100, 101]


def test_who_gave_up_is_not_called_and_costs_nobody() -> None:
    turns: Turns[int] = Turns()
    turns.add(1, "a", 3.0)
    turns.add(2, "b", 4.0)
    assert turns.cost == 7.0
    turns.drop(1, "a")
    turns.drop(9, "c")
    assert (turns.next(), turns.next(), turns.cost) == (2, None, 0.0)
