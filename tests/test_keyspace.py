"""The names of records: one place for each model, and nobody's place by accident."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.keys import IdentityKey
from potluck.dht.keyspace import MODELS, PLACE_BYTES, distance, peer_point, spans_of
from potluck.errors import RemoteError

places = st.binary(min_size=32, max_size=32)


@given(places, places)
def test_each_model_has_a_place_of_its_own(one: bytes, other: bytes) -> None:
    assert len(spans_of(one.hex())) == PLACE_BYTES
    assert (spans_of(one.hex()) == spans_of(other.hex())) == (one == other)
    assert spans_of(one.hex()) not in (MODELS, one)


@pytest.mark.parametrize("model", ["", "ab", "AB" * 32, "zz" * 32, " " + "ab" * 32, "ab " * 32])
def test_what_is_no_digest_has_no_place(model: str) -> None:
    with pytest.raises(RemoteError):
        spans_of(model)


@given(places, places, places)
def test_distance_is_a_metric(a: bytes, b: bytes, c: bytes) -> None:
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


def test_a_peers_point_is_not_its_key() -> None:
    key = IdentityKey.from_bytes(b"a" * 32)
    assert len(peer_point(key.peer_id)) == PLACE_BYTES and peer_point(key.peer_id) != key.public
