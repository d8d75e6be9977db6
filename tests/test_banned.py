"""The table of bans: a flood of identities that nobody ever met displaces itself alone."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from potluck.swarm.banned import KNOWN_S, STRANGER, Acquaintance, Ban, Banned
from potluck.swarm.evidence import BANNED_MAX
from potluck.swarm.testimony import Contradiction

NOW, WEEK_S = 1_790_000_000.0, 604_800.0
PROOF = Contradiction("record", b"one", b"other")
MOST = 20


def ban(peer: str, known: Acquaintance = STRANGER, until_s: float = math.inf) -> Ban:
    return Ban(peer, until_s, "contradiction", PROOF, known)


def rank(one: Ban) -> int:
    return sum(one.known.known_s > least for least in KNOWN_S)


acquaintances = st.builds(
    Acquaintance, st.sampled_from([0.0, 1.0, 4000.0, 90_000.0, 2 * WEEK_S]), st.sampled_from("abc")
)


@given(st.lists(acquaintances, max_size=4 * MOST))
def test_nobody_goes_while_one_is_there_who_was_known_less(knowns: list[Acquaintance]) -> None:
    table, there = Banned(MOST), dict[str, Ban]()
    for number, known in enumerate(knowns):
        one = there[f"p{number}"] = ban(f"p{number}", known)
        gone = [there.pop(peer) for peer in table.put(one, NOW)]
        assert len(table) <= MOST and set(table.all()) == set(there.values())
        for lost in gone:
            assert all(rank(lost) <= rank(other) for other in there.values())
            beside = Counter(o.known.network for o in there.values() if rank(o) == rank(lost))
            assert beside[lost.known.network] + 1 >= max(beside.values(), default=0)


@given(st.integers(0, MOST), st.integers(0, 200))
def test_no_flood_of_strangers_ends_a_ban_of_a_peer_that_we_had_met(met: int, flood: int) -> None:
    table = Banned(MOST)
    for number in range(met):
        table.put(ban(f"met {number}", Acquaintance(1.0, "1.2.0.0/16")), NOW)
    for number in range(flood):
        table.put(ban(f"flood {number}"), NOW)
    assert all(table.of(f"met {number}") for number in range(met))
    assert len(table) == min(MOST, met + flood)


def test_of_those_known_alike_the_network_that_holds_most_loses_its_oldest() -> None:
    table = Banned(MOST)
    home = Acquaintance(WEEK_S + 1, "1.2.0.0/16")
    table.put(ban("honest find", home), NOW)
    for number in range(3 * MOST):
        table.put(ban(f"landlord's {number}", Acquaintance(WEEK_S + 1, "5.6.0.0/16")), NOW)
    assert table.of("honest find") and table.of(f"landlord's {3 * MOST - 1}")
    assert table.of("landlord's 0") is None


def test_bans_that_are_over_go_before_all_others() -> None:
    table = Banned(2)
    table.put(ban("over", Acquaintance(WEEK_S + 1), until_s=NOW), NOW - 1)
    table.put(ban("stranger"), NOW)
    assert table.put(ban("another"), NOW) == ["over"]
    assert table.put(ban("stranger", until_s=NOW + 9), NOW) == []  # the last word on it stands
    (word,) = [one for one in table.all() if one.peer == "stranger"]
    assert word.until_s == NOW + 9


def test_a_flood_pays_for_sorting_once_in_many_bans() -> None:
    table = Banned(BANNED_MAX)
    for number in range(BANNED_MAX):
        table.put(ban(f"p{number}"), NOW)
    gone = [len(table.put(ban(f"flood {number}"), NOW)) for number in range(200)]
    assert gone == [1 + BANNED_MAX // 64] + 199 * [0]
