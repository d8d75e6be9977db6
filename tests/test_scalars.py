"""A run by single bytes: weights follow from the set of what was said, and liars move little."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from math import inf, nan
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.crypto.codec import encode
from potluck.crypto.envelope import sign
from potluck.crypto.keys import IdentityKey
from potluck.crypto.stream import STREAM_BYTES_MAX, stream
from potluck.errors import RemoteError
from potluck.swarm.run.scalars import (
    DOMAIN,
    EPOCHS_MAX,
    FIRST,
    LETTER_BYTES_MAX,
    PAGES_BYTES_MAX,
    PAGES_MAX,
    Fork,
    Head,
    Log,
    Page,
    Sync,
    forked,
    name_of,
    read_page,
    sign_page,
)
from potluck.swarm.run.seeds import (
    ABSENT,
    CODE_MAX,
    GRAINS,
    RATE_ONE,
    VALUES,
    Change,
    Rules,
    code_of,
    combined,
    value_of,
)

RUN = bytes(range(32))
RULES = Rules(RUN, directions=2, least=1, epoch_rounds=8)
KEYS = [IdentityKey.from_bytes(bytes((number,)) * 32) for number in range(9)]
NAMES = [key.peer_id for key in KEYS]
Moved = dict[tuple[int, int], int]


def page(start: int, *codes: int, before: Page | None = None) -> Page:
    last = FIRST if before is None else name_of(before)
    return Page(RUN, start, last, bytes(code & 255 for code in codes))


def row(start: int, *parts: tuple[int, ...]) -> list[Page]:
    """Pages one after another."""
    found: list[Page] = []
    for codes in parts:
        found.append(page(start, *codes, before=found[-1] if found else None))
        start = found[-1].stop
    return found


def signed(who: int, pages: Iterable[Page]) -> list[bytes]:
    return [sign_page(KEYS[who], one) for one in pages]


def moved(changes: Iterable[Change], into: Moved | None = None) -> Moved:
    """What all of it adds up to, without what adds up to nothing."""
    found = {} if into is None else into
    for one in changes:
        key = one.round, one.direction
        found[key] = found.get(key, 0) + one.delta
        if not found[key]:
            del found[key]
    return found


# ---- a byte


def test_the_value_of_a_byte_grows_by_an_eighth_of_a_power_of_two() -> None:
    assert VALUES[0] == 0 and VALUES[1] == GRAINS and len(VALUES) == CODE_MAX + 1
    assert all(VALUES[level + 8] in (2 * one - 1, 2 * one, 2 * one + 1) for level, one in
               enumerate(VALUES[1:-8], 1))  # fmt: skip
    assert all(one < other for one, other in pairwise(VALUES))
    assert [value_of(-code) for code in range(128)] == [-value for value in VALUES]


@given(st.floats(-55_000, 55_000), st.sampled_from([1e-3, 1.0, 7.0]))
def test_a_byte_is_near_what_was_measured(grains: float, grain: float) -> None:
    code = code_of(grains * grain, grain)
    told = value_of(code) / GRAINS
    assert abs(told - grains) <= max(0.5, 0.05 * abs(grains)) * (1 + 1e-9)
    assert (code > 0) == (told > 0) and (code < 0) == (told < 0)


def test_what_is_no_number_is_absent_and_what_is_too_great_is_cut() -> None:
    assert [code_of(one, 1.0) for one in (nan, inf, -inf)] == [ABSENT] * 3
    assert [code_of(one, 1e-3) for one in (1e30, -1e30, 0.0)] == [CODE_MAX, -CODE_MAX, 0]


# ---- many peers' bytes


def test_a_mean_without_both_ends() -> None:
    assert combined([5, 1, 1000, 3], 25, 1) == 4
    assert combined([5, 1, 1000, 3, -7], 50, 1) == 3, "the median"
    assert combined([1, 2], 50, 1) == 2 and combined([-1, -2], 50, 1) == -2, "halves go outwards"
    assert combined([7, 7], 0, 3) == combined([], 0, 1) == 0


@given(
    honest=st.lists(st.integers(-1000, 1000), min_size=7, max_size=40),
    lies=st.lists(st.integers(-(10**6), 10**6), max_size=20),
)
def test_fewer_liars_than_are_left_out_stay_among_the_honest(
    honest: list[int], lies: list[int]
) -> None:
    count = len(honest) + len(lies)
    found = combined([*honest, *lies], 35, 3)
    if len(lies) <= count * 35 // 100:
        assert min(honest) <= found <= max(honest)


def test_peers_are_spread_over_directions_anew_each_round() -> None:
    rules = replace(RULES, directions=4)
    drawn = [[rules.direction(name, round_) for name in NAMES] for round_ in range(64)]
    assert len({tuple(one) for one in drawn}) > 60
    assert all(100 < sum(place == one for row in drawn for place in row) < 190 for one in range(4))
    assert len({rules.seed(round_, one) for round_ in range(9) for one in range(4)}) == 36


def test_the_rate_falls_to_nothing_and_then_nothing_moves() -> None:
    rules = replace(RULES, rounds=100)
    assert [rules.rate(one) for one in (0, 50, 100, 1000)] == [RATE_ONE, RATE_ONE // 2, 0, 0]
    assert rules.step(0, [9]) == -RATE_ONE * VALUES[9] and rules.step(100, [9]) == 0
    assert rules.step(0, [ABSENT, ABSENT]) == 0


# ---- a log


@settings(max_examples=20)
@given(st.integers(0, 1 << 30))
def test_the_weights_follow_from_the_set_of_pages_whatever_the_order(seed: int) -> None:
    """Four peers, one of whom may fork. Each merge order is a random one, with repeats, again and
    again until nothing is new, as pulls from random peers are."""
    dice = random.Random(seed)
    raws = []
    for who in range(4):
        at, pages = dice.randint(0, 12), list[Page]()
        while at < 20:
            stop = min(at + dice.randint(1, 5), at - at % 8 + 8)
            codes = (dice.randint(-128, 127) for _ in range(at, stop))
            pages.append(page(at, *codes, before=pages[-1] if pages else None))
            at = stop
        raws += signed(who, pages)
    cut = dice.randrange(len(pages))
    raws += signed(3, [page(pages[cut].start, 1, before=pages[cut - 1] if cut else None)])
    results, logs = [], []
    for _ in range(2):
        log, total = Log(RULES), dict[tuple[int, int], int]()
        new = True
        while new:
            new = False
            for raw in dice.sample(raws, len(raws)):
                merged = log.merge(raw)
                new = new or merged.new
                moved(merged.changes, total)
        results.append(total)
        logs.append(log)
    assert results[0] == results[1]
    assert logs[0].convicted == logs[1].convicted
    if NAMES[3] in logs[0].convicted:
        honest = Log(RULES)
        wanted: Moved = {}
        for raw in raws:
            if read_page(raw, RULES)[0] != NAMES[3]:
                moved(honest.merge(raw).changes, wanted)
        assert results[0] == wanted, "nothing of a liar counts"


def test_what_comes_late_changes_the_mean_as_if_it_had_been_in_time() -> None:
    rules = replace(RULES, directions=1, least=2)
    one, other, third = (signed(who, [page(0, 9 + 10 * who)])[0] for who in range(3))
    log = Log(rules)
    assert log.merge(one).changes == (), "too few"
    first = log.merge(other).changes
    assert first == (Change(0, 0, -RATE_ONE * combined([VALUES[9], VALUES[19]], 35, 2)),)
    total = moved([*first, *log.merge(third).changes])
    assert total == {(0, 0): -RATE_ONE * VALUES[19]}, "of three, the median"
    absent = log.merge(signed(3, [page(0, ABSENT)])[0])
    assert absent.new and absent.changes == () and log.answers(0) == 4, "nobody waits for it"


def test_a_gap_waits_until_it_is_filled() -> None:
    raws = signed(0, row(3, (1, 2), (3,), (4, 5)))
    log = Log(RULES)
    assert not log.merge(raws[1]).new and not log.merge(raws[2]).new
    assert log.merge(raws[0]).new and not log.merge(raws[2]).new
    assert log.merge(raws[1]).new and log.merge(raws[2]).new
    assert log.next(NAMES[0]) == 8 and not log.merge(raws[1]).new


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (page(3, 1, 2), page(3, 1, 3)),
        (page(3, 1, 2), page(3, 1)),
        (page(3, 1, 2), page(5, 9)),  # a second first one
        (page(3, 1, 2), page(4, 2, 9, before=page(0, 1))),
        (page(3, 1, 2), page(5, 9, before=page(4, 7))),
        (page(3, 1, before=page(1, 1)), page(4, 9, before=page(1, 1))),
    ],
)
def test_two_pages_of_no_one_row_convict_whoever_signed_them(one: Page, other: Page) -> None:
    assert forked(one, other) and forked(other, one)
    raws = signed(0, [one, other])
    believer = Log(RULES)
    assert believer.merge_fork(Fork(*raws)).convicted == NAMES[0]
    assert not believer.merge_fork(Fork(*raws)).new, "once is enough"
    assert not believer.merge(raws[0]).new
    if one.before == FIRST:
        seer = Log(RULES)
        assert seer.merge(raws[0]).new
        found = seer.merge(raws[1])
        assert found.convicted == NAMES[0] and found.new
        (fork,) = seer.answer(Log(RULES).ask()).forks
        assert Log(RULES).merge_fork(fork).convicted == NAMES[0]


def test_nobody_is_convicted_by_pages_of_others_or_of_one_row() -> None:
    pages = row(0, (1, 2), (3,), (4,))
    mine, hers = signed(0, pages), signed(1, [page(0, 7)])
    for fork in (Fork(mine[0], hers[0]), Fork(mine[0], mine[1]), Fork(mine[0], mine[2])):
        with pytest.raises(RemoteError, match="prove nothing"):
            Log(RULES).merge_fork(fork)
    assert not any(forked(one, other) for one in pages for other in pages)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (replace(page(0, 1), run=bytes(32)), "another run"),
        (page(7, 1, 2), "across a snapshot"),
        (replace(page(0, 1), before=b"short"), "outside"),
        (replace(page(0, 1), codes=b""), "outside"),
    ],
)
def test_a_page_that_no_honest_peer_signs_is_refused(bad: Page, why: str) -> None:
    plain = {"before": bad.before, "codes": bad.codes, "run": bad.run, "start": bad.start}
    raw = sign(KEYS[0], DOMAIN, msgpack.packb(plain, use_bin_type=True))
    with pytest.raises(RemoteError, match=why):
        Log(RULES).merge(raw)
    broken = bytearray(signed(0, [page(0, 1)])[0])
    broken[-1] ^= 1
    with pytest.raises(RemoteError):
        Log(RULES).merge(bytes(broken))


def test_who_is_no_member_or_far_ahead_takes_no_room() -> None:
    log = Log(RULES, may=lambda peer: peer != NAMES[1])
    assert not log.merge(signed(1, [page(0, 1)])[0]).new
    assert not log.merge(signed(0, [page(8 * EPOCHS_MAX, 1)])[0]).new
    assert log.merge(signed(0, [page(8 * EPOCHS_MAX - 1, 1)])[0]).new


# ---- from log to log


def drain(giver: Log, taker: Log, total: Moved) -> int:
    """Pull until nothing is new; how many letters that took."""
    for letters in range(1, 100):
        told = giver.answer(taker.ask())
        assert len(encode(told)) <= LETTER_BYTES_MAX
        found = [taker.merge(raw) for raw in told.pages] + [
            taker.merge_fork(fork) for fork in told.forks
        ]
        for one in found:
            moved(one.changes, total)
        if not any(one.new for one in found):
            return letters
    raise AssertionError("it goes on for ever")


def test_one_who_pulls_knows_all_that_the_other_knows() -> None:
    giver, wanted = Log(RULES), dict[tuple[int, int], int]()
    for who in range(6):
        for raw in signed(who, row(who, *(((who, 9),) if who % 8 < 7 else ()), (7,))):
            moved(giver.merge(raw).changes, wanted)
    taker, total = Log(RULES), dict[tuple[int, int], int]()
    assert drain(giver, taker, total) == 2 and total == wanted
    assert taker.ask() == giver.ask() and giver.answer(taker.ask()).pages == ()
    more = page(10, 5, before=row(5, (5, 9), (7,))[-1])
    late = signed(5, [replace(more, start=8)])
    moved(giver.merge(late[0]).changes, wanted)
    assert len(giver.answer(taker.ask()).pages) == 1, "only what is new"


@pytest.mark.parametrize("size", [1, 1024])
def test_more_than_a_letter_holds_comes_in_several(size: int) -> None:
    """Of pages it holds 64, or 64 KiB of them, whichever are fewer."""
    rules = replace(RULES, epoch_rounds=1024)
    giver = Log(rules)
    for who in range(9):
        pages: list[Page] = []
        for number in range(EPOCHS_MAX):
            start = 1024 * number if size > 1 else number
            pages.append(page(start, *[1] * size, before=pages[-1] if pages else None))
        for raw in signed(who, pages):
            assert giver.merge(raw).new
    taker = Log(rules)
    first = giver.answer(taker.ask()).pages
    assert len(first) == min(PAGES_MAX, PAGES_BYTES_MAX // len(first[0]))
    assert drain(giver, taker, {}) == 3  # 72 pages in all, and a letter with nothing in it
    assert taker.ask() == giver.ask()


def test_a_fork_between_two_logs_is_found_and_both_end_alike() -> None:
    """A liar tells each half of the others another story, of equal length."""
    totals: list[Moved] = [{}, {}]
    logs = [Log(RULES), Log(RULES)]
    for number, log in enumerate(logs):
        for raw in [*signed(1, [page(0, 50)]), *signed(0, row(0, (number + 1,), (9,)))]:
            moved(log.merge(raw).changes, totals[number])
    drain(logs[0], logs[1], totals[1])
    assert logs[1].convicted == (NAMES[0],)
    drain(logs[1], logs[0], totals[0])
    assert logs[0].convicted == (NAMES[0],) and totals[0] == totals[1]
    assert totals[0] == moved(Log(RULES).merge(signed(1, [page(0, 50)])[0]).changes)


def test_what_is_folded_is_forgotten_and_the_rest_goes_on() -> None:
    log, whole = Log(RULES), Log(RULES)
    total: Moved = {}
    wanted: Moved = {}
    pages = [row(0, (1,) * 8, (2,) * 4), row(2, (3,) * 6), row(1, (4,) * 3)]
    more = [page(12, 5, before=pages[0][-1]), page(8, 6, before=pages[1][-1])]
    for who, its in enumerate(pages):
        for raw in signed(who, its):
            moved(log.merge(raw).changes, total)
            moved(whole.merge(raw).changes, wanted)
    log.fold(8)
    for who, one in enumerate(more):
        (raw,) = signed(who, [one])
        assert log.merge(raw).new
        moved(whole.merge(raw).changes, wanted)
    assert log.next(NAMES[2]) is None and log.next(NAMES[1]) == 9
    assert not log.merge(signed(2, pages[2])[0]).new, "that is over"
    newcomer = Log(RULES, floor=8)
    drain(log, newcomer, total)
    assert newcomer.ask().heads == log.ask().heads
    old = Log(RULES)
    drain(log, old, {})
    assert log.answer(old.ask()).floor == 8, "who is behind a snapshot hears of it"


# ---- the bytes


def test_the_stream_is_the_standards() -> None:
    """RFC 8439, A.1: test vector 1, a key and a nonce of zeros; vector 3 is block 1 of another."""
    wanted = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert stream(bytes(32), 32).hex() == wanted
    key = bytes(31) + b"\1"
    assert stream(key, 16, first_block=1).hex() == "3aeb5224ecf849929b9d828db1ced4dd"
    assert stream(key, 200)[64:] == stream(key, 136, first_block=1)
    with pytest.raises(ValueError, match="more than a stream has"):
        stream(key, STREAM_BYTES_MAX, first_block=1)


def test_the_bytes_of_every_message_are_those_on_file() -> None:
    (raw,) = signed(0, [page(0, 1, -1, ABSENT)])
    log = Log(RULES)
    log.merge(raw)
    sync = Sync(RUN, 8, (Head(NAMES[0], 9, FIRST),), (NAMES[1],))
    pages = log.answer(Log(RULES).ask())
    lines = [
        f"Page {raw.hex()}",
        f"Sync {encode(sync).hex()}",
        f"Pages {encode(pages).hex()}",
        f"Fork {encode(Fork(raw, raw)).hex()}",
        f"Rules {encode(RULES).hex()}",
        f"seed {RULES.seed(3, 1).hex()}",
        f"directions {''.join(str(RULES.direction(NAMES[0], one)) for one in range(32))}",
        f"values {VALUES[-8:]}",
    ]
    golden = Path(__file__).parent / "golden" / "scalars.hex"
    assert lines == golden.read_text(encoding="utf-8").splitlines()
