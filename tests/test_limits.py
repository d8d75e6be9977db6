"""Which limit two classes have, and how far apart two answers are."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RemoteError
from potluck.node.compute.calibration import Spread
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.compare import errors_of
from potluck.node.compute.device import numerics_class
from potluck.node.compute.tensor import pack
from potluck.node.library import DEMO_FOLDER
from potluck.node.trust.limits import (
    FORMAT,
    LEAST,
    LIMITS,
    SHIPPED,
    Limit,
    Limits,
    kind_of,
    limits_of,
    load_limits,
    read_limits,
    save_limits,
)
from potluck.swarm.tolerance import EXACT, NEVER, Tolerance

MODEL, OTHER = "ab" * 32, "cd" * 32
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "numerics, kind",
    [
        ("none c1", "none c1"),
        ("int8 c1 kv8", "int8 c1 kv8"),
        (numerics_class(CPU, torch.float32), "none torch fp32"),
        (numerics_class(CPU, torch.bfloat16, "int8"), "int8 torch bf16"),
        ("bf16 torch 2.13.0+cu130 NVIDIA H200", "none torch bf16 NVIDIA H200"),
        ("nf4 fp16 bitsandbytes 0.50 torch 2.13.0 A100", "nf4 torch fp16 A100"),
    ],
)
def test_a_class_belongs_to_a_kind(numerics: str, kind: str) -> None:
    assert kind_of(numerics) == kind


@given(st.text(max_size=128))
def test_whatever_a_peer_announces_has_a_kind(numerics: str) -> None:
    assert isinstance(kind_of(numerics), str)
    Limits().of(MODEL, numerics, "none c1", "f32", 4)


def test_ours_is_exact_for_every_model_and_what_nobody_measured_has_no_limit() -> None:
    limits = Limits([Limit(MODEL, "none torch fp32", "none c1", 0.002, 100, 0.0004)])
    torch_class = numerics_class(CPU, torch.float32)
    assert limits.of(OTHER, "int8 c1", "int8 c1", "f32", 4) == EXACT
    assert limits.of(MODEL, "none c1", torch_class, "f32", 4) == Tolerance(0.002)
    assert limits.of(MODEL, torch_class, "none c1", "f32", 4) == Tolerance(0.002)
    assert limits.of(OTHER, torch_class, "none c1", "f32", 4) is None
    assert limits.of(MODEL, torch_class, torch_class, "f32", 4) is None
    assert limits.of(MODEL, "int8 c1", "none c1", "f32", 4) is None


def test_what_was_measured_here_is_kept_and_comes_before_what_was_shipped(tmp_path: Path) -> None:
    first = Limit(MODEL, "none c1", "none torch fp32", 0.002, 100, 0.0004)
    save_limits(tmp_path, [first])
    save_limits(tmp_path, [Limit(OTHER, "none c1", "none torch fp32", 0.1, 9, 0.05)])
    again = Limit(MODEL, "none torch fp32", "none c1", 0.003, 100, 0.0004)
    save_limits(tmp_path, [again])
    limits, torch_class = load_limits(tmp_path), numerics_class(CPU, torch.float32)
    assert limits.of(MODEL, "none c1", torch_class, "f32", 4) == Tolerance(0.003)
    assert limits.of(OTHER, "none c1", torch_class, "f32", 4) == Tolerance(0.1)


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        json.dumps({"format": "another", "limits": []}),
        json.dumps({"format": FORMAT, "limits": [{"model": MODEL}]}),
        json.dumps(
            {
                "format": FORMAT,
                "limits": [
                    dict(model=MODEL, one="a", other="b", limit=7.0, chunks=1, most=0.0),
                ],
            }
        ),
    ],
)
def test_a_broken_file_of_limits_is_passed_over(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LIMITS).write_text(text)
    assert load_limits(tmp_path).of(MODEL, "a", "b", "f32", 4) is None
    assert capsys.readouterr().err.count("limits passed over") == 1


def rows(*values: list[float]) -> memoryview:
    return pack(torch.tensor(values), "f32")


def test_an_error_is_of_what_was_added_token_by_token() -> None:
    """The stream is four times what the block adds; half of that is off in one token."""
    took = rows([4.0, 0.0], [4.0, 0.0], [0.0, 0.0])
    again = rows([4.0, 1.0], [4.0, 2.0], [0.0, 0.0])
    gave = rows([4.0, 1.5], [4.0, 2.0], [0.0, 0.0])
    assert errors_of(took, gave, again, 3, 2, "f32") == pytest.approx([0.5, 0.0, 0.0])
    assert errors_of(took, again, again, 3, 2, "f32") == [0.0] * 3
    off = rows([4.0, 1.0], [4.0, 2.0], [0.0, 1e-20])
    assert errors_of(took, off, again, 3, 2, "f32") == [0.0, 0.0, math.inf]


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6, 1e9])
def test_rows_as_large_as_a_liar_likes_make_no_error_of_rounding(scale: float) -> None:
    """What was added is lost in the stream's last bits, by one peer in another way than by the
    other: of the demo's limits none is below 1e-3."""
    dice = torch.Generator().manual_seed(1)
    took = scale * torch.randn(32, 64, generator=dice)
    added = torch.randn(32, 64, generator=dice)
    again = took + added
    gave = took + 0.5 * added + 0.5 * added  # rounded twice
    found = errors_of(pack(took, "f32"), pack(gave, "f32"), pack(again, "f32"), 32, 64, "f32")
    assert max(found) < 1e-5


