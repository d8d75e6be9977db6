"""A request to train: what the peer said stands, whatever became of what was sent to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from potluck.errors import Refused, TransportError
from potluck.node.training_call import ask
from potluck.swarm.frame import pack_frame
from potluck.swarm.wire import Busy, Lacking, Message, Train

ASKED = Train("forward", "ab" * 32, 0, 1, 1, 2, "f32", 60.0)


class Resets:
    """Takes the request, says one thing, and resets the stream while the batch is being sent."""

    peer = "peer"

    def __init__(self, said: Message) -> None:
        self._said = pack_frame(said)
        self._asked = trio.Event()
        self._over = trio.Event()

    async def send(self, *parts: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if not self._asked.is_set():
            self._asked.set()
            return
        await self._over.wait()
        raise TransportError("the peer reset the stream")

    async def receive(self, max_bytes: int) -> bytes:
        await self._asked.wait()
        await trio.testing.wait_all_tasks_blocked()  # the batch is on its way
        self._over.set()
        said, self._said = self._said, b""
        return said

    async def close(self) -> None: ...

    async def reset(self) -> None: ...


@pytest.mark.parametrize("worn", [None, SimpleNamespace(raw=b"")])
async def test_a_refusal_is_heard_though_the_batch_could_not_be_sent(worn: Any) -> None:
    stream: Any = Resets(Busy("the cache is full", 2.0))
    with trio.fail_after(10), pytest.raises(Refused, match="cache is full"):
        await ask(stream, ASKED, [memoryview(bytes(8))], worn, 8)


async def test_an_adapter_that_cannot_be_brought_is_not_waited_for() -> None:
    stream: Any = Resets(Lacking(2.0))
    worn: Any = SimpleNamespace(raw=b"")
    with trio.fail_after(10), pytest.raises(TransportError, match="reset"):
        await ask(stream, ASKED, [memoryview(bytes(8))], worn, 8)
