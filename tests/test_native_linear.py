"""Matrix products in C: near dequantize-then-multiply, and the same bits however they are cut."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from potluck.errors import UserError
from potluck.node.compute.native import build, library
from potluck.node.compute.native.linear import Packed, Pool
from potluck.node.compute.weight import NF4

needs_library = pytest.mark.skipif(not library.is_available(), reason=str(library.why_not()))
pytestmark = needs_library

CODEBOOK = torch.tensor(NF4, dtype=torch.float64)
KINDS = ("float32", "bfloat16", "float16", "int8", "nf4")
SHAPES = ((16, 64), (40, 192), (33, 320), (97, 704), (5, 100), (70, 101))
CASES = [
    (kind, *shape) for kind in KINDS for shape in SHAPES if kind != "nf4" or shape[1] % 64 == 0
]


@pytest.fixture(autouse=True)
def best_isa_again() -> Iterator[None]:
    best = library.isa()
    yield
    library.use_isa(best)


def made(kind: str, n: int, k: int, *, seed: int = 0) -> tuple[str, Tensor, Tensor | None]:
    """Format, codes and scales of a random matrix."""
    dice = torch.Generator().manual_seed(seed)
    if kind == "int8":
        codes = torch.randint(-127, 128, (n, k), generator=dice, dtype=torch.int8)
        return "int8", codes, torch.rand(n, generator=dice) + 0.5
    if kind == "nf4":
        codes = torch.randint(0, 256, (n, k // 2), generator=dice, dtype=torch.uint8)
        return "nf4", codes, torch.rand(n, k // 64, generator=dice) + 0.5
    return "none", torch.randn(n, k, generator=dice).to(getattr(torch, kind)), None


def dequantized(format: str, codes: Tensor, scales: Tensor | None) -> Tensor:
    if scales is None:
        return codes.double()
    if format == "int8":
        return codes.double() * scales.double()[:, None] / 127
    pairs = torch.stack((codes >> 4, codes & 15), -1).long()
    groups = CODEBOOK[pairs].view(len(codes), -1, 64)
    return (groups * scales.double()[:, :, None]).view(len(codes), -1)


def rows_of(count: int, k: int, *, seed: int = 1) -> Tensor:
    return torch.randn(count, k, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, true: Tensor) -> float:
    """The largest error of a row, measured by the row's length."""
    lengths = true.norm(dim=1).clamp_min(1e-30)
    return float(((found.double() - true).norm(dim=1) / lengths).max())


