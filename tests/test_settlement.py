"""Settling: nobody greets in another's name, and no offer is signed that says too much."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receipts import key

from potluck.crypto.codec import encode
from potluck.errors import RemoteError
from potluck.swarm.settlement import (
    CLAIM_BYTES_MAX,
    GREETING_BYTES_MAX,
    SHOWN_MAX,
    Claim,
    Greeting,
    check_offer,
    greet,
    make_offer,
    read_greeting,
    read_head,
)
from potluck.swarm.tally import Tally, accept, first_of, next_of, offer, read_offer, work_of

GIVER, TAKER, EVE = key("giver"), key("taker"), key("eve")
G, T = GIVER.peer_id, TAKER.peer_id
LAST = replace(first_of(G, T), seq=4, low_gave=10.0, high_gave=10.0)


def offered(gave: float, *, last: Tally = LAST, boot: int = 9, now: float = 100.0) -> bytes:
    return make_offer(GIVER, last, boot=3, their_boot=boot, gave=gave, now=now)


def check(raw: bytes, took: float) -> Tally:
    return check_offer(raw, LAST, G, T, boot=9, took=took, now=100.0)


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_an_offer_of_no_more_than_was_taken_is_good(gave: float, took: float) -> None:
    if gave <= took:
        assert check(offered(gave), took).gave(G) == 10.0 + gave
    elif gave > took * 1.001 + 0.001:
        with pytest.raises(RemoteError):
            check(offered(gave), took)


def test_offers_that_no_honest_giver_makes_are_refused() -> None:
    good = offered(5.0)
    assert check(good, 5.0).seq == 5
    lower = replace(LAST, **{"low_gave" if LAST.peers[0] == T else "high_gave": 1.0})
    boasted = replace(LAST, **{"low_gave" if LAST.peers[0] == T else "high_gave": 1e18})
    more = next_of(LAST, G, boot=3, their_boot=9, gave=-1.0, took=0.0, now=100.0, since=bytes(32))
    for bad in (
        offered(5.0, boot=8),
        offered(5.0, now=1000.0),
        offered(5.0, last=replace(LAST, seq=2)),
        offered(5.0, last=lower),
        offered(5.0, last=replace(LAST, seq=2**32 - 2)),  # behind it there is no place
        offered(5.0, last=boasted),
        offer(GIVER, more),
        offer(TAKER, read_offer(good)[1]),
        make_offer(EVE, first_of(EVE.peer_id, T), boot=3, their_boot=9, gave=1.0, now=100.0),
        good[:-1],
        b"",
    ):
        with pytest.raises(RemoteError):
            check(bad, 5.0)


def test_what_is_signed_of_our_own_giving_costs_the_giver_as_much() -> None:
    """Of two tallies at once the taker may have lost one: no more than it is given meanwhile."""
    ours = "low_gave" if LAST.peers[0] == T else "high_gave"
    lost = replace(LAST, **{ours: 14.0})
    assert check(offered(5.0, last=lost), 5.0).gave(T) == 14.0
    with pytest.raises(RemoteError):
        check(offered(3.0, last=lost), 3.0)


def test_a_greeting_is_good_between_its_two_ends_alone() -> None:
    words = Greeting("client", "server", 7, 1.5, b"", ())
    raw = greet(TAKER, words)
    assert read_greeting(raw, client="client", server="server") == (T, words)
    for ends in (("other", "server"), ("client", "other")):
        with pytest.raises(RemoteError):
            read_greeting(raw, client=ends[0], server=ends[1])
    for bad in (raw[:-1], b"", raw.replace(b"client", b"cliEnt")):
        with pytest.raises(RemoteError):
            read_greeting(bad, client="cliEnt", server="server")


def test_letters_fit_their_limits() -> None:
    tally = next_of(
        first_of(G, T), G, boot=2**32 - 1, gave=1e17, took=1e17, now=1.8e9, since=b"\xff" * 32
    )
    raw = accept(TAKER, offer(GIVER, replace(tally, seq=2**32 - 1, high_boot=2**32 - 1)))
    words = Greeting(T, G, 2**32 - 1, 1e17, raw, (raw,) * SHOWN_MAX)
    assert len(greet(TAKER, words)) <= GREETING_BYTES_MAX
    assert len(encode(Claim(raw, offer(GIVER, tally)))) <= CLAIM_BYTES_MAX


def test_a_head_is_of_the_two() -> None:
    raw = accept(TAKER, offered(1.0))
    assert read_head(raw, T, G).gave(G) == 11.0
    with pytest.raises(RemoteError):
        read_head(raw, T, EVE.peer_id)


def test_tokens_count_twice_what_rows_of_a_prompt_do() -> None:
    assert work_of(1, 2, 1000) == pytest.approx(2 * work_of(100, 2, 1000) / 100)
    assert work_of(1, 1, 10_000) == pytest.approx(2 * 1.2)  # 1.2 billion weights, read for a token
