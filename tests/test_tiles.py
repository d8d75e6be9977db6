"""Tiles: every row in one, few of them empty; and what tells a row's company is found out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potluck.node.compute import tile_check
from potluck.node.compute.product import Form, Plain
from potluck.node.compute.tile_check import FEW, MANY, SIZES, Agreed, agreed, disagreement
from potluck.node.compute.tiles import Tiles, aligned, filled, split

CPU = torch.device("cpu")
FORMS = [Form("none", 48, 32, False)]


@given(st.lists(st.sampled_from(SIZES), min_size=1, unique=True).map(sorted), st.integers(0, 2000))
def test_tiles_hold_every_row_and_only_the_last_has_room(sizes: list[int], rows: int) -> None:
    cuts = Tiles(tuple(sizes)).cuts(rows)
    assert set(cuts) <= set(sizes)
    assert sum(cuts) >= rows > sum(cuts[:-1]) if rows else not cuts
    if cuts and cuts[-1] > FEW and cuts[-1] > sizes[0]:  # as far as smaller ones could do better
        assert 4 * (sum(cuts) - rows) <= cuts[-1]


def test_some_rows_and_their_tiles() -> None:
    tiles = Tiles((4, 16, 64, 256))
    assert [tiles.cuts(rows) for rows in (1, 4, 5, 15, 16)] == [[4], [4], [16], [16], [16]]
    assert tiles.cuts(40) == [16, 16, 16]
    assert tiles.cuts(50) == [64]
    assert tiles.cuts(300) == [256, 16, 16, 16]
    assert Tiles((16,)).cuts(33) == [16, 16, 16]


def test_what_goes_through_tiles_is_the_whole_and_each_tile_is_aligned() -> None:
    seen: list[int] = []

    def double(x: Tensor) -> Tensor:
        assert x.is_contiguous() and x.data_ptr() % 64 == 0
        seen.append(len(x))
        return x * 2

    x = torch.randn(70, 5)
    assert torch.equal(Tiles((3, 32)).through(double, x), x * 2)
    assert seen == [32, 32, 3, 3]
    assert torch.equal(filled(x, 80)[:70], x) and not filled(x, 80)[70:].any()
    assert all(one.data_ptr() % 64 == 0 for one in split(torch.randn(9, 5), [3, 3, 3]))
    column = torch.randn(8, 16)[:, 3:5]
    assert torch.equal(aligned(column), column) and aligned(column).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_that_agree_give_each_row_its_bits(dtype: torch.dtype) -> None:
    found = agreed([*FORMS, Form("none", 80, 48, True)], dtype, CPU)
    assert isinstance(found, Agreed)
    assert FEW in found.few.sizes and MANY in found.many.sizes
    torch.manual_seed(0)
    product = Plain([torch.randn(48, 32)], None, dtype, CPU)
    x = torch.randn(300, 32, dtype=dtype)
    whole = found.many.through(product, x)
    for rows in (1, 7, 40):
        assert torch.equal(
            torch.cat([found.many.through(product, part) for part in x.split(rows)]), whole
        )


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_codes_are_tried_too(format: str) -> None:
    found = agreed([Form(format, 48, 192, False)], torch.float32, CPU)  # type: ignore[arg-type]
    assert isinstance(found, Agreed)


def summing(parts: Callable[[int], int]) -> type[Plain]:
    """Products summed up in so many parts, by the number of rows."""

    class Summing(Plain):
        def __call__(self, x: Tensor) -> Tensor:
            count = parts(len(x))
            step = -(-x.shape[1] // count)
            found = torch.zeros((len(x), self._weight.shape[1]))
            for first in range(0, x.shape[1], step):
                some = slice(first, first + step)
                found += x[:, some].float() @ self._weight[some].float()
            return found.to(x.dtype)

        def add(self, to: Tensor, x: Tensor) -> Tensor:
            return to + self(x)

    return Summing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tile_that_sums_up_in_other_parts_is_left_out(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though in bf16 nearly every ordinary number hides it."""

    def crafted_with(parts: Callable[[int], int]) -> Agreed | str:
        honest = tile_check._crafted

        def crafted(*form: object) -> tuple[Plain, Tensor]:
            product, x = honest(*form)  # type: ignore[arg-type]
            assert isinstance(product, Plain)
            other = summing(parts)([product._weight.t()], None, dtype, CPU)
            return other, x

        with monkeypatch.context() as patched:
            patched.setattr(tile_check, "_crafted", crafted)
            return agreed(FORMS, dtype, CPU)

    large = crafted_with(lambda rows: 2 if rows >= 64 else 1)
    assert isinstance(large, Agreed) and not large.whole
    assert set(large.many.sizes) == {64, 128, 256}
    assert FEW in large.few.sizes and not set(large.few.sizes) & {64, 128, 256}
    single = crafted_with(lambda rows: 2 if rows == 1 else 1)
    assert isinstance(single, Agreed) and single.whole and 1 not in single.few.sizes


def test_a_row_whose_place_or_neighbours_matter_has_no_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Placed(Plain):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) * (1 + 1e-6 * torch.arange(len(x))[:, None])

    class Shared(Plain):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) + 1e-6 * x.sum()

    class Broken(Plain):
        def __call__(self, x: Tensor) -> Tensor:
            raise RuntimeError("no kernel image is available for execution on the device")

    honest = tile_check._crafted
    for kind, told in (
        (Placed, "a row has other bits when others are beside it"),
        (Shared, "a row has other bits when others are beside it"),
        (Broken, "products of 48 x 32 fail (RuntimeError)"),
    ):

        def crafted(*form: object, kind: type[Plain] = kind) -> tuple[Plain, Tensor]:
            product, x = honest(*form)  # type: ignore[arg-type]
            return kind([product._weight.t()], None, torch.float32, CPU), x  # type: ignore[attr-defined]

        monkeypatch.setattr(tile_check, "_crafted", crafted)
        assert agreed(FORMS, torch.float32, CPU) == told


def test_a_block_that_tells_its_company_is_named() -> None:
    hidden = torch.randn(280, 4)
    assert disagreement(lambda rows, *_: rows, hidden) == ""
    assert "not finite" in disagreement(lambda rows, *_: rows * torch.inf, hidden)
    assert "cut or shared" in disagreement(lambda rows, sizes, _: rows * len(sizes), hidden)
    assert "cut or shared" in disagreement(lambda rows, _, among: rows * (1 + among), hidden)
