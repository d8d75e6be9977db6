"""Chunks on disk: whole or not there, checked when they are read, and nothing left by a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from potluck.errors import RemoteError, UserError
from potluck.node.chunks import store as stores
from potluck.node.chunks.store import ChunkStore
from potluck.swarm.chunk import Chunk, cut, digest_of


def made(raw: bytes) -> Chunk:
    return Chunk(digest_of(raw), len(raw))


ONE, OTHER = b"one" * 100, b"other" * 50


def test_what_was_put_is_there_for_the_next_process(tmp_path: Path) -> None:
    ChunkStore(tmp_path, 1 << 20).put(made(ONE), ONE)
    again = ChunkStore(tmp_path, 1 << 20)
    assert again.get(made(ONE).digest) == ONE
    assert again.lacks([made(ONE), made(OTHER), made(OTHER)]) == [made(OTHER)]
    assert again.used_bytes() == len(ONE)


@pytest.mark.parametrize("raw", [OTHER, ONE[:-1], b"x" * len(ONE), b""])
def test_other_bytes_are_not_kept(tmp_path: Path, raw: bytes) -> None:
    store = ChunkStore(tmp_path, 1 << 20)
    with pytest.raises(RemoteError, match="are not chunk"):
        store.put(made(ONE), raw)
    assert store.used_bytes() == 0 and not store.has(made(ONE))


def test_a_damaged_chunk_is_no_chunk_and_makes_way_for_a_whole_one(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 1 << 20)
    store.put(made(ONE), ONE)
    (path,) = tmp_path.glob("??/*")
    path.write_bytes(b"?" + ONE[1:])
    assert store.get(made(ONE).digest) is None
    assert not store.has(made(ONE)), "or nobody would fetch it again"
    store.put(made(ONE), ONE)
    assert store.get(made(ONE).digest) == ONE
    path.write_bytes(ONE[:10])
    assert not store.has(made(ONE))


def test_a_file_that_outgrew_every_chunk_is_not_read_whole(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 1 << 20)
    store.put(made(ONE), ONE)
    (path,) = tmp_path.glob("??/*")
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    assert store.get(made(ONE).digest) is None


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ChunkStore(tmp_path, 1 << 20)

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores.os, "fsync", fail)
    with pytest.raises(UserError, match="No space left on device") as told:
        store.put(made(ONE), ONE)
    assert "\n" not in str(told.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_only_what_is_needed_is_kept(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 1 << 20)
    for raw in (ONE, OTHER):
        store.put(made(raw), raw)
    assert store.keep_only([made(OTHER).digest]) == len(ONE)
    assert not store.has(made(ONE)) and store.has(made(OTHER))


def test_a_folder_that_cannot_be_is_told_to_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        ChunkStore(tmp_path / "file" / "chunks", 1)


KILLED = """
import sys, pathlib
from potluck.node.chunks.store import ChunkStore
from potluck.swarm.chunk import Chunk, digest_of
store = ChunkStore(pathlib.Path(sys.argv[1]), 1 << 30)
number = 0
while True:
    raw = number.to_bytes(8) * 4000
    store.put(Chunk(digest_of(raw), len(raw)), raw)
    print(number, flush=True)
    number += 1
"""


def test_after_kill_9_every_chunk_is_whole_and_all_that_were_put_are_there(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = -1
    while told < 20:
        told = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    told = max([told, *map(int, process.stdout.read().split())])
    process.wait()
    process.stdout.close()
    store = ChunkStore(tmp_path, 1 << 30)
    for number in range(told + 1):
        raw = number.to_bytes(8) * 4000
        assert store.has(made(raw)) and store.get(made(raw).digest) == raw
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) in (told + 1, told + 2), "nothing unfinished stays"


def test_bytes_are_cut_into_equal_chunks_and_a_rest() -> None:
    assert [bytes(one) for one in cut(b"abcdefg", 3)] == [b"abc", b"def", b"g"]
    assert [bytes(one) for one in cut(b"abcdef", 3)] == [b"abc", b"def"]
    assert list(cut(b"", 3)) == []
