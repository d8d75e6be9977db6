"""Blocks of a model packed for our C, and passes of rows through them (block.h).

Everything that C reads is laid out once, when blocks are packed; a pass hands over one array of
runs and the hidden states. ctypes lets go of the GIL while it lasts.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..layout import ROUTER, BlockWeights
from ..quant.formats import Quantization
from ..quant.larder import Kept
from ..spec import ModelSpec
from ..weight import Format, Weight, join
from .library import library
from .linear import LANES, Linear, Packed, Pool

# potluck_run: table, stride, 2 cosines, 2 sines, adapter, at, count
RUN = struct.Struct("@PqPPPPPii")
_ALIGNMENT_BYTES = 64
_ACTS = {"silu": 0, "gelu_tanh": 1}
_Floats = ctypes.c_void_p


class _Block(ctypes.Structure):
    """potluck_block."""

    _fields_ = [
        ("qkv", Linear),
        ("out", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("router", Linear),
        ("expert_gate_up", ctypes.POINTER(Linear)),
        ("expert_down", ctypes.POINTER(Linear)),
        ("norm_in", _Floats),
        ("norm_mid", _Floats),
        ("norm_attended", _Floats),
        ("norm_fed", _Floats),
        ("q_norm", _Floats),
        ("k_norm", _Floats),
        ("softcap", ctypes.c_float),
        ("window", ctypes.c_int32),
        ("rope", ctypes.c_int32),
        ("ffn", ctypes.c_int32),
        ("experts", ctypes.c_int32),
        ("experts_per_token", ctypes.c_int32),
        ("renormalise", ctypes.c_int32),
    ]


class _Model(ctypes.Structure):
    """potluck_model."""

    _fields_ = [
        ("hidden", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("turned", ctypes.c_int32),
        ("act", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("blocks", ctypes.c_int32),
        ("bytes", ctypes.c_int32),
        ("block", ctypes.POINTER(_Block)),
    ]


class PackedBlock:
    """The weights of one block as C reads them. What they came from is not kept."""

    def __init__(
        self,
        spec: ModelSpec,
        index: int,
        weights: BlockWeights,
        pool: Pool,
        *,
        coding: Quantization | None = None,
        kept: Kept | None = None,
    ) -> None:
        """coding: in which matrices of numbers are packed; NotFinite where one cannot be. kept:
        what `to_keep` gave once; then the matrices that are in it need not be there."""
        self._held: list[object] = []
        self._packed: dict[str, Packed] = {}
        self._kept = kept
        self._coding = coding
        self._pool = pool
        self.bytes = 0
        window = spec.windows[index]
        local = spec.local_rope is not None and window is not None
        experts = spec.experts_of(index)
        vectors = weights.vectors
        self._matrices = weights.matrices
        fact = self.fact = _Block()
        self._norms(spec, vectors)
        fact.qkv = self._linear("qkv", ("q", "k", "v"), _qkv_bias(vectors))
        fact.out = self._linear("out", ("out",), vectors.get("out_bias"))
        if experts:
            self._mixture(spec, experts)
        else:
            bias = None
            if "gate_bias" in vectors:
                bias = _turns(vectors["gate_bias"].float(), vectors["up_bias"].float())
            fact.gate_up = self._linear("gate_up", ("gate", "up"), bias, turns=True)
            fact.down = self._linear("down", ("down",), vectors.get("down_bias"))
        fact.softcap = spec.attn_softcap or 0.0
        fact.window = window or 0
        fact.rope = int(local)
        fact.ffn = spec.ffn_of(index)
        del self._matrices, self._kept

    def to_keep(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Buffers and facts of the matrices, for a larder; valid while this block is."""
        buffers = {name: packed.bytes_of() for name, packed in self._packed.items()}
        facts: dict[str, object] = {
            name: [packed.code, packed.rows, packed.columns]
            for name, packed in self._packed.items()
        }
        return buffers, facts

    def _norms(self, spec: ModelSpec, vectors: dict[str, Tensor]) -> None:
        for name in ("norm_in", "norm_mid", "norm_attended", "norm_fed", "q_norm", "k_norm"):
            if name in vectors:
                weight = vectors[name].float() + spec.norm_offset
                setattr(self.fact, name, self._floats(weight))

    def _mixture(self, spec: ModelSpec, experts: int) -> None:
        fact = self.fact
        fact.experts, fact.experts_per_token = experts, spec.experts_per_token
        fact.renormalise = int(spec.renormalise)
        fact.router = self._linear(ROUTER, (ROUTER,), None)
        fact.expert_gate_up, fact.expert_down = (Linear * experts)(), (Linear * experts)()
        for one in range(experts):
            both = (f"{one}.gate", f"{one}.up")
            fact.expert_gate_up[one] = self._linear(f"{one}.gate_up", both, None, turns=True)
            fact.expert_down[one] = self._linear(f"{one}.down", (f"{one}.down",), None)

    def _floats(self, vector: Tensor) -> int:
        """A vector for C, filled up with zeros to whole tiles; its address."""
        held = torch.zeros(-(-len(vector) // LANES) * LANES)
        held[: len(vector)] = vector
        self._held.append(held)
        return held.data_ptr()

    def _linear(
        self, name: str, parts: tuple[str, ...], bias: Tensor | None, *, turns: bool = False
    ) -> Linear:
        """These matrices as one, from what was kept or packed now."""
        if self._kept is not None:
            code, rows, columns = self._kept.facts[name]
            packed = Packed.kept(code, rows, columns, self._kept.buffers[name], bias)
        else:
            alike = _alike([self._matrices[part] for part in parts])
            if not turns and any(one.rows % LANES for one in alike[:-1]):
                alike = [join(alike)]
            make = Packed.in_turns if turns else Packed.below
            parted = [(one.codes, one.scales) for one in alike]
            packed = make(self._format(name, alike[0]), parted, bias, self._pool)
        self._packed[name] = packed
        self.bytes += packed.nbytes
        return Linear.from_buffer_copy(packed.linear)

    def _format(self, name: str, weight: Weight) -> Format:
        if weight.format != "none" or self._coding is None or name == ROUTER:
            return weight.format
        return self._coding.fitting(weight.columns)


class PackedBlocks:
    """Consecutive blocks, and passes through any range of them. Not for two threads at once."""

    def __init__(
        self,
        spec: ModelSpec,
        blocks: Sequence[PackedBlock],
        pool: Pool,
        *,
        byte_pages: bool = False,
    ) -> None:
        self._blocks = blocks
        self._pool = pool
        facts = (_Block * len(blocks))(*(block.fact for block in blocks))
        self._model = _Model(
            hidden=spec.hidden,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            turned=spec.rotary_dim,
            act=_ACTS[spec.activation],
            eps=spec.eps,
            scale=spec.scale,
            blocks=len(blocks),
            bytes=int(byte_pages),
            block=facts,
        )
        self._reference = ctypes.byref(self._model)
        self._pass = _c().potluck_pass
        self._room = (0, 0, 0)  # rows, runs and rank that the scratch memory is for
        self._scratch = np.empty(0, np.uint8)
        self._scratch_at = 0

    def run(
        self,
        hidden: NDArray[np.float32],
        runs: bytes,
        *,
        pages: int,
        page_bytes: int,
        start: int,
        stop: int,
        rank: int = 0,
    ) -> None:
        """One pass through blocks start..stop of these, in place.

        hidden: contiguous (rows, width); runs: packed by RUN; pages: the pool's address; rank: of
        the widest adapter that a run wears.
        """
        rows, count = len(hidden), len(runs) // RUN.size
        if any(now > room for now, room in zip((rows, count, rank), self._room, strict=True)):
            self._grow(rows, count, rank)
        self._pass(
            self._reference,
            self._pool.handle,
            pages,
            page_bytes,
            runs,
            count,
            rank,
            hidden.ctypes.data,
            rows,
            start,
            stop,
            self._scratch_at,
        )

    def _grow(self, rows: int, runs: int, rank: int) -> None:
        room = max(rows, self._room[0]), max(runs, self._room[1]), max(rank, self._room[2])
        size = _c().potluck_pass_bytes(self._reference, *room, self._pool.threads)
        self._scratch = np.empty(size + _ALIGNMENT_BYTES, np.uint8)
        self._scratch_at = -(-self._scratch.ctypes.data // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._room = room


def page_bytes(spec: ModelSpec, *, byte_pages: bool = False) -> int:
    """What a page of one block holds."""
    return int(_c().potluck_page_bytes(spec.kv_heads, spec.head_dim, int(byte_pages)))


def _alike(parts: Sequence[Weight]) -> Sequence[Weight]:
    """Matrices of one format, also where one of them could not be coded as the others."""
    if len({part.format for part in parts}) > 1:
        return [Weight.plain(part.dequantize()) for part in parts]
    if parts[0].format == "none" and len({part.codes.dtype for part in parts}) > 1:
        return [Weight.plain(part.codes.float()) for part in parts]
    return parts


def _turns(gate: Tensor, up: Tensor) -> Tensor:
    """Sixteen of gate and sixteen of up, in turns; both filled up with zeros."""
    tiles, rest = divmod(len(gate), LANES)
    whole = gate.new_zeros((tiles + bool(rest), 2, LANES, *gate.shape[1:]))
    for place, one in enumerate((gate, up)):
        whole[:tiles, place] = one[: tiles * LANES].reshape(tiles, LANES, *one.shape[1:])
        if rest:
            whole[tiles, place, :rest] = one[tiles * LANES :]
    return whole.flatten(0, 2)


def _qkv_bias(vectors: dict[str, Tensor]) -> Tensor | None:
    if "q_bias" not in vectors:
        return None
    return torch.cat([vectors[f"{one}_bias"].float() for one in "qkv"])


@functools.cache
def _c() -> ctypes.CDLL:
    """The library, with the signatures that are called here."""
    c = library()
    void, whole, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
    long = ctypes.c_int64
    for name, result, arguments in (
        ("potluck_page_bytes", long, [whole, whole, whole]),
        ("potluck_pass_bytes", size, [void, whole, whole, whole, whole]),
        (
            "potluck_pass",
            None,
            [void, void, void, long, ctypes.c_char_p, *[whole] * 2, void, *[whole] * 3, void],
        ),
    ):
        function = getattr(c, name)
        function.restype, function.argtypes = result, arguments
    return c
