"""A server that accepts a stream and then says nothing: stopped, cut off, or worse."""

from __future__ import annotations

import trio
from sim.memory_host import MemoryStream
from sim.memory_swarm import plan, rows, world
from trio.testing import MockClock

from potluck.node.patience import OPEN_HEDGE_S, OPEN_S
from potluck.node.session import open_session
from potluck.swarm.history import FIRST_STEP_S
from potluck.swarm.wire import PROTOCOL


async def mute(stream: MemoryStream) -> None:
    await trio.sleep_forever()


async def test_a_server_that_does_not_open_is_not_waited_for(autojump_clock: MockClock) -> None:
    """One of two servers is mute. Of twenty clients that know neither some are routed to it; they
    are served by the other once OPEN_HEDGE_S has passed, and its patience is nobody's wait."""
    async with world((0, 6), (0, 6)) as made:
        made.nodes[0].host.handle(PROTOCOL, mute)
        waits_s = []
        for number in range(20):
            host, router = made.client()
            router._rng.seed(number)
            began = trio.current_time()
            async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
                session.feed(rows(100, 5), 5, 1)
                await session.output()
                waits_s.append(trio.current_time() - began)
                assert [hop.peer for hop in session.route] == [made.nodes[1].host.peer_id]
        assert OPEN_HEDGE_S <= max(waits_s) <= OPEN_HEDGE_S + 0.5 < OPEN_S


async def test_a_mute_server_that_is_the_only_one_is_given_its_patience(
    autojump_clock: MockClock,
) -> None:
    """Nobody else has the blocks: it is left after its patience, which is that of two first steps,
    and asked again once it may be well."""
    async with world((0, 6)) as made:
        serve = made.nodes[0].server.serve
        made.nodes[0].host.handle(PROTOCOL, mute)
        host, router = made.client()
        async with open_session(host, router, plan()) as session:  # type: ignore[arg-type]
            began = trio.current_time()
            session.feed(rows(100, 5), 5, 1)
            await trio.sleep(1.0)
            made.nodes[0].host.handle(PROTOCOL, serve)
            await session.output()
            assert trio.current_time() - began >= 2 * FIRST_STEP_S
            assert [lost.reason for lost in session.recoveries] == ["no answer before its deadline"]
