"""Who is in a group, whose word counts, whom to follow; and the bytes that they say it in."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from groups_world import FIRST, KEYS, RUN, card_at
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.codec import encode
from potluck.crypto.digest import digest
from potluck.crypto.envelope import sign
from potluck.errors import RemoteError
from potluck.swarm.run.group import Place, ahead_of, axes, companions, is_quorum
from potluck.swarm.run.group_wire import (
    DOMAIN,
    GROUP_MAX,
    KINDS,
    LETTER_BYTES_MAX,
    Agreed,
    Ask,
    Ballot,
    Commit,
    Given,
    Held,
    Member,
    Missing,
    Part,
    Plan,
    Prepare,
    Promise,
    Propose,
    Told,
    Value,
    Vote,
    card_of,
    pack,
    unpack,
)

MEMBERS = tuple(Member(key.peer_id, 1) for key in KEYS)
NEXT = digest("test state", b"the next")


@pytest.mark.parametrize("size", range(1, 7))
def test_of_two_parts_of_a_config_at_most_one_is_a_quorum(size: int) -> None:
    """And of two halves one is: so that of two members one can go on without the other."""
    config = MEMBERS[:size]
    quorums = [
        set(some)
        for count in range(size + 1)
        for some in combinations(config, count)
        if is_quorum(FIRST, config, some)
    ]
    assert all(one & other for one in quorums for other in quorums)
    for count in range(size + 1):
        for some in combinations(config, count):
            others = set(config) - set(some)
            assert is_quorum(FIRST, config, some) or is_quorum(FIRST, config, others)


def test_who_comes_back_with_another_boot_is_nobody_whose_word_counts() -> None:
    again = tuple(Member(one.peer, 2) for one in MEMBERS[:3])
    assert not is_quorum(FIRST, MEMBERS[:3], again)
    assert not is_quorum(FIRST, MEMBERS[:3], (MEMBERS[0], *again[1:]))


def test_the_state_of_most_commits_is_followed_then_that_of_most_peers() -> None:
    mine = Place(FIRST, commits=2)
    old, same = Place(b"o" * 32, commits=1), Place(FIRST, commits=2)
    fork, far = Place(b"f" * 32, commits=2), Place(b"g" * 32, commits=3)
    first, second, third, fourth = KEYS[:4]
    assert ahead_of(mine, [card_at(first, old), card_at(second, same)]) is None
    forks = [card_at(first, fork), card_at(second, fork)]
    assert ahead_of(mine, forks) == (fork.state, tuple(sorted(one.peer for one in forks)))
    assert ahead_of(mine, [*forks, card_at(third, same), card_at(fourth, same)]) is None
    found = ahead_of(mine, [*forks, card_at(third, far)])
    assert found == (far.state, (third.peer_id,))


@given(st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=60))
def test_whoever_is_my_companion_says_the_same_of_me(peers: set[str]) -> None:
    for round_ in range(3):
        groups = {one: companions(RUN, peers, one, round_, side=4) for one in peers}
        assert all(len(group) <= 4 for group in groups.values())
        assert all(groups[other] == group for group in groups.values() for other in group)


def test_on_a_full_grid_each_has_heard_of_all_after_as_many_rounds_as_axes() -> None:
    """Moshpit: 64 peers in groups of 4, three axes."""
    peers = {f"peer {number}" for number in range(64)}
    knows = {one: {one} for one in peers}
    assert axes(64, 4) == 3
    for round_ in range(3):
        knows = {
            one: set().union(*(knows[other] for other in companions(RUN, peers, one, round_, 4)))
            for one in peers
        }
    assert all(known == peers for known in knows.values())


def test_as_many_as_fit_one_group_are_one() -> None:
    peers = {f"peer {number}" for number in range(GROUP_MAX)}
    assert companions(RUN, peers, "peer 0", 7) == tuple(sorted(peers))


def messages() -> list[object]:
    key, other = KEYS[:2]
    raw = sign(key, DOMAIN, encode(card_at(key, Place(FIRST), tokens=7)))
    ballot = Ballot(3, MEMBERS[0])
    value = Value(NEXT, ballot, MEMBERS[:2])
    return [
        Told(raw, True),
        Prepare(FIRST, MEMBERS[:2], ballot),
        Promise(FIRST, ballot, 1, None, None),
        Promise(FIRST, ballot, 1, Vote(ballot, value), NEXT),
        Plan(FIRST, ballot, (raw,)),
        Part(FIRST, ballot, Plan(FIRST, ballot, (raw,)).digest, "give", 1, 130),
        Held(FIRST, ballot, NEXT),
        Missing(FIRST, ballot, (other.peer_id,)),
        Propose(FIRST, ballot, value),
        Agreed(FIRST, ballot, 1),
        Commit(FIRST, value),
        Ask(FIRST),
        Given(FIRST, 4, MEMBERS[:2], 8000),
    ]


def test_the_bytes_of_each_message_are_known() -> None:
    """tests/golden/group.hex: a change of the wire shows there, and needs a protocol of its own."""
    golden = Path(__file__).parent / "golden" / "group.hex"
    packed = [pack(one) for one in messages()]  # type: ignore[arg-type]
    assert [one.hex() for one in packed] == golden.read_text(encoding="utf-8").splitlines()
    assert [unpack(one) for one in packed] == messages()
    assert {type(one) for one in messages()} == set(KINDS)


def test_the_greatest_plan_fits_a_letter() -> None:
    raw = sign(KEYS[0], DOMAIN, encode(card_at(KEYS[0], Place(FIRST), tokens=2**53, rate=2**40)))
    plan = Plan(FIRST, Ballot(1 << 32, Member(KEYS[0].peer_id, 2**53)), (raw,) * GROUP_MAX)
    assert len(pack(plan)) <= LETTER_BYTES_MAX
    assert unpack(pack(plan)) == plan


@given(st.binary(max_size=400))
def test_rubbish_is_a_fault(raw: bytes) -> None:
    with pytest.raises(RemoteError):
        unpack(raw)
    with pytest.raises(RemoteError):
        card_of(raw)
