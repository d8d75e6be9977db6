"""Networks at three widths, and lists that no landlord fills."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.dht.network import PER_NETWORK
from potluck.swarm.diversity import NOWHERE, WIDE_SHARE, Prefixes, diverse, prefixes_of

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
        ("/dns4/a.b.example.org/tcp/1", ("name", "example.org", "a.b.example.org")),
        ("/ip4/192.168.1.2/tcp/1", NOWHERE),
        ("/ip4/127.0.0.1/tcp/1", NOWHERE),
        ("/ip4/999.1.1.1/tcp/1", NOWHERE),
        ("rubbish", NOWHERE),
    ],
)  # fmt: skip
def test_an_address_stands_in_networks_of_three_widths(address: str, found: Prefixes) -> None:
    assert prefixes_of(address) == found


@given(st.lists(prefixes, max_size=60), st.integers(0, 40))
def test_a_list_takes_of_each_network_its_part_as_a_plain_count_says(
    ranked: list[Prefixes], count: int
) -> None:
    members = list(enumerate(ranked))
    chosen = diverse(((number, where) for number, where in members), count)
    wide_max = max(PER_NETWORK, round(WIDE_SHARE * count))
    first: list[int] = []
    narrow: Counter[str] = Counter()
    middle: Counter[str] = Counter()
    for number, (_, wide, close) in members:
        if len(first) < count and narrow[close] < PER_NETWORK and middle[wide] < wide_max:
            first.append(number)
            narrow[close] += 1
            middle[wide] += 1
    rest = [number for number, _ in members if number not in first]
    assert list(chosen) == first + rest[: count - len(first)]


@given(st.integers(0, 30), st.integers(0, 30))
def test_a_swarm_within_one_network_works(peers: int, count: int) -> None:
    one = prefixes_of("/ip4/8.8.8.8/tcp/1")
    for where in (one, NOWHERE):
        assert len(diverse(((n, where) for n in range(peers)), count)) == min(peers, count)
