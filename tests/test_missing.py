"""No session fails for want of cover while somebody who could serve it is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import DIRECT, Network, announced, router
from trio.testing import MockClock

from potluck.errors import MissingBlocks
from potluck.node.router import ALIVE_S, FRESH_S, GRACE_S, Router
from potluck.swarm.blocks import BlockRange
from potluck.swarm.history import BAN_FIRST_S, CHANCES

MODEL = "0" * 64


async def one_hop(one: Router, *, hurry: bool = False) -> str:
    route = await one.route(MODEL, 4, BlockRange(0, 4), cache_tokens=1, hurry=hurry)
    [hop] = route.hops
    return hop.peer


async def lacking(peer: str) -> tuple[Network, Router]:
    """It lives, and was read of; the next read tells of nobody."""
    network = Network(announced(peer, DIRECT))
    network.alive = {peer}
    one = router(network)
    await one.view(MODEL, 4)
    network.told = ()
    return network, one


async def fail_again_and_again(one: Router, peer: str, times: int) -> None:
    """Each time as soon as it may be asked again."""
    for _ in range(times):
        begun_s = trio.current_time()
        one.history(peer).failed(begun_s, begun_s)
        await trio.sleep(BAN_FIRST_S)


async def test_the_only_one_left_is_used_again_though_its_ban_was_doubled(
    autojump_clock: MockClock,
) -> None:
    """It was stopped, or this machine was; it answers again, and others are gone meanwhile."""
    network = Network(announced("one", DIRECT))
    network.alive = {"one"}
    one = router(network)
    await fail_again_and_again(one, "one", 4)
    assert one.history("one").banned(trio.current_time() + GRACE_S + 1)
    began_s = trio.current_time()
    assert await one_hop(one, hurry=True) == "one"
    assert trio.current_time() - began_s <= GRACE_S


async def test_who_does_not_answer_is_waited_for_no_longer_than_the_grace(
    autojump_clock: MockClock,
) -> None:
    one = router(Network(announced("dead", DIRECT)))
    await fail_again_and_again(one, "dead", 4)
    began_s = trio.current_time()
    with pytest.raises(MissingBlocks):
        await one_hop(one)
    assert trio.current_time() - began_s < GRACE_S + 2


async def test_whom_a_read_lacks_is_used_if_it_answers(autojump_clock: MockClock) -> None:
    """The keepers that answered had just begun, and were not told yet."""
    network, one = await lacking("one")
    await trio.sleep(FRESH_S + 1)
    assert await one_hop(one) == "one"
    network.told = (replace(announced("one", DIRECT), state="draining"),)
    await trio.sleep(FRESH_S + 1)
    with pytest.raises(MissingBlocks):
        await one_hop(one)


async def test_whom_a_read_lacks_is_forgotten_with_its_record(autojump_clock: MockClock) -> None:
    _, one = await lacking("one")
    await trio.sleep(91)
    with pytest.raises(MissingBlocks):
        await one_hop(one)


async def test_who_rests_is_asked_once_and_not_waited_for(autojump_clock: MockClock) -> None:
    """It withdrew, and still tells its queue; who opens a session there is told to come later."""
    _, one = await lacking("rests")
    await trio.sleep(FRESH_S + 1)
    assert await one_hop(one) == "rests"
    began_s = trio.current_time()
    one.history("rests").refused(began_s, 60.0)
    with pytest.raises(MissingBlocks):
        await one_hop(one, hurry=True)
    assert trio.current_time() - began_s < GRACE_S + 2


async def test_a_read_that_took_all_the_grace_is_followed_by_another(
    autojump_clock: MockClock,
) -> None:
    network = Network()
    network.reading_s = [2 * GRACE_S]
    one = router(network)

    async def come() -> None:
        await trio.sleep(GRACE_S)
        network.told = (announced("one", DIRECT),)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        assert await one_hop(one) == "one"


async def test_whoever_answers_rubbish_is_tried_some_times_and_no_more(
    autojump_clock: MockClock,
) -> None:
    """It gives a sign of life each time that it is asked, and fails each session."""
    network = Network(announced("rubbish", DIRECT))
    network.alive = {"rubbish"}
    one = router(network)
    tries = 0
    with pytest.raises(MissingBlocks), trio.fail_after(2 * ALIVE_S):
        while True:
            assert await one_hop(one, hurry=tries > 0) == "rubbish"
            tries += 1
            begun_s = trio.current_time()
            await trio.sleep(0.01)
            one.history("rubbish").failed(trio.current_time(), begun_s)
    assert tries == CHANCES + 1


@settings(max_examples=60, deadline=None)
@example(peers=[(3, False, True), (0, True, False)])
@given(
    peers=st.lists(
        st.tuples(st.integers(0, CHANCES), st.booleans(), st.booleans()), min_size=1, max_size=5
    )
)
def test_a_route_is_found_whenever_somebody_who_was_heard_of_is_there(
    peers: list[tuple[int, bool, bool]],
) -> None:
    """Each failed so many times, is in the newest read or not, and is there or not. Who is chosen
    though it is not there fails, and another is looked for."""

    async def run() -> None:
        network = Network(*(announced(f"p{number}", DIRECT) for number in range(len(peers))))
        network.alive = {f"p{number}" for number, (_, _, alive) in enumerate(peers) if alive}
        one = router(network)
        await one.view(MODEL, 4)
        async with trio.open_nursery() as nursery:
            for number, (times, _, _) in enumerate(peers):
                nursery.start_soon(fail_again_and_again, one, f"p{number}", times)
        network.told = tuple(
            told for told, (_, listed, _) in zip(network.told, peers, strict=True) if listed
        )
        await trio.sleep(FRESH_S)
        while network.alive:
            begun_s = trio.current_time()
            peer = await one_hop(one, hurry=True)
            if peer in network.alive:
                break
            one.history(peer).failed(trio.current_time(), begun_s)
        else:
            with pytest.raises(MissingBlocks):
                while True:
                    begun_s = trio.current_time()
                    peer = await one_hop(one)
                    one.history(peer).failed(trio.current_time(), begun_s)

    trio.run(run, clock=MockClock(autojump_threshold=0))
