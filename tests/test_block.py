"""Our one block against transformers, for every family, however the model is split.

The oracle runs each random model once: a prompt, then 64 greedy tokens, one by one. Ours runs the
same tokens through stages of 1, 2 and N parts, its prompt in chunks; every logit must agree within
1e-4 and every greedy token be the same.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potluck.node.compute import attend, sight
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.head import Ends
from potluck.node.compute.sight import Plan, plan_step
from potluck.node.compute.stage import Stage

from .checkpoints import LLAMA3, save_random

TOLERANCE = 1e-4
NEW_TOKENS = 64
PROMPT = (3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19)

LONG: dict[str, Any] = {  # pairs slowed by as many factors: 12 elements a head, 6 pairs
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.5, 1.7],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 9.0],
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama2-wide-heads": ("llama", {"head_dim": 20, "mlp_bias": True}),
    "llama2-biased-tied": ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    "llama2-one-key-head": ("llama", {"num_key_value_heads": 1, "num_hidden_layers": 5}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama3-tied": (
        "llama",
        {
            "rope_parameters": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 40},
            "tie_word_embeddings": True,
            "head_dim": 16,
        },
    ),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "linear-theta": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 777.0}},
    ),
    # the 64 new tokens cross the 32 and 40 positions where dynamic scaling begins
    "dynamic": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0},
            "max_position_embeddings": 32,
        },
    ),
    "dynamic-tied": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 500.0},
            "max_position_embeddings": 40,
            "tie_word_embeddings": True,
        },
    ),
    "yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "yarn-all-settings": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5000.0,
                "factor": 3.0,
                "original_max_position_embeddings": 48,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "mscale": 0.8,
                "mscale_all_dim": 0.5,
                "truncate": False,
            }
        },
    ),
    "yarn-attention-factor": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 8.0,
                "attention_factor": 1.3,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "mistral": ("mistral", {"sliding_window": 16}),
    "mistral-tiny-window": ("mistral", {"sliding_window": 5, "head_dim": 10}),
    "mistral-no-window": ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-window-tied": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 12,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2-layer-types": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-default-head": ("qwen3", {"tie_word_embeddings": True, "num_hidden_layers": 2}),
    "qwen3-biased-window": (
        "qwen3",
        {
            "seed": 4,
            "head_dim": 12,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 10,
            "max_window_layers": 2,
        },
    ),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 14, "query_pre_attn_scalar": 24}),
    "gemma2-uncapped": (
        "gemma2",
        {
            "head_dim": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gemma2-tight-caps": (
        "gemma2",
        {"head_dim": 10, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "gemma3",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "sliding_window": 12,
            "query_pre_attn_scalar": 16,
            "layer_types": [
                "sliding_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
            ],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "phi3": ("phi3", {"sliding_window": 18}),
    "phi3-partial": (
        "phi3",
        {
            "num_key_value_heads": 1,
            "partial_rotary_factor": 0.5,
            "tie_word_embeddings": True,
        },
    ),
    # a session of 84 positions is within those of training, and then beyond them
    "phi3-within": ("phi3", {"original_max_position_embeddings": 90, "rope_parameters": LONG}),
    "phi3-beyond": ("phi3", {"original_max_position_embeddings": 16, "rope_parameters": LONG}),
    "phi4-mini": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "hidden_size": 64,
            "rope_parameters": LONG | {"partial_rotary_factor": 0.75},
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral-window": (
        "mixtral",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 16},
    ),
    "qwen3-moe": (
        "qwen3_moe",
        {"num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True, "head_dim": 16},
    ),
    "qwen3-moe-some-dense": (
        "qwen3_moe",
        {
            "seed": 3,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}


@dataclass(frozen=True)
class Oracle:
    """What transformers says: logits after the prompt and after each greedy token."""

    tokens: list[int]
    logits: list[Tensor]


def ask(model: Any) -> Oracle:
    tokens: list[int] = []
    logits: list[Tensor] = []
    past, ids = None, list(PROMPT)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            out = model(torch.tensor([ids]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            logits.append(out.logits[0, -1])
            ids = [int(logits[-1].argmax())]
            tokens += ids
    return Oracle(tokens, logits)


def run(checkpoint: Checkpoint, cuts: list[int], chunks: tuple[int, ...]) -> Oracle:
    """The same through our stages, each of the blocks between two cuts."""
    ends = Ends.load(checkpoint)
    stages = [
        Stage.load(checkpoint, start, stop, device="cpu")
        for start, stop in itertools.pairwise(cuts)
    ]
    caches = [
        stage.open_cache(stage.start, stage.stop, len(PROMPT) + NEW_TOKENS) for stage in stages
    ]
    tokens: list[int] = []
    logits: list[Tensor] = []
    at = 0
    steps = [*torch.tensor(PROMPT).split(list(chunks))]
    while len(tokens) < NEW_TOKENS:
        hidden = torch.empty(0)
        for step in steps:
            hidden = ends.embed(step.tolist())
            for stage, cache in zip(stages, caches, strict=True):
                hidden = stage.forward(hidden, cache, at)
            at += len(step)
        logits.append(ends.logits(hidden[-1]))
        tokens.append(int(logits[-1].argmax()))
        steps = [torch.tensor(tokens[-1:])]
    return Oracle(tokens, logits)


def worst_difference(name: str, folder: Path) -> float:
    """The largest difference of any logit over every split; the greedy tokens must be equal."""
    family, settings = MODELS[name]
    oracle = ask(save_random(folder, family, **settings))
    assert len(set(oracle.tokens)) > 5  # a text that stays on one token would show little
    checkpoint = open_checkpoint(folder)
    blocks = checkpoint.spec.blocks
    worst = 0.0
    for cuts, chunks in (
        ([0, blocks], (20,)),
        ([0, 1, blocks], (13, 7)),
        (list(range(blocks + 1)), (1, 3, 16)),
    ):
        ours = run(checkpoint, cuts, chunks)
        assert ours.tokens == oracle.tokens
        for a, b in zip(ours.logits, oracle.logits, strict=True):
            worst = max(worst, float((a - b).abs().max()))
    return worst


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    assert worst_difference(name, tmp_path) <= TOLERANCE


def test_a_checkpoint_stored_in_bf16_computes_in_fp32(tmp_path: Path) -> None:
    model = save_random(tmp_path, "llama", dtype=torch.bfloat16)
    oracle = ask(model.float())
    ours = run(open_checkpoint(tmp_path), [0, 2, 3], (20,))
    for a, b in zip(ours.logits, oracle.logits, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.02), ("fp16", 0.003)])
@pytest.mark.parametrize("name", ["llama3", "qwen3-biased-window", "gemma3", "mixtral-window"])
def test_half_precision_is_as_near_as_its_digits(
    name: str, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    """bf16 has 8 bits of mantissa and fp16 11: relative errors near 2**-8 and 2**-11 a product."""
    family, settings = MODELS[name]
    save_random(tmp_path, family, **settings)
    checkpoint = open_checkpoint(tmp_path)
    hidden = Ends.load(checkpoint).embed(PROMPT)
    found = []
    for numbers in ("fp32", dtype):
        stage = Stage.load(checkpoint, 0, checkpoint.spec.blocks, device="cpu", dtype=numbers)
        cache = stage.open_cache(0, checkpoint.spec.blocks, 100)
        found.append(stage.forward_steps(hidden, cache, 0, [15, 1, 1, 3]).float())
    exact, half = found
    assert float((half - exact).norm() / exact.norm()) < tolerance


def test_a_session_turns_by_the_size_that_it_agreed_to(tmp_path: Path) -> None:
    """LongRoPE: beyond the 90 positions of training by the long factors, from its first row."""
    hidden, said = torch.randn(9, 48), {}
    for name, trained in (("short", 90), ("long", 16)):
        settings = {"rope_parameters": LONG | {"attention_factor": 1.0}}
        save_random(tmp_path / name, "phi3", original_max_position_embeddings=trained, **settings)
        stage = Stage.load(open_checkpoint(tmp_path / name), 0, 3, device="cpu")
        for room in (90, 91):
            said[name, room] = stage.forward(hidden, stage.open_cache(0, 3, room), 0)
    assert not torch.equal(said["short", 90], said["short", 91])
    assert torch.equal(said["short", 91], said["long", 91])
    assert torch.equal(said["long", 90], said["long", 91])


def plan(window: int | None, at: int, stop: int) -> Plan:
    return plan_step((), frozenset({window}), at, stop, device=torch.device("cpu"))


@pytest.mark.parametrize("window", [None, 1, 4, 7, 100])
@pytest.mark.parametrize(("at", "stop"), [(0, 1), (0, 9), (3, 4), (5, 12), (20, 21), (20, 29)])
def test_a_row_sees_what_its_window_lets_it_see(window: int | None, at: int, stop: int) -> None:
    """Against the definition: row p sees position j when j <= p and j > p - window."""
    shown = seen_by(plan(window, at, stop), window)
    for row in range(at, stop):
        assert shown[row] == {j for j in range(row + 1) if window is None or j > row - window}


@pytest.mark.parametrize("window", [None, 9])
def test_a_long_step_is_seen_in_parts(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "_MASK_MAX", 1000)
    monkeypatch.setattr(sight, "_MASK_ROWS_MIN", 3)
    step = plan(window, 5, 60)
    assert len(step.sights[window]) > 2
    assert all(one.mask is None or one.mask.numel() <= 1000 for one in step.sights[window])
    shown = seen_by(step, window)
    for row in range(5, 60):
        assert shown[row] == {j for j in range(row + 1) if window is None or j > row - window}


def seen_by(step: Plan, window: int | None) -> dict[int, set[int]]:
    """For each row's position, the positions that it sees."""
    found: dict[int, set[int]] = {}
    for one in step.sights[window]:
        for row in range(one.first, one.last):
            shown = set(range(one.start, one.stop))
            if one.mask is not None:
                shown = {j for j in shown if bool(one.mask[row - one.first, j - one.start])}
            elif one.causal:
                shown = {j for j in shown if j - one.start <= row - one.first}
            assert step.at + row not in found
            found[step.at + row] = shown
    assert sorted(found) == list(range(step.at, step.stop))
    return found


@pytest.mark.parametrize("name", ["llama3", "mistral", "gemma2"])
def test_parts_change_no_number_by_more_than_rounding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, settings = MODELS[name]
    save_random(tmp_path, family, **settings)
    stage = Stage.load(open_checkpoint(tmp_path), 0, 3, device="cpu")
    hidden = torch.randn(90, 48)
    whole = stage.forward_steps(hidden, stage.open_cache(0, 3, 90), 0, [7, 83])
    monkeypatch.setattr(sight, "_MASK_MAX", 1500)
    monkeypatch.setattr(attend, "_SCORES_MAX", 700)
    parts = stage.forward_steps(hidden, stage.open_cache(0, 3, 90), 0, [7, 83])
    torch.testing.assert_close(parts, whole, atol=TOLERANCE, rtol=0)
