"""`potluck node -m auto`: the model that needs a peer most, if it is what goes by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.dht.record import Announcement
from potluck.errors import UserError
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.shapes import write_random
from potluck.node.config import RUNNING, ModelWish, NodeConfig
from potluck.node.library import DEMO, DEMO_FOLDER
from potluck.node.wanted import open_models


@pytest.fixture
def digests(tmp_path: Path) -> dict[str, str]:
    """Of the two models of this machine."""
    write_random(tmp_path / "tiny", "tiny")
    told = {"name": "tiny", "source": str(tmp_path / "tiny")}
    (tmp_path / RUNNING).write_text(json.dumps({"name": "x", "others": [told]}))
    sources = {DEMO: str(DEMO_FOLDER), "tiny": told["source"]}
    return {
        name: open_checkpoint(source, offline=True, home=tmp_path).digest()
        for name, source in sources.items()
    }


async def serve(shelf: MemoryShelf, name: str, model: str, asked: float, *, stop: int = 8) -> None:
    key = IdentityKey.generate()
    told = Announcement(
        model=model, name=name, start=0, stop=stop, blocks=8, state="online", device="cpu",
        dtype="float32", quantization="none", decode_tokens_s=800.0, prefill_tokens_s=800.0,
        addresses=(), cache_tokens_free=1000, context_tokens_max=64, numerics="c1", version="0",
        asked_tokens_s=asked,
    )  # fmt: skip
    await MemoryDirectory(key, shelf).announce(told)


async def opened(home: Path, shelf: MemoryShelf, *models: str) -> list[str]:
    first, *others = models
    also = tuple(ModelWish(other) for other in others)
    config = NodeConfig(home=home, model=first, also=also, offline=True)
    directory = MemoryDirectory(IdentityKey.generate(), shelf)
    return [model.name for _, model in await open_models(config, directory, trio.current_time)]


async def chosen(home: Path, shelf: MemoryShelf, blocks: str = "auto") -> tuple[str, str]:
    config = NodeConfig(home=home, model="auto", blocks=blocks, offline=True)
    directory = MemoryDirectory(IdentityKey.generate(), shelf)
    [(wish, model)] = await open_models(config, directory, trio.current_time)
    assert wish.model == model.name
    return model.name, model.digest


async def test_the_busiest_model_is_taken(tmp_path: Path, digests: dict[str, str]) -> None:
    shelf = MemoryShelf()
    await serve(shelf, "demo", digests["demo"], 10)
    await serve(shelf, "tiny", digests["tiny"], 50)
    assert await chosen(tmp_path, shelf) == ("tiny", digests["tiny"])
    await serve(shelf, "demo", digests["demo"], 300)
    assert await chosen(tmp_path, shelf) == ("demo", digests["demo"])


async def test_what_is_not_the_model_that_was_announced_is_passed_over(
    tmp_path: Path, digests: dict[str, str]
) -> None:
    shelf = MemoryShelf()
    await serve(shelf, "demo", "ab" * 32, 500)  # the name, and not the model
    await serve(shelf, str(tmp_path / "tiny"), digests["tiny"], 400)  # a folder of ours
    await serve(shelf, "nowhere", "cd" * 32, 300)
    with pytest.raises(UserError, match="no model of the swarm can be served here"):
        await chosen(tmp_path, shelf)
    await serve(shelf, "tiny", digests["tiny"], 1)
    assert await chosen(tmp_path, shelf) == ("tiny", digests["tiny"])


async def test_blocks_go_with_a_model_that_was_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --blocks out"):
        await chosen(tmp_path, MemoryShelf(), "0:4")
    with pytest.raises(UserError, match="nobody serves any"):
        await chosen(tmp_path, MemoryShelf())


async def test_beside_models_that_are_named_the_swarm_chooses_another(
    tmp_path: Path, digests: dict[str, str]
) -> None:
    shelf = MemoryShelf()
    await serve(shelf, "demo", digests["demo"], 300)
    await serve(shelf, "tiny", digests["tiny"], 50)
    assert await opened(tmp_path, shelf, "demo", "auto") == ["demo", "tiny"]
    assert await opened(tmp_path, shelf, "auto", "demo") == ["tiny", "demo"]
    assert await opened(tmp_path, shelf, "auto", "auto") == ["demo", "tiny"]


async def test_a_node_serves_no_model_twice_and_no_two_under_one_name(
    tmp_path: Path, digests: dict[str, str]
) -> None:
    write_random(tmp_path / "other" / "tiny", "tiny", seed=8)
    with pytest.raises(UserError, match="demo was given twice"):
        await opened(tmp_path, MemoryShelf(), "demo", "demo")
    with pytest.raises(UserError, match="two models are called tiny"):
        await opened(tmp_path, MemoryShelf(), "tiny", str(tmp_path / "other" / "tiny"))


async def test_a_name_from_the_swarm_opens_no_folder_wherever_we_were_started(
    tmp_path: Path, digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / RUNNING).unlink()  # nothing serves by that name
    monkeypatch.chdir(tmp_path)
    shelf = MemoryShelf()
    await serve(shelf, "tiny", digests["tiny"], 50)
    with pytest.raises(UserError, match="no folder of this machine"):
        await opened(tmp_path, shelf, "auto")
