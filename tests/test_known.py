"""Whom to join by after a restart: the last word on each, the last seen, several networks first."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.keys import IdentityKey
from potluck.dht.known import (
    AGE_MAX_S,
    JOIN_MAX,
    KNOWN_BYTES_MAX,
    KNOWN_MAX,
    Known,
    from_bytes,
    merge,
    to_bytes,
    to_join,
)
from potluck.errors import RemoteError

NOW = 1_790_000_000.0
DICE = random.Random(4)
PEERS = [IdentityKey.from_bytes(DICE.randbytes(32)).peer_id for _ in range(200)]


def known(peer: str, seen_s: float = NOW, host: str = "127.0.0.1") -> Known:
    return Known(peer, (f"/ip4/{host}/tcp/4001/p2p/{peer}",), seen_s)


@given(st.lists(st.tuples(st.sampled_from(PEERS), st.floats(0, 2 * AGE_MAX_S))))
def test_each_peer_is_kept_once_as_last_seen_and_nobody_of_a_month_ago(
    seen: list[tuple[str, float]],
) -> None:
    """`ago` is how long ago each was seen; the order of the list does not matter."""
    one = [known(peer, NOW - ago) for peer, ago in seen]
    merged = merge(one[::2], one[1::2], NOW)
    newest = {peer: min(ago for other, ago in seen if other == peer) for peer, _ in seen}
    expected = {peer: NOW - ago for peer, ago in newest.items() if NOW - (NOW - ago) < AGE_MAX_S}
    assert {k.peer: k.seen_s for k in merged} == expected or len(merged) == KNOWN_MAX
    assert [k.seen_s for k in merged] == sorted((k.seen_s for k in merged), reverse=True)
    assert from_bytes(to_bytes(merged)) == merged


def test_the_store_is_bounded_in_peers_and_bytes() -> None:
    long = [Known(p, tuple(f"/dns/{'x' * 190}/p2p/{p}" for _ in range(8)), NOW) for p in PEERS]
    merged = merge([], long, NOW)
    assert len(merged) == KNOWN_MAX and len(to_bytes(merged)) < KNOWN_BYTES_MAX


def test_who_has_no_address_is_not_remembered() -> None:
    assert merge([], [Known(PEERS[0], (), NOW)], NOW) == ()


def test_one_landlord_gives_two_of_those_we_join_by() -> None:
    """40 tenants of one /24 were seen last; 20 others, each of a network of its own, before."""
    tenants = [known(peer, NOW, f"8.8.8.{n}") for n, peer in enumerate(PEERS[:40])]
    others = [known(peer, NOW - 9, f"9.{n}.1.1") for n, peer in enumerate(PEERS[40:60])]
    joined = to_join(merge([], tenants + others, NOW))
    assert len(joined) == JOIN_MAX
    assert sum("/8.8.8." in address for address in joined) == 2


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_store_with_a_wrong_byte_is_refused_or_another_store(at: int) -> None:
    raw = bytearray(to_bytes((known(PEERS[0]),)))
    raw[at] ^= 0xFF
    with pytest.raises(RemoteError):
        from_bytes(bytes(raw))


def test_an_address_of_another_peer_is_refused() -> None:
    stolen = Known(PEERS[0], known(PEERS[1]).addresses, NOW)
    with pytest.raises(RemoteError, match="not those of"):
        from_bytes(to_bytes((stolen,)))
