"""A packed matrix and its product with rows, from Python: y = x Wᵀ.

The fused block calls the same C from C (linear.h has the numerics); this is for single layers,
measurements and tests.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from ....errors import UserError
from ..quant.quantizers import NotFinite
from .library import library

FORMATS = {"int8": 3, "nf4": 4}
STORED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
LANES = 16
ALIGNMENT_BYTES = 64

# codes and scales, as in `Weight`; numbers in place of codes are quantized on the way
Part = tuple[Tensor, Tensor | None]


class Linear(ctypes.Structure):
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


def _kind(format: str, codes: Tensor) -> tuple[int, int]:
    """The format's number and the columns of a matrix with such codes."""
    code = STORED[codes.dtype] if format == "none" else FORMATS[format]
    pairs = format == "nf4" and codes.dtype not in STORED
    return code, codes.shape[1] * (2 if pairs else 1)


@functools.cache
def _native() -> ctypes.CDLL:
    """The library, with the signatures that are called here."""
    native, at, i32, size = library(), ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
    signatures = {
        "pool_new": (at, [i32]),
        "pool_free": (None, [at]),
        "packed_bytes": (size, [i32] * 3),
        "pack": (None, [at, i32, i32, i32, at, at, at, i32]),
        "pack_from": (ctypes.c_int, [at, i32, i32, i32, at, i32, at, i32]),
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

    format: "none", "int8" or "nf4". codes, scales: as in `Weight`, or numbers and None, which are
    quantized (NotFinite where they cannot be). bias: (rows,), or None.
    """

    def __init__(
        self,
        format: str,
        codes: Tensor,
        scales: Tensor | None = None,
        bias: Tensor | None = None,
        pool: Pool | None = None,
    ) -> None:
        code, columns = _kind(format, codes)
        self._hold(code, len(codes), columns, None, bias)
        self._fill(0, codes, scales, 1, pool)

    @classmethod
    def below(
        cls,
        format: str,
        parts: Sequence[Part],
        bias: Tensor | None = None,
        pool: Pool | None = None,
    ) -> Packed:
        """Matrices of one kind, one below the other; all but the last have whole tiles of rows."""
        rows = [len(codes) for codes, _ in parts]
        firsts = [sum(rows[:place]) // LANES for place in range(len(parts))]
        return cls._of(format, parts, sum(rows), firsts, 1, bias, pool)

    @classmethod
    def in_turns(
        cls,
        format: str,
        parts: Sequence[Part],
        bias: Tensor | None = None,
        pool: Pool | None = None,
    ) -> Packed:
        """Two matrices of one kind and size, a tile of each in turns, filled up with zeros."""
        rows = 2 * -(-len(parts[0][0]) // LANES) * LANES
        return cls._of(format, parts, rows, range(2), 2, bias, pool)

    @classmethod
    def _of(
        cls,
        format: str,
        parts: Sequence[Part],
        rows: int,
        firsts: Sequence[int],
        step: int,
        bias: Tensor | None,
        pool: Pool | None,
    ) -> Packed:
        """Parts that begin at these tiles and take every so manyth."""
        packed = cls.__new__(cls)
        code, columns = _kind(format, parts[0][0])
        packed._hold(code, rows, columns, None, bias)
        for first, (codes, scales) in zip(firsts, parts, strict=True):
            packed._fill(first, codes, scales, step, pool)
        return packed

    @classmethod
    def kept(
        cls, code: int, rows: int, columns: int, memory: Tensor, bias: Tensor | None = None
    ) -> Packed:
        """What `bytes_of` gave once; `memory`, at a multiple of 64, is used where it is."""
        packed = cls.__new__(cls)
        packed._hold(code, rows, columns, memory, bias)
        return packed

    def _hold(
        self, code: int, rows: int, columns: int, memory: Tensor | None, bias: Tensor | None
    ) -> None:
        native = _native()
        self.code, self.rows, self.columns = code, rows, columns
        self.nbytes: int = native.potluck_packed_bytes(code, rows, columns)
        if not self.nbytes:
            raise UserError(
                f"a matrix of {rows} by {columns} cannot be in this format; use int8 or none"
            )
        self._memory = memory
        if memory is not None:
            if memory.nbytes != self.nbytes or memory.data_ptr() % ALIGNMENT_BYTES:
                raise ValueError(f"{memory.nbytes} bytes for a matrix of {self.nbytes}")
            self._packed: int = memory.data_ptr()
        else:
            self._packed = native.potluck_alloc(self.nbytes)
            if self._packed is None:
                raise UserError(
                    f"no memory for a matrix of {self.nbytes} bytes; serve fewer blocks"
                )
            weakref.finalize(self, native.potluck_release, self._packed, self.nbytes)
        self._bias = None
        if bias is not None:
            self._bias = torch.zeros(-(-rows // LANES) * LANES)
            self._bias[:rows] = bias
        bias_at = None if self._bias is None else self._bias.data_ptr()
        self.linear = Linear(code, rows, columns, self._packed, bias_at)

    def _fill(
        self, first: int, codes: Tensor, scales: Tensor | None, step: int, pool: Pool | None
    ) -> None:
        """Pack a part of the rows from tile `first` on. Raises NotFinite."""
        native = _native()
        codes = codes.contiguous()
        handle = pool.handle if pool else None
        to = self._packed + first * native.potluck_packed_bytes(self.code, LANES, self.columns)
        size = (self.code, len(codes), self.columns)
        if self.code in FORMATS.values() and codes.dtype in STORED:
            dtype = STORED[codes.dtype]
            wrong = native.potluck_pack_from(handle, *size, codes.data_ptr(), dtype, to, step)
            if wrong > 0:
                raise NotFinite("a weight is infinite or not a number")
            if wrong < 0:
                raise UserError("no memory to quantize in; serve fewer blocks")
            return
        scales = None if scales is None else scales.float().contiguous()
        at = None if scales is None else scales.data_ptr()
        native.potluck_pack(handle, *size, codes.data_ptr(), at, to, step)

    def bytes_of(self) -> Tensor:
        """The packed bytes, where they are: valid while this matrix is."""
        held = (ctypes.c_uint8 * self.nbytes).from_address(self._packed)
        return torch.frombuffer(held, dtype=torch.uint8)

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
