"""What a node holds: it rests and resumes, moves before it leaves, and lets sessions go first."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
from sim.memory_host import MemoryHost, MemoryNet

from potluck.crypto.keys import IdentityKey
from potluck.dht.keyspace import spans_of
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.dht.record import Announcement
from potluck.errors import UserError
from potluck.node import holder as holding
from potluck.node import serving
from potluck.node.config import NodeConfig
from potluck.node.frames import FrameStream
from potluck.node.holder import Holder
from potluck.node.member import Member
from potluck.node.rest import Rest, ask_rest, asked_rest, end_rest, parse_duration
from potluck.node.serving import open_model
from potluck.swarm.blocks import BlockRange, replicas
from potluck.swarm.placement import Move
from potluck.swarm.wire import PROTOCOL, Busy, Leaving, Open, Opened

# ---- resting


def test_a_length_of_time_is_read_or_refused() -> None:
    assert parse_duration("90s") == 90 and parse_duration("1h30m") == 5400
    assert parse_duration("2D") == 172800 and parse_duration("0.5h") == 1800
    for text in ("", "5", "h", "1q", "-1h", "0s", "1h5", "nan", "9999d", "1..2h"):
        with pytest.raises(UserError, match="no length of time"):
            parse_duration(text)


def test_a_rest_ends_by_itself_and_a_damaged_wish_asks_for_nothing(tmp_path: Path) -> None:
    assert asked_rest(tmp_path, 0.0) is None
    ask_rest(tmp_path, Rest(100.0))
    assert asked_rest(tmp_path, 99.0) == Rest(100.0) and asked_rest(tmp_path, 100.0) is None
    ask_rest(tmp_path, Rest(float("inf")))
    assert asked_rest(tmp_path, 1e12) == Rest(float("inf"))
    for text in ("", "{}", "[1]", '{"until_s": "soon"}', "\x00" * 9000):
        (tmp_path / "rest.json").write_text(text)
        assert asked_rest(tmp_path, 0.0) is None
    end_rest(tmp_path)
    end_rest(tmp_path)


# ---- the holder, on the demo model


@asynccontextmanager
async def holder_of(
    home: Path, shelf: MemoryShelf, net: MemoryNet, blocks: str = "auto"
) -> AsyncIterator[Holder]:
    key = IdentityKey.generate()
    host: MemoryHost = net.host(key.peer_id)
    config = NodeConfig(
        home=home, model="demo", blocks=blocks, threads=1, drain_s=1.0, epoch_s=0.5, offline=True
    )
    member = Member(host, MemoryDirectory(key, shelf), None, key)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        model = await trio.to_thread.run_sync(open_model, config)
        holder = Holder(config, member, model, nursery, Random(1))
        await holder.take()
        services = await nursery.start(_served, holder)
        yield holder
        await holder.leave(0.0)
        services.cancel()
        nursery.cancel_scope.cancel()


async def _served(
    holder: Holder, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    async with trio.open_nursery() as services:
        await services.start(holder.keep_told)
        services.start_soon(holder.keep_rest)
        services.start_soon(holder.keep_place)
        task_status.started(services.cancel_scope)


async def reaches(holder: Holder, there: object) -> None:
    """Wait until `there()` holds; each change of the holder is looked at."""
    with trio.fail_after(60):
        while not there():  # type: ignore[operator]  # noqa: ASYNC110  # a thread's work
            await trio.sleep(0.02)


async def test_resting_gives_the_memory_back_and_resuming_serves_again(tmp_path: Path) -> None:
    shelf = MemoryShelf()
    looks = MemoryDirectory(IdentityKey.generate(), shelf)
    async with trio.open_nursery() as nursery:
        async with holder_of(tmp_path, shelf, MemoryNet(nursery)) as holder:
            assert holder.current is not None and holder.current.blocks == BlockRange(0, 8)
            model = holder.model.digest
            assert [one.state for one in await looks.find(model)] == ["online"]
            stage = weakref.ref(holder.current.stage.engine)
            ask_rest(tmp_path, Rest(float("inf")))
            await reaches(holder, lambda: holder.state == "resting")
            assert await looks.find(model) == () and holder.current is None
            assert stage() is None, "somebody still holds the weights"
            end_rest(tmp_path)
            await reaches(holder, lambda: holder.state == "serving")
            await reaches(holder, lambda: bool(shelf.at(spans_of(model))))
            assert [one.state for one in await looks.find(model)] == ["online"]
        nursery.cancel_scope.cancel()


async def test_an_elected_holder_moves_into_the_hole_before_it_leaves_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four on blocks 0:4 of the demo, nobody on 4:8: an emergency, in which age does not count."""
    monkeypatch.setattr(holding, "VIEWS_S", 0.2)
    shelf = MemoryShelf()
    looks = MemoryDirectory(IdentityKey.generate(), shelf)
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        (tmp_path / "one").mkdir()
        async with holder_of(tmp_path / "one", shelf, net, "0:4") as holder:
            holder._config = replace(holder._config, blocks="auto")
            nursery.start_soon(holder.keep_place)
            model = holder.model.digest
            [own] = await looks.find(model)
            for _ in range(3):
                other = MemoryDirectory(IdentityKey.generate(), shelf)
                await other.announce(replace(own, addresses=()))
            await reaches(
                holder, lambda: holder.current and holder.current.blocks == BlockRange(4, 8)
            )
            with trio.fail_after(30):  # it serves what it took, and says so next
                while True:
                    found = await looks.find(model)
                    spans = [BlockRange(told.start, told.stop) for told in found]
                    assert all(replicas(BlockRange(0, 4), spans)), "it left before it was there"
                    if all(replicas(BlockRange(0, 8), spans)):
                        break
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("wanted", [True, False])
async def test_nothing_is_fetched_ahead_for_an_owner_who_does_not_want_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    fetched: list[object] = []

    async def fetch(*rest: object) -> None:
        fetched.append(rest)

    async def elect_nobody(self: Holder, every_s: float) -> None: ...

    monkeypatch.setattr(holding, "keep_ahead", fetch)
    monkeypatch.setattr(Holder, "_keep_electing", elect_nobody)
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        async with holder_of(tmp_path, MemoryShelf(), net, "0:4") as holder:
            holder._config = replace(holder._config, blocks="auto", fetch_ahead=wanted)
            await holder.keep_place()
            assert bool(fetched) == wanted
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def elected(home: Path, shelf: MemoryShelf, net: MemoryNet) -> AsyncIterator[Holder]:
    """A holder of 0:4 beside three others, with no room for other blocks beside these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "fits_beside", lambda *rest: False)
        patch.setattr(holding, "RETRY_S", 0.05)
        async with holder_of(home, shelf, net, "0:4") as holder:
            [own] = await holder._finds.find(holder.model.digest)
            for _ in range(3):
                other = MemoryDirectory(IdentityKey.generate(), shelf)
                await other.announce(replace(own, addresses=()))
            yield holder


def move(holder: Holder) -> Move:
    return Move(holder._member.host.peer_id, BlockRange(4, 8), 1.0)


async def test_who_can_load_neither_the_new_blocks_nor_the_old_rests_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: serving.Model, blocks: BlockRange) -> None:
        raise UserError("the disk is gone")

    shelf = MemoryShelf()
    async with trio.open_nursery() as nursery:
        async with elected(tmp_path, shelf, MemoryNet(nursery)) as holder:
            model, me = holder.model.digest, holder._member.host.peer_id
            with monkeypatch.context() as gone:
                gone.setattr(serving.Model, "open", refuse)
                await holder._move(move(holder), 1)
                assert holder.state == "resting" and holder.trouble == "the disk is gone"
                found = await holder._finds.find(model)
                assert len(found) == 3 and me not in {told.peer for told in found}
            await reaches(holder, lambda: holder.state == "serving")
            assert holder.trouble == "" and holder.current is not None
        nursery.cancel_scope.cancel()


async def test_who_is_to_leave_while_it_moves_joins_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, told = MemoryShelf(), list[str]()
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        client = net.host("client")
        async with elected(tmp_path, shelf, net) as holder:
            announce = holder._member.directory.announce

            async def hear(announcement: Announcement) -> None:
                told.append(announcement.state)
                await announce(announcement)

            monkeypatch.setattr(holder._member.directory, "announce", hear)
            net.hosts[holder._member.host.peer_id].handle(PROTOCOL, holder.serve)
            frames = FrameStream(await client.open_stream(holder._member.host.peer_id, PROTOCOL))
            await frames.send(Open(bytes(16), holder.model.digest, 0, 4, 16, "f32"))
            assert isinstance((await frames.receive() or [None])[0], Opened)
            async with trio.open_nursery() as moving:
                moving.start_soon(holder._move, move(holder), 1)
                await reaches(holder, lambda: holder.state == "draining")
                await holder.leave(0.0)
            assert holder.state == "leaving" and "joining" not in told
        nursery.cancel_scope.cancel()


async def test_a_session_has_time_to_move_until_patience_ends(tmp_path: Path) -> None:
    """At rest the node answers Busy; leaving, it says so, and cuts nobody short but on a second
    request to stop."""
    shelf = MemoryShelf()
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        client = net.host("client")

        async def dial(holder: Holder) -> FrameStream:
            frames = FrameStream(await client.open_stream(holder._member.host.peer_id, PROTOCOL))
            await frames.send(Open(bytes(16), holder.model.digest, 0, 8, 16, "f32"))
            return frames

        async with holder_of(tmp_path, shelf, net) as holder:
            net.hosts[holder._member.host.peer_id].handle(PROTOCOL, holder.serve)
            ask_rest(tmp_path, Rest(float("inf")))
            await reaches(holder, lambda: holder.state == "resting")
            frames = await dial(holder)
            assert isinstance((await frames.receive() or [None])[0], Busy)
            end_rest(tmp_path)
            await reaches(holder, lambda: holder.state == "serving")
            frames = await dial(holder)
            assert isinstance((await frames.receive() or [None])[0], Opened)
            nursery.start_soon(holder.leave, 1000.0)
            with trio.fail_after(30):
                assert isinstance((await frames.receive() or [None])[0], Leaving)
                holder.patience.cancel()
                assert isinstance((await frames.receive() or [None])[0], Busy)
        nursery.cancel_scope.cancel()
