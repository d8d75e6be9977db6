"""Yamux's frames: whole however the bytes were cut, or a peer's fault."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RemoteError
from potluck.node.net.mux_frame import (
    ACCEPTED_PAYLOAD_BYTES_MAX,
    DATA,
    HEADER_BYTES,
    PING,
    SYN,
    Frame,
    FrameReader,
    header,
)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 15), st.integers(0, 99), st.binary(max_size=60))
    ),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_frames_come_out_whole_however_the_bytes_were_cut(
    sent: list[tuple[int, int, int, bytes]], cuts: list[int]
) -> None:
    """The parts of a long frame add up, SYN and ACK on the first, FIN and RST on the last."""
    wire = b"".join(
        header(kind, flags, stream_id, len(body)) + (body if kind == DATA else b"")
        for kind, flags, stream_id, body in sent
    )
    reader, heard, at, turn = FrameReader(), [], 0, 0
    while at < len(wire):
        size = cuts[turn % len(cuts)]
        heard += reader.feed(wire[at : at + size])
        at, turn = at + size, turn + 1
    whole: list[list[object]] = []
    for frame in heard:
        body = bytes(frame.payload or b"")
        if whole and whole[-1][4]:
            last = whole[-1]
            last[1] = int(str(last[1])) | frame.flags
            last[3] = bytes(last[3]) + body  # type: ignore[call-overload]
        else:
            whole.append([frame.kind, frame.flags, frame.stream_id, body, 0])
        wanted = len(sent[len(whole) - 1][3]) if frame.kind == DATA else 0
        whole[-1][4] = wanted - len(whole[-1][3])  # type: ignore[arg-type]
    assert [tuple(each[:4]) for each in whole] == [
        (kind, flags, stream_id, body if kind == DATA else b"")
        for kind, flags, stream_id, body in sent
    ]


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_garbage_is_frames_or_a_peers_fault(pieces: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for piece in pieces:
            reader.feed(piece)
    except RemoteError:
        pass


def test_an_absurd_length_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(RemoteError, match="announces"):
        FrameReader().feed(header(DATA, 0, 1, ACCEPTED_PAYLOAD_BYTES_MAX + 1))


def test_a_header_is_twelve_bytes() -> None:
    assert header(PING, SYN, 0, 7) == bytes.fromhex("000200010000000000000007")
    assert len(header(DATA, 0, 1, 1)) == HEADER_BYTES
    assert Frame(DATA, 0, 1, 0).payload is None
