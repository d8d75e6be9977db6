"""The client's two ends, against transformers' own."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from potluck.errors import UserError
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.head import Ends
from potluck.node.compute.stage import Stage

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


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_gemmas_ends_equal_transformers(family: str, tmp_path: Path) -> None:
    """Embeddings are scaled, the norm's weight counts from 1, and Gemma 2 caps its logits."""
    model = save_random(tmp_path, family, final_logit_softcapping=5.0)
    ends = Ends.load(open_checkpoint(tmp_path))
    ids = [3, 159, 0, 3]
    assert torch.equal(ends.embed(ids), model.model.embed_tokens(torch.tensor(ids)))
    row = torch.randn(48) * 3
    with torch.no_grad():
        raw = model.lm_head(model.model.norm(row[None]))[0]
    torch.testing.assert_close(ends.logits(row), torch.tanh(raw / 5) * 5, atol=1e-5, rtol=0)


def test_a_gemma_that_also_sees_is_served_by_its_text(tmp_path: Path) -> None:
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 64,
    }
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sight |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    config = transformers.Gemma3Config(text_config=text, vision_config=sight)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    ends, stage = Ends.load(checkpoint), Stage.load(checkpoint, 0, 2, device="cpu")
    ids = [3, 63, 5, 9, 20]
    hidden = stage.forward(ends.embed(ids), stage.open_cache(0, 2, 8), 0)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(ends.logits(hidden[-1]), expected, atol=1e-5, rtol=0)
