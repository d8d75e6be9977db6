"""Vouches between nodes over memory roads: who is asked, what is taken, what a conviction costs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import trio
from receipts import key
from sim.parted import TownHost, TownNet, wall
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.crypto.keys import IdentityKey
from potluck.errors import TransportError
from potluck.node.gossip.talks import TALK_S, Talk, open_talk
from potluck.node.letters import send_letter
from potluck.node.trust.book import Trust
from potluck.node.trust.vouched import take_back, vouch_for
from potluck.node.trust.vouching import KINDS, OF_EACH, ROUND_S, VOUCHES, Vouching, read_vouches
from potluck.swarm.reputation import PROBATION_VALID
from potluck.swarm.vouch import LETTER_BYTES_MAX, PROTOCOL, Ask, Told, Vouch, give
from potluck.swarm.vouching import STATEMENTS_MAX, VOUCHED


@dataclass
class Node:
    key: IdentityKey
    host: TownHost
    trust: Trust
    home: Path
    vouching: Vouching

    @property
    def id(self) -> str:
        return self.key.peer_id

    def vouches_for(self, *peers: str) -> None:
        for peer in peers:
            vouch_for(self.home, self.key, peer, wall(), days=30)
        self.vouching.load(read_vouches(self.home, wall()))

    def head(self, other: Node) -> float:
        return self.vouching.head(other.id)


@dataclass
class World:
    folder: Path
    net: TownNet
    nursery: trio.Nursery
    count: int = 0

    def host(self, letter: str) -> TownHost:
        self.count += 1
        where = f"/ip4/{11 + self.count}.1.1.1/tcp/4001"
        return self.net.settle(key(letter).peer_id, where)

    def add(self, letter: str, *pinned: Node, runs: bool = True) -> Node:
        host, home = self.host(letter), self.folder / letter
        home.mkdir(exist_ok=True)
        trust = Trust(clock=wall)
        vouching = Vouching(
            host, trust, home, host.peer_id, [one.id for one in pinned], Random(1),  # type: ignore[arg-type]
            wall=wall,
        )  # fmt: skip
        for one in pinned:
            host.learn(one.id, one.host.addresses())
        vouching.load(read_vouches(home, wall()))
        if runs:
            self.nursery.start_soon(vouching.run)
        return Node(key(letter), host, trust, home, vouching)


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk answers in no time: else the clock would jump on while a thread is at work."""

    async def run_sync(function: Callable[..., object], *args: object) -> object:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr("trio.to_thread.run_sync", run_sync)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(folder, TownNet(nursery), nursery)
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], object], within_s: float = 20 * ROUND_S) -> None:
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110  # virtual time
            await trio.sleep(1)


async def talk_to(foe: TownHost, node: Node, *messages: object) -> list[object]:
    """What it answers to each, asked on a stream of its own."""
    foe.learn(node.id, node.host.addresses())
    answers = []
    for message in messages:
        async with open_talk(foe, node.id, PROTOCOL, KINDS, LETTER_BYTES_MAX) as talk:  # type: ignore[arg-type]
            await talk.send(message)
            answers.append(await talk.receive())
    return answers


async def test_whom_a_pinned_peer_vouches_for_is_half_way_out_of_probation(
    autojump_clock: MockClock, place: World
) -> None:
    """And for whom that one vouches, a part of it; of whom nobody knows, nothing."""
    friend, newcomer, second, stranger = (place.add(one) for one in ("f", "n", "s", "x"))
    friend.vouches_for(newcomer.id)
    newcomer.vouches_for(second.id)
    stranger.vouches_for(stranger_friend := key("y").peer_id)
    me = place.add("me", friend)
    assert me.trust.rate(friend.id) < 1 == me.trust.rate(newcomer.id)
    await me.host.dial_known(friend.id)
    me.host.learn(newcomer.id, newcomer.host.addresses())
    await me.host.dial_known(newcomer.id)
    await until(lambda: me.head(second))
    assert me.head(friend) == PROBATION_VALID
    assert me.head(newcomer) == me.head(second) == VOUCHED / 2
    assert me.vouching.head(stranger_friend) == 0 == me.head(stranger)
    for _ in range(PROBATION_VALID - 1):
        me.trust.audited(newcomer.id, right=True, tokens=32)
        me.trust.audited(stranger.id, right=True, tokens=32)
    assert me.trust.rate(newcomer.id) < 1 == me.trust.rate(stranger.id)
    assert me.trust.trust(friend.id) < 0.5  # it makes nobody a witness
    assert place.net.faults == [] and me.host.blamed == []


