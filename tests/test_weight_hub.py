"""Parts of the hub's files: a checkpoint that fetches its own blocks' bytes, and no others."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import trio
from hubs import use
from sim.memory_host import MemoryNet

from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.errors import TransportError, UserError
from potluck.node.bench.hub import COMMIT, MODEL, LocalHub, open_hub
from potluck.node.chunks.serve import ChunkServer
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.loading import fetch_blocks
from potluck.node.compute.shapes import write_random
from potluck.node.weights.ask import TableServer
from potluck.node.weights.library import Library
from potluck.node.weights.poison import Poisoners
from potluck.node.weights.pull import Puller, Ways
from potluck.node.weights.root import HubRoot
from potluck.node.weights.service import Weights, whole_files
from potluck.swarm.blocks import BlockRange
from potluck.swarm.chunk import CHUNK_BYTES
from potluck.swarm.chunk import PROTOCOL as CHUNKS
from potluck.swarm.weights import PROTOCOL


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 MiB in one file: 8 blocks of 3 MiB, and the embedding."""
    folder = tmp_path_factory.mktemp("model")
    write_random(folder, "tiny")
    return folder


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with open_hub(model) as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        yield hub


def test_the_root_gives_exactly_the_bytes_that_are_asked_for(hub: LocalHub, model: Path) -> None:
    raw = (model / "model.safetensors").read_bytes()
    root = HubRoot(MODEL, COMMIT, "model.safetensors")
    assert root.read(5, 1005) == raw[5:1005] and hub.sent_bytes == 1000
    assert root.read(len(raw) - 7, len(raw)) == raw[-7:]
    with pytest.raises(TransportError, match="does not give"):
        root.read(len(raw) - 7, len(raw) + 7)
    with pytest.raises(TransportError, match="absent"):
        HubRoot(MODEL, COMMIT, "absent.safetensors").read(0, 8)
    hub.down = True
    with pytest.raises(TransportError, match="503"):
        root.read(0, 8)


Work = Callable[[Weights], None]


def among(folder: Path, *works: Work) -> list[Weights]:
    """One peer after another does its work, in a thread of its own, and stays."""
    made: list[Weights] = []

    async def run() -> None:
        shelf = MemoryShelf()
        async with trio.open_nursery() as nursery:
            net = MemoryNet(nursery)
            for number, work in enumerate(works):
                key = IdentityKey.generate()
                host, home = net.host(key.peer_id), folder / f"n{number}"
                library = Library(home)
                directory = MemoryDirectory(key, shelf)
                puller = Puller(
                    host, directory, library, Poisoners(home), Ways(key.peer_id), random.Random(1)
                )
                weights = Weights(library, puller, directory, nursery, key.peer_id)
                host.handle(CHUNKS, ChunkServer(library).serve)
                host.handle(PROTOCOL, TableServer(key, library.table).serve)
                await trio.to_thread.run_sync(work, weights)
                made.append(weights)
            nursery.cancel_scope.cancel()

    trio.run(run)
    return made


def opened(weights: Weights) -> Checkpoint:
    return open_checkpoint(MODEL, home=weights.library.root.parent, supply=weights)


def test_a_node_of_two_blocks_brings_their_bytes_and_no_others(
    hub: LocalHub, model: Path, tmp_path: Path
) -> None:
    local = open_checkpoint(model)
    size = (model / "model.safetensors").stat().st_size

    def load(weights: Weights) -> None:
        checkpoint = opened(weights)
        assert checkpoint.digest() == local.digest()
        fetch_blocks(checkpoint, BlockRange(2, 4))
        before = hub.sent_bytes
        names = [one for one in local.names if ".layers.2." in one or ".layers.3." in one]
        mine, theirs = checkpoint.tensors(names), local.tensors(names)
        assert all(torch.equal(mine[one], theirs[one]) for one in names)
        assert hub.sent_bytes == before, "all had come at once"

    (weights,) = among(tmp_path, load)
    need = sum(one.stop - one.start for name in local.names if ".layers.2." in name
               or ".layers.3." in name for one in [local.entry(name)])  # fmt: skip
    assert need <= hub.sent_bytes <= need + 8 * CHUNK_BYTES < size
    assert not list((tmp_path / "cache").rglob("*.safetensors")), "the hub's cache holds no parts"
    assert weights.library.used_bytes() == hub.sent_bytes


def test_the_next_has_it_from_the_first_and_the_whole_model_is_right(
    hub: LocalHub, model: Path, tmp_path: Path
) -> None:
    def load(weights: Weights) -> None:
        opened(weights).fetch_all()

    first, second = among(tmp_path, load, load)
    alone = open_checkpoint(MODEL, home=tmp_path / "n1", offline=True)
    assert alone.names == open_checkpoint(model).names, "a client finds what was pulled"
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    size = (model / "model.safetensors").stat().st_size
    assert hub.sent_bytes <= size + 3 * CHUNK_BYTES, "the header, before all is asked for"
    for weights in (first, second):
        (file,) = weights.library.files()
        assert file.about.whole and file.about.model == f"{MODEL}@{COMMIT[:12]}"
        assert hashlib.sha256(file.path.read_bytes()).hexdigest() == file.about.sha256


def test_what_the_hubs_cache_holds_is_used_where_it_is_and_given_to_others(
    hub: LocalHub, model: Path, tmp_path: Path
) -> None:
    open_checkpoint(MODEL).fetch(open_checkpoint(model).names)  # as any tool of the hub does
    size = hub.sent_bytes
    assert size == (model / "model.safetensors").stat().st_size

    def share(weights: Weights) -> None:
        checkpoint = opened(weights)
        checkpoint.fetch_all()
        trio.from_thread.run(weights.share, lambda: whole_files(checkpoint, "pet"))
        assert weights.library.used_bytes() == 0

    def load(weights: Weights) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "other"))
            opened(weights).fetch_all()

    first, second = among(tmp_path, share, load)
    assert hub.sent_bytes <= size + 3 * CHUNK_BYTES
    (file,) = first.library.files()
    assert str(tmp_path / "cache") in str(file.path) or file.path.resolve() == file.path
    assert second.library.used_bytes() == size


def test_who_waits_for_bytes_when_all_ends_is_told(hub: LocalHub, tmp_path: Path) -> None:
    hub.bytes_s = 1 << 20
    ended: list[str] = []

    async def run() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
            key = IdentityKey.generate()
            library = Library(tmp_path)
            directory = MemoryDirectory(key, MemoryShelf())
            puller = Puller(
                MemoryNet(nursery).host(key.peer_id), directory, library,
                Poisoners(tmp_path), Ways(key.peer_id), random.Random(1),
            )  # fmt: skip
            weights = Weights(library, puller, directory, nursery, key.peer_id)

            def load() -> None:
                try:
                    opened(weights).fetch_all()
                except UserError as error:
                    ended.append(str(error))

            outer.start_soon(trio.to_thread.run_sync, load)
            await trio.to_thread.run_sync(hub.began.wait)
            nursery.cancel_scope.cancel()

    trio.run(run)
    assert ended == ["the process ends"]


def test_facts_of_all_files_are_remembered_for_the_next_start(
    hub: LocalHub, model: Path, tmp_path: Path
) -> None:
    def load(weights: Weights) -> None:
        opened(weights).digest()

    among(tmp_path, load)
    known = json.loads((tmp_path / "n0" / "digests.json").read_text())
    assert [sorted(one) for key, one in known.items() if key.startswith("hub\0")] == [
        ["model.safetensors"]
    ]
