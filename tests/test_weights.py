"""Whose word on pieces of weights is believed, who is caught, and what goes from a full disk."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.codec import encode
from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError
from potluck.swarm.chunk import CHUNK_BYTES, digest_of
from potluck.swarm.eviction import Kept, to_evict
from potluck.swarm.weights import (
    NETWORKS,
    PIECES_MAX,
    TABLE_BYTES_MAX,
    Ask,
    Beliefs,
    Lie,
    Table,
    covering,
    read_table,
    samples_of,
    sign_table,
    table_of,
)

FILE = digest_of(b"a file")
COUNT = 12
SIZE = (COUNT - 1) * CHUNK_BYTES + 77
TRUE = {index: digest_of(b"true %d" % index) for index in range(COUNT)}
FALSE = {index: digest_of(b"false %d" % index) for index in range(COUNT)}


def says(pieces: dict[int, bytes], *, vouches: bool = True) -> Table:
    return table_of(FILE, SIZE, {index: (name, vouches) for index, name in pieces.items()})


def test_a_table_says_what_is_here_and_is_read_only_from_who_signed_it() -> None:
    key, other = IdentityKey.generate(), IdentityKey.generate()
    table = table_of(FILE, SIZE, {0: (TRUE[0], True), 9: (TRUE[9], False)})
    raw = sign_table(key, table)
    read = read_table(raw, key.peer_id, FILE, SIZE)
    assert read == table and read.piece(0) == TRUE[0] and read.piece(1) is None
    assert read.vouches(0) and not read.vouches(9)
    for peer, file, size in (
        (other.peer_id, FILE, SIZE),
        (key.peer_id, TRUE[0], SIZE),
        (key.peer_id, FILE, SIZE + 1),
    ):
        with pytest.raises(RemoteError):
            read_table(raw, peer, file, size)
    with pytest.raises(ValueError, match="another length"):
        replace(table, pieces=table.pieces[:-32])


def test_the_bytes_of_every_message_are_those_on_file() -> None:
    table = table_of(FILE, CHUNK_BYTES + 77, {0: (TRUE[0], True), 1: (TRUE[1], False)})
    lines = [f"{type(one).__name__} {encode(one).hex()}" for one in (Ask(FILE), table)]
    golden = Path(__file__).parent / "golden" / "weights.hex"
    assert lines == golden.read_text(encoding="utf-8").splitlines()


def test_the_largest_table_fits_its_letter() -> None:
    size = PIECES_MAX * CHUNK_BYTES
    had = {index: (TRUE[index % COUNT], True) for index in range(PIECES_MAX)}
    raw = sign_table(IdentityKey.generate(), table_of(FILE, size, had))
    assert len(raw) <= TABLE_BYTES_MAX


def test_pieces_that_cover_byte_ranges() -> None:
    one = CHUNK_BYTES
    assert covering([(0, 8)]) == [0]
    assert covering([(one - 1, one + 1), (5, 5), (3 * one, 4 * one)]) == [0, 1, 3]


@st.composite
def voices(draw: st.DrawFn) -> list[tuple[dict[int, bytes], str, bool]]:
    """Liars of any kind, who say what they like, and one honest peer that has every piece."""
    found = []
    for _ in range(draw(st.integers(0, 6))):
        lies = draw(st.dictionaries(st.integers(0, COUNT - 1), st.booleans()))
        pieces = {index: (FALSE if false else TRUE)[index] for index, false in lies.items()}
        found.append((pieces, draw(st.sampled_from(["", "a", "b", "c", "d"])), draw(st.booleans())))
    found.insert(draw(st.integers(0, len(found))), (dict(TRUE), "e", True))
    return found


@given(voices(), st.booleans(), st.lists(st.integers(0, COUNT - 1)))
def test_beside_one_honest_peer_no_lie_is_ever_believed(
    said: list[tuple[dict[int, bytes], str, bool]], whole: bool, read: list[int]
) -> None:
    beliefs = Beliefs(SIZE, whole)
    lies: list[Lie] = []
    for number, (pieces, network, vouches) in enumerate(said):
        table = says(pieces, vouches=vouches)
        lies += beliefs.heard(f"p{number}", table, network=network)
    for index in read:
        lies += beliefs.learned(index, TRUE[index])
    assert all(beliefs.believed(index) in (None, TRUE[index]) for index in range(COUNT))
    assert all(lie.said == FALSE[lie.index] and lie.root == TRUE[lie.index] for lie in lies)
    assert all(said[int(lie.peer[1:])][2] for lie in lies), (
        "who vouches for nothing may be deceived"
    )


def test_a_strangers_word_alone_counts_after_samples_and_a_pinned_ones_at_once() -> None:
    wanted = range(COUNT)
    need = samples_of(COUNT)
    beliefs, dice = Beliefs(SIZE, whole=False), random.Random(1)
    beliefs.heard("a", says(TRUE))
    assert not any(beliefs.believed(one, need) for one in wanted)
    samples = beliefs.samples(wanted, need, dice.randrange)
    assert len(set(samples)) == need
    for one in samples:
        beliefs.learned(one, TRUE[one])
    assert all(beliefs.believed(one, need) == TRUE[one] for one in wanted)
    assert beliefs.samples(wanted, need, dice.randrange) == []
    pinned = Beliefs(SIZE, whole=False)
    pinned.heard("friend", says(TRUE), pinned=True)
    assert all(pinned.believed(one) for one in wanted)
    many = Beliefs(SIZE, whole=False)
    for number in range(NETWORKS):
        assert many.believed(0) is None
        many.heard(f"p{number}", says(TRUE), network=str(number))
    assert many.believed(0) == TRUE[0]


def test_who_signed_what_the_root_refutes_is_caught_and_heard_no_more() -> None:
    beliefs = Beliefs(SIZE, whole=True)
    beliefs.heard("liar", says(TRUE | {4: FALSE[4]}))
    beliefs.heard("deceived", says({4: FALSE[4]}, vouches=False))
    beliefs.heard("good", says(TRUE))
    assert beliefs.disputed(range(COUNT)) == [4] and beliefs.believed(4) is None
    assert beliefs.learned(4, TRUE[4]) == [Lie("liar", 4, FALSE[4], TRUE[4])]
    wanted, holders = beliefs.chunks(range(COUNT), 2)
    assert len(wanted) == COUNT and "liar" not in holders
    assert TRUE[4] not in holders.get("deceived", [])
    assert beliefs.heard("liar", says(TRUE)) == [] and "liar" not in beliefs.chunks([0], 2)[1]
    assert beliefs.heard("late", says({4: FALSE[4]})) == [Lie("late", 4, FALSE[4], TRUE[4])]


kept = st.builds(
    Kept,
    st.uuids().map(str),
    st.integers(0, 100),
    st.integers(0, 5),
    st.floats(0, 9),
    st.booleans(),
)


@given(st.lists(kept, unique_by=lambda one: one.name), st.integers(0, 100), st.integers(0, 300))
def test_what_others_have_most_of_goes_first_and_what_is_in_use_never(
    there: list[Kept], room: int, budget: int
) -> None:
    gone = to_evict(there, room, budget)
    left = sum(one.size for one in there) + room - budget
    free = [one for one in there if not one.in_use]
    if gone is None:
        assert left > sum(one.size for one in free)
        return
    assert not any(one.in_use for one in gone)
    assert sum(one.size for one in gone) >= left
    if gone:
        assert sum(one.size for one in gone[:-1]) < left, "no more than is needed"
        rarest = min(one.copies for one in gone)
        stays = [one for one in free if one not in gone and one.size]
        assert all(one.copies <= rarest for one in stays)