async def test_what_is_taken_back_stops_to_count_and_its_replay_is_passed_over(
    autojump_clock: MockClock, place: World
) -> None:
    friend, newcomer = place.add("f"), place.add("n")
    friend.vouches_for(newcomer.id)
    old = [given.raw for given in friend.vouching._vouches.of(friend.id)]
    me = place.add("me", friend)
    await until(lambda: me.head(newcomer) == VOUCHED)
    take_back(friend.home, friend.key, newcomer.id, wall())
    await until(lambda: me.head(newcomer) == 0)
    await me.vouching._take(Told(tuple(old)), [friend.id])
    me.vouching._weigh()
    assert me.head(newcomer) == 0


async def test_a_restart_and_a_client_of_the_home_know_what_was_heard(
    autojump_clock: MockClock, place: World
) -> None:
    friend, newcomer = place.add("f"), place.add("n")
    friend.vouches_for(newcomer.id)
    me = place.add("me", friend)
    await until(lambda: (me.home / VOUCHES).exists() and me.head(newcomer))
    friend.host.dead = True
    again = place.add("me", friend, runs=False)
    assert again.head(newcomer) == VOUCHED
    (me.home / VOUCHES).write_bytes(b"rubbish")
    assert place.add("me", friend, runs=False).head(newcomer) == 0


