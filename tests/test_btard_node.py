"""Guarded exchanges over streams: all stay equal to the bit, and liars are banned."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
import trio
from guards import key
from sim.memory_host import MemoryNet
from torch import Tensor
from trio.testing import MockClock

from potluck.crypto.codec import decode, encode
from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, TransportError, UserError
from potluck.node.letters import send_letter
from potluck.node.runs.btard import GuardedExchange
from potluck.node.runs.btard_file import CaseFile, convicted
from potluck.node.runs.btard_judge import Law
from potluck.node.runs.btard_place import (
    Conviction,
    Place,
    Rules,
    anchor_digest,
    contribution_of,
)
from potluck.swarm.run.btard_events import Cut, Work
from potluck.swarm.run.btard_wire import PROTOCOL, Load

RUN, SEED = b"r" * 32, b"s" * 32
WIDTH = 30
RULES = Rules(radius=1.0, validators=2, gather_s=20.0, phase_s=4.0, check_s=8.0)

Trained = Callable[[Tensor, bytes], Tensor]


def trains(anchor: Tensor, seed: bytes) -> Tensor:
    """Towards ones, with the noise of the batches."""
    dice = torch.Generator().manual_seed(int.from_bytes(seed[:7]))
    return anchor - 0.1 * (anchor - 1.0) + 0.02 * torch.randn(WIDTH, generator=dice)


def backwards(anchor: Tensor, seed: bytes) -> Tensor:
    return anchor - 10 * (trains(anchor, seed) - anchor)


class Seat:
    """One peer: what it trains with, and what it saw."""

    def __init__(self, net: MemoryNet, key: IdentityKey, roster: tuple[str, ...]) -> None:
        self.key = key
        self.trained: Trained = trains
        self.convictions: list[Conviction] = []
        self.host = net.host(key.peer_id)
        self.group = GuardedExchange(
            self.host, key, RUN, Place(0, SEED, roster), torch.zeros(WIDTH), RULES, trains,
            self.convictions.append,
        )  # fmt: skip
        self.weights = torch.zeros(WIDTH)
        self.anchors: dict[bytes, Tensor] = {}
        self.peers: tuple[str, ...] = ()

    async def go(self, steps: int) -> None:
        for step in range(steps):
            self.anchors[anchor_digest(self.weights)] = self.weights
            mine = self.trained(self.weights, self.group.seed)
            found = await self.group.exchange(step, mine, 100)
            self.weights, self.peers = found.weights, found.peers
            assert found.sent_bytes > 0 and found.received_bytes > 0


@asynccontextmanager
async def seats(count: int) -> AsyncIterator[list[Seat]]:
    keys = sorted((key(number) for number in range(count)), key=lambda one: one.peer_id)
    roster = tuple(one.peer_id for one in keys)
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        found = [Seat(net, one, roster) for one in keys]
        for one in found:
            await nursery.start(one.group.run)
        yield found
        nursery.cancel_scope.cancel()


async def all_go(found: list[Seat], steps: int) -> None:
    async with trio.open_nursery() as nursery:
        for one in found:
            nursery.start_soon(one.go, steps)


async def test_all_stay_equal_to_the_bit_and_learn(autojump_clock: MockClock) -> None:
    async with seats(4) as found:
        await all_go(found, 3)
    assert all(torch.equal(one.weights, found[0].weights) for one in found)
    assert len({one.group.place for one in found}) == 1
    assert abs(float(found[0].weights.mean()) - (1 - 0.9**3)) < 0.02
    assert all(len(one.peers) == 4 and not one.convictions for one in found)


async def test_a_dead_member_is_left_out_and_the_others_go_on(autojump_clock: MockClock) -> None:
    async with seats(5) as found:
        await found[2].host.die()
        await all_go([one for one in found if one is not found[2]], 1)
        alive = [one for one in found if one is not found[2]]
    assert all(len(one.peers) == 4 for one in alive)
    assert all(torch.equal(one.weights, alive[0].weights) for one in alive)
    assert found[2].key.peer_id in alive[0].group.place.roster  # it may come back
    assert not any(one.convictions for one in alive)


async def test_who_is_silent_for_three_steps_has_no_seat_any_more(
    autojump_clock: MockClock,
) -> None:
    async with seats(4) as found:
        await found[1].host.die()
        alive = [one for one in found if one is not found[1]]
        await all_go(alive, 4)
    assert all(one.group.place == alive[0].group.place for one in alive)
    assert alive[0].group.place.roster == tuple(one.key.peer_id for one in alive)
    assert all(len(one.peers) == 3 and not one.convictions for one in alive)


async def test_whoever_is_convicted_is_convicted_for_a_third_party_too(
    autojump_clock: MockClock,
) -> None:
    """Two of six are drawn to be checked in each attempt; six steps make it almost sure, and these
    seeds surely."""
    async with seats(6) as found:
        found[1].trained = backwards
        honest = [one for one in found if one is not found[1]]

        async def lie() -> None:
            with pytest.raises(TransportError):
                await found[1].go(40)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lie)
            for one in honest:
                nursery.start_soon(one.go, 12)
    assert all([c.peer for c in one.convictions] == [found[1].key.peer_id] for one in honest)
    assert all(torch.equal(one.weights, honest[0].weights) for one in honest)
    file = honest[0].convictions[0].file
    law = Law((), WIDTH, RULES.radius, RULES.numerics, 0.0)

    def again(anchor: bytes, seed: bytes) -> bytes:
        weights = honest[0].anchors[anchor]
        return contribution_of(weights, trains(weights, seed))

    assert convicted(file, law, again) == found[1].key.peer_id
    told = decode(file, CaseFile, max_bytes=1 << 20)
    forged = [
        replace(told, guilty=0),
        replace(told, epoch=told.epoch + 1),
        replace(told, silent=(0,)),
        replace(told, said=told.said[1:]),
        replace(told, about=0),
    ]
    for one in forged:
        with pytest.raises(RemoteError):
            convicted(encode(one), law, again)


async def test_the_own_weights_have_to_be_finite(autojump_clock: MockClock) -> None:
    async with seats(2) as found:
        with pytest.raises(UserError):
            await found[0].group.exchange(0, torch.full((WIDTH,), torch.nan), 1)


async def test_a_step_that_came_to_nothing_is_not_begun_again(autojump_clock: MockClock) -> None:
    """Other words in the same places would convict an honest peer of contradicting itself."""
    async with seats(3) as found:
        for one in found[1:]:
            await one.host.die()
        for words in ("no outcome", "speaks twice"):
            with pytest.raises(TransportError, match=words):
                await found[0].group.exchange(0, torch.ones(WIDTH), 1)


async def test_an_exchange_ends_when_nobodys_steps_are_taken_again_any_more(
    autojump_clock: MockClock,
) -> None:
    """What takes them gives back afterwards what was trained before: weights that were adopted
    meanwhile would be lost. A case that is opened when all have signed begins such a job."""
    gate = threading.Event()
    async with seats(3) as found:
        slow, *others = found
        perform, token = slow.group._perform, trio.lowlevel.current_trio_token()
        held: list[tuple[Any, Any]] | None = (
            None  # until the job is begun: a step that is over has none
        )

        def late(step: Any, effects: Any) -> None:
            nonlocal held
            attempt = step.guard._attempt
            if attempt.is_signed and step.shop.do.__name__ != "waits":
                step.shop.do, held = waits, []
                slow.group._jobs.send_nowait((step, Work("late", Cut(3))))
            if held is None:
                perform(step, effects)
            else:
                held.append((step, effects))

        def waits(job: Any) -> None:
            token.run_sync_soon(begun)
            gate.wait()

        def begun() -> None:
            nonlocal held
            told, held = held or [], None
            for one in told:
                perform(*one)

        slow.group._perform = late  # type: ignore[method-assign]
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slow.go, 1)
                await all_go(others, 1)
                while not (step := slow.group._steps[0]).over.is_set():
                    await trio.testing.wait_all_tasks_blocked(0.01)
                await trio.testing.wait_all_tasks_blocked(0.01)
                before, done = slow.group.place.epoch, step.done
                gate.set()
        assert done is not None and before == 0
    assert slow.group.place.epoch == 1 and torch.equal(slow.weights, others[0].weights)


async def test_strangers_floods_and_nonsense_are_cut_off(autojump_clock: MockClock) -> None:
    async with seats(3) as found:
        net = found[0].host._net
        stranger = net.host("stranger")
        stream = await stranger.open_stream(found[0].key.peer_id, PROTOCOL)
        with suppress(TransportError):  # it may be gone already
            await send_letter(stream, b"hello")
        await trio.testing.wait_all_tasks_blocked()
        member = found[1].host
        for sent in (b"nonsense", encode(Load(0, bytes(32), 1 << 27))):
            stream = await member.open_stream(found[0].key.peer_id, PROTOCOL)
            await send_letter(stream, sent)
        await all_go(found, 1)
        assert all(torch.equal(one.weights, found[0].weights) for one in found)
        kinds = [type(error) for who, error in net.faults if who == found[0].key.peer_id]
    assert kinds.count(RemoteError) == 2 and len(kinds) == 3
