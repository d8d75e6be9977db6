"""Parts of unequal sizes, done as soon as can be; parts from whom they are due, and nobody else."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import permutations

import pytest
from groups_world import FIRST, KEYS, card_at
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RemoteError
from potluck.swarm.run.butterfly import Butterfly, Gathered, Reduce, SendPart
from potluck.swarm.run.group import Place
from potluck.swarm.run.group_wire import Ballot, Card, Member, Part
from potluck.swarm.run.shares import ALIGN, seconds_a_byte, split

RATES = st.lists(st.integers(1, 10**8), min_size=1, max_size=16)
BALLOT = Ballot(1, Member(KEYS[0].peer_id, 1))
PLAN = b"p" * 32


@given(rates=RATES, count=st.integers(1, 10**7))
def test_parts_make_up_the_whole_and_begin_where_groups_do(rates: list[int], count: int) -> None:
    parts = split(count, rates)
    assert sum(parts) == count and min(parts) >= 0
    ends = [sum(parts[: at + 1]) for at in range(len(parts))]
    assert all(end % ALIGN == 0 or end == count for end in ends)


@given(rates=st.lists(st.integers(1, 10**8), min_size=2, max_size=16))
def test_nobody_is_done_sooner_than_the_rule_and_with_its_parts_nobody_later(
    rates: list[int],
) -> None:
    """The two bounds of shares.py, and that the parts reach them but for one group of the codec."""
    least = max(Fraction(1, min(rates)), Fraction(2 * len(rates) - 2, sum(rates)))
    assert seconds_a_byte(rates) == least
    count = 10**7 * ALIGN
    group = Fraction(ALIGN, count)
    for part, rate in zip(split(count, rates), rates, strict=True):
        sent = 1 + (len(rates) - 2) * Fraction(part, count)
        assert sent / rate <= least + (len(rates) - 2) * group / rate


def test_a_slow_member_reduces_nothing_and_the_rest_is_as_fast_as_it_can_send_its_own() -> None:
    assert split(1280, [1, 1000, 1000]) == (0, 640, 640)
    assert seconds_a_byte([1, 1000, 1000]) == 1


def cards(*tokens: int) -> list[Card]:
    return [card_at(key, Place(FIRST), tokens=one) for key, one in zip(KEYS, tokens, strict=False)]


def butterflies(*tokens: int, count: int = 384) -> list[Butterfly]:
    told = cards(*tokens)
    return [Butterfly(one.peer, BALLOT, PLAN, told, count, lambda some: some) for one in told]


def run(members: list[Butterfly], order: list[int]) -> list[Gathered]:
    """Whatever is sent comes at once, member by member in this order."""
    by_peer = dict(zip(members[0].peers, members, strict=True))
    found: list[Gathered] = []
    waiting = [(members[at], members[at].give([bytes([at]) * n for n in members[at].counts]))
               for at in order]  # fmt: skip
    while waiting:
        member, effects = waiting.pop(0)
        for effect in effects:
            match effect:
                case SendPart(peer, part, data):
                    me = next(one for one, other in by_peer.items() if other is member)
                    waiting.append((by_peer[peer], by_peer[peer].received(me, part, data)))
                case Reduce(_, start, size, _, gifts, _):
                    told = b"".join(gift or b"-" for gift in gifts)
                    mean = (str(start).encode() + told)[:size].ljust(size)
                    waiting.append((member, member.reduced(mean)))
                case Gathered():
                    found.append(effect)
    return found


@pytest.mark.parametrize("tokens", [(1, 1, 1), (5, 0, 2), (0, 0, 0), (3,), (1, 2)])
def test_all_gather_the_same_whatever_comes_first(tokens: tuple[int, ...]) -> None:
    count = 128 * len(tokens)
    seen = set()
    for order in permutations(range(len(tokens))):
        found = run(butterflies(*tokens, count=count), list(order))
        assert len(found) == len(tokens)
        seen |= {one.parts for one in found}
    assert len(seen) == 1


def test_who_waits_for_gifts_names_their_givers_and_not_whose_mean_they_hold_up() -> None:
    first, second, third = butterflies(1, 1, 1)
    assert set(first.owing()) == {second.peers[1], third.peers[2]}
    gift = Part(FIRST, BALLOT, PLAN, "give", 0, 128)
    first.received(second.peers[1], gift, bytes(128))
    assert first.owing() == (third.peers[2],)
    first.give([bytes(128)] * 3)
    first.received(third.peers[2], gift, bytes(128))
    first.reduced(bytes(128))
    assert set(first.owing()) == {second.peers[1], third.peers[2]}  # their means


def test_a_part_that_is_not_due_is_a_fault_and_one_that_came_is_none() -> None:
    first, *_ = butterflies(1, 1, 0)
    second, third = first.peers[1:]
    gift = Part(FIRST, BALLOT, PLAN, "give", 0, 128)
    assert first.expects(second, gift) == 128
    for peer, part in (
        ("a stranger", gift),
        (second, replace(gift, size=129)),
        (second, replace(gift, index=1)),
        (third, gift),  # it has no tokens
        (second, replace(gift, kind="mean", index=2)),
        (second, replace(gift, kind="mean", index=5)),
    ):
        with pytest.raises(RemoteError):
            first.expects(peer, part)
    with pytest.raises(RemoteError):
        first.received(second, gift, bytes(127))
    other = replace(gift, size=129, plan=b"q" * 32)  # its leader told it another plan
    assert first.expects(second, other) is None and first.received(second, other, b"") == []
    first.received(second, gift, bytes(128))
    assert first.expects(second, gift) is None
    assert first.received(second, gift, bytes(128)) == []