async def test_a_full_disk_ends_nothing_and_what_was_heard_is_written_later(
    autojump_clock: MockClock, place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    friend, newcomer = place.add("f"), place.add("n")
    friend.vouches_for(newcomer.id)
    me = place.add("me", friend)
    with monkeypatch.context() as patch:
        patch.setattr("potluck.node.trust.vouching.replace_file", full)
        await until(lambda: me.head(newcomer) == VOUCHED)
        await trio.sleep(3 * ROUND_S)
        assert not (me.home / VOUCHES).exists()
    await until((me.home / VOUCHES).exists)


async def test_the_voucher_of_a_convicted_liar_loses_its_standing_and_all_for_whom_it_vouched(
    autojump_clock: MockClock, place: World
) -> None:
    friend, liar, other = place.add("f"), place.add("l"), place.add("o")
    friend.vouches_for(liar.id, other.id)
    me = place.add("me", friend)
    await until(lambda: me.head(liar) and me.head(other))
    assert me.trust.rate(friend.id) < 1
    me.trust.convict(liar.id)
    assert me.head(other) == 0 == me.head(liar)
    assert me.trust.rate(friend.id) == 1  # a pinned one too: it is audited as a stranger is
    take_back(friend.home, friend.key, liar.id, wall())
    await trio.sleep(5 * ROUND_S)
    assert me.head(other) == 0  # it answers for a month more


async def test_who_is_banned_on_evidence_brings_its_voucher_down_though_the_book_forgot_it(
    autojump_clock: MockClock, place: World
) -> None:
    """The book of trust keeps so many strangers' bans, and no more."""
    friend, liar, other = place.add("f"), place.add("l"), place.add("o")
    friend.vouches_for(liar.id, other.id)
    me = place.add("me", friend)
    await until(lambda: me.head(other) and (me.home / VOUCHES).exists())
    again = Vouching(
        me.host, Trust(clock=wall), me.home, me.id, [friend.id], Random(1),  # type: ignore[arg-type]
        banned=liar.id.__eq__, wall=wall,
    )  # fmt: skip
    again.load(read_vouches(me.home, wall()))
    assert again.head(other.id) == 0


async def test_a_flood_of_convicted_strangers_is_not_weighed(
    autojump_clock: MockClock, place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    friend, newcomer = place.add("f"), place.add("n")
    friend.vouches_for(newcomer.id)
    me = place.add("me", friend)
    await until(lambda: me.head(newcomer))
    weighed: list[str] = []
    monkeypatch.setattr(me.vouching, "_weigh", lambda: weighed.append("once"))
    for number in range(100):
        me.trust.convict(key(f"stranger {number}").peer_id)
    assert weighed == []
    me.trust.convict(newcomer.id)
    me.trust.convict(friend.id)
    assert weighed == ["once"] * 2


async def test_whoever_tells_what_was_not_asked_for_or_what_is_forged_is_to_blame(
    autojump_clock: MockClock, place: World
) -> None:
    friend, newcomer = place.add("f", runs=False), place.add("n")
    me = place.add("me", friend, runs=False)
    foe = key("foe")
    other = give(foe, Vouch(newcomer.id, wall(), wall() + 9)).raw
    good = give(friend.key, Vouch(newcomer.id, wall(), wall() + 9)).raw
    spoilt = bytes((*good[:-1], good[-1] ^ 1))
    for number, told in enumerate(((other,), (good, spoilt), (b"",)), start=1):

        async def lie(stream: object, told: tuple[bytes, ...] = told) -> None:
            talk = Talk(stream, KINDS, LETTER_BYTES_MAX)  # type: ignore[arg-type]
            assert isinstance(await talk.receive(), Ask)
            await talk.send(Told(told))
            await talk.close()

        friend.host.handle(PROTOCOL, lie)  # type: ignore[arg-type]
        await me.vouching._ask(friend.id)
        assert me.host.blamed == [friend.id] * number
    assert set(me.vouching._vouches._said) <= {friend.id}


async def test_only_what_was_asked_for_is_told_and_a_flood_of_questions_is_not_read(
    autojump_clock: MockClock, place: World
) -> None:
    friend = place.add("f")
    friend.vouches_for(*(key(f"p {n}").peer_id for n in range(STATEMENTS_MAX)))
    foe = place.host("foe")
    await trio.sleep(0.1)
    mine, nothing = await talk_to(foe, friend, Ask((friend.id, friend.id)), Ask((foe.peer_id,)))
    assert isinstance(mine, Told) and len(mine.vouches) == STATEMENTS_MAX
    assert nothing == Told(())
    assert len(encode(mine)) <= LETTER_BYTES_MAX
    answered = 0
    for _ in range(4 * int(OF_EACH[1])):
        stream = await foe.open_stream(friend.id, PROTOCOL)
        talk = Talk(stream, KINDS, LETTER_BYTES_MAX)
        with trio.move_on_after(1):
            with suppress(TransportError):  # it was reset
                await talk.send(Ask((friend.id,)))
                answered += await talk.receive() is not None
    assert answered < OF_EACH[1] + 2


async def test_nonsense_ends_the_talk_and_is_its_senders_fault(
    autojump_clock: MockClock, place: World
) -> None:
    friend, foe = place.add("f"), place.host("foe")
    foe.learn(friend.id, friend.host.addresses())
    await trio.sleep(0.1)
    for raw in (b"\xc1\xc1", encode(Told(())), b"", encode(Ask(())) + b"\0"):
        stream = await foe.open_stream(friend.id, PROTOCOL)
        await send_letter(stream, raw)
        await stream.close()
        await trio.sleep(2 * TALK_S)
    for raw in (b"\0\0\0\x09half", (1 << 31).to_bytes(4) + b"x"):
        stream = await foe.open_stream(friend.id, PROTOCOL)
        await stream.send(raw)
        await stream.close()
        await trio.sleep(2 * TALK_S)
    assert [who for who, _ in place.net.faults] == [friend.id] * 6


async def test_nobody_is_asked_who_is_shunned_and_a_client_answers_nobody(
    autojump_clock: MockClock, place: World
) -> None:
    friend = place.add("f")
    me = place.add("me", friend, runs=False)
    place.nursery.start_soon(me.vouching.run, False)
    await trio.sleep(1)
    assert PROTOCOL not in me.host.handlers and me.vouching._next() == [friend.id]
    me.host.welcomes = friend.id.__ne__  # type: ignore[method-assign]
    assert me.vouching._next() == []


async def test_a_clock_that_jumps_by_hours_gives_and_takes_nothing_for_good(
    autojump_clock: MockClock, place: World
) -> None:
    """Behind, all is from the future and passed over; ahead, it has run out; right again, it
    counts again."""
    friend, newcomer = place.add("f"), place.add("n")
    friend.vouches_for(newcomer.id)
    me = place.add("me", friend)
    await until(lambda: me.head(newcomer) == VOUCHED)
    for jump_s, counts in ((-7200.0, True), (7200.0, True), (40 * 86_400.0, False), (0.0, True)):
        me.vouching._wall = lambda jump_s=jump_s: wall() + jump_s
        me.vouching._weigh()
        assert bool(me.head(newcomer)) is counts
    me.vouching._wall = lambda: wall() - 7200.0
    other = place.add("o")
    friend.vouches_for(other.id)
    await trio.sleep(5 * ROUND_S)
    assert me.head(other) == 0
    me.vouching._wall = wall
    await until(lambda: me.head(other) == VOUCHED)
