"""Who may push in a chain, and be dialed: nobody but with the word of all three."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import trio
from sim.memory_host import MemoryStream
from sim.memory_swarm import (
    World,
    heard,
    opening,
    rows,
    world,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from potluck.crypto.keys import IdentityKey
from potluck.node import chain as node_chain
from potluck.node.frames import FrameStream
from potluck.node.leading import EARLY_EACH, EARLY_S, JOIN_S, QUEUE_MAX
from potluck.swarm.ticket import (
    TICKET_S,
    Ticket,
    check_seal,
    is_sealed,
    read_consent,
    read_ticket,
    seal_of,
    sign_consent,
    sign_ticket,
)
from potluck.swarm.wire import (
    CHAIN_PROTOCOL,
    EARLY_CHAIN_PROTOCOL,
    PROTOCOL,
    Apart,
    Fault,
    Follow,
    Following,
    Join,
    Joined,
    Lead,
    Led,
    Onward,
    Opened,
    Output,
    Push,
    Taken,
)

SESSION = bytes(16)


async def pair(made: World) -> tuple[IdentityKey, FrameStream, FrameStream]:
    """A client of its own make, with a session at blocks 0 to 3 and one behind it."""
    key = IdentityKey.generate()
    host = made.net.host(key.peer_id, key)
    found = []
    for node, (start, stop) in zip(made.nodes, ((0, 3), (3, 6)), strict=False):
        frames = FrameStream(await host.open_stream(node.host.peer_id, PROTOCOL))
        await frames.send(opening(start=start, stop=stop, tokens=256))
        assert isinstance(await heard(frames), Opened)
        found.append(frames)
    return key, found[0], found[1]


def ticket(made: World, **changes: object) -> Ticket:
    leader, follower = made.nodes[:2]
    said = Ticket(
        SESSION, bytes(16), 3, leader.host.peer_id, follower.host.peer_id, time.time() + TICKET_S
    )
    return replace(said, **changes)  # type: ignore[arg-type]


async def chained(made: World) -> tuple[FrameStream, FrameStream, bytes]:
    """The same once the second follows the first; and the ticket."""
    key, first, second = await pair(made)
    raw = sign_ticket(key, ticket(made))
    await first.send(Lead(raw))
    led = await heard(first)
    assert isinstance(led, Led)
    await second.send(Follow(raw, led.consent, 0))
    assert isinstance(await heard(second), Following)
    return first, second, raw


def onward(number: int, at: int = 0, hops: int = 1) -> Onward:
    return Onward(at, (1,), 1, number=number, epoch=0, hops=hops)


async def test_a_ticket_lets_the_one_push_to_the_other(autojump_clock: MockClock) -> None:
    async with world((0, 3), (3, 6)) as made:
        first, second, _ = await chained(made)
        await first.send(onward(1), rows(5))
        mirror, answer = await first.receive(), await second.receive()
        assert mirror is not None and isinstance(mirror[0], Output)
        assert answer is not None and answer[0] == Taken(0, 1, 1, 0.0, 0.001, 0, number=1, seal=b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"session": bytes(15) + b"x"},
        {"block": 4},
        {"leader": "somebody"},
        {"follower": "leader"},
    ],
)
async def test_a_ticket_for_something_else_is_its_clients_fault(
    autojump_clock: MockClock, changes: dict[str, object]
) -> None:
    async with world((0, 3), (3, 6)) as made:
        key, first, _ = await pair(made)
        if changes.get("follower") == "leader":
            changes = {"follower": made.nodes[0].host.peer_id}
        await first.send(Lead(sign_ticket(key, ticket(made, **changes))))
        assert isinstance(await heard(first), Fault)


async def test_a_forged_ticket_is_refused(autojump_clock: MockClock) -> None:
    async with world((0, 3), (3, 6)) as made:
        _, first, _ = await pair(made)
        await first.send(Lead(sign_ticket(IdentityKey.generate(), ticket(made))))
        assert isinstance(await heard(first), Fault)


@pytest.mark.parametrize("off_s", [-100.0, 1000.0])
async def test_a_ticket_of_another_time_makes_no_chain_and_ends_no_session(
    autojump_clock: MockClock, off_s: float
) -> None:
    async with world((0, 3), (3, 6)) as made:
        key, first, second = await pair(made)
        raw = sign_ticket(key, ticket(made, expires_s=time.time() + off_s))
        await first.send(Lead(raw))
        assert isinstance(await heard(first), Apart)
        consent = sign_consent(made.nodes[0].key, raw, ())
        await second.send(Follow(raw, consent, 0))
        assert isinstance(await heard(second), Apart)
        assert made.nodes[1].host.dialed == []
        await first.send(onward(1), rows(5))
        assert isinstance(await heard(first), Output)
        assert isinstance(await heard(first), Apart), "nobody follows"


async def test_a_ticket_is_good_once(autojump_clock: MockClock) -> None:
    """Not for a second stream of the follower's, nor for anybody else, nor shown again."""
    async with world((0, 3), (3, 6)) as made:
        first, _, raw = await chained(made)
        leader, follower = made.nodes
        for host in (follower.host, made.client()[0]):
            frames = FrameStream(await host.open_stream(leader.host.peer_id, CHAIN_PROTOCOL))
            await frames.send(Join(raw))
            assert isinstance(await heard(frames), Fault)
        await first.send(Lead(raw))
        assert isinstance(await heard(first), Fault)


