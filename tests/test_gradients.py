"""Gradients through frozen blocks against transformers' autograd: families, formats, adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potluck.errors import RemoteError, UserError
from potluck.node.compute import gradients
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.frozen import through
from potluck.node.compute.gradients import SLICE_ROWS, Gradients
from potluck.node.compute.lesson import Lesson, Shape
from potluck.node.compute.parts import read_bundle
from potluck.node.compute.quant.formats import QUANTIZATIONS
from potluck.node.compute.tensor import pack
from potluck.node.compute.weight import FORMATS
from potluck.swarm.blocks import BlockRange
from potluck.swarm.wire import Train

from .adapters import save_adapter
from .checkpoints import LLAMA3, save_random

TOLERANCE = 1e-4  # issue F, bar 1
BATCH, TOKENS, PROMPTS = 3, 40, 4  # 40 rows of a sequence: a slice is one, and there are several
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MODELS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "llama": ("llama", {"rope_parameters": LLAMA3}, ()),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 20}, ()),
    "mistral-window": ("mistral", {"sliding_window": 9}, ()),
    "qwen2": ("qwen2", {}, ("k_proj", "down_proj")),
    "qwen3": ("qwen3", {"head_dim": 16}, ()),
    "gemma2": ("gemma2", {"head_dim": 24, "sliding_window": 11}, ()),
    "gemma3": ("gemma3", {"head_dim": 16, "sliding_window": 11, "num_hidden_layers": 3}, ()),
    "phi3": ("phi3", {"partial_rotary_factor": 0.5}, ()),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, ATTENTION),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "norm_topk_prob": True},
        ATTENTION,
    ),
}


def finished(lesson: Lesson) -> list[memoryview]:
    for _ in lesson.slices():
        pass
    return lesson.answer


def tensor(raw: memoryview, *shape: int) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.float32).view(shape)


def relative(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).norm() / wanted.norm())


class Oracle:
    """transformers' layers with prompts and low-rank matrices hooked in, under one autograd."""

    def __init__(self, model: Any, leaves: dict[str, tuple[Tensor, Tensor, float]]) -> None:
        self.hidden: list[Tensor] = []
        self.leaves = {
            name: (down.clone().requires_grad_(), up.clone().requires_grad_(), scale)
            for name, (down, up, scale) in leaves.items()
        }
        layers = model.model.layers
        self.prompts = torch.zeros(len(layers), PROMPTS, model.config.hidden_size)
        self.prompts = torch.randn(self.prompts.shape).requires_grad_()
        self.model = model.requires_grad_(False)
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._before(index))
        layers[-1].register_forward_hook(self._after)
        for name, (down, up, scale) in self.leaves.items():
            model.get_submodule(name).register_forward_hook(self._adding(down, up, scale))

    def _before(self, index: int) -> Any:
        def hook(layer: Any, args: Any) -> Any:
            if index == 0:
                self.hidden = [args[0].detach().requires_grad_()]
                args = (self.hidden[0], *args[1:])
            first = args[0][:, :PROMPTS] + self.prompts[index]
            return (torch.cat([first, args[0][:, PROMPTS:]], 1), *args[1:])

        return hook

    def _after(self, layer: Any, args: Any, out: Any) -> None:
        self.hidden.append(out if isinstance(out, Tensor) else out[0])

    @staticmethod
    def _adding(down: Tensor, up: Tensor, scale: float) -> Any:
        return lambda module, args, y: y + scale * (args[0] @ down.t()) @ up.t()

    def run(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states in and out, and a gradient to go back with; gradients lie on the leaves."""
        self.model(input_ids=ids, use_cache=False)
        start, end = self.hidden
        above = torch.randn(end.shape)
        end.backward(above)
        return start.detach(), end.detach(), above


def staged(
    stages: list[Gradients], start: Tensor, above: Tensor, prompts: Tensor, parts: Any
) -> tuple[Tensor, Tensor, list[Tensor], list[memoryview]]:
    """Forward and backward over the stages: out, gradient in, those of prompts, of matrices."""
    shape = Shape(BATCH, TOKENS, PROMPTS, "f32")
    whole = (BATCH, TOKENS, start.shape[-1])
    inputs, out = [], start
    for stage in stages:
        worn = stage.dress("", parts_of(parts, stage.blocks))
        inputs.append(out)
        payload = memoryview(b"".join([pack(out), pack(its(prompts, stage))]))
        (raw,) = finished(stage.forward(payload, shape, stage.blocks, worn))
        out = tensor(raw, *whole)
    grad, of_prompts, of_leaves = above, [], []
    for stage, hidden in zip(reversed(stages), reversed(inputs), strict=True):
        worn = stage.dress("", parts_of(parts, stage.blocks))
        payload = memoryview(b"".join([pack(hidden), pack(grad), pack(its(prompts, stage))]))
        raw, *rest = finished(stage.backward(payload, shape, stage.blocks, worn))
        grad = tensor(raw, *whole)
        count = len(stage.blocks)
        of_prompts = [tensor(one, PROMPTS, -1) for one in rest[:count]] + of_prompts
        of_leaves = rest[count:] + of_leaves
    return out, grad, of_prompts, of_leaves


def its(prompts: Tensor, stage: Gradients) -> Tensor:
    return prompts.detach()[stage.blocks.start : stage.blocks.stop].flatten(0, 1)


def parts_of(parts: Any, blocks: BlockRange) -> Any:
    return {index: raw for index, raw in parts.items() if blocks.start <= index < blocks.stop}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(7)
    yield


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_autograds_through_transformers(name: str, tmp_path: Path) -> None:
    """Of hidden states, deep prompts and every adapter's matrix, over two stages."""
    family, settings, modules = MODELS[name]
    model = save_random(tmp_path / "model", family, **settings)
    checkpoint = open_checkpoint(tmp_path / "model")
    save_adapter(tmp_path / "adapter", checkpoint.spec, modules=modules)
    bundle = read_bundle(tmp_path / "adapter", checkpoint.spec, checkpoint.digest())
    stages = [Gradients.load(checkpoint, BlockRange(*span)) for span in ((0, 2), (2, 3))]
    worn = [
        leaf
        for stage in stages
        for leaf in stage.dress("", parts_of(bundle.parts, stage.blocks)).of(stage.blocks)
    ]
    oracle = Oracle(model, {module: (one.down, one.up, one.scale) for _, module, one in worn})
    start, end, above = oracle.run(torch.randint(3, 150, (BATCH, TOKENS)))
    out, grad, of_prompts, of_leaves = staged(stages, start, above, oracle.prompts, bundle.parts)
    assert relative(out, end) <= TOLERANCE
    assert oracle.hidden[0].grad is not None and oracle.prompts.grad is not None
    assert relative(grad, oracle.hidden[0].grad) <= TOLERANCE
    assert relative(torch.stack(of_prompts), oracle.prompts.grad) <= TOLERANCE
    halves = iter(of_leaves)
    for _, module, _ in worn:
        for wanted in oracle.leaves[module][:2]:
            assert wanted.grad is not None
            assert relative(tensor(next(halves), *wanted.shape), wanted.grad) <= TOLERANCE


def test_what_is_computed_twice_has_the_same_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; in more slices' memory, or in less."""
    made, blocks = stage(tmp_path), BlockRange(0, 3)
    payload = pack(torch.randn(2 * 3 * 40, 48))
    found = []
    for most in (gradients.GRAPH_BYTES_MAX, 0):
        monkeypatch.setattr(gradients, "GRAPH_BYTES_MAX", most)
        lesson = made.backward(payload, Shape(3, 40, 0, "f32"), blocks, None)
        found.append(bytes(finished(lesson)[0]))
    asked = Train("backward", "", 0, 3, 3, 40, "f32", 1.0)
    assert found[0] == found[1]
    assert made.bytes_of(asked) < 2**20


def test_what_a_forward_kept_gives_its_backward_the_same_bits(tmp_path: Path) -> None:
    """With deep prompts and an adapter, over two slices; and half the work."""
    made, blocks = stage(tmp_path / "model"), BlockRange(0, 3)
    checkpoint = open_checkpoint(tmp_path / "model")
    save_adapter(tmp_path / "adapter", checkpoint.spec, modules=("q_proj", "down_proj"))
    bundle = read_bundle(tmp_path / "adapter", checkpoint.spec, checkpoint.digest())
    worn = made.dress("", bundle.parts)
    hidden, above = (pack(torch.randn(2 * 40, 48)) for _ in range(2))
    prompts = pack(torch.randn(3 * PROMPTS, 48))
    there = memoryview(b"".join([hidden, prompts]))
    back = memoryview(b"".join([hidden, above, prompts]))
    asked = Train("forward", "", 0, 3, 2, 40, "f32", 1.0, PROMPTS, b"a" * 32, worn.bytes)
    plain = made.begin(there, asked, worn)
    finished(plain)
    keeping = made.begin(there, asked, worn, keeps=True)
    assert finished(keeping) == plain.answer and plain.kept is None
    assert keeping.kept is not None and keeping.kept.bytes == made.kept_bytes(asked)
    anew, spared = (made.begin(back, replace(asked, kind="backward"), worn) for _ in range(2))
    assert plain.name == keeping.name == anew.name == spared.name
    spared.kept = keeping.kept
    assert (len(list(anew.slices())), len(list(spared.slices()))) == (2 * 6, 2 * 3)
    assert [bytes(one) for one in spared.answer] == [bytes(one) for one in anew.answer]
    assert len(anew.answer) == 1 + 3 + 2 * len(worn.of(blocks))


def test_another_batch_or_adapter_has_another_name(tmp_path: Path) -> None:
    made = stage(tmp_path)
    asked = Train("forward", "", 0, 3, 1, 8, "f32", 1.0)
    hidden = [pack(torch.randn(8, 48)) for _ in range(2)]
    names = {
        made.begin(hidden[0], asked, None).name,
        made.begin(hidden[1], asked, None).name,
        made.begin(hidden[0], replace(asked, stop=2), None).name,
        made.begin(hidden[0], replace(asked, batch=2, tokens=4), None).name,
        made.begin(hidden[0], replace(asked, adapter=b"a" * 32), None).name,
    }
    assert len(names) == 5


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_has_the_gradient_of_the_numbers_that_its_codes_stand_for(
    format: str, dtype: torch.dtype
) -> None:
    """1,400 rows of 1,024 columns: more than one panel of fp32."""
    weight = QUANTIZATIONS[format].quantize(torch.randn(1400, 1024).to(dtype))  # type: ignore[index]
    x = torch.randn(5, 1024, requires_grad=True)
    above = torch.randn(5, 1400)
    (found,) = torch.autograd.grad(y := through(x, weight), x, above)
    plain = weight.dequantize()
    assert relative(y, x @ plain.t()) < 1e-6
    assert relative(found, above @ plain) < 1e-6


def stage(folder: Path) -> Gradients:
    save_random(folder, "llama")
    return Gradients.load(open_checkpoint(folder), BlockRange(0, 3))


def test_a_slice_is_a_block_of_few_rows_and_slices_change_no_number(tmp_path: Path) -> None:
    made, whole = stage(tmp_path), BlockRange(0, 3)
    hidden = torch.randn(6, 32, 48)
    lesson = made.forward(pack(hidden.flatten(0, 1)), Shape(6, 32, 0, "f32"), whole, None)
    assert len(list(lesson.slices())) == 3 * (6 * 32 // SLICE_ROWS)
    for row in range(6):
        (alone,) = finished(made.forward(pack(hidden[row]), Shape(1, 32, 0, "f32"), whole, None))
        together = tensor(lesson.answer[0], 6, 32, 48)[row]
        assert relative(tensor(alone, 32, 48), together) < 1e-5


def test_what_no_honest_client_sends_is_refused_by_name(tmp_path: Path) -> None:
    made, blocks = stage(tmp_path), BlockRange(0, 3)
    good = torch.randn(8, 48)
    with pytest.raises(RemoteError, match="another shape"):
        made.forward(pack(good), Shape(1, 9, 0, "f32"), blocks, None)
    with pytest.raises(RemoteError, match="another shape"):
        made.backward(pack(good), Shape(1, 8, 0, "f32"), blocks, None)
    with pytest.raises(RemoteError, match="blocks 0:4"):
        made.forward(pack(good), Shape(1, 8, 0, "f32"), BlockRange(0, 4), None)
    good[3, 3] = torch.inf
    with pytest.raises(RemoteError, match="not finite"):
        made.forward(pack(good), Shape(1, 8, 0, "f32"), blocks, None)


def test_gradients_beyond_the_wire_are_one_clear_line(tmp_path: Path) -> None:
    made = stage(tmp_path)
    both = torch.cat([torch.randn(8, 48), torch.full((8, 48), 6e4)])
    lesson = made.backward(pack(both, "f16"), Shape(1, 8, 0, "f16"), BlockRange(0, 3), None)
    with pytest.raises(UserError, match="scale the loss down"):
        finished(lesson)


def test_models_of_transformers_own_code_are_served_without_gradients(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="without gradients"):
        Gradients.load(open_checkpoint(tmp_path), BlockRange(0, 1))
