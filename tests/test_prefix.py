"""Names of beginnings: the same bytes give the same names however they are cut; shelves keep."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.prefix import GRAIN, Brought, Chain, Rows, Scope, Shelf, names_of

ROW = 2
SCOPES: list[Scope] = [("", 0, 1, "f32", 0), ("a", 0, 1, "f32", 0), ("a", 1, 2, "f32", 0)]


def rows(tokens: int, seed: int = 0) -> bytes:
    return bytes((seed + at * at) % 251 for at in range(ROW * tokens))


@given(tokens=st.integers(1, 300), cuts=st.lists(st.integers(0, 300), max_size=6))
def test_names_depend_on_the_bytes_and_not_on_how_they_are_cut(
    tokens: int, cuts: list[int]
) -> None:
    whole, cut = Chain(ROW), Chain(ROW)
    whole.add(rows(tokens))
    for start, stop in pairwise(sorted({0, tokens, *(one for one in cuts if one < tokens)})):
        cut.add(rows(tokens)[ROW * start : ROW * stop])
    assert whole.names == cut.names and whole.length == cut.length == tokens
    assert len(whole.names) == tokens // GRAIN


@given(tokens=st.integers(65, 300), at=st.integers(0, 299))
def test_a_name_is_over_all_that_came_before(tokens: int, at: int) -> None:
    other = bytearray(rows(tokens))
    place = ROW * (at % tokens)
    other[place] ^= 1
    mine, theirs = Chain(ROW), Chain(ROW)
    mine.add(rows(tokens))
    theirs.add(other)
    changed = at % tokens // GRAIN
    for number, (one, two) in enumerate(zip(mine.names, theirs.names, strict=True)):
        assert (one == two) == (number < changed)


@given(tokens=st.integers(1, 300), back=st.integers(0, 300), more=st.integers(1, 200))
def test_a_chain_that_goes_back_is_that_of_what_stays(tokens: int, back: int, more: int) -> None:
    """Or it says that it cannot: by more than the last name's rows it goes nowhere."""
    at = min(back, tokens)
    gone, straight = Chain(ROW), Chain(ROW)
    gone.add(rows(tokens))
    if not gone.back(at):
        assert at < GRAIN * (tokens // GRAIN - 1)
        return
    gone.add(rows(more, seed=7))
    straight.add(rows(tokens)[: ROW * at] + rows(more, seed=7))
    assert gone.names == straight.names and gone.length == straight.length


def test_the_last_row_of_a_prompt_is_never_named() -> None:
    """Of it an output is wanted, so that it has to be computed in any case."""
    assert len(names_of([rows(128)], ROW)) == 1
    assert len(names_of([rows(100), rows(29)], ROW)) == 2


class Kept:
    """What lies on a shelf, by name: for whoever drops it, which scope and how large."""

    def __init__(self, scope: Scope, names: tuple[bytes, ...], size: int) -> None:
        self.scope, self.names, self.size = scope, names, size


CHAINS = st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=5).map(
    lambda word: tuple(b"".join(word[: end + 1]) for end in range(len(word)))
)
ACTS = st.tuples(
    st.sampled_from(["put", "put", "put", "find", "pop"]),
    st.sampled_from(SCOPES), CHAINS, st.integers(1, 4),
)  # fmt: skip


@given(acts=st.lists(ACTS, max_size=60), most=st.integers(4, 20))
def test_a_shelf_keeps_only_what_can_be_found_and_never_too_much(
    acts: list[tuple[str, Scope, tuple[bytes, ...], int]], most: int
) -> None:
    shelf: Shelf[Kept] = Shelf(most)
    there: dict[tuple[Scope, bytes], Kept] = {}
    for act, scope, names, size in acts:
        if act == "pop":
            gone = shelf.pop()
            assert (gone is None) == (not there)
            if gone is not None:
                del there[gone.scope, gone.names[-1]]
        elif act == "find":
            found = shelf.find(scope, names)
            held = [there.get((scope, name)) for name in names]
            assert found == held[: held.index(None) if None in held else len(held)]
        else:
            what = Kept(scope, names, size)
            there[scope, names[-1]], before = what, there.get((scope, names[-1]))
            for gone in shelf.put(scope, names, what, size):
                if gone is what and before is not None:
                    there[scope, names[-1]] = before
                else:
                    del there[gone.scope, gone.names[-1]]
        assert len(shelf) == len(there)
        assert shelf.size == sum(one.size for one in there.values()) <= most
        for owner in ("", "a"):
            theirs = sum(one.size for one in there.values() if one.scope[0] == owner)
            assert theirs <= 0.75 * most
        for (scope_, _), one in there.items():
            assert all((scope_, name) in there for name in one.names)


def test_the_longest_unused_goes_first() -> None:
    shelf: Shelf[str] = Shelf(4, owner_share=1.0)
    for name in (b"1", b"2", b"3", b"4"):
        assert shelf.put(SCOPES[0], [name], name.decode(), 1) == []
    assert shelf.find(SCOPES[0], [b"1"]) == ["1"]
    assert shelf.put(SCOPES[0], [b"5"], "5", 2) == ["2", "3"]
    assert shelf.holds(SCOPES[0], b"1") and not shelf.holds(SCOPES[1], b"1")


def test_rows_are_found_together_or_not_at_all_and_the_longest_unused_go() -> None:
    kept = Rows(bytes_max=6)
    kept.put(b"x", b"123")
    kept.put(b"y", b"45")
    assert kept.find([b"x", b"y"]) == b"12345" and kept.find([b"x", b"z"]) is None
    assert kept.find([b"x"]) == b"123"
    kept.put(b"z", b"67")
    assert kept.find([b"y"]) is None and kept.find([b"x", b"z"]) == b"12367"
    kept.put(b"large", b"1234567")
    assert kept.find([b"large"]) is None and kept.bytes == 5


def test_what_a_peer_was_brought_is_expected_there_as_far_as_it_said_so() -> None:
    names = [bytes([one]) for one in range(5)]
    brought = Brought(most=6)
    brought.note("p", names, 3)
    assert brought.tokens("p", names) == 3 * GRAIN and brought.tokens("q", names) == 0
    brought.note("p", names, 1)
    assert brought.tokens("p", names) == GRAIN
    brought.note("q", [b"9", *names], 6)
    assert brought.tokens("p", names) == 0  # forgotten: there is a bound
