"""Blocks kept on disk come back as they were, or are made anew."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_random
from hypothesis import given
from hypothesis import strategies as st

from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.layout import weight_shapes
from potluck.node.compute.native.library import is_available
from potluck.node.compute.native.linear import Pool
from potluck.node.compute.quant import blocks, larder
from potluck.node.compute.quant import checksum as sums
from potluck.node.compute.quant.blocks import block_weights
from potluck.node.compute.quant.checksum import checksum
from potluck.node.compute.quant.formats import QUANTIZATIONS
from potluck.node.compute.quant.larder import Key, Larder

KEY = Key("ab" * 32, 3, "nf4", "rows1")
POOL = Pool(2) if is_available() else None
BUFFERS = {
    "codes": torch.arange(100_000, dtype=torch.int32).view(100, 1000),
    "scales": torch.randn(7),
    "norm": torch.randn(3, 5).to(torch.bfloat16),
    "none": torch.empty((0, 4)),
    "odd": torch.arange(5, dtype=torch.uint8),
}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def test_a_block_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = Larder(tmp_path / "new")
    assert kept.get(KEY) is None
    assert kept.put(KEY, BUFFERS, {"width": 64})
    found = kept.get(KEY)
    assert found is not None
    assert found.facts == {"width": 64}
    assert equal(found.buffers, BUFFERS)
    assert all(one.data_ptr() % 64 == 0 for one in found.buffers.values() if one.numel())
    assert kept.size() == kept.path(KEY).stat().st_size


def test_a_view_is_kept_as_what_it_shows(tmp_path: Path) -> None:
    kept = Larder(tmp_path)
    matrix = torch.randn(6, 8)
    kept.put(KEY, {"turned": matrix.t(), "part": matrix[2:4, 1:]})
    found = kept.get(KEY)
    assert found is not None
    assert torch.equal(found.buffers["turned"], matrix.t())
    assert torch.equal(found.buffers["part"], matrix[2:4, 1:])


@pytest.mark.parametrize(
    "other",
    [
        Key("ac" * 32, 3, "nf4", "rows1"),
        Key("ab" * 32, 4, "nf4", "rows1"),
        Key("ab" * 32, 3, "int8", "rows1"),
        Key("ab" * 32, 3, "nf4", "rows2"),
    ],
)
def test_another_key_is_another_block(tmp_path: Path, other: Key) -> None:
    kept = Larder(tmp_path)
    kept.put(KEY, BUFFERS)
    assert kept.get(other) is None
    assert kept.path(other) != kept.path(KEY)
    kept.path(other).parent.mkdir(exist_ok=True)
    os.replace(kept.path(KEY), kept.path(other))  # a file under a name that is not its own
    assert kept.get(other) is None


@pytest.mark.parametrize("part", ["../x", "", "a/b", "a b"])
def test_a_key_cannot_leave_the_folder(part: str) -> None:
    with pytest.raises(ValueError, match="cannot be part"):
        Key("ab", 0, "nf4", part)


@given(st.data())
def test_any_changed_byte_is_found_and_the_file_is_removed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kept = Larder(tmp_path_factory.mktemp("larder"), pool=POOL)
    kept.put(KEY, BUFFERS)
    path = kept.path(KEY)
    raw = bytearray(path.read_bytes())
    found = kept.get(KEY)
    assert found is not None
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.unlink()  # `found` maps the old file still
    path.write_bytes(raw)
    again = kept.get(KEY)
    if again is None:
        assert not path.exists()
    else:  # a gap between two buffers: nothing reads it
        assert equal(again.buffers, BUFFERS)
    assert equal(found.buffers, BUFFERS)


@pytest.mark.parametrize("size", [0, 1, 20, 60, 1000, 200_000])
def test_a_file_cut_short_is_removed(tmp_path: Path, size: int) -> None:
    kept = Larder(tmp_path)
    kept.put(KEY, BUFFERS)
    path = kept.path(KEY)
    path.write_bytes(path.read_bytes()[:size])
    assert kept.get(KEY) is None
    assert not path.exists()
    assert kept.put(KEY, BUFFERS) and kept.get(KEY) is not None


def test_what_was_read_longest_ago_goes_first(tmp_path: Path) -> None:
    """Three blocks fit. The oldest is read again, so the second goes for the fourth."""
    one = {"codes": torch.zeros(100_000, dtype=torch.uint8)}
    kept = Larder(tmp_path, bytes_max=310_000)
    keys = [Key("ab" * 32, block, "int8", "rows1") for block in range(4)]
    for at, key in enumerate(keys[:3]):
        assert kept.put(key, one)
        os.utime(kept.path(key), (at, at))
    assert kept.get(keys[0]) is not None
    assert kept.put(keys[3], one)
    assert [kept.path(key).exists() for key in keys] == [True, False, True, True]
    assert kept.size() <= 310_000


def test_what_is_larger_than_the_bound_is_not_kept_and_costs_nothing(tmp_path: Path) -> None:
    kept = Larder(tmp_path, bytes_max=150_000)
    small = {"codes": torch.zeros(100_000, dtype=torch.uint8)}
    assert kept.put(KEY, small)
    assert not kept.put(Key("ab" * 32, 4, "nf4", "rows1"), BUFFERS)
    assert kept.get(KEY) is not None


def test_a_block_put_again_replaces_itself_alone(tmp_path: Path) -> None:
    one = {"codes": torch.zeros(100_000, dtype=torch.uint8)}
    kept = Larder(tmp_path, bytes_max=210_000)
    other = Key("ab" * 32, 9, "nf4", "rows1")
    assert kept.put(other, one) and kept.put(KEY, one) and kept.put(KEY, one)
    assert kept.get(other) is not None and kept.get(KEY) is not None


def test_a_nearly_full_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Larder(tmp_path)
    monkeypatch.setattr(larder, "_DISK_LEFT_BYTES", 1 << 60)
    assert not kept.put(KEY, BUFFERS)
    assert kept.size() == 0


def test_where_nothing_can_be_written_blocks_are_made_anew(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = Larder(tmp_path / "file" / "larder")
    assert not kept.put(KEY, BUFFERS)
    assert kept.get(KEY) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk to be had that is full")
def test_a_disk_that_fills_up_while_a_block_is_written_costs_nothing_but_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full takes no byte. What was kept before is left, and nothing half-written."""
    kept = Larder(tmp_path)
    assert kept.put(KEY, BUFFERS)
    before = set(tmp_path.rglob("*"))
    real = os.fdopen

    def full(handle: int, mode: str) -> object:
        os.close(handle)
        return real(os.open("/dev/full", os.O_WRONLY), mode)

    with monkeypatch.context() as patch:
        patch.setattr(larder.os, "fdopen", full)
        assert not kept.put(Key("ab" * 32, 4, "nf4", "rows1"), BUFFERS)
        assert not kept.put(KEY, BUFFERS)
    assert set(tmp_path.rglob("*")) == before
    found = kept.get(KEY)
    assert found is not None and equal(found.buffers, BUFFERS)


