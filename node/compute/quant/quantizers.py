"""Numbers to codes, byte for byte as bitsandbytes stores them.

    int8   of each row:          scale = max |w|    code = round(w · ((1 / scale) · 127))
    nf4    of each 64 columns:   scale = max |w|    code = the bounds below w · (1 / scale)

Our C does it where it is built (native/quantize.c), torch elsewhere, with the same bytes. A row or
a group of zeros has scale 0 and codes that stand for 0. bitsandbytes' `Linear8bitLt` turns weights
to fp16 before; here they are quantized as they are stored, so that of an fp32 checkpoint some codes
differ by one from that module's, and none from those of its function.

Source: bitsandbytes 0.50, backends/default/ops.py (tests/test_quantizers.py).
"""

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..native.library import is_available, library
from ..weight import NF4, NF4_GROUP, Weight

Rows = Callable[[Tensor, Tensor, Tensor], bool]  # matrix, codes, scales: whether all is finite

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as quantize.c counts them
_CHUNK_BYTES = 1 << 20  # of fp32, in torch: what the second cache holds
_ISA = 0  # the best of the processor; tests choose others
_PART_BYTES = 1 << 18  # a thread is not worth starting for less


class NotFinite(ValueError):
    """A matrix holds an infinity, or something that is no number."""


def to_int8(matrix: Tensor, *, threads: int | None = None, native: bool = True) -> Weight:
    """Quantize a matrix (n, k) of fp32, bf16 or fp16. Raises NotFinite.

    threads: None: as many as torch has. native: False: without our C.
    """
    matrix = _plain(matrix)
    rows, columns = matrix.shape
    codes = torch.empty((rows, columns), dtype=torch.int8)
    scales = torch.empty(rows)
    _cut(_native("int8") if native else _rows_to_int8, matrix, codes, scales, threads)
    return Weight("int8", rows, columns, codes, scales)


def to_nf4(matrix: Tensor, *, threads: int | None = None, native: bool = True) -> Weight:
    """Quantize a matrix (n, k) of fp32, bf16 or fp16; k is a multiple of 64. Raises NotFinite."""
    matrix = _plain(matrix)
    rows, columns = matrix.shape
    if columns % NF4_GROUP:
        raise ValueError(f"{columns} columns are no multiple of {NF4_GROUP}")
    codes = torch.empty((rows, columns // 2), dtype=torch.uint8)
    scales = torch.empty((rows, columns // NF4_GROUP))
    _cut(_native("nf4") if native else _rows_to_nf4, matrix, codes, scales, threads)
    return Weight("nf4", rows, columns, codes, scales)


def _plain(matrix: Tensor) -> Tensor:
    known = matrix.dtype in _DTYPES
    return (matrix if known else matrix.float()).detach().cpu().contiguous()


def _cut(run: Rows, matrix: Tensor, codes: Tensor, scales: Tensor, threads: int | None) -> None:
    """Run over parts of the rows, each in a thread. Raises NotFinite."""
    count = max(1, min(threads or torch.get_num_threads(), matrix.nbytes // _PART_BYTES))
    size = max(1, -(-len(matrix) // count))
    parts = list(zip(*(torch.split(x, size) for x in (matrix, codes, scales)), strict=True))
    if len(parts) == 1:
        finite = run(*parts[0])
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            finite = all(pool.map(lambda part: run(*part), parts))
    if not finite:
        raise NotFinite("a weight is infinite or not a number")


def _native(format: str) -> Rows:
    """The C function for a format, or torch's where there is none."""
    if not is_available():
        return _rows_to_int8 if format == "int8" else _rows_to_nf4
    found = library()

    def run(matrix: Tensor, codes: Tensor, scales: Tensor) -> bool:
        at = [ctypes.c_void_p(x.data_ptr()) for x in (matrix, codes, scales)]
        dtype = _DTYPES[matrix.dtype]
        rows, columns = matrix.shape
        if format == "int8":
            shape = (ctypes.c_int64(rows), ctypes.c_int64(columns))
            return not found.potluck_quantize_int8(at[0], dtype, *shape, at[1], at[2], _ISA)
        groups = ctypes.c_int64(rows * columns // NF4_GROUP)
        return not found.potluck_quantize_nf4(at[0], dtype, groups, at[1], at[2], _ISA)

    return run


def _pieces(matrix: Tensor, codes: Tensor, scales: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = max(1, _CHUNK_BYTES // (4 * matrix.shape[1]))
    return zip(*(torch.split(x, size) for x in (matrix, codes, scales)), strict=True)


def _rows_to_int8(matrix: Tensor, codes: Tensor, scales: Tensor) -> bool:
    for rows, to, scale in _pieces(matrix, codes, scales):
        wide = rows.float()
        torch.amax(wide.abs(), dim=1, out=scale)
        if not torch.isfinite(scale).all():
            return False
        factor = (1 / scale).mul_(127.0)
        factor[~torch.isfinite(factor)] = 0
        to.copy_(torch.round(wide * factor[:, None]))
    return True


def _rows_to_nf4(matrix: Tensor, codes: Tensor, scales: Tensor) -> bool:
    table = torch.tensor(NF4)
    bounds = (table[:-1] + table[1:]) / 2
    for rows, to, scale in _pieces(matrix, codes, scales):
        wide = rows.float().view(len(rows), -1, NF4_GROUP)
        torch.amax(wide.abs(), dim=2, out=scale)
        if not torch.isfinite(scale).all():
            return False
        scaled = wide * (1 / scale.clamp(min=1e-38))[..., None]
        found = torch.zeros(scaled.shape, dtype=torch.uint8)
        for bound in bounds:  # seven times as fast as bucketize
            found += scaled > bound
        pairs = found.view(len(rows), -1, 2)
        to.copy_(pairs[..., 0] << 4 | pairs[..., 1])
    return True
