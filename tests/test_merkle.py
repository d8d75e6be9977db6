"""One digest for many leaves: every leaf can be shown to be in it, and nothing else can."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.digest import digest
from potluck.crypto.merkle import Proof, leaf_of, leaves_of, prove, proves, root_of

rows = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


def brute_root(leaves: list[bytes]) -> bytes:
    """RFC 6962's definition, word for word, with our domains."""

    def tree(part: list[bytes]) -> bytes:
        if len(part) == 1:
            return digest("merkle leaf", part[0])
        k = max(2**power for power in range(20) if 2**power < len(part))
        return digest("merkle node", tree(part[:k]), tree(part[k:]))

    return digest("merkle root", len(leaves).to_bytes(8), tree(leaves))


@given(rows)
def test_the_root_is_the_rfcs(leaves: list[bytes]) -> None:
    assert root_of([leaf_of(leaf) for leaf in leaves]) == brute_root(leaves)


@given(rows, st.data())
def test_every_leaf_is_proved_and_at_its_own_place_only(
    leaves: list[bytes], data: st.DataObject
) -> None:
    digests = [leaf_of(leaf) for leaf in leaves]
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof, root = prove(digests, index), root_of(digests)
    assert proves(proof, leaves[index], root)
    assert len(proof.path) <= max(1, len(leaves) - 1).bit_length()
    for other in range(len(leaves)):
        if leaves[other] != leaves[index]:
            assert not proves(proof, leaves[other], root)
    for count in range(1, len(leaves) + 3):
        for place in range(count):
            if (place, count) != (index, len(leaves)) and (
                place >= len(leaves) or leaves[place] != leaves[index]
            ):
                assert not proves(Proof(place, count, proof.path), leaves[index], root)


@given(rows, st.data())
def test_no_bit_of_a_proof_may_be_flipped(leaves: list[bytes], data: st.DataObject) -> None:
    digests = [leaf_of(leaf) for leaf in leaves]
    proof = prove(digests, data.draw(st.integers(0, len(leaves) - 1)))
    for step, part in enumerate(proof.path):
        bit = data.draw(st.integers(0, 255))
        bad = bytearray(part)
        bad[bit // 8] ^= 1 << bit % 8
        path = (*proof.path[:step], bytes(bad), *proof.path[step + 1 :])
        assert not proves(replace(proof, path=path), leaves[proof.index], root_of(digests))


def test_a_node_is_no_leaf() -> None:
    """The classic forgery: the two halves of a node, given as a leaf of a shorter row."""
    left, right = leaf_of(b"a"), leaf_of(b"b")
    root = root_of([left, right])
    assert not proves(Proof(0, 1, ()), left + right, root)
    assert root_of([digest("merkle node", left, right)]) != root


def test_rows_of_different_lengths_have_different_roots() -> None:
    roots = {root_of([leaf_of(b"")] * count) for count in range(100)}
    assert len(roots) == 100


def test_bytes_are_cut_into_rows() -> None:
    assert leaves_of(b"abcdef", 2) == [leaf_of(b"ab"), leaf_of(b"cd"), leaf_of(b"ef")]
    assert leaves_of(b"", 2) == []
    with pytest.raises(ValueError, match="rows"):
        leaves_of(b"abc", 2)
