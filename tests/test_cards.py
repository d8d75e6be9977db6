"""What a GPU's figures are made of, tried on a processor: shares of what was measured there."""

from __future__ import annotations

import pytest
import torch

from potluck.errors import UserError
from potluck.node.compute import cards
from potluck.node.compute.cards import LLAMA_8B, measure, measure_on, random_stage
from potluck.node.compute.spec import ModelSpec
from potluck.node.compute.weight import FORMATS, Format

CPU = torch.device("cpu")
SPEC = ModelSpec.from_config(
    LLAMA_8B
    | {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2,
       "num_key_value_heads": 1, "num_hidden_layers": 2, "max_position_embeddings": 64}
)  # fmt: skip


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^not measured: no GPU$"):
        measure()


@pytest.mark.parametrize("format", FORMATS)
def test_random_blocks_take_what_their_format_takes_and_compute(format: Format) -> None:
    stage = random_stage(format, SPEC, torch.float32, CPU)
    numbers = 2 * (128 * (128 + 64 + 64 + 128) + 3 * 128 * 192)
    each = {"none": 4.0, "int8": 1.0, "nf4": 0.5625}[format]
    assert numbers * each <= stage.weight_bytes <= numbers * (each + 0.04)
    cache = stage.open_cache(0, 2, 8)
    assert torch.isfinite(stage.forward(torch.randn(5, 128), cache, 0)).all()


def test_every_figure_is_a_share_of_what_was_measured_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock on which everything takes a second."""

    def a_second(run: object) -> float:
        assert callable(run)
        run()
        return 1.0

    monkeypatch.setattr(cards, "median_s", a_second)
    card = measure_on(CPU, SPEC, copied=1000, square=10)
    assert card.copy_gb_s == pytest.approx(2000e-9)
    assert card.matrix_tflops == pytest.approx(2000e-12)
    both = [(format, tiled) for format in FORMATS for tiled in (False, True)]
    assert [(one.format, one.tiled) for one in card.formats] == both
    numbers = 2 * (128 * (128 + 64 + 64 + 128) + 3 * 128 * 192)
    for one in card.formats:
        size = random_stage(one.format, SPEC, torch.float32, CPU).weight_bytes
        assert one.tokens_s == pytest.approx(20)
        assert one.of_copy == pytest.approx(size / 2000 * 20)
        assert one.of_matrix == pytest.approx(2 * 64 * numbers / 2000)
        assert one.theirs_of_copy == 0
        assert one.outside_us == pytest.approx(1e6 / 20 / 2)


@pytest.mark.gpu
def test_on_a_gpu_every_figure_is_there() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    card = measure(blocks=1)
    for one in card.formats:
        assert 0 < one.of_copy < 1.5 and 0 < one.of_matrix < 1.5
        assert (one.theirs_of_copy > 0) == (one.format != "none")
