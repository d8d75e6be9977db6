"""Which kernel multiplies few rows: the fastest of those that were seen to compute right."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from potluck.node.compute import product as products
from potluck.node.compute.device import numerics_class
from potluck.node.compute.product import product
from potluck.node.compute.quant import race as racing
from potluck.node.compute.quant.formats import QUANTIZATIONS
from potluck.node.compute.quant.product import linear
from potluck.node.compute.quant.race import (
    BATCHES,
    Chosen,
    Entrant,
    Multiply,
    entrants,
    fault_of,
    race,
    random_weights,
    settle,
    settled,
)
from potluck.node.compute.weight import Format, Weight
from potluck.node.trust.limits import kind_of

CPU = torch.device("cpu")
SHAPES = [(24, 64), (16, 128)]


def right(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """Row by row, so that no row knows of another."""
    out = torch.stack([row.float() @ weight.dequantize().t() for row in x])
    return (out if bias is None else out + bias).to(x.dtype)


def off(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    return (right(x.float(), weight, bias) * 1.002).to(x.dtype)


def shared(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """As good as the right one, and another in the last bits when it has company."""
    return right(x, weight, bias) * (1 + 2e-7 * len(x))


def lost(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    return right(x, weight, bias) * torch.nan


def broken(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    raise RuntimeError("no kernel image is available for execution on the device")


def paced(*seconds: float) -> Callable[[Callable[[], object]], float]:
    """A clock by which the entrants that are timed take so long, each for every batch."""
    times = itertools.chain.from_iterable([one] * len(BATCHES) for one in seconds)

    def clock(run: Callable[[], object]) -> float:
        run()
        return next(times)

    return clock


def weights_of(format: Format) -> list[Weight]:
    return random_weights(format, SHAPES, CPU, 1)


HOME = Entrant("", linear)


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_the_fastest_wins_and_says_by_what(format: Format) -> None:
    others = [Entrant("slow", right), Entrant("fast", right)]
    chosen = race(HOME, others, weights_of(format), torch.float32, paced(0.02, 0.03, 0.01))
    assert (chosen.name, chosen.rows_max) == ("fast", 16) and chosen.multiply is right
    assert chosen.told == f"{format} by fast (bitsandbytes 60.00 ms, slow 90.00 ms, fast 30.00 ms)"


@pytest.mark.parametrize("rival_s", [0.02, 0.021])
def test_bitsandbytes_stays_where_none_is_faster(rival_s: float) -> None:
    others = [Entrant("rival", right)]
    chosen = race(HOME, others, weights_of("nf4"), torch.float32, paced(0.02, rival_s))
    assert chosen.multiply is None and chosen.name == ""
    assert chosen.told.startswith("nf4 by bitsandbytes (bitsandbytes 60.00 ms, rival 6")


@pytest.mark.parametrize(
    ("multiply", "why"),
    [
        (off, "is 2.0e-03 off"),
        (lost, "is nan off"),
        (shared, "gives a row other bits"),
        (broken, r"cannot run here \(RuntimeError\)"),
    ],
)
def test_a_wrong_one_does_not_win_however_fast_it_is(multiply: Multiply, why: str) -> None:
    """It is not even timed: the clock has seconds for the first and the last alone."""
    others = [Entrant("wrong", multiply), Entrant("true", right)]
    chosen = race(HOME, others, weights_of("int8"), torch.float32, paced(0.03, 0.02))
    assert chosen.name == "true"
    assert f"wrong {why}".replace("\\", "") in chosen.told


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_what_comes_out_is_no_fault(dtype: torch.dtype) -> None:
    for format in ("int8", "nf4"):
        weights = random_weights(format, SHAPES, CPU, 1)
        assert fault_of(Entrant("x", right), weights, dtype) == ""
        assert "off" in fault_of(Entrant("x", off), weights, dtype)


def test_weights_are_read_anew_until_they_are_more_than_a_cache_holds() -> None:
    size = 10 * sum(one.nbytes for one in weights_of("nf4"))
    many = random_weights("nf4", SHAPES, CPU, size)
    assert sum(one.nbytes for one in many) >= size
    assert {(one.rows, one.columns) for one in many} == set(SHAPES)


def test_on_a_processor_nothing_is_raced() -> None:
    for format in ("none", "int8", "nf4"):
        assert settle(format, SHAPES, torch.float32, CPU) == Chosen()


def test_without_triton_it_is_bitsandbytes_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing.importlib.util, "find_spec", lambda name: None)
    assert entrants("nf4") == ([], "triton is not installed")
    key = (torch.device("cuda", 0), torch.bfloat16, "nf4")
    monkeypatch.setattr(racing, "_settled", {})
    chosen = settle(key[2], SHAPES, key[1], key[0])
    assert chosen.multiply is None and chosen.told.endswith("triton is not installed")
    assert settled(key[2], key[1], key[0]) is chosen


def test_few_rows_go_through_the_winner_and_many_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def winner(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        seen.append(len(x))
        return right(x, weight, bias)

    monkeypatch.setattr(products, "settled", lambda *key: Chosen("t", winner, 16))
    parts = [QUANTIZATIONS["int8"].quantize(torch.randn(8, 64)) for _ in range(2)]
    bias = torch.randn(16)
    both = product(parts, bias, dtype=torch.float32, device=CPU)
    x = torch.randn(17, 64)
    for rows in (1, 16, 17):
        expected = x[:rows] @ torch.cat([one.dequantize() for one in parts]).t() + bias
        torch.testing.assert_close(both(x[:rows]), expected)
    assert seen == [1, 16]


def test_a_class_names_the_kernel_and_has_limits_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bitsandbytes' int8 rounds activations, ours do not: the honest of both differ by 1e-2."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    device = torch.device("cuda", 0)
    names = [
        numerics_class(device, torch.bfloat16, "int8", kernel) for kernel in ("", "t1-16x256w4s4")
    ]
    assert names[1] == f"{names[0]} t1-16x256w4s4"
    assert kind_of(names[0]) == "int8 torch bf16 NVIDIA H200"
    assert kind_of(names[1]) == "int8 torch bf16 NVIDIA H200 t1-16x256w4s4"


def test_a_macs_gpu_is_in_no_class_of_its_processor() -> None:
    processor, card = (numerics_class(torch.device(one), torch.float16) for one in ("cpu", "mps"))
    assert kind_of(processor) == "none torch fp16"
    assert kind_of(card).startswith("none torch fp16 MPS ")
