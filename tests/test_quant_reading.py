"""Matrices come one after another, and a model's perplexity is that of its arithmetic."""

import math
from pathlib import Path

import pytest
import torch
from checkpoints import save_random

from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.head import Ends
from potluck.node.compute.layout import weight_shapes
from potluck.node.compute.quant.formats import QUANTIZATIONS
from potluck.node.compute.quant.perplexity import perplexity, torch_blocks
from potluck.node.compute.quant.reading import weights_of
from potluck.node.compute.stage import Stage


def test_a_matrix_is_read_when_its_turn_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_random(tmp_path, "llama", hidden_size=64, num_hidden_layers=1)
    checkpoint = open_checkpoint(tmp_path)
    shapes = weight_shapes(checkpoint.spec, 0)
    names = [name for name, shape in shapes.items() if len(shape) == 2]
    read = []
    real = Checkpoint.weight
    monkeypatch.setattr(
        Checkpoint, "weight", lambda self, name: read.append(name) or real(self, name)
    )
    for at, (name, weight) in enumerate(weights_of(checkpoint, names, QUANTIZATIONS["nf4"])):
        assert name == names[at] and (weight.rows, weight.columns) == shapes[name]
        assert read == names[: at + 1]
    assert len(read) == len(names)


@pytest.mark.parametrize("window", [7, 40, 64])
def test_perplexity_is_that_of_transformers(tmp_path: Path, window: int) -> None:
    """40 tokens: windows of 7 leave a rest of 5, one of 64 holds all."""
    model = save_random(tmp_path, "llama")
    checkpoint = open_checkpoint(tmp_path)
    stage = Stage.load(checkpoint, 0, 3, device="cpu", dtype="fp32")
    ids = torch.randint(3, 160, (40,)).tolist()
    losses = []
    for at in range(0, 40, window):
        part = torch.tensor([ids[at : at + window]])
        with torch.no_grad():
            logits = model(part).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="none"))
    expected = math.exp(torch.cat(losses).mean())
    found = perplexity(Ends.load(checkpoint), torch_blocks(stage), ids, window=window)
    assert found == pytest.approx(expected, rel=1e-4)


def test_one_token_foresees_nothing(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="fewer than two"):
        perplexity(Ends.load(checkpoint), lambda hidden: hidden, [5])
