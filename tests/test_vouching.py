"""What vouches are worth: bounded by the edges out of whom we know, whoever stands behind them."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receipts import key

from potluck.swarm.flow import DUST, divide
from potluck.swarm.reputation import PROBATION_VALID, Reputation
from potluck.swarm.vouch import DAY_S, LIFE_MAX_S, Given, Vouch
from potluck.swarm.vouching import LIABLE_S, PASSED, PASSED_ON, VOUCHED, Vouches

NOW = 1_790_000_000.0


@cache
def name(letter: str) -> str:
    return key(letter).peer_id


def word(voucher: str, peer: str, at: float = NOW, *, revoked: bool = False) -> Given:
    """As it was checked: what is tested here never looks at a signature."""
    told = Vouch(name(peer), at, at + LIFE_MAX_S, revoked)
    return Given(name(voucher), told, f"{voucher} {peer} {at}".encode())


def graph(*edges: str) -> Vouches:
    """Of edges such as "ab": a vouches for b."""
    said = Vouches()
    for voucher, peer in edges:
        said.put(word(voucher, peer), NOW)
    return said


def standings(said: Vouches, *anchors: str, banned: str = "", now: float = NOW) -> dict[str, float]:
    bad = {name(one) for one in banned}
    found = said.standings({name(one): 1.0 for one in anchors}, now, bad.__contains__)
    letters = {name(one): one for one in "abcdefghijklmnop"}
    return {letters[peer]: round(got, 6) for peer, got in found.items() if got > 0}


def test_half_of_probation_is_the_most_that_any_number_of_vouches_is_worth() -> None:
    assert VOUCHED == PROBATION_VALID / 2
    assert standings(graph("ab"), "a") == {"b": VOUCHED}
    assert standings(graph("ae", "be", "ce", "de"), *"abcd") == {"e": VOUCHED}


def test_what_strangers_say_of_each_other_counts_for_nothing_and_so_do_circles() -> None:
    assert standings(graph("bc", "cb", "cd", "db"), "a") == {}
    assert standings(graph("ab", "ba", "aa"), "a") == {"b": VOUCHED}
    circle = standings(graph("ab", "bc", "cb", "ca"), "a")
    assert circle == {"b": VOUCHED * (1 - PASSED_ON), "c": VOUCHED * PASSED_ON}


def test_who_vouches_gives_of_its_own_and_its_newcomers_pass_nothing_on() -> None:
    found = standings(graph("ab", "bc", "bd", "ce"), "a")
    assert found == {"b": 2.5, "c": 1.25, "d": 1.25}


def test_an_anchor_passes_on_so_much_together() -> None:
    found = standings(graph(*("a" + one for one in "bcdefghi")), "a")
    assert sum(found.values()) == pytest.approx(PASSED) and set(found.values()) == {PASSED / 8}


def test_less_flows_out_of_whom_we_trust_less() -> None:
    said = graph(*("a" + one for one in "bcdefghi"))
    found = said.standings({name("a"): 0.8}, NOW, lambda peer: False)
    assert sum(found.values()) == pytest.approx(0.8 * PASSED)


def test_whoever_vouched_for_a_liar_falls_and_what_hangs_on_it() -> None:
    said = graph("ab", "ac", "cd", "cl", "ef")
    before = standings(said, "a", "e")
    assert before == {"b": 5.0, "c": 2.5, "d": 1.25, "l": 1.25, "f": 5.0}
    assert standings(said, "a", "e", banned="l") == {"b": 5.0, "f": 5.0}
    said.put(word("a", "l", NOW), NOW)
    assert standings(said, "a", "e", banned="l") == {"f": 5.0}


def test_to_take_a_vouch_back_helps_only_after_a_month() -> None:
    said = graph("ab", "al")
    said.put(word("a", "l", NOW + 1, revoked=True), NOW + DAY_S)
    assert standings(said, "a", banned="l", now=NOW + DAY_S) == {}
    assert standings(said, "a", banned="l", now=NOW + DAY_S + LIABLE_S) == {"b": VOUCHED}


names = st.integers(0, 11)


@settings(deadline=None, max_examples=150)
@given(
    honest=st.sets(st.tuples(names, names), max_size=30),
    edges=st.sets(st.tuples(names, names), max_size=6),
    inside=st.sets(st.tuples(names, names), max_size=60),
    out=st.sets(st.tuples(names, names), max_size=10),
    anchors=st.dictionaries(names, st.floats(0, 1), min_size=1, max_size=4),
    banned=st.sets(names, max_size=2),
)
def test_sybils_behind_k_edges_have_at_most_k_caps_whatever_they_say(
    honest: set[tuple[int, int]],
    edges: set[tuple[int, int]],
    inside: set[tuple[int, int]],
    out: set[tuple[int, int]],
    anchors: dict[int, float],
    banned: set[int],
) -> None:
    """Twelve honest peers and twelve Sybils; an edge from the first to the second is an attack
    edge, and there are up to six. Nobody has more than VOUCHED, no region more than what its edges
    carry, and to say more of each other gains Sybils nothing together."""
    said = Vouches()
    for some, left, right in (
        (honest, "h", "h"), (edges, "h", "s"), (inside, "s", "s"), (out, "s", "h"),
    ):  # fmt: skip
        for one, other in sorted(some):
            if (left, one) != (right, other):
                said.put(word(f"{left}{one}", f"{right}{other}"), NOW)
    roots = {name(f"h{one}"): trust for one, trust in anchors.items()}
    bad = {name(f"h{one}") for one in banned}
    found = said.standings(roots, NOW, bad.__contains__)
    sybils = {name(f"s{one}") for one in range(12)}
    together = sum(got for peer, got in found.items() if peer in sybils)
    assert together <= len(edges) * VOUCHED + 1e-9
    assert all(0 <= got <= VOUCHED + 1e-9 for got in found.values())
    assert sum(found.values()) <= PASSED * sum(roots.values()) + 1e-9
    assert not found.keys() & bad and not found.keys() & roots.keys()


def test_whose_words_are_asked_for_is_bounded_and_no_anchor_takes_anothers_place() -> None:
    said = graph("ab", "ac", "ad", "ae", "fg", "gh")
    reached = said.reached([name("a"), name("f")], NOW)
    assert reached[:4] == [name("a"), name("f"), sorted(map(name, "bcde"))[0], name("g")]
    assert name("h") not in reached and len(reached) == 7


@given(st.floats(0, 1e6), st.dictionaries(st.text(max_size=3), st.floats(0, 1e6), max_size=9))
def test_what_is_divided_is_never_more_than_there_is_nor_than_was_claimed(
    room: float, claims: dict[str, float]
) -> None:
    found = divide(room, claims)
    assert found.keys() == claims.keys()
    assert sum(found.values()) <= room * (1 + 1e-9) + 1e-9
    assert all(0 <= part <= claims[who] for who, part in found.items())
    if sum(claims.values()) <= room:
        assert found == pytest.approx(claims, abs=DUST)  # what is dust counts for nothing


def test_a_head_start_shortens_probation_and_ends_with_the_first_mark() -> None:
    book = Reputation()
    assert [book.valid("p", head=head) for head in (0, VOUCHED, PROBATION_VALID)] == [0, 5, 10]
    for _ in range(5):
        book.audited("p", right=True, weight=1, now=NOW)
    assert book.valid("p", head=VOUCHED) == PROBATION_VALID
    for _ in range(7):
        book.audited("p", right=True, weight=1, now=NOW)
    assert book.valid("p", head=VOUCHED) == book.valid("p") == 12  # behind it, it is worth nothing
    book.doubted("p", weight=1, now=NOW)
    assert book.valid("p", head=PROBATION_VALID) == 12
    book.audited("q", right=False, weight=1, now=NOW)
    assert book.valid("q", head=PROBATION_VALID) == 0
    book.convict("r", NOW)
    late = NOW + 40 * DAY_S  # the ban is over
    assert book.valid("r", head=PROBATION_VALID) == 0
    assert book.cost_factor("r", late, head=PROBATION_VALID) == book.cost_factor("r", late)


def test_a_head_start_makes_routes_cheaper_and_hides_nothing_bad() -> None:
    book = Reputation()
    costs = [book.cost_factor("p", NOW, head=head) for head in (0, VOUCHED, PROBATION_VALID)]
    assert costs[0] == 2 > costs[1] > costs[2] > 1
    book.audited("q", right=False, weight=1, now=NOW)
    assert book.cost_factor("q", NOW, head=PROBATION_VALID) == float("inf")
    assert book.trust("p", NOW) < book.credence("p", NOW, head=VOUCHED)


def test_anchors_are_those_whom_audits_of_our_own_made_known_lately() -> None:
    book = Reputation()
    for _ in range(PROBATION_VALID):
        book.audited("known", right=True, weight=1, now=NOW)
        book.audited("banned", right=True, weight=1, now=NOW)
    book.audited("new", right=True, weight=1, now=NOW)
    book.convict("banned", NOW)
    assert set(book.earned(NOW)) == {"known"} and book.earned(NOW)["known"] > 0.8
    assert book.earned(NOW + 5 * DAY_S) == {}
