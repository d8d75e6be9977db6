"""The client's two ends, against transformers' own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from potluck.errors import UserError
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.head import Ends

from .checkpoints import save_random


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ends_equal_transformers(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    model = save_random(tmp_path, "llama", tie_word_embeddings=tied, dtype=dtype).float()
    ends = Ends.load(open_checkpoint(tmp_path))
    ids = [3, 159, 0, 3]
    embedded = ends.embed(ids)
    assert torch.equal(embedded, model.model.embed_tokens(torch.tensor(ids)))
    row = torch.randn(48) * 3
    with torch.no_grad():
        expected = model.lm_head(model.model.norm(row[None]))[0]
    assert ends.logits(row).dtype == torch.float32
    torch.testing.assert_close(ends.logits(row), expected, atol=1e-5, rtol=0)
    assert torch.equal(ends.logits(row[None]), ends.logits(row))


def test_only_the_ends_are_fetched(tmp_path: Path) -> None:
    save_random(tmp_path, "llama", shard="30KB")
    checkpoint = open_checkpoint(tmp_path)
    ends = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    needed = {checkpoint.path_of(name) for name in ends}
    gone = [path for path in tmp_path.glob("*.safetensors") if path not in needed]
    assert gone
    for path in gone:
        path.unlink()
    assert Ends.load(open_checkpoint(tmp_path)).embed([1]).shape == (1, 48)


def test_ends_of_another_model_are_refused(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        Ends.load(open_checkpoint(tmp_path))
    tensors["lm_head.weight"] = torch.zeros(161, 48)
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"lm_head\.weight has shape \[161, 48\]"):
        Ends.load(open_checkpoint(tmp_path))
