"""The price of an identity: found, checked, not carried over to another key or month."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.crypto.codec import decode, encode
from potluck.crypto.keys import IdentityKey
from potluck.crypto.work import (
    BITS,
    EPOCH_S,
    GRACE_S,
    Work,
    check_work,
    epoch_at,
    next_epoch_s,
    search,
)
from potluck.errors import RemoteError

ALICE = IdentityKey.from_bytes(b"a" * 32).public
MALLORY = IdentityKey.from_bytes(b"m" * 32).public
NOW = 1_900_000_000.0
EASY = 10  # a thousand hashes


def worked(public: bytes = ALICE, *, bits: int = EASY, epoch: int = epoch_at(NOW)) -> Work:
    work, _ = search(public, epoch, first=0, tries=1 << (bits + 6), bits=bits)
    assert work is not None  # misses once in e^64
    return work


def test_what_was_searched_for_is_accepted_as_the_definition_says() -> None:
    work = worked()
    check_work(work, ALICE, NOW, bits=EASY)
    text = b"potluck work\0" + ALICE + work.epoch.to_bytes(4) + work.nonce
    assert f"{int.from_bytes(sha256(sha256(text).digest()).digest()):0256b}".startswith("0" * EASY)
    assert decode(encode(work), Work) == work


def test_work_of_another_key_or_epoch_or_nonce_is_refused() -> None:
    """Each change leaves a chance of 2^-10 to be work by accident: these do not have it."""
    work = worked()
    with pytest.raises(RemoteError, match="zero bits"):
        check_work(work, MALLORY, NOW, bits=EASY)
    with pytest.raises(RemoteError, match="zero bits"):
        check_work(replace(work, epoch=work.epoch + 1), ALICE, NOW + EPOCH_S, bits=EASY)
    with pytest.raises(RemoteError, match="zero bits"):
        check_work(replace(work, nonce=b"\xff" * 8), ALICE, NOW, bits=EASY)
    with pytest.raises(RemoteError, match="zero bits"):
        check_work(work, ALICE, NOW)  # a thousand hashes are not four million
    assert BITS == 22


def test_work_is_good_for_its_month_and_three_days_around_it() -> None:
    work = worked()
    begins_s, ends_s = work.epoch * EPOCH_S, next_epoch_s(NOW)
    assert begins_s <= NOW < ends_s == begins_s + EPOCH_S
    for now in (begins_s - GRACE_S, begins_s, ends_s, ends_s + GRACE_S - 1):
        check_work(work, ALICE, now, bits=EASY)
    for now in (begins_s - GRACE_S - 1, ends_s + GRACE_S):
        with pytest.raises(RemoteError, match="epoch"):
            check_work(work, ALICE, now, bits=EASY)


def test_a_search_in_slices_finds_what_one_search_finds() -> None:
    whole, after = search(ALICE, 7, first=0, tries=1 << 16, bits=EASY)
    assert whole is not None
    first, slices = 0, 0
    while True:
        work, first = search(ALICE, 7, first=first, tries=100, bits=EASY)
        slices += 1
        if work is not None:
            break
    assert (work, first) == (whole, after)
    assert slices == -(-after // 100)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_bytes_are_no_work(seed: int) -> None:
    """Of 2^40 nonces one is: a hundred trials miss it."""
    nonce = Random(seed).randbytes(8)
    with pytest.raises(RemoteError, match="zero bits"):
        check_work(Work(epoch_at(NOW), nonce), ALICE, NOW, bits=40)
