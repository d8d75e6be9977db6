"""A client tells of a liar: of its wrong work with public words, of two signatures as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trio
from receipts import MODEL, ROW_BYTES, key, opening, session
from test_ledger import HOP, Page
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.crypto.envelope import sign
from potluck.dht.record import Announcement
from potluck.errors import RemoteError, TransportError
from potluck.node.trust.again import Again
from potluck.node.trust.docket import Finding
from potluck.node.trust.limits import Limits
from potluck.node.trust.witness import TRIES, Witness, public_words
from potluck.swarm.audit import Judged
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Work
from potluck.swarm.receipt import CHUNK, Account, Notary
from potluck.swarm.testimony import Contradiction, check_contradiction, fork_of

WIDTH = ROW_BYTES // 4
WORDS = tuple(range(32))
SECRET = b"a prompt that nobody shall read."  # 4 rows
WORN = b"and an adapter, which is private"


def account_of(name: str, blocks: BlockRange, took: bytes, gave: bytes) -> Account:
    notary = Notary(key(name), opening(blocks.start, blocks.stop), ROW_BYTES)
    notary.took(0, took)
    notary.gave(gave)
    account = Account(notary.opening)
    for raw in notary.sign():
        account.add(raw)
    return account


def added(rows: Any, count: int) -> bytes:
    return (np.frombuffer(rows, "<f4") + count).astype("<f4").tobytes()


@dataclass
class World:
    """Blocks that add one. spans: of each peer; lies: in how many answers, of the liar's."""

    spans: dict[str, BlockRange]
    lies: list[bool] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)
    asked: list[tuple[str, BlockRange]] = field(default_factory=list)
    accused: list[tuple[Work, float]] = field(default_factory=list)
    met: list[str] = field(default_factory=list)

    async def announcements(self, model: str) -> tuple[Announcement, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(
            Announcement(
                model=model, name="m", start=span.start, stop=span.stop, blocks=8, state="online",
                device="cpu", dtype="float32", quantization="none", decode_tokens_s=1.0,
                prefill_tokens_s=1.0, addresses=(f"/ip4/127.0.0.1/tcp/1/p2p/{key(name).peer_id}",),
                cache_tokens_free=1, context_tokens_max=64, version="0", numerics="none c1",
                peer=key(name).peer_id,
            )
            for name, span in self.spans.items()
        )  # fmt: skip

    def may_serve(self, peer: str) -> bool:
        return peer != key("liar").peer_id

    async def compute(self, peer: str, work: Work, earlier: Sequence[Work]) -> Again:
        await trio.sleep(1)
        name = next(name for name in (*self.spans, "liar") if key(name).peer_id == peer)
        if name in self.dead:
            raise TransportError("gone")
        self.asked.append((name, work.blocks))
        (took,) = work.took
        assert SECRET not in bytes(took) and not work.adapter
        gave = added(took, len(work.blocks))
        if name == "liar" and self.lies.pop(0):
            gave = added(gave, 7)
        return Again(peer, account_of(name, work.blocks, bytes(took), gave), memoryview(gave))

    async def run(self, fn: Callable[..., memoryview], *args: object) -> memoryview:
        await trio.lowlevel.checkpoint()
        return fn(*args)

    async def accuse(self, work: Work, error: float) -> bytes:
        assert not work.adapter
        self.accused.append((work, error))
        await trio.lowlevel.checkpoint()
        return b"name"

    async def connect(self, addresses: tuple[str, ...]) -> str:
        await trio.lowlevel.checkpoint()
        self.met.append(addresses[0].rpartition("/")[2])
        return self.met[-1]

    def finding(self, blocks: BlockRange) -> Finding:
        """The liar was found wrong beside two others, on what somebody had asked."""
        gave = added(SECRET, 9)
        works = []
        for name in ("liar", "one", "two"):
            account = account_of(name, blocks, SECRET, gave)
            works.append(
                Work(
                    key(name).peer_id,
                    account,
                    0,
                    blocks,
                    "none c1",
                    "f32",
                    (4,),
                    (SECRET,),
                    4,
                    gave,
                    adapter=WORN,
                )
            )
        again = tuple(Again(one.peer, one.account, memoryview(gave)) for one in works[1:])
        right = tuple(one.peer for one in again)
        return Finding(
            works[0], "wrong", Judged("wrong", 1.0, 1.0), 0.0, again, right, (works[0].peer,)
        )

    @asynccontextmanager
    async def witness(self) -> AsyncIterator[Witness]:
        async def nothing(*args: object) -> None:
            await trio.lowlevel.checkpoint()

        court = SimpleNamespace(
            run=nothing, accuse=self.accuse, gossip=SimpleNamespace(until_wanted=nothing),
            exhibits=SimpleNamespace(taken=nothing),
        )  # fmt: skip
        voice = SimpleNamespace(
            context=64,
            text=SimpleNamespace(encode=lambda text: [*WORDS, len(text)]),
            embed=lambda ids: np.repeat(np.array(ids, "<f4"), WIDTH).tobytes(),
        )
        host: Any = SimpleNamespace(connect=self.connect)
        made = Witness(
            host, court, self, self.compute, self, Limits(),  # type: ignore[arg-type]
            lambda model: voice if model == MODEL.hex() else None,  # type: ignore[arg-type,return-value]
            Random(1),
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            yield made
            nursery.cancel_scope.cancel()

    async def hear(self, blocks: BlockRange) -> None:
        async with self.witness() as made:
            made.heard(self.finding(blocks))
            with trio.fail_after(3600):
                await made.idle()


WHOLE = {"one": BlockRange(0, 8), "two": BlockRange(0, 8)}


async def test_a_convict_is_accused_of_what_it_makes_of_public_words(
    autojump_clock: MockClock,
) -> None:
    world = World(WHOLE, [True])
    await world.hear(BlockRange(0, 2))
    [(work, off)] = world.accused
    assert work.peer == work.account.peer == key("liar").peer_id and off > 0.5
    assert work.sizes == (32,) and work.blocks == BlockRange(0, 2)
    assert bytes(work.gave) != added(work.took[0], 2)
    assert sorted(world.met) == sorted(key(name).peer_id for name in WHOLE)


async def test_rows_come_through_the_blocks_before_by_others(autojump_clock: MockClock) -> None:
    """By peers that hold parts of the way; the one that is gone is passed over."""
    early = {"a": BlockRange(0, 2), "b": BlockRange(0, 2), "c": BlockRange(2, 5)}
    late = {"one": BlockRange(4, 8), "two": BlockRange(4, 8)}
    world = World(early | late, [True], dead={"a"})
    await world.hear(BlockRange(4, 6))
    [(work, _)] = world.accused
    assert [one for one in world.asked if one[0] not in ("one", "two", "liar")] == [
        ("b", BlockRange(0, 2)),
        ("c", BlockRange(2, 4)),
    ]
    assert bytes(work.took[0])[:4] == np.array([4.0], "<f4").tobytes()


async def test_who_lies_now_and_then_is_asked_again_and_who_stopped_is_left_alone(
    autojump_clock: MockClock,
) -> None:
    world = World(WHOLE, [False, False, True])
    await world.hear(BlockRange(0, 2))
    assert len(world.accused) == 1 and world.lies == []
    world = World(WHOLE, [False] * TRIES)
    await world.hear(BlockRange(0, 2))
    assert world.accused == [] and world.lies == []


async def test_where_nobody_answers_nobody_is_accused_and_the_next_one_is_heard(
    autojump_clock: MockClock,
) -> None:
    world = World(WHOLE, [True], dead={"one", "two"})
    async with world.witness() as made:
        made.heard(world.finding(BlockRange(0, 2)))
        await made.idle()
        assert world.accused == []
        world.dead.clear()
        world.lies[:] = [True]
        made.heard(world.finding(BlockRange(0, 2)))
        await made.idle()
        assert len(world.accused) == 1


def test_public_words_are_many_and_fill_a_chunk() -> None:
    dice = Random(2)
    found = {public_words(dice) for _ in range(50)}
    assert len(found) == 50 and all(len(words.split()) >= 60 for words in found)


# ---- two signatures


def test_two_receipts_behind_one_prove_a_lie_and_nothing_else_does() -> None:
    (stage,) = session("a", [32, 32])
    account = stage.account
    other = replace(account.chunks[0], gave=bytes(32))
    forked = sign(stage.key, CHUNK, encode(other))
    found = fork_of(account, forked)
    assert found is not None and check_contradiction(found) == stage.key.peer_id
    assert fork_of(account, account.raw[1]) is None, "the same once more"
    assert fork_of(account, sign(key("b"), CHUNK, encode(other))) is None
    assert fork_of(account, b"nonsense") is None
    later = replace(other, prev=account.names[-1])
    assert fork_of(account, sign(stage.key, CHUNK, encode(later))) is None


def test_a_ledger_tells_of_a_fork_and_refuses_it() -> None:
    page = Page()
    told: list[Contradiction] = []
    page.ledger.on_fork = told.append
    page.ledger.signed(1, page.talk())
    page.steps = [(5, 1)]
    page.notary._prev = page.ledger._pages[1].account.names[0]
    with pytest.raises(RemoteError, match="does not follow"):
        page.ledger.signed(1, page.talk())
    [fork] = told
    assert check_contradiction(fork) == HOP.peer