async def test_a_stolen_ticket_is_no_use_and_does_the_rightful_one_no_harm(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 3), (3, 6)) as made:
        key, first, second = await pair(made)
        raw = sign_ticket(key, ticket(made))
        await first.send(Lead(raw))
        led = await heard(first)
        assert isinstance(led, Led)
        thief, _ = made.client()
        stolen = FrameStream(await thief.open_stream(made.nodes[0].host.peer_id, CHAIN_PROTOCOL))
        await stolen.send(Join(raw))
        with pytest.raises(Exception, match="reset"):
            await heard(stolen)
        assert [str(error)[:10] for _, error in made.net.faults] == ["the ticket"]
        await second.send(Follow(raw, led.consent, 0))
        assert isinstance(await heard(second), Following)


async def test_nobody_is_dialed_without_consent(autojump_clock: MockClock) -> None:
    """A client names somebody who was not asked, or shows what another signed."""
    async with world((0, 3), (3, 6)) as made:
        victim = made.net.host("victim")
        for consents in (IdentityKey.generate(), made.nodes[1].key):
            key, _, second = await pair(made)
            raw = sign_ticket(key, ticket(made))
            await second.send(Follow(raw, sign_consent(consents, raw, victim.addresses()), 0))
            assert isinstance(await heard(second), Fault)
        key, _, second = await pair(made)
        raw, other = (sign_ticket(key, ticket(made, nonce=bytes([n]) * 16)) for n in (1, 2))
        await second.send(Follow(raw, sign_consent(made.nodes[0].key, other, ()), 0))
        assert isinstance(await heard(second), Fault)
        assert [node.host.dialed for node in made.nodes] == [[], []]


