"""A packed matrix and its product with rows, from Python: y = x Wᵀ.

The fused block calls the same C from C (linear.h has the numerics); this is for single layers,
measurements and tests.
"""

from __future__ import annotations

import ctypes
import functools
import weakref

import torch
from torch import Tensor

from ....errors import UserError
from .library import library

FORMATS = {"int8": 3, "nf4": 4}
STORED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
LANES = 16
ALIGNMENT_BYTES = 64


class _Linear(ctypes.Structure):
    """potluck_linear."""

    _fields_ = [
        ("format", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("codes", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class _Rows(ctypes.Structure):
    """potluck_rows."""

    _fields_ = [
        ("format", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    ]


@functools.cache
def _native() -> ctypes.CDLL:
    """The library, with the signatures that are called here."""
    native, at, i32, size = library(), ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
    signatures = {
        "pool_new": (at, [i32]),
        "pool_free": (None, [at]),
        "packed_bytes": (size, [i32] * 3),
        "pack": (None, [at, i32, i32, i32, at, at, at]),
        "alloc": (at, [size]),
        "release": (None, [at, size]),
        "rows_bytes": (size, [i32] * 3),
        "rows_in": (_Rows, [i32, i32, i32, at]),
        "prepare_all": (None, [at, at, at, ctypes.c_ssize_t]),
        "multiply": (None, [at, at, at, at, ctypes.c_ssize_t, i32]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(native, f"potluck_{name}")
        function.restype, function.argtypes = result, arguments
    return native


class Pool:
    """Threads that share products; `handle` is a potluck_pool."""

    def __init__(self, threads: int) -> None:
        native = _native()
        self.threads = threads
        self.handle: int | None = native.potluck_pool_new(threads)
        if self.handle is None:
            raise UserError(f"{threads} threads cannot be started; ask for fewer: --threads")
        weakref.finalize(self, native.potluck_pool_free, self.handle)


class Packed:
    """A matrix (rows, columns) in the order in which the kernels read it.

    format: "none", "int8" or "nf4". codes, scales: as in `Weight`. bias: (rows,), or None.
    """

    def __init__(
        self,
        format: str,
        codes: Tensor,
        scales: Tensor | None = None,
        bias: Tensor | None = None,
        pool: Pool | None = None,
    ) -> None:
        native = _native()
        code = STORED[codes.dtype] if format == "none" else FORMATS[format]
        self.format = format
        self.rows = codes.shape[0]
        self.columns = codes.shape[1] * (2 if format == "nf4" else 1)
        self.nbytes: int = native.potluck_packed_bytes(code, self.rows, self.columns)
        if not self.nbytes:
            raise UserError(
                f"a matrix of {self.rows} by {self.columns} cannot be {format}; use int8 or none"
            )
        self._packed = native.potluck_alloc(self.nbytes)
        if self._packed is None:
            raise UserError(f"no memory for a matrix of {self.nbytes} bytes; serve fewer blocks")
        weakref.finalize(self, native.potluck_release, self._packed, self.nbytes)
        codes = codes.contiguous()
        scales = None if scales is None else scales.float().contiguous()
        native.potluck_pack(
            pool.handle if pool else None,
            code,
            self.rows,
            self.columns,
            codes.data_ptr(),
            None if scales is None else scales.data_ptr(),
            self._packed,
        )
        self._bias = None
        if bias is not None:
            self._bias = torch.zeros(-(-self.rows // LANES) * LANES)
            self._bias[: self.rows] = bias
        bias_at = None if self._bias is None else self._bias.data_ptr()
        self.linear = _Linear(code, self.rows, self.columns, self._packed, bias_at)

    def multiply(
        self, x: Tensor, pool: Pool | None = None, *, onto: Tensor | None = None
    ) -> Tensor:
        """x: float32 (rows, columns) -> float32 (rows, outputs); added to `onto`, if given."""
        native, handle = _native(), pool.handle if pool else None
        x = x.contiguous()
        if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != self.columns:
            raise ValueError(f"x is {x.dtype} {tuple(x.shape)}, not float32 (rows, {self.columns})")
        y = torch.empty(len(x), self.rows) if onto is None else onto
        if y.shape != (len(x), self.rows) or y.dtype != torch.float32 or not y.is_contiguous():
            raise ValueError(f"onto is {y.dtype} {tuple(y.shape)}, or not contiguous")
        if len(x) == 0:
            return y
        size = native.potluck_rows_bytes(self.linear.format, len(x), self.columns)
        room = torch.empty(size + ALIGNMENT_BYTES, dtype=torch.uint8)
        start = -(-room.data_ptr() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        rows = native.potluck_rows_in(self.linear.format, len(x), self.columns, start)
        native.potluck_prepare_all(handle, ctypes.byref(rows), x.data_ptr(), x.stride(0))
        native.potluck_multiply(
            handle,
            ctypes.byref(self.linear),
            ctypes.byref(rows),
            y.data_ptr(),
            self.rows,
            0 if onto is None else 1,
        )
        return y
