"""multistream-select: stock's words are understood, whatever their pace; nonsense is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.utils import encode_delim

from potluck.errors import RemoteError, TransportError
from potluck.node.net.negotiate import (
    HEADER,
    PROPOSALS_MAX,
    Answer,
    Listener,
    message,
    proposal,
)

texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300)
cuts = st.lists(st.integers(1, 30), min_size=1)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    found, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return found


@given(texts)
def test_a_word_has_the_bytes_that_stock_gives_it(text: str) -> None:
    assert message(text) == encode_delim(text.encode())


@given(cuts, st.binary(max_size=50))
def test_a_listener_agrees_and_keeps_what_follows(sizes: list[int], rest: bytes) -> None:
    listener = Listener(lambda protocol: protocol == "/b/1")
    said = HEADER + message("/a/1") + message("/b/1") + rest
    answers = b"".join(listener.feed(piece) for piece in pieces(said, sizes))
    assert answers == HEADER + message("na") + message("/b/1")
    assert listener.chosen == "/b/1" and listener.data == rest


@given(cuts, st.binary(max_size=50))
def test_a_dialer_hears_the_yes_and_keeps_what_follows(sizes: list[int], rest: bytes) -> None:
    answer = Answer("/b/1")
    for piece in pieces(proposal("/b/1") + rest, sizes):
        answer.feed(piece)
    assert answer.agreed and answer.data == rest


@given(cuts)
def test_a_dialer_hears_the_no(sizes: list[int]) -> None:
    answer = Answer("/b/1")
    with pytest.raises((TransportError, RemoteError)):
        for piece in pieces(HEADER + message("na"), sizes):
            answer.feed(piece)
    assert not answer.agreed


@pytest.mark.parametrize(
    "said",
    [
        message("/multistream/2.0.0"),
        bytes.fromhex("04fffefd0a"),  # H2: these five bytes ended a stock host
        HEADER + bytes.fromhex("04fffefd0a"),
        HEADER + b"\xff\xff\xff\xff",
        HEADER + b"\x00",
        HEADER + b"\x03abc",
        HEADER + message("/x/1") * (PROPOSALS_MAX + 1),
    ],
)
def test_a_listener_hears_no_nonsense(said: bytes) -> None:
    with pytest.raises(RemoteError):
        Listener(lambda _: False).feed(said)


@given(st.binary(max_size=200), cuts)
def test_garbage_is_a_peers_fault(garbage: bytes, sizes: list[int]) -> None:
    listener, answer = Listener(lambda _: True), Answer("/b/1")
    try:
        for piece in pieces(garbage, sizes):
            listener.feed(piece)
    except RemoteError:
        pass
    try:
        for piece in pieces(garbage, sizes):
            answer.feed(piece)
    except (RemoteError, TransportError):
        pass