WRITER = """
import sys
import time
from pathlib import Path
import torch
from potluck.node.compute.quant.larder import Key, Larder
kept = Larder(Path(sys.argv[1]))
print("begun", flush=True)
while True:
    for value in (1, 2):
        block = {name: torch.full((1 << 20,), value) for name in ("one", "two")}
        kept.put(Key("ab" * 32, 3, "nf4", "rows1"), block)
"""


def test_of_two_writers_of_which_one_is_killed_a_reader_sees_whole_blocks(tmp_path: Path) -> None:
    """Each writes blocks of ones or of twos, to one name; both are killed where they stand."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    kept, seen = Larder(tmp_path), 0

    def look() -> None:
        nonlocal seen
        if (found := kept.get(KEY)) is not None:
            seen += 1
            value = int(found.buffers["one"][0])
            assert all((one == value).all() for one in found.buffers.values())

    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
        while seen < 20:
            look()
        writers[0].kill()
        writers[0].wait()
        for _ in range(20):
            look()
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    look()
    assert kept.put(KEY, BUFFERS) and kept.get(KEY) is not None
    assert set(tmp_path.rglob("*.block")) == {kept.path(KEY)}


def test_half_written_files_of_the_past_are_swept(tmp_path: Path) -> None:
    kept = Larder(tmp_path)
    kept.put(KEY, BUFFERS)
    old, new = (kept.path(KEY).parent / name for name in ("new-old", "new-new"))
    for path in (old, new):
        path.write_bytes(b"half")
    an_hour_ago = time.time() - 3600
    os.utime(old, (an_hour_ago, an_hour_ago))
    kept.put(KEY, BUFFERS)
    assert not old.exists() and new.exists()


@given(st.binary(max_size=200), st.integers(0, 30), st.integers(0, 2**32))
def test_c_and_numpy_sum_alike(tail: bytes, lines: int, seed: int) -> None:
    if not is_available():
        pytest.skip("the C library is not built here")
    data = np.random.default_rng(seed).bytes(lines * 8 * 4096) + tail
    mine = checksum(memoryview(data))
    assert checksum(memoryview(data), Pool(2)) == mine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "is_available", lambda: False)
        assert checksum(memoryview(data)) == mine


def test_lines_that_change_places_change_the_sum() -> None:
    words = np.arange(3 * 4096, dtype=np.uint64).reshape(3, 4096)
    sums = {checksum(memoryview(words.tobytes()))}
    sums.add(checksum(memoryview(words[[1, 0, 2]].copy().tobytes())))
    swapped = words.copy()
    swapped[0, [5, 6]] = swapped[0, [6, 5]]
    sums.add(checksum(memoryview(swapped.tobytes())))
    sums.add(checksum(memoryview(words[:2].copy().tobytes())))
    assert len(sums) == 4


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_a_block_is_quantized_once(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_random(tmp_path, "llama", hidden_size=64, intermediate_size=80, num_hidden_layers=2)
    checkpoint = open_checkpoint(tmp_path)
    names = [one for one, shape in weight_shapes(checkpoint.spec, 1).items() if len(shape) == 2]
    kept = Larder(tmp_path / "larder")
    quantization = QUANTIZATIONS[format]  # type: ignore[index]
    digest = checkpoint.digest()
    first = block_weights(checkpoint, 1, names, quantization, digest=digest, larder=kept)
    made = []
    real = blocks.weights_of
    monkeypatch.setattr(blocks, "weights_of", lambda *all: made.append(all) or real(*all))
    again = block_weights(checkpoint, 1, names, quantization, digest=digest, larder=kept)
    assert not made
    assert list(again) == names
    for name in names:
        one, other = first[name], again[name]
        assert (one.format, one.rows, one.columns) == (other.format, other.rows, other.columns)
        assert torch.equal(one.codes, other.codes) and torch.equal(one.scales, other.scales)
    raw = bytearray(kept.path(Key(digest, 1, format, blocks.LAYOUT)).read_bytes())
    raw[-1] ^= 1
    kept.path(Key(digest, 1, format, blocks.LAYOUT)).write_bytes(raw)
    block_weights(checkpoint, 1, names, quantization, digest=digest, larder=kept)
    assert len(made) == 1  # damaged: made anew, and kept again
    block_weights(checkpoint, 1, names, quantization, digest=digest, larder=kept)
    assert len(made) == 1


def test_what_the_checkpoint_stores_is_not_kept_twice(tmp_path: Path) -> None:
    save_random(tmp_path, "llama", hidden_size=64, num_hidden_layers=1)
    checkpoint = open_checkpoint(tmp_path)
    names = ["model.layers.0.mlp.up_proj.weight"]
    kept = Larder(tmp_path / "larder")
    found = block_weights(checkpoint, 0, names, QUANTIZATIONS["none"], digest="ab", larder=kept)
    assert found[names[0]].format == "none"
    assert kept.size() == 0
