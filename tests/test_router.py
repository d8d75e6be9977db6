"""The router: what a peer counts for, by what it says and by what we see."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import trio
import trio.testing
from networks import CIRCUIT, DIRECT, NEAR, PEER, RELAY, Network, announced, router
from sim.memory_swarm import plan, rows, world
from trio.testing import MockClock

from potluck.node.net.ways import relays_told
from potluck.node.router import FRESH_S, Router
from potluck.node.session import open_session
from potluck.node.trust.book import Trust
from potluck.swarm.blocks import BlockRange
from potluck.swarm.view import OBSERVATIONS_TO_TRUST, RELAYED


@pytest.mark.parametrize(
    "addresses, relays",
    [
        ([DIRECT], ()),
        ([DIRECT, CIRCUIT], ()),
        ([NEAR, CIRCUIT], (RELAY,)),
        ([CIRCUIT, CIRCUIT.replace("11.0.1.1", "11.0.1.2")], (RELAY,)),
        ([CIRCUIT, f"/dns4/node.example/tcp/4001/p2p/{PEER}"], ()),
        ([NEAR], ()),
        (["/ip4/11.0.9.2/udp/4001/quic-v1", CIRCUIT], (RELAY,)),
        ([], ()),
    ],
)
def test_a_record_says_whether_its_peer_is_relayed(
    addresses: list[str], relays: tuple[str, ...]
) -> None:
    assert relays_told(addresses) == relays


async def test_a_relayed_peer_is_priced_as_one_before_anybody_has_dialed_it() -> None:
    """By its record; and by what we see as soon as we are connected."""
    network = Network(announced("direct", DIRECT), announced("relayed", CIRCUIT))
    one = router(network)

    async def price() -> float:
        view = await one.view("0" * 64, 4)
        cost = {span.peer: span.block_s for span in view.spans}
        return cost["relayed"] / cost["direct"]

    assert await price() == pytest.approx(1 / RELAYED)
    network.relays = {"relayed": None}  # punched through
    assert await price() == pytest.approx(1)
    network.relays = {"relayed": RELAY, "direct": RELAY}
    assert await price() == pytest.approx(1)


async def test_the_direct_one_of_two_is_chosen() -> None:
    network = Network(announced("relayed", CIRCUIT), announced("direct", DIRECT))
    for seed in range(20):
        one = Router(network, network, random.Random(seed))  # type: ignore[arg-type]
        route = await one.route("0" * 64, 4, BlockRange(0, 4), cache_tokens=1)
        assert [hop.peer for hop in route.hops] == ["direct"]


async def test_all_sessions_lose_all_peers_for_a_moment_and_each_finds_a_route_again(
    autojump_clock: MockClock,
) -> None:
    """Our own road was away, or this process stood still: every peer is late with every session."""
    network = Network(announced("one", DIRECT), announced("other", DIRECT))
    one = router(network)
    for _ in range(8):
        for peer in ("one", "other"):
            one.history(peer).failed(trio.current_time())
    route = await one.route("0" * 64, 4, BlockRange(0, 4), cache_tokens=1, hurry=True)
    assert len(route.hops) == 1


async def test_whom_the_owner_bars_no_route_leads_to() -> None:
    network = Network(announced("barred", DIRECT), announced("other", DIRECT))
    network.barred = {"barred"}
    view = await router(network).view("0" * 64, 4)
    assert [span.peer for span in view.spans] == ["other"]


async def price_and_queue(one: Router, peer: str) -> tuple[float, float]:
    view = await one.view("0" * 64, 4)
    return next((span.block_s, span.queue_s) for span in view.spans if span.peer == peer)


def seen(one: Router, peer: str, *, queue_s: float, times: int = OBSERVATIONS_TO_TRUST) -> None:
    """Steps through four blocks that took 40 ms and what they waited."""
    for _ in range(times):
        one.answered(peer, 0.04 + queue_s, 1, 4, queue_s=queue_s)


async def test_a_queue_told_in_answers_is_paid_by_the_next_route_and_fades(
    autojump_clock: MockClock,
) -> None:
    """Two alike: who told of a long queue is avoided, until the word is old."""
    network = Network(announced("long", DIRECT), announced("short", DIRECT))
    one = router(network)
    seen(one, "long", queue_s=3.0)
    seen(one, "short", queue_s=0.0)
    block_s, queue_s = await price_and_queue(one, "long")
    assert queue_s == pytest.approx(3.0)
    assert block_s == pytest.approx(0.01)  # what it waited is no fault of its device
    for _ in range(20):
        route = await one.route("0" * 64, 4, BlockRange(0, 4), cache_tokens=1)
        assert [hop.peer for hop in route.hops] == ["short"]
    await trio.sleep(60)
    assert (await price_and_queue(one, "long"))[1] < 0.01


async def test_what_this_process_has_in_flight_is_a_queue_until_it_has_ended() -> None:
    network = Network(announced("a", DIRECT))
    one = router(network)
    seen(one, "a", queue_s=0.0)
    one.history("a").sent(1, 4)
    assert (await price_and_queue(one, "a"))[1] == pytest.approx(0.04)
    one.history("a").ended(1, 4)
    assert (await price_and_queue(one, "a"))[1] == 0.0


async def test_a_session_hands_the_queue_in_its_answers_on_to_the_next_route(
    autojump_clock: MockClock,
) -> None:
    """The device keeps each step waiting for a second, and computes it in no time."""
    async with world((0, 6)) as made:
        node = await made.add(0, 6, step_s=1.0)
        await made.nodes[0].host.die()
        host, one = made.client()
        async with open_session(host, one, plan()) as session:  # type: ignore[arg-type]
            session.feed(rows(0), 1, 1)
            await session.output()
            history = one.history(node.key.peer_id)
            assert history.queue_s(trio.current_time()) == pytest.approx(1.0, abs=0.05)
            session.feed(rows(1), 1, 1)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(60)
        assert history.queue_s(trio.current_time()) < 0.01, (
            "a step that was given up is in no queue"
        )


async def test_no_step_has_waited_there_for_longer_than_we_have(
    autojump_clock: MockClock,
) -> None:
    one = router(Network(announced("a", DIRECT)))
    one.answered("a", 0.04, 1, 4, queue_s=1e6)
    assert (await price_and_queue(one, "a"))[1] == pytest.approx(0.04)


async def test_who_moves_is_left_alone_where_it_was_and_not_where_it_is_now(
    autojump_clock: MockClock,
) -> None:
    here = announced("mover", DIRECT)
    network = Network(here, announced("other", DIRECT))
    one = router(network)
    await one.view("0" * 64, 4)
    one.left("0" * 64, "mover", one.span("0" * 64, "mover"))
    for _ in range(20):
        route = await one.route("0" * 64, 4, BlockRange(0, 4), cache_tokens=1)
        assert [hop.peer for hop in route.hops] == ["other"]
    network.told = (replace(here, start=2), announced("other", DIRECT))
    await trio.sleep(3)
    chosen = set()
    for _ in range(40):
        route = await one.route("0" * 64, 4, BlockRange(2, 4), cache_tokens=1)
        chosen |= {hop.peer for hop in route.hops}
    assert "mover" in chosen


async def test_who_moves_to_a_span_that_holds_the_old_one_stays_there(
    autojump_clock: MockClock,
) -> None:
    """What its sessions heard was of the span that it left, not of the blocks that they used."""
    here = replace(announced("mover", DIRECT), stop=3, seq=1)
    network = Network(here, announced("other", DIRECT))
    one = router(network)
    await one.view("0" * 64, 4)
    network.told = (replace(here, stop=4, seq=2), announced("other", DIRECT))
    await trio.sleep(FRESH_S + 1)
    one.left("0" * 64, "mover", one.span("0" * 64, "mover"))
    assert "mover" in await chosen(one, times=40)


async def test_who_says_anew_that_it_serves_has_not_left(autojump_clock: MockClock) -> None:
    """It rested for some seconds, and is back with the same blocks."""
    here = replace(announced("rests", DIRECT), seq=7)
    network = Network(here, announced("other", DIRECT))
    one = router(network)
    await one.view("0" * 64, 4)
    one.left("0" * 64, "rests", BlockRange(0, 4))
    assert await chosen(one, times=20) == {"other"}
    network.told = (replace(here, seq=8, state="draining"), announced("other", DIRECT))
    await trio.sleep(FRESH_S + 1)
    assert await chosen(one, times=20) == {"other"}
    network.told = (replace(here, seq=9), announced("other", DIRECT))
    await trio.sleep(FRESH_S + 1)
    assert "rests" in await chosen(one, times=40)


async def chosen(one: Router, times: int) -> set[str]:
    routes = [await one.route("0" * 64, 4, BlockRange(0, 4), cache_tokens=1) for _ in range(times)]
    return {hop.peer for route in routes for hop in route.hops}


async def test_a_stranger_that_boasts_counts_for_what_is_usual() -> None:
    usual = [announced(f"p{number}", DIRECT) for number in range(4)]
    boast = replace(announced("boast", DIRECT), decode_tokens_s=1e9)
    block_s, _ = await price_and_queue(router(Network(*usual, boast)), "boast")
    assert block_s == pytest.approx(1 / 100.0)  # announced: 100 tokens a second


async def routes(network: Network, trust: Trust | None, seed: int) -> list[tuple[object, ...]]:
    one = Router(network, network, random.Random(seed), trust)  # type: ignore[arg-type]
    for number, told in enumerate(network.told):
        seen(one, told.peer, queue_s=0.1 * number, times=number)
    found: list[tuple[object, ...]] = []
    for _ in range(20):
        route = await one.route("0" * 64, 4, BlockRange(0, 4), cache_tokens=1)
        found.append((route.cost_s, *(hop.peer for hop in route.hops)))
    return found


@pytest.mark.parametrize("seed", range(5))
async def test_a_book_in_which_nobody_stands_changes_no_route(
    seed: int, autojump_clock: MockClock
) -> None:
    """Costs and hops, to the last bit, beside a router without a book."""
    spans = [(0, 2), (2, 4), (0, 4), (1, 4), (0, 3), (0, 2), (2, 4)]
    told = [
        replace(announced(f"p{number}", CIRCUIT if number % 3 else DIRECT), start=start, stop=stop)
        for number, (start, stop) in enumerate(spans)
    ]
    assert await routes(Network(*told), None, seed) == await routes(Network(*told), Trust(), seed)


async def test_of_two_alike_the_trusted_one_is_chosen_and_a_banned_one_is_never_seen() -> None:
    trust = Trust()
    for _ in range(200):
        trust.audited("known", right=True, tokens=32)
    network = Network(announced("stranger", DIRECT), announced("known", DIRECT))
    chosen: list[str] = []
    for seed in range(40):
        one = Router(network, network, random.Random(seed), trust)  # type: ignore[arg-type]
        route = await one.route("0" * 64, 4, BlockRange(0, 4), cache_tokens=1)
        chosen += [hop.peer for hop in route.hops]
    assert chosen.count("known") > 35
    trust.convict("known")
    assert [span.peer for span in (await one.view("0" * 64, 4)).spans] == ["stranger"]


async def test_a_peer_that_is_known_and_not_trusted_is_not_used() -> None:
    trust = Trust()
    for _ in range(2):
        trust.audited("bad", right=False, tokens=32)
    network = Network(announced("bad", DIRECT))
    one = Router(network, network, random.Random(1), trust)  # type: ignore[arg-type]
    assert (await one.view("0" * 64, 4)).spans == ()
