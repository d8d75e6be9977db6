"""Gossip of a run, by its rules alone: who is asked, what is taken, where a peer goes on."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim.turned import turned

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError
from potluck.swarm.machine import Fired, SetTimer, StopTimer
from potluck.swarm.run.gossip import (
    BEHIND_MAX,
    LEAD_MAX,
    SAID_MAX,
    WAITING_MAX,
    Answer,
    Ask,
    Asked,
    Begin,
    Came,
    Contradicted,
    Decline,
    Effect,
    Failed,
    Gone,
    Gossip,
    Leave,
    Offered,
    Published,
    Settled,
    Shown,
    Take,
    near,
    pace,
)
from potluck.swarm.run.statement import (
    DOMAIN,
    Said,
    Statement,
    check_weights,
    read_statement,
    state,
)
from potluck.swarm.testimony import check_contradiction, contradiction_of

RUN = b"r" * 32
PEERS = ("ann", "bob", "cid", "dan", "eve")


def says(peer: str, epoch: int, weights: str = "") -> Said:
    told = (weights or peer).encode().ljust(32, b".")
    return Said(peer, Statement(RUN, epoch, 100, 8, told), f"{peer} {epoch} {weights}".encode())


def machine(asked: int = 3) -> Gossip:
    return Gossip("me", asked=asked, reply_s=30.0)


def settled(effects: list[Effect]) -> Settled:
    (found,) = (one for one in effects if isinstance(one, Settled))
    return found


def pull(gossip: Gossip, *said: Said) -> list[Effect]:
    """All of it comes."""
    effects: list[Effect] = []
    for one in said:
        effects += gossip.handle(Offered(one), 1.0)
        if Take(one.peer) in effects:
            effects += gossip.handle(Came(one.peer), 1.0)
    return effects


def test_so_many_are_asked_and_the_exchange_ends_with_the_last_reply() -> None:
    gossip = machine()
    assert gossip.handle(Begin(4, PEERS), 10.0) == [
        SetTimer("deadline", 40.0), Ask("ann"), Ask("bob"), Ask("cid"),
    ]  # fmt: skip
    effects = pull(gossip, says("cid", 4), says("ann", 5), says("bob", 4))
    assert settled(effects) == Settled(("ann", "bob", "cid"), 5)
    assert StopTimer("deadline") in effects


def test_who_fails_is_replaced_while_there_are_others() -> None:
    gossip = machine()
    gossip.handle(Begin(0, PEERS), 0.0)
    assert gossip.handle(Failed("bob"), 1.0) == [Ask("dan")]
    assert gossip.handle(Failed("dan"), 2.0) == [Ask("eve")]
    assert gossip.handle(Failed("eve"), 3.0) == []
    assert settled(pull(gossip, says("ann", 0), says("cid", 0))).peers == ("ann", "cid")


def test_at_the_deadline_what_came_counts_and_the_rest_is_left() -> None:
    gossip = machine()
    gossip.handle(Begin(0, PEERS), 0.0)
    pull(gossip, says("bob", 0))
    gossip.handle(Offered(says("cid", 0)), 2.0)  # is still coming
    effects = gossip.handle(Fired("deadline"), 30.0)
    assert settled(effects) == Settled(("bob",), 1)
    assert [one.peer for one in effects if isinstance(one, Leave)] == ["ann", "cid"]
    assert gossip.handle(Came("cid"), 31.0) == []
    assert gossip.handle(Offered(says("ann", 0)), 31.0)[0] == Leave(
        "ann", "it was not asked, or not now"
    )
    assert gossip.handle(Fired("deadline"), 60.0) == []


def test_alone_one_goes_on_at_once() -> None:
    assert settled(machine().handle(Begin(7, ("me",)), 0.0)) == Settled((), 8)


def test_what_is_old_is_not_taken_and_what_is_ahead_is() -> None:
    gossip = machine()
    gossip.handle(Begin(9, PEERS[:3]), 0.0)
    late = gossip.handle(Offered(says("ann", 9 - BEHIND_MAX - 1)), 1.0)
    assert late == [Leave("ann", f"it is at epoch {9 - BEHIND_MAX - 1}")]
    assert Take("bob") in gossip.handle(Offered(says("bob", 9 - BEHIND_MAX)), 1.0)
    assert Take("cid") in gossip.handle(Offered(says("cid", 100)), 1.0)


def test_work_that_is_copied_counts_once() -> None:
    gossip = machine()
    gossip.handle(Begin(0, PEERS[:3]), 0.0)
    effects = pull(gossip, says("ann", 0, "x"), says("bob", 0, "x"), says("cid", 0))
    assert settled(effects).peers == ("ann", "cid")


def test_who_signs_for_anothers_work_and_sends_nothing_silences_nobody() -> None:
    gossip = machine()
    gossip.handle(Begin(0, PEERS[:2]), 0.0)
    gossip.handle(Offered(says("ann", 0, "x")), 0.0)  # was quicker
    effects = pull(gossip, says("bob", 0, "x"))
    effects += gossip.handle(Failed("ann"), 1.0)
    assert settled(effects).peers == ("bob",)


def test_nobody_is_heard_who_was_not_asked_or_speaks_twice() -> None:
    gossip = machine(asked=1)
    gossip.handle(Begin(0, PEERS[:1]), 0.0)
    assert isinstance(gossip.handle(Offered(says("eve", 0)), 0.0)[0], Leave)
    gossip.handle(Offered(says("ann", 0)), 0.0)
    assert isinstance(gossip.handle(Offered(says("ann", 0)), 0.0)[0], Leave)
    assert gossip.handle(Came("eve"), 0.0) == []


@given(st.integers(0, 50), st.lists(st.integers(0, 60), min_size=2, max_size=8), st.booleans())
def test_the_epoch_rises_and_less_than_half_of_the_replies_cannot_move_it(
    epoch: int, honest: list[int], high: bool
) -> None:
    """As many liars as are fewer than the honest say whatever they like."""
    lies = [10**6 if high else 0] * (len(honest) - 1)
    found, lead = pace(epoch, [*honest, *lies])
    assert epoch < found <= max([epoch, *honest]) + 1
    assert 0 <= lead <= max(0, epoch - min(honest)) and lead <= LEAD_MAX


def test_few_replies_move_a_peer_by_one_epoch_at_most() -> None:
    assert pace(3, []) == (4, 0)
    assert pace(3, [10**6]) == pace(3, [10**6, 10**6]) == (5, 0)
    assert pace(3, [0]) == (4, 1)
    assert pace(3, [9, 9, 9]) == (10, 0)
    assert pace(3, [1, 2, 2]) == (4, 1)


def test_who_is_ahead_hears_of_it_from_those_too_whose_weights_are_too_old() -> None:
    gossip = machine()
    gossip.handle(Begin(9, PEERS[:3]), 0.0)
    gossip.handle(Offered(says("ann", 3)), 1.0)
    gossip.handle(Failed("bob", 4), 1.0)
    assert settled(gossip.handle(Failed("cid", 5), 1.0)) == Settled((), 10, 5)


def test_a_newcomer_begins_where_the_middle_one_is() -> None:
    assert near([7, 8, 1, 8, 900]) == (8, [0, 1, 3])
    with pytest.raises(RemoteError):
        near([])


def test_who_is_pulled_from_answers_once_its_own_weights_are_there() -> None:
    gossip = machine()
    assert gossip.handle(Asked("a", 0, 5.0), 10.0) == [SetTimer(("waiter", "a"), 15.0)]
    gossip.handle(Asked("b", 1, 5.0), 10.0)
    assert gossip.handle(Published(0), 12.0) == [StopTimer(("waiter", "a")), Answer("a")]
    assert gossip.handle(Asked("c", 0, 5.0), 13.0) == [Answer("c")]
    assert gossip.handle(Fired(("waiter", "b")), 15.0) == [Answer("b")]  # of the epoch before
    assert gossip.handle(Fired(("waiter", "b")), 15.0) == []
    far = gossip.handle(Asked("d", BEHIND_MAX + 1, 0.0), 16.0)
    assert far == [Decline("d")]
    gossip.handle(Asked("e", 1, 5.0), 17.0)
    assert gossip.handle(Gone("e"), 18.0) == [StopTimer(("waiter", "e"))]
    assert gossip.handle(Published(1), 19.0) == []


def test_only_so_many_wait() -> None:
    gossip = machine()
    for key in range(WAITING_MAX):
        assert isinstance(gossip.handle(Asked(key, 0, 5.0), 0.0)[0], SetTimer)
    assert gossip.handle(Asked("more", 0, 5.0), 0.0) == [Decline("more")]


def test_two_statements_of_one_epoch_are_found_and_their_peer_is_asked_no_more() -> None:
    gossip = machine()
    gossip.handle(Begin(3, ("ann",)), 0.0)
    pull(gossip, says("ann", 3, "one"))
    assert gossip.handle(Shown(says("ann", 3, "one")), 1.0) == []
    assert gossip.handle(Shown(says("ann", 2, "other")), 1.0) == []  # of another epoch
    found = gossip.handle(Shown(says("ann", 3, "other")), 1.0)
    assert found == [Contradicted(says("ann", 3, "one"), says("ann", 3, "other"))]
    assert gossip.liars == {"ann"}
    effects = gossip.handle(Begin(4, ("ann", "bob")), 2.0)
    assert Ask("ann") not in effects and Ask("bob") in effects


def test_who_contradicts_what_was_shown_is_not_taken() -> None:
    gossip = machine()
    gossip.handle(Shown(says("ann", 3, "other")), 0.0)
    gossip.handle(Begin(3, ("ann", "bob", "cid", "dan")), 0.0)
    effects = gossip.handle(Offered(says("ann", 3, "one")), 1.0)
    assert isinstance(effects[0], Contradicted) and isinstance(effects[1], Leave)
    assert effects[2] == Ask("dan")


def test_what_was_told_last_is_shown_in_turns() -> None:
    gossip = machine()
    for epoch in range(3):
        gossip.handle(Begin(epoch, PEERS[:3]), 0.0)
        pull(gossip, *(says(peer, epoch) for peer in PEERS[:3]))
    gossip.handle(Shown(says("eve", 2)), 0.0)  # hearsay is not passed on
    shown = [[(one.peer, one.statement.epoch) for one in gossip.lately(turn)] for turn in range(2)]
    assert shown == [[("cid", 2), ("bob", 2)], [("ann", 2), ("cid", 2)]]
    assert machine().lately() == []


def test_what_is_remembered_has_an_end_and_a_flood_moves_nothing_that_was_told_to_us() -> None:
    gossip = machine()
    gossip.handle(Begin(0, ("bob",)), 0.0)
    pull(gossip, says("bob", 0))
    for at in range(SAID_MAX + 1):
        assert gossip.handle(Shown(says("ann", at)), 0.0) == []
    assert gossip.handle(Shown(says("ann", 0, "other")), 0.0) == []  # the first is forgotten
    assert gossip.handle(Shown(says("ann", SAID_MAX, "other")), 0.0) != []
    assert gossip.handle(Shown(says("bob", 0, "other")), 0.0) != []


def test_a_statement_is_of_its_signer_its_run_and_its_bytes() -> None:
    key = IdentityKey.generate()
    said = state(key, RUN, 4, 512, b"weights")
    assert read_statement(said.raw, RUN) == said and said.peer == key.peer_id
    check_weights(said, b"weights")
    with pytest.raises(RemoteError):
        check_weights(said, b"weightz")
    with pytest.raises(RemoteError):
        read_statement(said.raw, b"q" * 32)
    with pytest.raises(RemoteError):
        read_statement(turned(said.raw), RUN)


def test_two_statements_of_one_epoch_convict_their_signer_before_anybody() -> None:
    """Evidence of class A: no trust is needed, and nobody else's signature does."""
    key, other = IdentityKey.generate(), IdentityKey.generate()
    one, two = state(key, RUN, 4, 512, b"one"), state(key, RUN, 4, 512, b"two")
    proof = contradiction_of(DOMAIN, one.raw, two.raw)
    assert check_contradiction(proof) == key.peer_id
    for beside in (
        state(key, RUN, 5, 512, b"two"),
        state(key, b"q" * 32, 4, 512, b"two"),
        state(other, RUN, 4, 512, b"two"),
    ):
        with pytest.raises(RemoteError):
            check_contradiction(contradiction_of(DOMAIN, one.raw, beside.raw))


