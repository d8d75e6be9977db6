"""Chunks over memory roads: from many at once, checked, resumed; and no peer can do harm."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from chunk_world import NAMES, RAW_OF, RAWS, WANTED, Answer, all_of, whole, world
from sim.memory_host import MemoryStream
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.errors import TransportError, UserError
from potluck.node.chunks import store as stores
from potluck.node.chunks.fetch import WAIT_S
from potluck.node.chunks.store import ChunkStore
from potluck.node.letters import send_letter
from potluck.swarm.chunk import Chunk, Have, Want
from potluck.swarm.fetching import STALLED_S


async def test_all_comes_from_several_at_once_and_each_chunk_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        for peer in "abc":
            made.serve(peer)
        fetcher = made.fetcher()
        await fetcher.fetch(WANTED, all_of("a", "b", "c"))
        assert whole(made.folder)
        assert all(made.asked[peer] for peer in "abc"), "each of them gave something"
        assert sum(map(len, made.asked.values())) == len(WANTED)
        assert fetcher.received_bytes == sum(map(len, RAWS))
        await fetcher.fetch(WANTED, all_of("a", "b", "c"))
        assert sum(map(len, made.asked.values())) == len(WANTED), "what is there is not asked for"
        assert made.blamed == [] and made.net.faults == []


async def test_wrong_bytes_are_found_at_once_and_whoever_sent_them_is_blamed_and_dropped(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def lie(stream: MemoryStream, want: Want) -> None:
        for name in want.chunks:
            raw = RAW_OF[name][:-1] + b"!"
            await send_letter(stream, encode(Have(len(raw))))
            await stream.send(raw)

    async with world(tmp_path) as made:
        made.answer("liar", lie)
        made.serve("good")
        fetcher = made.fetcher()
        await fetcher.fetch(WANTED[:20], all_of("liar", "good"))
        await fetcher.fetch(WANTED, all_of("liar", "good"))
        assert whole(made.folder)
        ((peer, why),) = made.blamed
        assert peer == "liar" and "are not chunk" in why
        assert len(made.asked["liar"]) == 1, "one lie is enough, for the next fetch too"


async def say_junk(stream: MemoryStream, want: Want) -> None:
    await send_letter(stream, b"junk")


async def say_much(stream: MemoryStream, want: Want) -> None:
    await stream.send((1 << 31).to_bytes(4), bytes(1 << 16))


async def say_too_large(stream: MemoryStream, want: Want) -> None:
    await send_letter(stream, encode(Have(1 << 20)))


async def ask_back(stream: MemoryStream, want: Want) -> None:
    await send_letter(stream, encode(want))


@pytest.mark.parametrize("answer", [say_junk, say_much, say_too_large, ask_back])
async def test_nonsense_is_blamed_and_the_rest_comes_from_others(
    autojump_clock: MockClock, tmp_path: Path, answer: Answer
) -> None:
    async with world(tmp_path) as made:
        made.answer("fool", answer)
        made.serve("good")
        await made.fetcher().fetch(WANTED, all_of("fool", "good"))
        assert whole(made.folder)
        assert [peer for peer, _ in made.blamed] == ["fool"]


async def say_nothing(stream: MemoryStream, want: Want) -> None:
    await trio.sleep_forever()


async def say_half(stream: MemoryStream, want: Want) -> None:
    raw = RAW_OF[want.chunks[0]]
    await send_letter(stream, encode(Have(len(raw))))
    await stream.send(raw[:10])
    await trio.sleep_forever()


async def leave(stream: MemoryStream, want: Want) -> None:
    return


@pytest.mark.parametrize("answer", [say_nothing, say_half, leave])
async def test_who_stops_holds_up_nothing_and_is_not_blamed(
    autojump_clock: MockClock, tmp_path: Path, answer: Answer
) -> None:
    async with world(tmp_path) as made:
        made.answer("stops", answer)
        made.serve("good", has=NAMES[1:])
        made.serve("late", has=NAMES[:1])
        began_s = trio.current_time()
        await made.fetcher().fetch(WANTED, all_of("stops", "good", "late"))
        assert whole(made.folder) and made.blamed == []
        assert trio.current_time() - began_s < STALLED_S + 1 < WAIT_S


async def test_what_is_with_nobody_is_said_and_the_rest_is_there(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        made.serve("a", has=NAMES[:30])
        made.serve("b", has=NAMES[5:35])
        with pytest.raises(TransportError, match="5 of 40 chunks are with nobody"):
            await made.fetcher().fetch(WANTED, all_of("a", "b", "away"))
        store = ChunkStore(made.folder, 1 << 30)
        assert store.lacks(WANTED) == WANTED[35:] and made.blamed == []


async def test_after_a_kill_nothing_is_fetched_twice(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The process ends at any moment; what stays is the folder."""
    async with world(tmp_path) as made:
        made.serve("a")
        with trio.CancelScope() as life:
            store = ChunkStore(made.folder, 1 << 30)
            put, count = store.put, iter(range(17))

            def die_at_the_end(chunk: Chunk, raw: Any) -> None:
                put(chunk, raw)
                if next(count, None) is None:
                    trio.from_thread.run_sync(life.cancel)

            store.put = die_at_the_end  # type: ignore[method-assign]
            await made.fetcher(store).fetch(WANTED, all_of("a"))
        before = len(WANTED) - len(ChunkStore(made.folder, 1 << 30).lacks(WANTED))
        assert 17 <= before < len(WANTED)
        made.asked["a"].clear()
        fetcher = made.fetcher()
        await fetcher.fetch(WANTED, all_of("a"))
        assert whole(made.folder)
        assert len(made.asked["a"]) == len(WANTED) - before


async def test_a_disk_that_fills_up_ends_the_fetch_with_one_line_and_keeps_what_came(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(12))
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    async with world(tmp_path) as made:
        for peer in "ab":
            made.serve(peer)
        monkeypatch.setattr(stores.os, "fsync", fsync)
        with pytest.raises(UserError, match="No space left"):
            await made.fetcher().fetch(WANTED, all_of("a", "b"))
        monkeypatch.undo()
        assert len(ChunkStore(made.folder, 1 << 30).lacks(WANTED)) == len(WANTED) - 12
        await made.fetcher().fetch(WANTED, all_of("a", "b"))
        assert whole(made.folder) and made.blamed == []


async def test_more_than_there_is_room_for_is_not_begun(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        made.serve("a")
        store = ChunkStore(made.folder, sum(map(len, RAWS)) - 1)
        with pytest.raises(UserError, match="allow more"):
            await made.fetcher(store).fetch(WANTED, all_of("a"))
        assert made.asked["a"] == []
