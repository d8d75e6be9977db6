"""Rules by which runs by one byte a step end alike: who is behind, what parts logs, who leads."""

from __future__ import annotations

from itertools import permutations

import pytest

from potluck.crypto.keys import IdentityKey
from potluck.swarm.run.claims import Claim, leading
from potluck.swarm.run.scalars import FIRST, Log, Page, Sync, name_of, parted, sign_page
from potluck.swarm.run.seeds import Rules

RULES = Rules(bytes(range(32)), least=1, epoch_rounds=4)
KEYS = [IdentityKey.from_bytes(bytes((number,)) * 32) for number in range(1, 6)]
MOMENT = (3, 0)


def log_of(*stops: int, floor: int = 0) -> Log:
    """Each peer has spoken of all rounds to its own; a page for each epoch."""
    log = Log(RULES)
    for key, stop in zip(KEYS, stops, strict=False):
        before = FIRST
        for start in range(0, stop, 4):
            page = Page(RULES.run, start, before, bytes(min(4, stop - start)))
            log.merge(sign_page(key, page))
            before = name_of(page)
    log.fold(floor)
    return log


def asks(*stops: int, floor: int = 0) -> Sync:
    return log_of(*stops, floor=floor).ask()


@pytest.mark.parametrize(
    ("stops", "round_"), [((9,), 9), ((2, 9), 9), ((2, 5, 9), 5), ((1, 2, 7, 9), 7), ((), 0)]
)
def test_half_of_the_peers_have_come_to_it(stops: tuple[int, ...], round_: int) -> None:
    """Also of two, so that the slower one knows that it is behind."""
    log = log_of(*stops)
    assert log.reached() == round_
    assert 2 * log.active(round_ - 1) >= len(stops)


def test_logs_part_where_one_knows_more_than_the_other() -> None:
    assert parted(asks(9, 9), asks(9, 9)) is None
    assert parted(asks(9, 6), asks(9, 9)) == parted(asks(9, 9), asks(9, 6)) == 6
    assert parted(asks(5, 9), asks(9, 6)) == 5
    assert parted(asks(9, 9), asks(9)) == 0, "whom the other does not know at all"


def test_what_one_of_them_has_folded_parts_no_logs() -> None:
    assert parted(asks(9, 9, floor=4), asks(9, 9)) is None
    assert parted(asks(9, 3), asks(9, floor=4)) is None, "it was silent since"
    assert parted(asks(9, 9, floor=4), asks(9, 6)) == 6
    assert parted(asks(9, 5, floor=4), asks(9)) == 4


def test_a_liar_whom_only_one_has_convicted_parts_logs_from_the_floor_on() -> None:
    log = log_of(9, 9, floor=4)
    log.merge(sign_page(KEYS[1], Page(RULES.run, 4, FIRST, b"\x07" * 4)))
    assert log.convicted and parted(log.ask(), asks(9, 9)) == 4


def claim(name: str) -> Claim:
    return Claim(RULES.run, *MOMENT, name.encode() * 32, 100)


def led(names: str) -> Claim | None:
    return leading({str(n): (claim(one),) for n, one in enumerate(names)}, MOMENT)


@pytest.mark.parametrize(
    ("names", "leads"),
    [("aab", "a"), ("abb", "b"), ("aabb", "a"), ("aabbc", "a"), ("abbcc", "b"), ("aaabbb", "a")],
)
def test_all_members_find_the_same_snapshot_to_lead_however_they_are_split(
    names: str, leads: str
) -> None:
    for order in set(permutations(names)):
        assert led("".join(order)) == claim(leads)


@pytest.mark.parametrize("names", ["aa", "ab", "abc", "abcd", ""])
def test_too_few_voices_and_a_third_of_them_lead_nobody(names: str) -> None:
    """Liars are fewer than a third, and so make no state lead, though the honest are split."""
    assert led(names) is None


def test_who_has_no_state_of_that_moment_has_no_voice() -> None:
    later = Claim(RULES.run, 4, 0, b"x" * 32, 100)
    answers = {"a": (later, claim("b")), "b": (claim("b"),), "c": (later,), "d": ()}
    assert leading(answers, MOMENT) is None
    assert leading({**answers, "e": (claim("a"),)}, MOMENT) == claim("b")