words = st.builds(says, st.sampled_from(PEERS), st.integers(0, 6), st.sampled_from(["", "x"]))
events = st.one_of(
    st.builds(Offered, words),
    st.builds(Came, st.sampled_from(PEERS)),
    st.builds(Failed, st.sampled_from(PEERS), st.none() | st.integers(0, 6)),
    st.builds(Shown, words),
    st.builds(Asked, st.integers(100, 200), st.integers(0, 6), st.floats(0, 9)),
    st.builds(Gone, st.integers(100, 200)),
    st.just(Fired("deadline")),
)


@given(st.lists(events, max_size=40), st.integers(1, 4))
def test_whatever_comes_an_exchange_ends_once_with_whose_weights_came(
    heard: list[Any], asked: int
) -> None:
    """Nobody is asked twice, nobody counts that was not asked and taken, and at most `asked` are
    under way at a time."""
    gossip = machine(asked)
    effects = gossip.handle(Begin(3, PEERS), 0.0)
    keys: set[object] = set()
    for event in [*heard, Fired("deadline")]:
        if isinstance(event, Asked):
            if event.key in keys:
                continue  # each is used once
            keys.add(event.key)
        effects += gossip.handle(event, 1.0)
    end = settled(effects)
    asks = [one.peer for one in effects if isinstance(one, Ask)]
    assert len(set(asks)) == len(asks)
    assert set(end.peers) <= {one.peer for one in effects if isinstance(one, Take)} <= set(asks)
    assert len(end.peers) <= asked
    assert end.next > 3
    answered = [one.key for one in effects if isinstance(one, Answer | Decline)]
    assert len(set(answered)) == len(answered)