async def test_a_flood_of_pushes_waits_in_the_leaders_stream(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device takes a second for each: so many wait here, and the leader with the rest."""
    most = 0
    full = node_chain.Seat._full

    def look(seat: node_chain.Seat, payload: memoryview) -> bool:
        nonlocal most
        most = max(most, len(seat._queue))
        return full(seat, payload)

    monkeypatch.setattr(node_chain.Seat, "_full", look)
    bad = IdentityKey.generate()
    floods: list[MemoryStream] = []

    async def flood(stream: MemoryStream) -> None:
        floods.append(stream)
        frames = FrameStream(stream)
        assert isinstance(await heard(frames), Join)
        await frames.send(Joined())
        for number in range(9000):
            push = Push(number, (1,), 1, number=number, epoch=0, hops=0)
            await frames.send(push, rows(number))
        await stream.broken()

    async with world((0, 3), (3, 6)) as made:
        made.nodes[1].device.step_s = 1.0
        host = made.net.host(bad.peer_id, bad)
        host.handle(CHAIN_PROTOCOL, flood)
        key, _, second = await pair(made)
        raw = sign_ticket(key, ticket(made, leader=bad.peer_id))
        await second.send(Follow(raw, sign_consent(bad, raw, host.addresses()), 0))
        assert isinstance(await heard(second), Following)
        for number in range(5):
            taken = await heard(second)
            assert isinstance(taken, Taken) and taken.number == number
        assert most == QUEUE_MAX
        assert len(floods[0].outward.data) > 100_000, "all of it was read"
        await second.close()
        await wait_all_tasks_blocked()
        assert floods[0].outward.broken, "who is led no more reads no more"


async def test_a_push_with_a_hole_before_it_ends_the_chain_and_not_the_session(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 3), (3, 6)) as made:
        _, second, _ = await chained(made)
        await second.send(Onward(0, (1,), 1, number=0, epoch=0, hops=0), rows(1))
        assert isinstance(await heard(second), Output)
        leading = made.nodes[0].server._live
        (session,) = leading.values()
        session.length = 9  # it lost count
        assert session.seat is not None
        assert session.seat.push(onward(1, at=9), memoryview(rows(5)))
        parted = await heard(second)
        assert isinstance(parted, Apart) and "a step at 9..10" in parted.reason
        await second.send(Onward(1, (1,), 1, number=0, epoch=0, hops=0), rows(1))
        assert isinstance(await heard(second), Output)


async def test_what_comes_out_is_queued_for_a_follower_that_does_not_read_up_to_a_bound(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 3), (3, 6)) as made:
        first, _, _ = await chained(made)
        (session,) = made.nodes[0].server._live.values()
        assert session.seat is not None
        leading = session.seat._leading
        assert leading is not None
        pushes = [session.seat.push(onward(n, at=n), memoryview(rows(n))) for n in range(80)]
        assert pushes == [True] * QUEUE_MAX + [False] * (80 - QUEUE_MAX)
        await wait_all_tasks_blocked()
        await first.send(onward(1), rows(5))
        assert isinstance(await heard(first), Output)
        assert isinstance(await heard(first), Apart)


# ---- told of at once


async def told_at_once(made: World) -> tuple[IdentityKey, FrameStream, FrameStream, bytes]:
    """The second is told to follow; the first was told nothing yet."""
    key, first, second = await pair(made)
    raw = sign_ticket(key, ticket(made))
    await second.send(Follow(raw, b"", 0))
    return key, first, second, raw


async def test_a_follower_that_comes_before_its_ticket_is_let_in_once_that_is_here(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 3), (3, 6)) as made:
        _, first, second, raw = await told_at_once(made)
        await wait_all_tasks_blocked()
        assert made.nodes[1].host.dialed == [(made.nodes[0].host.peer_id, EARLY_CHAIN_PROTOCOL)]
        await first.send(Lead(raw))
        await first.send(onward(1), rows(5))
        assert isinstance(await heard(second), Following)
        taken = await heard(second)
        assert isinstance(taken, Taken) and taken.number == 1


async def test_whoever_has_a_ticket_that_never_comes_is_let_go(autojump_clock: MockClock) -> None:
    async with world((0, 3), (3, 6)) as made:
        _, first, second, _ = await told_at_once(made)
        began = trio.current_time()
        assert isinstance(await heard(second), Apart)
        assert trio.current_time() - began == pytest.approx(EARLY_S, abs=0.1)
        await first.send(onward(1), rows(5))
        assert isinstance(await heard(first), Output)
        assert isinstance(await heard(first), Apart), "nobody follows"


async def test_no_more_wait_for_their_tickets_than_are_bounded(autojump_clock: MockClock) -> None:
    async with world((0, 3), (3, 6)) as made:
        _, _, _, raw = await told_at_once(made)
        await wait_all_tasks_blocked()
        thief, _ = made.client()
        leader = made.nodes[0].host.peer_id
        found = list[FrameStream]()
        for number in range(EARLY_EACH + 1):
            found.append(FrameStream(await thief.open_stream(leader, EARLY_CHAIN_PROTOCOL)))
            await found[-1].send(Join(raw + bytes([number])))
        began = trio.current_time()
        assert isinstance(await heard(found[-1]), Fault)
        assert trio.current_time() == began, "one too many does not wait"
        assert isinstance(await heard(found[0]), Fault)
        assert trio.current_time() - began == pytest.approx(EARLY_S, abs=0.1)


async def test_nobody_is_dialed_without_consent_by_whom_it_is_not_connected_to(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 3), (3, 6)) as made:
        made.nodes[1].host.strangers.add(made.nodes[0].host.peer_id)
        _, _, second, _ = await told_at_once(made)
        parted = await heard(second)
        assert isinstance(parted, Apart) and "consent" in parted.reason
        assert made.nodes[1].host.dialed == []


async def test_what_is_held_for_a_follower_that_never_comes_is_given_up(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 3), (3, 6)) as made:
        key, first, _ = await pair(made)
        await first.send(Lead(sign_ticket(key, ticket(made))))
        assert isinstance(await heard(first), Led)
        await first.send(onward(1), rows(5))
        assert isinstance(await heard(first), Output)
        began = trio.current_time()
        parted = await heard(first)
        assert isinstance(parted, Apart) and parted.behind and "has not come" in parted.reason
        assert trio.current_time() - began == pytest.approx(JOIN_S, abs=0.1)


# ---- what is signed


def test_tickets_consents_and_seals_say_what_was_signed_and_nothing_else() -> None:
    client, leader, other = (IdentityKey.generate() for _ in range(3))
    said = Ticket(SESSION, bytes(16), 3, leader.peer_id, other.peer_id, 1000.0)
    raw = sign_ticket(client, said)
    assert read_ticket(raw, client.peer_id, SESSION) == said
    assert said.stale(990.0) == "" and said.stale(2000.0) and said.stale(100.0)
    consent = sign_consent(leader, raw, ("/ip4/192.0.2.1/tcp/1",) * 20)
    assert len(read_consent(consent, raw, leader.peer_id)) == 8
    seal = seal_of(leader, SESSION, 7, 3, b"rows")
    assert is_sealed(b"rows", check_seal(seal, leader.peer_id, SESSION, 7, 3))
    assert not is_sealed(b"Rows", check_seal(seal, leader.peer_id, SESSION, 7, 3))
    wrong = [
        lambda: read_ticket(raw, other.peer_id, SESSION),
        lambda: read_ticket(raw, client.peer_id, b"x" * 16),
        lambda: read_ticket(consent, leader.peer_id, SESSION),
        lambda: read_consent(consent, raw, other.peer_id),
        lambda: read_consent(consent, raw + b"x", leader.peer_id),
        lambda: read_consent(raw, raw, client.peer_id),
        lambda: check_seal(seal, other.peer_id, SESSION, 7, 3),
        lambda: check_seal(seal, leader.peer_id, SESSION, 8, 3),
        lambda: check_seal(seal, leader.peer_id, SESSION, 7, 4),
        lambda: check_seal(seal, leader.peer_id, b"x" * 16, 7, 3),
        lambda: check_seal(b"", leader.peer_id, SESSION, 7, 3),
    ]
    for read in wrong:
        with pytest.raises(Exception, match=r"."):
            read()
