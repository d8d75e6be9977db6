"""Parts of weight files on disk: kept through kill -9, never copied, never more than the budget."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from potluck.errors import RemoteError, UserError
from potluck.node.weights.library import WEIGHTS, Library, hold_weights, listed
from potluck.node.weights.parts import DATA, PIECES, About, Into, PieceFile
from potluck.swarm.chunk import CHUNK_BYTES, Chunk, Forged, digest_of

SIZE = 3 * CHUNK_BYTES + 100
RAW = random.Random(3).randbytes(SIZE)
PIECES_OF = [RAW[at : at + CHUNK_BYTES] for at in range(0, SIZE, CHUNK_BYTES)]


def about(raw: bytes = RAW, name: str = "model.safetensors", **more: object) -> About:
    return About(hashlib.sha256(raw).hexdigest(), len(raw), "org/model", name, **more)  # type: ignore[arg-type]


def filled(library: Library, raw: bytes = RAW, *, vouched: bool = False) -> PieceFile:
    file = library.have(about(raw))
    for index, at in enumerate(range(0, len(raw), CHUNK_BYTES)):
        file.put(index, raw[at : at + CHUNK_BYTES], vouched=vouched)
    return file


def test_a_file_of_parts_is_as_long_as_the_whole_and_holds_what_came(tmp_path: Path) -> None:
    library = Library(tmp_path)
    file = library.have(about())
    assert file.path.stat().st_size == SIZE and file.lacks(range(4)) == [0, 1, 2, 3]
    file.put(3, PIECES_OF[3], vouched=True)
    file.put(1, PIECES_OF[1], vouched=False)
    again = Library(tmp_path).file(file.sha256)
    assert again is not None and again.lacks(range(4)) == [0, 2]
    assert again.piece(1) == PIECES_OF[1] and again.piece(3) == PIECES_OF[3]
    assert again.vouched() == {3: digest_of(PIECES_OF[3])}
    assert again.bytes_here() == CHUNK_BYTES + 100
    with pytest.raises(RemoteError):
        file.put(0, PIECES_OF[0][:-1], vouched=True)


@pytest.mark.parametrize("cut", [1, 20, 41])
def test_a_journal_that_was_cut_off_names_what_is_whole(tmp_path: Path, cut: int) -> None:
    file = filled(Library(tmp_path))
    journal = file.folder / PIECES
    os.truncate(journal, journal.stat().st_size - cut)
    again = PieceFile(file.folder, file.about)
    assert again.lacks(range(4)) == [3]
    again.put(3, PIECES_OF[3], vouched=False)  # behind what was whole
    assert PieceFile(file.folder, file.about).lacks(range(4)) == []


def test_a_record_of_rubbish_ends_the_journal(tmp_path: Path) -> None:
    file = filled(Library(tmp_path))
    raw = bytearray((file.folder / PIECES).read_bytes())
    raw[50] ^= 1  # in the second
    (file.folder / PIECES).write_bytes(raw)
    assert PieceFile(file.folder, file.about).lacks(range(4)) == [1, 2, 3]


def test_a_piece_that_the_disk_has_changed_is_given_to_nobody_and_fetched_again(
    tmp_path: Path,
) -> None:
    library = Library(tmp_path)
    file = filled(library)
    with file.path.open("r+b") as opened:
        opened.seek(CHUNK_BYTES + 5)
        opened.write(b"!")
    assert library.get(digest_of(PIECES_OF[1])) is None and file.lacks(range(4)) == [1]
    assert library.get(digest_of(PIECES_OF[2])) == PIECES_OF[2]
    assert library.get(digest_of(b"no piece")) is None


def test_whole_means_that_the_sha256_is_right(tmp_path: Path) -> None:
    library = Library(tmp_path)
    file = filled(library)
    assert not file.vouched() and library.whole(file) and len(file.vouched()) == 4
    assert Library(tmp_path).files()[0].about.whole
    other = library.have(about(RAW[:-1] + b"?"))
    for index, raw in enumerate(PIECES_OF):
        other.put(index, raw, vouched=False)
    assert not library.whole(other) and not other.vouched()


def test_what_lies_elsewhere_is_given_from_there_never_copied_nor_removed(tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "cache" / "model.safetensors"
    cache.parent.mkdir()
    cache.write_bytes(RAW)
    library = Library(home)
    file = library.adopt(cache, about())
    assert file is not None and file.path == cache and file.bytes_here() == 0
    assert library.get(digest_of(PIECES_OF[2])) == PIECES_OF[2]
    assert sum(one.stat().st_size for one in (home / WEIGHTS).glob("*/*")) < 4096
    again = Library(home)
    assert again.table(file.sha256) == library.table(file.sha256)
    again.remove(file.sha256)
    assert cache.read_bytes() == RAW and not list(listed(home))
    assert library.adopt(cache, about(RAW[:-1])) is None, "it is not what its sha256 says"
    Library(home).adopt(cache, about())
    cache.write_bytes(RAW + b"more")
    assert Library(home).table(file.sha256) is None, "it has changed"


def test_parts_are_given_up_when_the_whole_file_turns_up_elsewhere(tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    file = filled(library)
    cache = tmp_path / "model.safetensors"
    cache.write_bytes(RAW)
    assert library.adopt(cache, about()) is file and not (file.folder / DATA).exists()
    assert library.get(digest_of(PIECES_OF[0])) == PIECES_OF[0] and library.used_bytes() == 0


def test_what_the_swarm_needs_least_makes_room(tmp_path: Path) -> None:
    raws = {name: os.urandom(2 * CHUNK_BYTES) for name in ("many", "few", "none")}
    copies = {hashlib.sha256(raws[name]).hexdigest(): n for name, n in (("many", 9), ("few", 2))}
    for raw in raws.values():
        filled(Library(tmp_path), raw)
    library = Library(tmp_path, bytes_max=7 * CHUNK_BYTES)
    library.copies = lambda told: copies.get(told.sha256, 0)
    assert library.make_room(CHUNK_BYTES) == []
    gone = library.make_room(2 * CHUNK_BYTES)
    assert [one.sha256 for one in gone] == [hashlib.sha256(raws["many"]).hexdigest()]
    none = library.have(about(raws["none"]))  # from now on it is in use
    with pytest.raises(UserError, match="--max-weights"):
        library.make_room(6 * CHUNK_BYTES)
    assert [one.sha256 for one in library.prune()] == [hashlib.sha256(raws["few"]).hexdigest()]
    assert library.files() == [none]


def test_chunks_become_pieces_where_they_belong(tmp_path: Path) -> None:
    file = Library(tmp_path).have(about(bytes(SIZE)))
    zeros, last = bytes(CHUNK_BYTES), bytes(100)
    into = Into(file, {digest_of(zeros): [0, 1, 2], digest_of(last): [3]})
    chunks = [Chunk(digest_of(zeros), CHUNK_BYTES), Chunk(digest_of(last), 100)]
    assert into.lacks(chunks * 2) == chunks
    with pytest.raises(Forged):
        into.put(chunks[0], bytes(CHUNK_BYTES - 1) + b"!")
    into.put(chunks[0], zeros)
    assert into.lacks(chunks) == chunks[1:] and file.lacks(range(4)) == [3]


def test_one_process_writes(tmp_path: Path) -> None:
    with (
        hold_weights(tmp_path),
        pytest.raises(UserError, match="stop it first"),
        hold_weights(tmp_path),
    ):
        pass
    with hold_weights(tmp_path):
        pass


def broken(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


@pytest.mark.parametrize(
    "harm", [broken("{"), broken("[]"), broken(json.dumps({"sha256": "zz"})), os.unlink]
)
def test_what_cannot_be_read_is_passed_over(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    file = filled(Library(tmp_path))
    harm(file.folder / "about")
    assert not list(listed(tmp_path)) and Library(tmp_path).files() == []
    assert filled(Library(tmp_path)).lacks(range(4)) == []