@dataclass
class Peer:
    gossip: Gossip
    epoch: int = 0
    step_s: float = 1.0
    ends_s: float = 0.0
    taken: list[int] = field(default_factory=list)  # how far each reply was behind


@given(st.integers(0, 2**32 - 1))
def test_peers_of_unequal_speed_stay_together_and_nobody_waits_for_ever(seed: int) -> None:
    """Eight peers, the slowest four times as slow as the fastest; a third of the pulls fail. All
    end within the time that the fastest needs for as many epochs, and twice that of the slowest."""
    dice = random.Random(seed)
    names = [f"p{at}" for at in range(8)]
    peers = {name: Peer(Gossip(name, asked=3, reply_s=5.0), step_s=1 + 3 * at / 7)
             for at, name in enumerate(names)}  # fmt: skip
    now, published = 0.0, dict.fromkeys(names, -1)
    for peer in peers.values():
        peer.ends_s = peer.step_s
    while min(peer.epoch for peer in peers.values()) < 24 and now < 1000:
        name = min(names, key=lambda one: peers[one].ends_s)
        peer = peers[name]
        now = peer.ends_s
        published[name] = peer.epoch
        order = dice.sample(names, len(names))
        effects = peer.gossip.handle(Begin(peer.epoch, tuple(order)), now)
        todo = [one.peer for one in effects if isinstance(one, Ask)]
        while todo:
            other = todo.pop()
            if published[other] < 0 or dice.random() < 1 / 3:
                more = peer.gossip.handle(Failed(other), now)
            else:
                more = pull(peer.gossip, says(other, published[other]))
            effects += more
            todo += [one.peer for one in more if isinstance(one, Ask)]
        peer.epoch = settled(effects).next
        peer.ends_s = now + peer.step_s * (1 + settled(effects).lead)
    assert now <= 2 * 24 * 4.0
    epochs = [peer.epoch for peer in peers.values()]
    assert max(epochs) - min(epochs) <= 8
