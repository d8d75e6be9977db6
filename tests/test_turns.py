"""Who sends next: nobody waits long, whatever the others want."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from potluck.node.net.mux_frame import HEADER_BYTES
from potluck.node.net.mux_inbox import Bytes, Inbox
from potluck.node.net.mux_turns import SMALL_BYTES, Turns

ROOM = 65_519
MIB = 1 << 20


@dataclass(eq=False)
class Stream:
    name: str
    pending: int
    window: int = 1 << 30
    queued: bool = False
    sent: list[str] = field(default_factory=list)

    def put_frame(self, parts: list[Bytes], room: int) -> int:
        size = min(room, self.pending, self.window)
        self.pending -= size
        self.window -= size
        parts.append(self.name.encode())
        return HEADER_BYTES + size


def messages(turns: Turns, count: int) -> list[list[str]]:
    """Who has frames in each of the next messages."""
    found = []
    for _ in range(count):
        parts: list[Bytes] = []
        turns.fill(parts, ROOM)
        found.append([bytes(part).decode() for part in parts])
    return found


def test_a_small_message_waits_for_one_frame_of_bulk_however_many_there_are() -> None:
    turns = Turns()
    for number in range(50):
        turns.add(Stream(f"bulk {number}", 100 * MIB))
    messages(turns, 7)
    turns.add(Stream("small", 1024))
    assert ["small" in names for names in messages(turns, 2)].count(True) == 1


def test_bulk_streams_take_turns() -> None:
    turns = Turns()
    for name in ("a", "b", "c"):
        turns.add(Stream(name, MIB))
    assert messages(turns, 6) == [["a"], ["b"], ["c"], ["a"], ["b"], ["c"]]


def test_many_small_senders_do_not_starve_bulk() -> None:
    turns = Turns()
    bulk = Stream("bulk", 100 * MIB)
    turns.add(bulk)
    chatty = [Stream(f"small {number}", SMALL_BYTES) for number in range(20)]
    seen = []
    for _ in range(20):
        for stream in chatty:
            stream.pending = SMALL_BYTES
            turns.add(stream)
        seen += ["bulk" in names for names in messages(turns, 1)]
    assert seen.count(True) >= 9


def test_what_the_peer_does_not_let_go_holds_nobody_up() -> None:
    turns = Turns()
    turns.add(Stream("held", MIB, window=0))
    turns.add(Stream("free", 100))
    assert messages(turns, 1) == [["free"]]
    assert not turns


@given(
    st.lists(st.one_of(st.binary(min_size=1, max_size=9000), st.integers(1, 20_000)), max_size=60)
)
def test_an_inbox_gives_back_what_was_put_in(steps: list[bytes | int]) -> None:
    """Bytes are put in, as views of larger messages; a number takes so many, and puts back some."""
    inbox, put, taken = Inbox(), bytearray(), bytearray()
    for step in steps:
        if isinstance(step, bytes):
            message = step + bytes(len(step) % 7 * 1000)
            inbox.put(memoryview(message)[: len(step)])
            put += step
        elif inbox.size:
            piece = bytes(inbox.take(step))
            assert 1 <= len(piece) <= step
            back = len(piece) // 3
            taken += piece[: len(piece) - back]
            if back:
                inbox.put_back(piece[-back:])
        assert inbox.size == len(put) - len(taken)
    while inbox.size:
        taken += inbox.take(1000)
    assert taken == put
    assert inbox.clear() == 0
