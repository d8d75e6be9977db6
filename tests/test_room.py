"""Whether blocks fit is known from their shapes, before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from potluck.errors import UserError
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.choice import StageWish
from potluck.node.compute.room import block_sizes, require_room
from potluck.swarm.blocks import BlockRange

from .checkpoints import save_random

BLOCKS = BlockRange(0, 2)


def test_what_the_owner_gives_is_held_to_before_weights_are_read(tmp_path: Path) -> None:
    """The weights alone take it all; the file with them need not even be there."""
    save_random(tmp_path, "llama")
    checkpoint = open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    needed = sum(block_sizes(checkpoint, StageWish(device="cpu"))[:2])
    with pytest.raises(UserError, match="--max-memory"):
        require_room(checkpoint, BLOCKS, StageWish(device="cpu", memory_bytes=needed))
    require_room(checkpoint, BLOCKS, StageWish(device="cpu", memory_bytes=needed + 1))