@pytest.mark.parametrize(("kind", "n", "k"), CASES)
def test_a_product_is_near_dequantize_then_multiply(kind: str, n: int, k: int) -> None:
    matrix = made(kind, n, k)
    x, bias = rows_of(9, k), rows_of(1, n, seed=2)[0]
    found = Packed(*matrix, bias).multiply(x)
    true = x.double() @ dequantized(*matrix).T + bias.double()
    assert relative(found, true) < (5e-4 if matrix[0] != "none" else 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_outliers_of_a_thousand_times_the_rest_keep_the_error(kind: str) -> None:
    matrix = made(kind, 256, 1024)
    x = rows_of(16, 1024)
    for row in range(16):
        x[row, row * 61] = 1000.0 if row % 2 else -1000.0
    true = x.double() @ dequantized(*matrix).T
    assert relative(Packed(*matrix).multiply(x), true) < 1e-3


@pytest.mark.parametrize(("kind", "n", "k"), CASES)
def test_every_instruction_set_gives_the_same_bits(kind: str, n: int, k: int) -> None:
    packed = Packed(*made(kind, n, k), rows_of(1, n)[0])
    for count in (1, 2, 3, 7, 13, 33, 130):
        x = rows_of(count, k) * torch.logspace(-3, 3, count)[:, None]
        x[0, k // 2] *= 1000
        library.use_isa("scalar")
        expected = packed.multiply(x)
        for name in library.isas():
            library.use_isa(name)
            assert torch.equal(packed.multiply(x), expected), (name, count)


@pytest.mark.parametrize("isa", [*library.isas()] if library.is_available() else [])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_and_among_others_is_the_same(kind: str, isa: str) -> None:
    library.use_isa(isa)
    packed = Packed(*made(kind, 50, 320))
    x = rows_of(33, 320)
    alone = torch.cat([packed.multiply(row[None]) for row in x])
    for count in range(1, 34):
        assert torch.equal(packed.multiply(x[:count]), alone[:count])


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_nothing(kind: str) -> None:
    matrix, x = made(kind, 1000, 256), rows_of(40, 256)
    expected = Packed(*matrix).multiply(x)
    for threads in (1, 2, 3):
        pool = Pool(threads)
        packed = Packed(*matrix, pool=pool)
        for _ in range(5):
            assert torch.equal(packed.multiply(x, pool), expected)
            assert torch.equal(packed.multiply(x[:1], pool), expected[:1])


def test_callers_of_one_pool_take_turns() -> None:
    pool, x = Pool(3), rows_of(4, 256)
    packed = Packed(*made("int8", 600, 256), pool=pool)
    expected = packed.multiply(x)
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda _: packed.multiply(x, pool), range(200)))
    assert all(torch.equal(one, expected) for one in found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_added_to_a_residual(kind: str) -> None:
    packed, x, residual = Packed(*made(kind, 37, 128)), rows_of(5, 128), rows_of(5, 37)
    expected = residual + packed.multiply(x)
    assert packed.multiply(x, onto=residual) is residual
    assert torch.equal(residual, expected)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_largest_of_everything_does_not_overflow(kind: str) -> None:
    k = 512
    for sign in (1.0, -1.0):
        x = torch.full((3, k), 7.0 * sign)
        for lowest in (False, True):
            if kind == "int8":
                codes = torch.full((16, k), -128 if lowest else 127, dtype=torch.int8)
                matrix = "int8", codes, torch.ones(16)
            else:
                codes = torch.full((16, k // 2), 0x00 if lowest else 0xFF, dtype=torch.uint8)
                matrix = "nf4", codes, torch.ones(16, k // 64)
            packed, true = Packed(*matrix), x.double() @ dequantized(*matrix).T
            for name in library.isas():
                library.use_isa(name)
                assert relative(packed.multiply(x), true) < 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_in_its_row(kind: str, value: float) -> None:
    packed, x = Packed(*made(kind, 20, 192)), rows_of(3, 192)
    expected = packed.multiply(x)
    x[1, 100] = value
    for name in library.isas():
        library.use_isa(name)
        found = packed.multiply(x)
        assert torch.equal(found[[0, 2]], expected[[0, 2]])
        assert not torch.isfinite(found[1]).any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_the_very_small_give_zeros_or_better(kind: str) -> None:
    packed = Packed(*made(kind, 20, 192))
    for name in library.isas():
        library.use_isa(name)
        assert packed.multiply(torch.zeros(2, 192)).eq(0).all()
        assert packed.multiply(torch.full((2, 192), 1e-38)).abs().max() < 1e-35


def test_no_rows_are_no_work() -> None:
    assert Packed(*made("int8", 20, 192)).multiply(torch.empty(0, 192)).shape == (0, 20)


def test_nf4_needs_whole_groups() -> None:
    with pytest.raises(UserError, match="use int8 or none"):
        Packed("nf4", torch.zeros(16, 50, dtype=torch.uint8), torch.zeros(16, 1))


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="there is"):
        library.use_isa("abacus")


def test_rows_of_a_wrong_width_or_type_are_refused() -> None:
    packed = Packed(*made("int8", 20, 192))
    for x in (torch.zeros(1, 191), torch.zeros(1, 192, dtype=torch.float64), torch.zeros(192)):
        with pytest.raises(ValueError, match="not float32"):
            packed.multiply(x)


def test_the_bandwidth_of_memory_is_measured() -> None:
    assert library.read_bandwidth(1, 32 * 2**20) > 1e8


def test_a_library_of_other_sources_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert build.is_current()
    stale = tmp_path_factory.mktemp("native") / "stale.so"
    stale.write_bytes(build.LIBRARY.read_bytes().replace(build.stamp().encode(), b"0" * 16))
    assert not build.is_current(stale)
