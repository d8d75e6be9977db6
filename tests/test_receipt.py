"""Receipts: what a server signed cannot be rewritten, and a lie between two names one of them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receipts import ROW_BYTES, Stage, key, opening, rows, session

from potluck.crypto.codec import encode
from potluck.crypto.envelope import sign
from potluck.crypto.merkle import leaves_of, root_of
from potluck.errors import RemoteError
from potluck.swarm.receipt import (
    CHUNK,
    CHUNK_TOKENS,
    Account,
    Chunk,
    Notary,
    check_links,
)
from potluck.swarm.testimony import check_contradiction, contradiction_of
from potluck.swarm.wire import CHUNK_BYTES_MAX

steps = st.lists(
    st.tuples(
        st.integers(1, 9),  # tokens
        st.integers(0, 9),  # rows wanted
        st.integers(0, 12),  # positions taken back before
        st.booleans(),  # sign after it
    ),
    max_size=20,
)


@given(steps, st.integers(0, 1000))
def test_what_is_signed_is_what_went_in_and_out(
    plan: list[tuple[int, int, int, bool]], seed: int
) -> None:
    """Against a plain list of positions: together the chunks that stand cover them all, and each
    says what is there."""
    dice = Random(seed)
    notary = Notary(key("a"), opening(0, 2), ROW_BYTES)
    account = Account(notary.opening)
    took: list[bytes] = []
    gave: list[bytes | None] = []
    for tokens, wanted, back, cut in plan:
        at = max(0, len(took) - back)
        wanted = min(tokens, wanted)
        given_in, given_out = rows(dice, tokens), rows(dice, wanted)
        notary.took(at, given_in)
        notary.gave(given_out)
        took[at:] = leaves_of(given_in, ROW_BYTES)
        gave[at:] = [None] * (tokens - wanted) + leaves_of(given_out, ROW_BYTES)
        if not cut:
            continue
        for raw in notary.sign():
            account.add(raw)
        assert notary.pending == 0 and account.length == len(took)
        standing = [chunk for _, chunk in account.standing()]
        assert sum(chunk.tokens for chunk in standing) >= len(took)
        for chunk, after in zip(standing, [*standing[1:], None], strict=True):
            if after is not None and after.at < chunk.stop:
                continue  # its end was taken back
            assert root_of(took[chunk.at : chunk.stop]) == chunk.took
            sent = [one for one in gave[chunk.at : chunk.stop] if one is not None]
            assert root_of(sent) == chunk.gave and len(sent) == chunk.rows
            assert None not in gave[chunk.stop - chunk.rows : chunk.stop]


def test_a_receipt_of_32_tokens_is_small() -> None:
    """The largest that can be: at the highest position, all rows given."""
    body = encode(
        Chunk(bytes(32), (1 << 24) - CHUNK_TOKENS, CHUNK_TOKENS, CHUNK_TOKENS, bytes(32), bytes(32))
    )
    assert len(sign(key("a"), CHUNK, body)) <= 280 <= CHUNK_BYTES_MAX


def test_accounts_of_honest_servers_are_linked() -> None:
    stages = session("abc", [32, 5, 32, 1], last_rows=False)
    found = check_links([(stage.account, range(70)) for stage in stages])
    assert (found.linked, found.broken) == (8, [])
    assert [chunk.rows for chunk in stages[2].account.chunks] == [1, 1, 1, 1]


@given(st.integers(0, 2), st.integers(0, 3), st.integers(0, 31))
def test_a_lie_names_the_two_at_its_boundary(liar: int, chunk: int, row: int) -> None:
    """A server signs for other rows than it sent: of four servers, the link behind it breaks."""
    dice = Random(row)
    stages = [Stage(name, 2 * i, 2 * i + 2) for i, name in enumerate("abcd")]
    for number in range(4):
        hidden = rows(dice, 32)
        for i, stage in enumerate(stages):
            out = rows(dice, 32)
            told = bytearray(out)
            if (i, number) == (liar, chunk):
                told[row * ROW_BYTES] ^= 1
            stage.step(32 * number, hidden, bytes(told))
            hidden = out
            stage.cut()
    found = check_links([(stage.account, range(128)) for stage in stages])
    assert found.linked == 11
    (broken,) = found.broken
    assert (broken.giver, broken.taker) == (
        key("abcd"[liar]).peer_id,
        key("abcd"[liar + 1]).peer_id,
    )
    assert (broken.block, broken.at, broken.tokens) == (2 * liar + 2, 32 * chunk, 32)
    assert broken.giver in str(broken)


def test_what_was_taken_back_is_compared_in_its_last_form() -> None:
    """A draft is refused behind position 20: both servers forget it, and sign what came after."""
    first, second = Stage("a", 0, 2), Stage("b", 2, 4)
    dice = Random(1)
    for at, tokens in ((0, 32), (32, 8), (20, 12), (32, 8)):
        hidden, out = rows(dice, tokens), rows(dice, tokens)
        first.step(at, hidden, out)
        second.step(at, out, rows(dice, tokens))
        first.cut()
        second.cut()
    found = check_links([(first.account, range(40)), (second.account, range(40))])
    assert (found.linked, found.broken) == (3, [])
    assert [place for place, _ in first.account.standing()] == [0, 2, 3]


def test_a_server_that_was_lost_is_believed_only_for_what_it_gave_until_then() -> None:
    """b is lost after 32 tokens; what follows is taken back to 16 and done again with c. What b
    signed for 16..32 counts no more, and does not accuse anybody."""
    a, b, c, d = Stage("a", 0, 2), Stage("b", 2, 4), Stage("c", 2, 4), Stage("d", 4, 6)
    dice = Random(2)
    history: list[tuple[int, bytes, bytes]] = []
    for at, middle in ((0, b), (16, b), (16, c), (32, c)):
        one, two, three = rows(dice, 16), rows(dice, 16), rows(dice, 16)
        a.step(at, one, two)
        if at == 16 and middle is c:  # the replay of what b was sent, without an answer
            for past, sent, _ in history[:1]:
                c.step(past, sent, b"")
                c.cut()
        middle.step(at, two, three)
        d.step(at, three, rows(dice, 16))
        history.append((at, two, three))
        for stage in (a, middle, d):
            stage.cut()
    accounts = [(a.account, range(48)), (b.account, range(16)), (c.account, range(16, 48))]
    accounts.append((d.account, range(48)))
    assert check_links(accounts).broken == []
    assert len(check_links([(a.account, range(48)), (b.account, range(48))]).broken) == 1


def test_an_account_cannot_be_rewritten() -> None:
    raws = session("a", [32, 32, 32])[0].account.raw
    other = session("b", [32, 32])[0].account.raw
    for bad in ([raws[0], raws[2]], [raws[0], raws[1], raws[1]], [raws[0], other[1]], [raws[1]]):
        with pytest.raises(RemoteError):
            account = Account(bad[0])
            for raw in bad[1:]:
                account.add(raw)
    moved = Stage("a", 0, 2, nonce=1)  # the same session, opened again
    moved.step(0, rows(Random(0), 32), b"")
    moved.cut()
    with pytest.raises(RemoteError, match="follow"):
        Account(raws[0]).add(moved.account.raw[1])


def test_a_chunk_that_leaves_a_hole_is_refused() -> None:
    notary = Notary(key("a"), opening(0, 2), ROW_BYTES)
    account = Account(notary.opening)
    body = encode(Chunk(account.names[-1], 1, 1, 0, bytes(32), bytes(32)))
    with pytest.raises(RemoteError, match="after 0 positions"):
        account.add(sign(key("a"), CHUNK, body))


def convicted(one: bytes, other: bytes) -> str | None:
    try:
        return check_contradiction(contradiction_of(CHUNK, one, other))
    except RemoteError:
        return None


def test_two_words_after_one_are_a_contradiction() -> None:
    one, other, stranger = Stage("a", 0, 2), Stage("a", 0, 2), Stage("b", 0, 2)
    for seed, stage in enumerate((one, other, stranger)):
        stage.step(0, rows(Random(seed), 32), b"")
        stage.cut()
    first = one.account.raw[1]
    assert convicted(first, other.account.raw[1]) == key("a").peer_id
    honest = session("a", [32, 32])[0].account.raw
    assert convicted(honest[1], honest[2]) is None
    for innocent in (first, one.account.raw[0], stranger.account.raw[1]):
        assert convicted(first, innocent) is None


@given(st.data())
def test_no_bit_of_an_account_may_be_flipped(data: st.DataObject) -> None:
    raws = list(session("a", [32, 3])[0].account.raw)
    which = data.draw(st.integers(0, len(raws) - 1))
    bad = bytearray(raws[which])
    bit = data.draw(st.integers(0, len(bad) * 8 - 1))
    bad[bit // 8] ^= 1 << bit % 8
    raws[which] = bytes(bad)
    with pytest.raises(RemoteError):
        account = Account(raws[0])
        for raw in raws[1:]:
            account.add(raw)


def test_a_server_that_opens_a_session_again_does_not_contradict_itself() -> None:
    """Its nonce is another, even where its disk and its clock are of yesterday."""
    one, again = Stage("a", 0, 2, nonce=1), Stage("a", 0, 2, nonce=2)
    for stage, seed in ((one, 1), (again, 2)):
        stage.step(0, rows(Random(seed), 32), b"")
        stage.cut()
    assert convicted(one.account.raw[1], again.account.raw[1]) is None
