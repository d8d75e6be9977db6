"""Adapters over the wire: brought once to whoever lacks them, checked, counted, worn by all."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from api_fakes import Inline
from receipts import Stage, key
from sim.memory_swarm import (
    MODEL,
    ROW_BYTES,
    THREE_STAGES,
    Node,
    World,
    begun,
    heard,
    prompt,
    step,
    talk,
    undisturbed,
    world,
)
from trio.testing import MockClock

from potluck.errors import Refused, RemoteError, TransportError
from potluck.node import adapters
from potluck.node.adapters import KEPT_BYTES_MAX, Shelf, bring
from potluck.node.frames import FrameStream
from potluck.node.pieces import BYTES_S
from potluck.node.trust.again import compute_again
from potluck.node.trust.case import Case
from potluck.node.trust.limits import Limit, Limits
from potluck.node.wardrobe import SHARE, WAIT_S
from potluck.swarm.adapter import Bundle, make_bundle
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Ledger, Work
from potluck.swarm.routing import Hop
from potluck.swarm.testimony import Accusation, check_accusation, sign_accusation
from potluck.swarm.wire import (
    PIECE_BYTES_MAX,
    WEARING_PROTOCOL,
    Bring,
    Busy,
    Fault,
    Lacking,
    Opened,
    Piece,
    Wear,
)


def bundle(seed: int = 1, size: int = 300, blocks: range = range(6), model: str = MODEL) -> Bundle:
    round_ = bytes(range(251)) * (2 + size // 251)
    firsts = {block: (seed * 7 + block) % 251 for block in blocks}
    parts = {block: round_[first : first + size] for block, first in firsts.items()}
    return make_bundle(bytes.fromhex(model), 4, ["q_proj"], parts)


ONE = bundle()


async def dressed(adapter: Bundle = ONE) -> list[bytes]:
    async with world(*THREE_STAGES) as made:
        return await talk(made, {}, adapter)


# ---- a session, and what dies under it


@pytest.mark.parametrize("kills", [{3: [0]}, {0: [2]}, {2: [0, 2]}, {1: [2], 5: [4]}])
async def test_killed_servers_change_no_answer_of_a_dressed_session(
    autojump_clock: MockClock, kills: dict[int, list[int]]
) -> None:
    expected = await dressed()
    async with world(*THREE_STAGES) as made:
        assert await talk(made, kills, ONE) == expected
        replayed = sum(map(len, kills.values()))
        assert sum(node.wardrobe.brought_bytes > 0 for node in made.nodes) == 3 + replayed
        for node in made.nodes:
            assert node.admission.sessions == 0 or node.host.dead


async def test_it_wears_what_it_asked_for_beside_others_that_wear_something_else(
    autojump_clock: MockClock,
) -> None:
    other = bundle(2)
    expected = [await undisturbed(), await dressed(ONE), await dressed(other)]
    assert expected[0] != expected[1] != expected[2]
    async with world((0, 3), (3, 6)) as made:
        found: dict[int, list[bytes]] = {}

        async def one(place: int, adapter: Bundle | None) -> None:
            found[place] = await talk(made, {}, adapter)

        async with trio.open_nursery() as nursery:
            for place, adapter in enumerate((None, ONE, other)):
                nursery.start_soon(one, place, adapter)
        assert [found[place] for place in range(3)] == expected


async def test_it_is_brought_once_and_only_what_a_stage_needs(autojump_clock: MockClock) -> None:
    async with world((0, 2), (2, 6)) as made:
        for _ in range(3):
            await talk(made, {}, ONE)
        assert [node.wardrobe.brought_bytes for node in made.nodes] == [600, 1200]


async def test_a_node_that_starts_anew_finds_it_on_its_disk(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    for _ in range(2):
        async with world() as made:
            node = await made.add(0, 6, shelf=Shelf(tmp_path))
            await talk(made, {}, ONE)
    assert node.wardrobe.brought_bytes == 0
    (tmp_path / "adapters" / ONE.hex / "3").write_bytes(bytes(300))
    async with world() as made:
        node = await made.add(0, 6, shelf=Shelf(tmp_path))
        await talk(made, {}, ONE)
    assert node.wardrobe.brought_bytes == 1800, "a damaged part is no part"


# ---- what a server takes


@asynccontextmanager
async def opened(made: World, adapter: Bundle = ONE, **changes: object):  # type: ignore[no-untyped-def]
    """A stream on which it was asked to open a session over blocks 0:6."""
    host, _ = made.client()
    stream = await host.open_stream(made.nodes[0].host.peer_id, WEARING_PROTOCOL)
    frames = FrameStream(stream)
    size = adapter.manifest.size(BlockRange(0, 6))
    asked = {"session": bytes(16), "model": MODEL, "start": 0, "stop": 6, "tokens": 32}
    asked |= {"dtype": "f32", "adapter": adapter.name, "size": size} | changes
    await frames.send(Wear(**asked))  # type: ignore[arg-type]
    yield frames
    await frames.close()


async def refused(made: World, frames: FrameStream) -> str:
    """Why; and nothing is held for it."""
    told = await heard(frames)
    assert isinstance(told, Fault)
    await frames.close()
    await trio.testing.wait_all_tasks_blocked()
    node = made.nodes[0]
    assert node.engine.caches == [] and node.admission.free_tokens == 10_000
    return told.reason


async def test_what_is_not_the_adapter_that_was_named_is_refused(autojump_clock: MockClock) -> None:
    other, foreign = bundle(2), bundle(model="cd" * 32)
    false = Bundle(ONE.name, ONE.manifest, {**ONE.parts, 4: bytes(300)})
    whole = BlockRange(0, 6)
    async with world((0, 6)) as made:
        for brought, told in ((other, "another adapter"), (false, "block 4 that is not the one")):
            async with opened(made) as frames:
                assert isinstance(await heard(frames), Lacking)
                with suppress(TransportError):  # refused at the manifest
                    await bring(frames, brought, whole)
                assert told in await refused(made, frames)
        async with opened(made, foreign) as frames:
            assert isinstance(await heard(frames), Lacking)
            with suppress(TransportError):
                await bring(frames, foreign, whole)
            assert "another model" in await refused(made, frames)
        async with opened(made, size=17) as frames:
            assert isinstance(await heard(frames), Lacking)
            with suppress(TransportError):
                await bring(frames, ONE, whole)
            assert "not 17" in await refused(made, frames)
        async with opened(made) as frames:
            assert isinstance(await heard(frames), Lacking)
            await frames.send(Bring(), ONE.raw)
            await frames.send(Piece(), bytes(1801))
            assert "another size" in await refused(made, frames)
        async with opened(made) as frames:
            assert isinstance(await heard(frames), Lacking)
            await frames.send(Bring(), bytes(PIECE_BYTES_MAX + 1))
            assert "too large" in await refused(made, frames)


async def test_who_brings_nothing_is_left_and_holds_no_room(autojump_clock: MockClock) -> None:
    async with world((0, 6)) as made:
        admission = made.nodes[0].admission
        async with opened(made) as frames:
            told = await heard(frames)
            assert isinstance(told, Lacking) and WAIT_S <= told.within_s < WAIT_S + 1
            await frames.send(Bring(), ONE.raw)
            await trio.sleep(WAIT_S / 2)
            assert admission.free_tokens < 10_000 - 6 * 32
            await trio.sleep(WAIT_S / 2 + 1)
            assert admission.free_tokens == 10_000


@pytest.mark.parametrize(("pause_s", "answer"), [(0.9, Opened), (1.5, None)])
async def test_each_piece_allows_for_the_time_that_it_takes_at_the_least_rate(
    autojump_clock: MockClock, pause_s: float, answer: type | None
) -> None:
    large = bundle(size=int(BYTES_S * WAIT_S / 6))  # as much again as the first wait
    raw, pieces = b"".join(large.parts.values()), 20  # each half a second's worth
    async with world() as made:
        await made.add(0, 6, cache_tokens=1 << 21)
        async with opened(made, large) as frames:
            assert isinstance(await heard(frames), Lacking)
            await frames.send(Bring(), large.raw)
            said: object = None
            with suppress(TransportError):
                for at in range(0, len(raw), -(-len(raw) // pieces)):
                    await trio.sleep(pause_s)
                    await frames.send(Piece(), raw[at : at - (-len(raw) // pieces)])
                said = await heard(frames)
            assert (said and type(said)) == answer


# ---- what it costs, and whose room it takes


async def dress(made: World, adapter: Bundle) -> FrameStream:
    """A session that wears it, and stays open."""
    host, _ = made.client()
    stream = await host.open_stream(made.nodes[0].host.peer_id, WEARING_PROTOCOL)
    frames = FrameStream(stream)
    size = adapter.manifest.size(BlockRange(0, 6))
    await frames.send(Wear(bytes(16), MODEL, 0, 6, 10, "f32", adapter=adapter.name, size=size))
    told = await heard(frames)
    if isinstance(told, Lacking):
        await bring(frames, adapter, BlockRange(0, 6))
        told = await heard(frames)
    if isinstance(told, Busy):
        raise Refused(told.reason, retry_after_s=told.retry_after_s)
    assert isinstance(told, Opened)
    return frames


def held(node: Node) -> int:
    return 10_000 - node.admission.free_tokens


async def test_free_tokens_tell_of_what_is_worn_and_not_of_what_is_in_the_way(
    autojump_clock: MockClock,
) -> None:
    big = bundle(size=1000)
    async with world((0, 6)) as made:
        node = made.nodes[0]
        first = await dress(made, big)
        worn = -(-6000 // (6 * ROW_BYTES)) * 6
        assert held(node) == 60 + worn
        second = await dress(made, big)
        assert held(node) == 120 + worn, "two sessions wear one"
        for frames in (first, second):
            assert node.wardrobe.idle_bytes == 0
            await frames.close()
            await trio.testing.wait_all_tasks_blocked()
        assert held(node) == 0 and node.wardrobe.idle_bytes == 6000


async def test_adapters_have_a_share_and_the_idle_make_room_for_whoever_needs_it(
    autojump_clock: MockClock,
) -> None:
    budget = int(SHARE * 10_000 * ROW_BYTES)
    half, other, third = (bundle(seed, size=budget // 12) for seed in (1, 2, 3))
    async with world((0, 6)) as made:
        node = made.nodes[0]
        first, second = await dress(made, half), await dress(made, other)
        with pytest.raises(Refused, match="no room for another adapter"):
            await dress(made, third)
        await first.close()
        await trio.testing.wait_all_tasks_blocked()
        await dress(made, third)
        await second.close()
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < node.wardrobe.idle_bytes <= budget
        brought = node.wardrobe.brought_bytes
        await dress(made, other)
        assert node.wardrobe.brought_bytes == brought, "what lay idle is worn again"


async def test_a_session_that_needs_the_room_gets_it_from_what_nobody_wears(
    autojump_clock: MockClock,
) -> None:
    async with world() as made:
        node = await made.add(0, 6, cache_tokens=600)
        small = bundle(size=200)
        await (await dress(made, small)).close()
        await trio.testing.wait_all_tasks_blocked()
        assert node.wardrobe.idle_bytes == 1200
        async with begun(made, tokens=90) as (session, _):  # 540 of 600
            await prompt(session)
            assert node.wardrobe.idle_bytes == 0


# ---- what is signed, and computed again


async def works_of(made: World, adapter: Bundle | None) -> list[Work]:
    found: list[Work] = []
    async with begun(made, receipts=True, works=found.append, adapter=adapter) as (session, _):
        await prompt(session)
        for number in range(4):
            await step(session, number)
        assert await session.settle()
    return found


async def test_work_is_computed_again_under_the_adapter_that_it_wore(
    autojump_clock: MockClock,
) -> None:
    async with world() as made:
        await made.add(0, 6, numerics="adding c1")
        (*_, work) = await works_of(made, ONE)
        assert work.adapter == ONE.name
        other = await made.add(0, 6, numerics="adding c1")
        host, _ = made.client()
        again = await compute_again(host, other.host.peer_id, work, bundle_of={ONE.name: ONE}.get)  # type: ignore[arg-type]
        assert bytes(again.gave) == bytes(work.gave)
        assert other.wardrobe.brought_bytes == 1800
        bare = await compute_again(host, other.host.peer_id, replace(work, adapter=b""))  # type: ignore[arg-type]
        assert bytes(bare.gave) != bytes(work.gave)
        case = Case(work, Limits(()))
        await case.add(again, Inline())
        assert case.judged[other.host.peer_id][0].verdict == "right"
        case = Case(work, Limits(()))
        await case.add(bare, Inline())
        assert case.judged[other.host.peer_id][0].verdict == "wrong", "what must not be asked"
        with pytest.raises(Refused, match="is not here"):
            await compute_again(host, other.host.peer_id, work)  # type: ignore[arg-type]


async def test_an_opening_of_another_adapter_than_was_asked_for_is_refused(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 6), (0, 6)) as made:
        (work, *_) = await works_of(made, ONE)
        (bare, *_) = await works_of(made, None)
        for signed, adapter in ((bare, ONE.name), (work, b""), (work, bundle(2).name)):
            opening = signed.account.opening
            ledger = Ledger(
                opening.session, MODEL, BlockRange(0, 6), 4, "f32", ROW_BYTES, adapter=adapter
            )
            with pytest.raises(RemoteError, match="something else"):
                ledger.opened(
                    1, Hop(signed.peer, opening.blocks), signed.account.raw[0], opening.numerics
                )


def test_nobody_can_be_accused_of_work_that_wore_an_adapter() -> None:
    """Whoever judges would have to be given it; so an honest accuser asks for bare work."""
    stage = Stage("a", 0, 2, adapter=ONE.name)
    stage.step(0, bytes(8), bytes(8))
    stage.cut()
    told = Accusation(
        stage.key.peer_id, stage.account.raw[0], stage.account.raw[1], bytes(32), 0.5, 1.8e9
    )
    with pytest.raises(RemoteError, match="Opening has the fields"):
        check_accusation(sign_accusation(key("b"), told))


async def test_limits_that_were_measured_without_an_adapter_convict_nobody_who_wore_one(
    autojump_clock: MockClock,
) -> None:
    limits = Limits([Limit(MODEL, "adding", "other", 0.5, 100, 0.2)])
    async with world() as made:
        await made.add(0, 6)
        (bare, *_), (work, *_) = await works_of(made, None), await works_of(made, ONE)
    assert Case(bare, limits).comparable("other")
    assert not Case(work, limits).comparable("other")


# ---- on disk


def test_a_shelf_keeps_the_parts_it_was_given_and_gives_nothing_damaged(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    assert shelf.load(ONE.name) is None
    some = Bundle(ONE.name, ONE.manifest, {block: ONE.parts[block] for block in (2, 3)})
    assert shelf.save(some)
    assert shelf.load(ONE.name, BlockRange(2, 4)) == some
    assert shelf.load(ONE.name) is None, "not whole"
    assert shelf.save(ONE) and shelf.load(ONE.name) == ONE
    (tmp_path / "adapters" / ONE.hex / "manifest").write_bytes(bundle(2).raw)
    assert shelf.load(ONE.name) is None


def test_the_longest_unused_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "KEPT_BYTES_MAX", 7500)
    assert KEPT_BYTES_MAX > 7500
    shelf, made = Shelf(tmp_path), [bundle(seed) for seed in range(4)]
    for age, one in enumerate(made):
        assert shelf.save(one)
        for path in (tmp_path / "adapters" / one.hex).iterdir():
            os.utime(path, (1e9 + age, 1e9 + age))
    assert [shelf.load(one.name) is not None for one in made] == [False, True, True, True]
    assert not shelf.save(bundle(size=2000))
