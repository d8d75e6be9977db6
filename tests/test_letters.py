"""Letters: whole however the road cuts them, never longer than allowed, never half of one."""

from __future__ import annotations

from random import Random
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RemoteError
from potluck.node.letters import LENGTH_BYTES, receive_letter, send_letter
from potluck.node.net.stream import Stream

MOST = 64


class Pipe:
    """What is sent can be read, in pieces of any size; then it ends."""

    def __init__(self, seed: int = 0, said: bytes = b"") -> None:
        self.said = said
        self.runs = 0
        self._dice = Random(seed)

    async def send(self, *parts: bytes) -> None:
        self.said += b"".join(parts)
        self.runs += 1

    async def receive(self, max_bytes: int = 65536) -> bytes:
        size = self._dice.randint(1, max_bytes)
        piece, self.said = self.said[:size], self.said[size:]
        return piece


def stream(pipe: Pipe) -> Stream:
    return cast(Any, pipe)


@given(st.lists(st.binary(max_size=MOST), max_size=5), st.integers(0, 99))
def test_letters_come_as_they_were_sent_in_one_run_and_then_no_more(
    bodies: list[bytes], seed: int
) -> None:
    pipe = Pipe(seed)

    async def both() -> list[bytes | None]:
        await send_letter(stream(pipe), *bodies)
        return [await receive_letter(stream(pipe), MOST) for _ in range(len(bodies) + 1)]

    assert trio.run(both) == [*bodies, None]
    assert pipe.runs == 1


async def test_a_letter_that_is_too_long_is_refused_before_it_is_read() -> None:
    pipe = Pipe(said=(MOST + 1).to_bytes(LENGTH_BYTES) + bytes(MOST + 1))
    with pytest.raises(RemoteError, match=f"a letter of {MOST + 1} bytes"):
        await receive_letter(stream(pipe), MOST)
    assert len(pipe.said) == MOST + 1


@pytest.mark.parametrize("kept", [1, LENGTH_BYTES - 1, LENGTH_BYTES, LENGTH_BYTES + 4])
async def test_a_stream_that_ends_inside_a_letter_is_its_fault(kept: int) -> None:
    whole = (5).to_bytes(LENGTH_BYTES) + b"hello"
    with pytest.raises(RemoteError, match="ended inside"):
        await receive_letter(stream(Pipe(said=whole[:kept])), MOST)
