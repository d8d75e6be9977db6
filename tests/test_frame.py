"""Frames: any pieces in, the same frames out; whatever is too large or unknown is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RemoteError
from potluck.swarm.frame import HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX, FrameReader, pack_frame
from potluck.swarm.wire import (
    CHUNK_BYTES_MAX,
    RECEIPTS_MAX,
    Apart,
    Ask,
    Bring,
    Busy,
    Fault,
    Fence,
    Fenced,
    Follow,
    Following,
    Held,
    Join,
    Joined,
    Lacking,
    Lead,
    Led,
    Message,
    Onward,
    Open,
    Opened,
    Output,
    Piece,
    Push,
    Recall,
    Receipts,
    Remember,
    Renew,
    Sign,
    Step,
    Taken,
    Train,
    Trained,
    Truncate,
    Wear,
)

EXAMPLES: list[tuple[Message, bytes]] = [
    (Open(bytes(range(16)), "ab" * 32, 0, 8, 2048, "f32"), b""),
    (Opened(120.0, 256, "none/float32/torch2.13.0/cpu/1"), b""),
    (Step(17, (1,), 1), bytes(range(8))),
    (Step(0, (128, 128, 1), 0), b"x" * 100),
    (Output(17, 1, 1, 0.0015, 0.0, 3), bytes(range(8))),
    (Truncate(5), b""),
    (Renew(), b""),
    (Busy("the cache is full", 1.5), b""),
    (Fault("another model is served here"), b""),
    (Open(bytes(16), "cd" * 32, 2, 4, 64, "bf16", receipts=True), b""),
    (Opened(60.0, 192, "none c1", b"signed opening"), b""),
    (Sign(), b""),
    (Receipts((b"signed chunk", b"another")), b""),
    (Wear(bytes(16), "cd" * 32, 2, 4, 64, "f32", True, adapter=b"a" * 32, size=4096), b""),
    (Lacking(26.0), b""),
    (Bring(), b"manifest"),
    (Piece(), b"of a part"),
    (Train("forward", "cd" * 32, 2, 4, 8, 64, "f32", 30.0), b""),
    (Train("backward", "cd" * 32, 2, 4, 8, 64, "bf16", 30.0, 16, b"a" * 32, 4096), b""),
    (Trained(65536, 0.25, 0.125), b""),
    (Remember(bytes(16), "cd" * 32, 2, 4, 64, "f32", True, shared=True), b""),
    (Ask((b"n" * 32, b"m" * 32)), b""),
    (Held(1, (b"g" * 32,)), b""),
    (Recall(128, (64, 64), 128, True), b""),
    (Lead(b"signed ticket"), b""),
    (Led(b"signed consent"), b""),
    (Follow(b"signed ticket", b"signed consent", 3), b""),
    (Following(), b""),
    (Join(b"signed ticket"), b""),
    (Joined(), b""),
    (Onward(17, (2,), 1, number=9, epoch=3, hops=2), b"hidden"),
    (Push(17, (2,), 1, number=9, epoch=3, hops=1, seal=b"signed seal"), b"hidden"),
    (Taken(17, 2, 2, 0.0015, 0.0, 3, number=9, seal=b""), bytes(range(8))),
    (Fence(4, apart=True), b""),
    (Fenced(4), b""),
    (Apart(True, "no way to the next hop"), b""),
]


@given(
    chosen=st.lists(st.sampled_from(EXAMPLES), max_size=5),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=40),
)
def test_any_pieces_give_the_same_frames(
    chosen: list[tuple[Message, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(pack_frame(message, len(body)) + body for message, body in chosen)
    reader, found, place, turn = FrameReader(), [], 0, 0
    while place < len(stream):
        size = cuts[turn % len(cuts)]
        found += [(m, bytes(b)) for m, b in reader.feed(stream[place : place + size])]
        place, turn = place + size, turn + 1
    assert found == chosen
    assert not reader.unfinished


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_or_waited_for_never_a_crash(data: bytes) -> None:
    reader = FrameReader()
    try:
        list(reader.feed(data))
    except RemoteError:
        return
    assert len(data) < 8 or reader.unfinished or not data


@pytest.mark.parametrize(
    "prefix",
    [
        struct.pack(">BBHI", 3, 0, 10, 0xFFFFFFFF),  # four gibibytes
        struct.pack(">BBHI", 3, 0, 10, PAYLOAD_BYTES_MAX + 1),
        struct.pack(">BBHI", 3, 0, HEADER_BYTES_MAX + 1, 0),
        struct.pack(">BBHI", 99, 0, 10, 0),
        struct.pack(">BBHI", 3, 1, 10, 0),
    ],
)
def test_a_bad_prefix_is_refused_before_its_body(prefix: bytes) -> None:
    with pytest.raises(RemoteError):
        list(FrameReader().feed(prefix))


def test_the_most_receipts_fit_into_one_frame() -> None:
    most = Receipts((bytes(CHUNK_BYTES_MAX),) * RECEIPTS_MAX)
    ((message, _),) = FrameReader().feed(pack_frame(most))
    assert message == most


def test_no_payload_is_taken_before_it_is_allowed() -> None:
    frame = pack_frame(Step(0, (1,), 1), 8)
    with pytest.raises(RemoteError, match="too large"):
        list(FrameReader(payload_bytes_max=0).feed(frame))


def test_the_bytes_of_every_message_are_those_on_file() -> None:
    """A change of schema shows in review: the file has one line a message, as hex."""
    lines = [
        f"{type(message).__name__} {(pack_frame(message, len(body)) + body).hex()}"
        for message, body in EXAMPLES
    ]
    golden = Path(__file__).parent / "golden" / "session.hex"
    assert lines == golden.read_text(encoding="utf-8").splitlines()
