"""The time, as others have it."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

import pytest

from potluck.node.net.clock import PROTOCOL, ask_time, tell_time
from potluck.node.net.host import HostConfig, open_host
from potluck.node.net.stream import Stream


async def skew_among(*ahead_s: float) -> float | None:
    """What a host makes of peers whose clocks are so far ahead of its own."""
    async with AsyncExitStack() as stack:
        me = await stack.enter_async_context(open_host(HostConfig(seed=b"a" * 32)))
        for number, ahead in enumerate(ahead_s):
            config = HostConfig(seed=bytes((number + 1,)) * 32)
            peer = await stack.enter_async_context(open_host(config))
            tell_time(peer, lambda ahead=ahead: time.time() + ahead)  # type: ignore[misc]
            await me.connect(peer.addresses())
            await me.identified(peer.peer_id)
        found = await ask_time(me)
        assert found is None or found.peers == len(ahead_s)
        return found and found.theirs_ahead_s


@pytest.mark.parametrize("ahead_s", [0.0, 100.0, -86_400.0])
async def test_one_clock_is_told_from_another(ahead_s: float) -> None:
    found = await skew_among(ahead_s)
    assert found == pytest.approx(ahead_s, abs=2.0)  # a busy machine takes its time to answer


async def test_a_liar_is_outvoted() -> None:
    assert await skew_among(0.0, 1e6, 0.0) == pytest.approx(0.0, abs=2.0)


async def test_when_nobody_tells_nothing_is_known() -> None:
    async with (
        open_host(HostConfig(seed=b"a" * 32)) as me,
        open_host(HostConfig(seed=b"b" * 32)) as peer,
    ):

        async def nonsense(stream: Stream) -> None:
            await stream.send(b"\xff" * 8)

        assert await ask_time(me) is None
        peer.handle(PROTOCOL, nonsense)
        await me.connect(peer.addresses())
        await me.identified(peer.peer_id)
        assert await ask_time(me) is None
