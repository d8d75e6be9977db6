"""Networks at three widths, and lists that no landlord fills."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.dht.network import (
    NOWHERE,
    PER_NETWORK,
    WIDE_SHARE,
    Prefixes,
    diverse,
    networks_of,
    prefixes_of,
)

prefixes = st.builds(
    lambda a, b, c: (f"{a}/8", f"{a}.{b}/16", f"{a}.{b}.{c}/24"),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("/ip4/8.7.6.5/tcp/1", ("8.0.0.0/8", "8.7.0.0/16", "8.7.6.0/24")),
        ("/ip4/8.7.6.5/tcp/1/p2p/R/p2p-circuit/p2p/X", ("8.0.0.0/8", "8.7.0.0/16", "8.7.6.0/24")),
        ("/ip6/2a01:4f8:c0c::1/tcp/1", ("2a01:4f8::/32", "2a01:4f8:c00::/40", "2a01:4f8:c0c::/48")),
        ("/dns4/A.b.Example.org/tcp/1", ("name", "example.org", "a.b.example.org")),
        ("/ip4/192.168.1.2/tcp/1", NOWHERE),
        ("/ip4/127.0.0.1/tcp/1", NOWHERE),
        ("/ip6/::1/tcp/1", NOWHERE),
        ("/ip4/10.0.0.1", NOWHERE),
        ("/ip4/999.1.1.1/tcp/1", NOWHERE),
        ("/ip4", NOWHERE),
        ("/p2p/x", NOWHERE),
        ("rubbish", NOWHERE),
        ("", NOWHERE),
    ],
)  # fmt: skip
def test_an_address_stands_in_networks_of_three_widths(address: str, found: Prefixes) -> None:
    assert prefixes_of(address) == found


def test_a_peer_stands_wherever_it_has_an_address_that_counts() -> None:
    home, there = "/ip4/192.168.1.2/tcp/1", "/ip4/8.8.8.8/tcp/1"
    assert networks_of([home, there, "/ip4/8.8.8.9/tcp/2"]) == {prefixes_of(there)}
    assert networks_of([home]) == frozenset()


@given(st.lists(st.frozensets(prefixes, max_size=2), max_size=60), st.integers(0, 40))
def test_a_list_takes_of_each_network_its_part_as_a_plain_count_says(
    ranked: list[frozenset[Prefixes]], count: int
) -> None:
    chosen = diverse(enumerate(ranked), count)
    wide_max = max(PER_NETWORK, round(WIDE_SHARE * count))
    first: list[int] = []
    narrow: Counter[str] = Counter()
    middle: Counter[str] = Counter()
    for number, where in enumerate(ranked):
        close, wide = {each[2] for each in where}, {each[1] for each in where}
        if len(first) == count:
            break
        if all(narrow[one] < PER_NETWORK for one in close) and all(
            middle[one] < wide_max for one in wide
        ):
            first.append(number)
            narrow.update(close)
            middle.update(wide)
    rest = [number for number in range(len(ranked)) if number not in first]
    assert list(chosen) == first + rest[: count - len(first)]


def test_a_crowd_comes_last_but_is_not_shut_out() -> None:
    crowd, home = (prefixes_of("/ip4/8.8.8.8/tcp/1"),), (prefixes_of("/ip4/9.9.9.9/tcp/1"),)
    ranked = [(1, crowd), (2, crowd), (3, crowd), (4, crowd), (5, home), (6, ())]
    assert diverse(ranked, 4) == [1, 2, 5, 6]
    assert diverse(ranked, 6) == [1, 2, 5, 6, 3, 4]


@given(st.integers(0, 30), st.integers(0, 30))
def test_a_swarm_within_one_network_works(peers: int, count: int) -> None:
    one = prefixes_of("/ip4/8.8.8.8/tcp/1")
    for where in (one, NOWHERE):
        assert len(diverse(((n, (where,)) for n in range(peers)), count)) == min(peers, count)