def test_a_limit_is_of_one_dtype_on_the_wire() -> None:
    """Rounding there is no honest peer's error; between equal bits it is none at all."""
    told = Limit(MODEL, "none c1", "none torch fp32", 0.001, 100, 0.0004)
    wide = Limit(MODEL, "none c1", "none torch fp32", 0.02, 100, 0.01, wire="bf16")
    limits, torch_class = Limits([told, wide]), numerics_class(CPU, torch.float32)
    assert limits.of(MODEL, "none c1", torch_class, "f32", 4) == Tolerance(0.001)
    assert limits.of(MODEL, "none c1", torch_class, "bf16", 4) == Tolerance(0.02)
    assert limits.of(MODEL, "none c1", torch_class, "f16", 4) is None
    assert limits.of(MODEL, "none c1", "none c1", "f16", 4) == EXACT


@given(st.integers(1, 5), st.sampled_from(["f32", "f16", "bf16"]), st.floats(1e-3, 0.5))
def test_errors_do_not_depend_on_scale_and_grow_with_the_difference(
    tokens: int, dtype: str, share: float
) -> None:
    dice = torch.Generator().manual_seed(tokens)
    took, update = (torch.randn(tokens, 64, generator=dice) for _ in range(2))
    again = took + update
    small = errors_of(
        pack(took, dtype),
        pack(again + share * update, dtype),
        pack(again, dtype),
        tokens,
        64,
        dtype,
    )
    assert small == pytest.approx([share] * tokens, rel=0.1, abs=0.02)


def test_bytes_that_are_no_rows_are_refused() -> None:
    good = rows([1.0, 2.0])
    for bad in (good[:4], rows([math.nan, 1.0])):
        with pytest.raises(RemoteError):
            errors_of(good, bad, good, 1, 2, "f32")


def test_the_shipped_limits_are_of_the_demo_and_below_what_any_cheat_costs(tmp_path: Path) -> None:
    """0.045 is the least that was ever measured of a wrong format of weights (kernels.md 3)."""
    digest = open_checkpoint(str(DEMO_FOLDER)).digest()
    shipped = read_limits(SHIPPED)
    assert {limit.model for limit in shipped} == {digest} and len(shipped) > 20
    assert all(LEAST <= limit.limit < 0.03 and limit.chunks >= 100 for limit in shipped)
    seen: Counter[tuple[str, str]] = Counter()
    for limit in shipped:  # the whole span stands at one place only, so it was seen least
        seen[limit.one, limit.other] += limit.chunks
    assert min(seen.values()) > 1000
    limits = load_limits(tmp_path)
    for format in ("none", "int8", "nf4"):
        torch_class = numerics_class(CPU, torch.float32, format)
        assert limits.of(digest, f"{format} c1", f"{format} c1", "f32", 4) == EXACT
        for blocks in range(1, 9):
            found = limits.of(digest, f"{format} c1", torch_class, "f32", blocks)
            assert found is not None and found.limit < 0.03
        assert limits.of(digest, torch_class, torch_class, "f32", 4) is not None


def test_what_is_kept_of_a_measured_pair_is_never_nought() -> None:
    """One length that gave equal bits has a limit yet where another has not; all equal, nobody."""

    def kept(*limits: float) -> list[Limit]:
        spreads = [
            Spread("a", "b", blocks, 100, limit / 4, limit / 2, limit, limit)
            for blocks, limit in enumerate(limits, start=1)
        ]
        return limits_of(MODEL, spreads)

    assert kept(0.0, 0.0) == []
    low, equal, high, beyond = kept(1e-6, 0.0, 0.0123456, 3.0)
    assert low.limit == equal.limit == LEAST and beyond.limit == NEVER
    assert (high.limit, high.most, high.chunks) == (0.0123, 0.00617, 100)
    assert [one.blocks for one in (low, equal, high, beyond)] == [1, 2, 3, 4]


def test_a_limit_goes_with_how_many_blocks_the_work_went_through(tmp_path: Path) -> None:
    table = [
        Limit(MODEL, "none c1", "none torch fp32", limit, 100, limit / 2, blocks=blocks)
        for blocks, limit in ((1, 0.002), (4, 0.03), (8, NEVER))
    ]
    save_limits(tmp_path, table)
    limits, torch_class = load_limits(tmp_path), numerics_class(CPU, torch.float32)
    found = {
        blocks: limits.of(MODEL, torch_class, "none c1", "f32", blocks) for blocks in (1, 2, 4, 8)
    }
    assert found == {1: Tolerance(0.002), 2: Tolerance(0.03), 4: Tolerance(0.03), 8: None}


def test_what_was_kept_for_all_lengths_holds_until_the_pair_is_measured_anew(
    tmp_path: Path,
) -> None:
    """A file of before, in the home, comes before what is shipped by length."""
    old = Limit(MODEL, "none c1", "none torch fp32", 0.05, 100, 0.02)
    shipped = replace(old, limit=0.001, blocks=1)
    for blocks in (1, 7):
        found = Limits([old, shipped]).of(MODEL, old.one, "fp32 torch 2", "f32", blocks)
        assert found == Tolerance(0.05)
    assert Limits([shipped, old]).of(MODEL, old.one, "fp32 torch 2", "f32", 7) is None
    save_limits(tmp_path, [old])
    save_limits(tmp_path, [shipped])
    assert read_limits(tmp_path / LIMITS) == [shipped]
