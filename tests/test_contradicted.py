"""Whoever sees two records of one slot, boot and seq that differ tells of it at once."""

from __future__ import annotations

import pytest
from receipts import key
from testimonies import NOW, announced

from potluck.dht import reading
from potluck.dht.reading import Checker, Reader
from potluck.dht.record import DOMAIN, Record
from potluck.errors import RemoteError
from potluck.swarm.testimony import check_contradiction, contradiction_of

MALLORY = key("m")


def watched() -> tuple[Checker, list[tuple[Record, Record]]]:
    checker = Checker()
    seen: list[tuple[Record, Record]] = []
    checker.contradicted.append(lambda one, other: seen.append((one, other)))
    return checker, seen


def test_two_records_of_one_time_are_told_of_and_prove_it_to_anybody() -> None:
    checker, seen = watched()
    for stop in (4, 8):
        checker.check(announced(MALLORY, stop=stop).raw, None, NOW)
    ((one, other),) = seen
    assert check_contradiction(contradiction_of(DOMAIN, one.raw, other.raw)) == MALLORY.peer_id


def test_they_are_seen_in_one_read_of_two_keepers() -> None:
    checker, seen = watched()
    place = announced(MALLORY).slot.place
    with Reader(checker).open(place) as read:
        read.add([announced(MALLORY, stop=4).raw], NOW)
        read.add([announced(MALLORY, stop=8).raw], NOW)
    assert len(seen) == 1


def test_they_are_seen_when_the_second_is_put_long_after_the_first_was_read() -> None:
    checker, seen = watched()
    reader = Reader(checker)
    reader.admit(checker.check(announced(MALLORY, stop=4).raw, None, NOW))
    with pytest.raises(RemoteError, match="contradiction"):
        reader.admit(checker.check(announced(MALLORY, stop=8).raw, None, NOW + 60))
    assert len(seen) == 1


def test_who_says_one_thing_at_a_time_is_not_told_of() -> None:
    checker, seen = watched()
    for record in (
        announced(MALLORY), announced(MALLORY), announced(MALLORY, seq=2, stop=4),
        announced(MALLORY, boot=8, stop=4), announced(MALLORY, model="cd" * 32, stop=4),
        announced(key("a"), stop=4),
    ):  # fmt: skip
        checker.check(record.raw, None, NOW)
    assert seen == []


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHECKED_MAX", 4)
    checker, seen = watched()
    for seq in range(1, 20):
        checker.check(announced(MALLORY, seq=seq).raw, None, NOW)
    assert len(checker._good) == len(checker._said) == 4
    checker.check(announced(MALLORY, seq=19, stop=4).raw, None, NOW)
    checker.check(announced(MALLORY, seq=1, stop=4).raw, None, NOW)  # forgotten
    assert len(seen) == 1
