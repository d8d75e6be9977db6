"""Numbers become the very bytes that bitsandbytes makes of them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import UserError
from potluck.node.compute.native.library import is_available
from potluck.node.compute.quant import quantizers
from potluck.node.compute.quant.formats import QUANTIZATIONS, choose
from potluck.node.compute.quant.quantizers import NotFinite, to_int8, to_nf4
from potluck.node.compute.weight import NF4, Weight

GOLDEN = Path(__file__).parent / "golden" / "quantizers.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def golden_matrix() -> torch.Tensor:
    """Numbers of a rule, with what is hard among them: bounds, ties, zeros."""
    steps = torch.arange(4 * 128, dtype=torch.float32)
    matrix = (((steps * 7919) % 2003 - 1001) / 997).view(4, 128)
    code = torch.tensor(NF4)
    matrix[0, :15] = (code[1:] + code[:-1]) / 2
    matrix[0, 15] = 1
    matrix[1, :64] = 0
    matrix[2] = torch.arange(128) - 63.5  # of 127: halves, which go to the even
    matrix[2, 0] = 127
    matrix[3] *= 1e-3
    return matrix


@pytest.fixture(params=["native", "torch"])
def native(request: pytest.FixtureRequest) -> bool:
    if request.param == "native" and not is_available():
        pytest.skip("the C library is not built here")
    return bool(request.param == "native")


@pytest.mark.parametrize("name", DTYPES)
def test_the_bytes_are_those_that_bitsandbytes_made_once(name: str, native: bool) -> None:
    """golden/quantizers.json: bitsandbytes 0.50.2 on the matrix above, on a CPU."""
    golden = json.loads(GOLDEN.read_text())[name]
    matrix = golden_matrix().to(DTYPES[name])
    eight = to_int8(matrix, native=native)
    assert bytes(eight.codes.view(torch.uint8).flatten().tolist()).hex() == golden["int8"]
    assert eight.scales is not None and eight.scales.tolist() == golden["scb"]
    four = to_nf4(matrix, native=native)
    assert bytes(four.codes.flatten().tolist()).hex() == golden["nf4"]
    assert four.scales is not None and four.scales.flatten().tolist() == golden["absmax"]


def same(one: Weight, other: Weight) -> bool:
    assert one.scales is not None and other.scales is not None
    return torch.equal(one.codes, other.codes) and torch.equal(one.scales, other.scales)


matrices = st.tuples(
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(sorted(DTYPES)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-30, 1e-6, 0.02, 1.0, 300.0]),
    st.floats(0, 1),
)


def matrix_of(case: tuple[int, int, str, int, float, float]) -> torch.Tensor:
    rows, groups, name, seed, size, zeros = case
    dice = torch.Generator().manual_seed(seed)
    matrix = torch.randn((rows, 64 * groups), generator=dice) * size
    matrix[torch.rand(matrix.shape, generator=dice) < zeros] = 0
    return matrix.to(DTYPES[name])


@given(matrices)
def test_c_and_torch_make_the_same_bytes(case: tuple[int, int, str, int, float, float]) -> None:
    if not is_available():
        pytest.skip("the C library is not built here")
    matrix = matrix_of(case)
    assert same(to_int8(matrix), to_int8(matrix, native=False))
    assert same(to_nf4(matrix), to_nf4(matrix, native=False))


@pytest.mark.parametrize("isa", [1, 2, 3])
@pytest.mark.parametrize("name", DTYPES)
def test_every_kind_of_vector_makes_the_same_bytes(
    isa: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kind that this processor lacks falls back to one that it has. 1100: more than a chunk."""
    if not is_available():
        pytest.skip("the C library is not built here")
    matrix = (torch.randn(7, 1100) * 0.02).to(DTYPES[name])
    wide = (torch.randn(7, 1152) * 0.02).to(DTYPES[name])
    wide[0, :64] *= 1e-6  # below what fp16 has as normal numbers
    expected = to_int8(matrix, native=False), to_nf4(wide, native=False)
    monkeypatch.setattr(quantizers, "_ISA", isa)
    assert same(to_int8(matrix), expected[0])
    assert same(to_nf4(wide), expected[1])


def test_threads_change_nothing(native: bool) -> None:
    matrix = torch.randn(513, 1024) * 0.1
    for make in (to_int8, to_nf4):
        alone = make(matrix, threads=1, native=native)
        assert same(alone, make(matrix, threads=3, native=native))


@given(matrices)
def test_a_number_comes_back_within_half_a_step(
    case: tuple[int, int, str, int, float, float],
) -> None:
    """int8: half a 127th of its row's largest. nf4: half the widest gap of the codebook, 0.304."""
    matrix = matrix_of(case).float()
    eight, four = to_int8(matrix), to_nf4(matrix)
    assert eight.scales is not None and four.scales is not None
    off = (eight.dequantize() - matrix).abs()
    assert (off <= eight.scales[:, None] * (0.5 / 127 + 1e-6)).all()
    groups = (four.dequantize() - matrix).abs().view(len(matrix), -1, 64)
    assert (groups <= four.scales[..., None] * (0.304 / 2 + 1e-6)).all()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("make", [to_int8, to_nf4])
def test_what_is_no_number_is_not_quantized(make: object, value: float, native: bool) -> None:
    assert callable(make)
    for dtype in DTYPES.values():
        matrix = torch.randn(3, 128).to(dtype)
        matrix[1, 77] = value
        with pytest.raises(NotFinite):
            make(matrix, native=native)


def test_rows_of_nothing_stay_nothing(native: bool) -> None:
    for size in (0.0, 1e-42):
        matrix = torch.full((2, 64), size)
        assert to_int8(matrix, native=native).dequantize().abs().max() <= 1e-41
        assert to_nf4(matrix, native=native).dequantize().abs().max() <= 1e-41


def test_a_matrix_whose_width_nf4_cannot_group_becomes_int8() -> None:
    nf4 = QUANTIZATIONS["nf4"]
    assert nf4.quantize(torch.randn(2, 96)).format == "int8"
    assert nf4.quantize(torch.randn(2, 128)).format == "nf4"
    shapes = {"a": (2, 96), "b": (2, 128), "norm": (96,)}
    assert nf4.misfits(shapes) == ("a",)
    assert QUANTIZATIONS["int8"].misfits(shapes) == ()
    with pytest.raises(ValueError, match="no multiple of 64"):
        to_nf4(torch.randn(2, 96))


@pytest.mark.parametrize("format", sorted(QUANTIZATIONS))
@pytest.mark.parametrize("columns", [96, 128])
def test_the_announced_size_is_the_size(format: str, columns: int) -> None:
    one = choose(format)
    weight = one.quantize(torch.randn(5, columns).to(torch.bfloat16))
    assert one.bytes_of(5, columns) == weight.nbytes


def test_a_weight_in_the_format_asked_for_is_taken_as_it_is() -> None:
    plain = Weight.plain(torch.randn(2, 128))
    for quantization in QUANTIZATIONS.values():
        weight = quantization.take(plain)
        assert quantization.take(weight) is weight
    four = QUANTIZATIONS["nf4"].take(plain)
    assert torch.equal(QUANTIZATIONS["none"].take(four).codes, four.dequantize())


def test_the_user_chooses_a_format_or_hears_which_there_are() -> None:
    assert choose("nf4").format == "nf4"
    assert choose(None, "int8").format == choose("auto", "int8").format == "int8"
    assert choose(None).format == "none"
    with pytest.raises(UserError, match="use auto, none, int8, nf4"):
        choose("int4")
