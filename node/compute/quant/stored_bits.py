"""Checkpoints of bitsandbytes: int8 and nf4 matrices, taken as they are stored.

    int8   x.weight int8 (n, k)       x.SCB fp32 (n,)           x.weight_format: 0, row by row
    nf4    x.weight uint8 (n·k/2, 1)  x.weight.absmax           x.weight.quant_map: the codebook
           x.weight.quant_state.bitsandbytes__nf4: JSON as bytes: blocksize, shape, ...
           doubly quantized: absmax is uint8, an index into nested_quant_map, times nested_absmax
           (one for each 256), plus nested_offset; undone here, once, as bitsandbytes does

A matrix of nf4 whose groups do not lie within its rows, or are not of 64, is turned into numbers.

Source: bitsandbytes 0.50, nn/modules.py (_save_to_state_dict) and functional.QuantState.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....errors import UserError
from ..fields import Fields
from ..shards import broken
from ..weight import NF4, NF4_GROUP, Format, Weight
from .packing import Packing, Stored, expect, need

_STATE = ".quant_state.bitsandbytes__"
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", _STATE + "nf4")
_STATE_BYTES_MAX = 1 << 16
_WIDE = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1}  # dtypes that 4-bit bytes are kept in
_SIZE_MAX = 1 << 24

_HARMLESS = frozenset(
    re.findall(
        r"\S+",
        """
    _load_in_4bit _load_in_8bit bnb_4bit_compute_dtype bnb_4bit_quant_storage
    bnb_4bit_use_double_quant bnb_4bit_quant_type llm_int8_enable_fp32_cpu_offload
    llm_int8_has_fp16_weight llm_int8_skip_modules llm_int8_threshold quant_method
    """,
    )
)


@dataclass(frozen=True, slots=True)
class Bits8:
    """bitsandbytes' int8."""

    @property
    def format(self) -> Format:
        return "int8"

    @property
    def verbatim(self) -> bool:
        return True

    def parts(self, files: Stored, name: str) -> tuple[str, ...]:
        if not files.stored(name) or files.entry(name).dtype != "I8":
            return ()
        need(files, name, _scales_of(name))
        return (name, _scales_of(name))

    def shape(self, files: Stored, name: str) -> tuple[int, int]:
        shape = files.entry(name).shape
        if len(shape) != 2:
            raise broken(files.file_of(name), f"has {name} of shape {list(shape)}, not a matrix")
        return shape[0], shape[1]

    def weight(self, files: Stored, name: str) -> Weight:
        rows, columns = self.shape(files, name)
        order = name + "_format"
        if files.stored(order) and files.read(order).any():
            raise UserError(
                f"{files.file_of(order)}: {order} is another order than row by row;"
                " store the model again with bitsandbytes 0.45 or later"
            )
        scales = expect(files, _scales_of(name), ("F32",), (rows,))
        if not torch.isfinite(scales).all():
            raise broken(files.file_of(name), f"has scales of {name} that are not finite")
        return Weight("int8", rows, columns, files.read(name), scales)

    def whole(self, stored: str) -> str | None:
        return None if stored.endswith((".SCB", ".weight_format")) else stored


@dataclass(frozen=True, slots=True)
class Bits4:
    """bitsandbytes' nf4."""

    @property
    def format(self) -> Format:
        return "nf4"

    @property
    def verbatim(self) -> bool:
        return True

    def parts(self, files: Stored, name: str) -> tuple[str, ...]:
        if files.stored(name + _STATE + "fp4"):
            raise UserError(
                f"{files.file_of(name)}: {name} is fp4, which is not served; quantize to nf4"
            )
        if not files.stored(name + _STATE + "nf4"):
            return ()
        need(files, name, name + ".absmax")
        need(files, name, name + ".quant_map")
        return (name, *(name + part for part in _PARTS if files.stored(name + part)))

    def shape(self, files: Stored, name: str) -> tuple[int, int]:
        fields = _state(files, name)
        shape = fields.take("shape", None)
        whole = isinstance(shape, list) and len(shape) == 2
        if not whole or not all(type(size) is int and 0 < size < _SIZE_MAX for size in shape):
            raise fields.wrong("shape", f"is {shape!r}, not that of a matrix")
        return shape[0], shape[1]

    def weight(self, files: Stored, name: str) -> Weight:
        rows, columns = self.shape(files, name)
        fields = _state(files, name)
        size = fields.whole("blocksize", top=_SIZE_MAX)
        table = expect(files, name + ".quant_map", ("F32",), (16,))
        if not torch.equal(table, torch.tensor(NF4)):
            raise broken(files.file_of(name), f"has another codebook than nf4 for {name}")
        groups = -(-rows * columns // size)
        scales = _scales(files, name, fields, groups)
        codes = _bytes(files, name, -(-rows * columns // 2))
        if size == NF4_GROUP and columns % NF4_GROUP == 0:
            return Weight(
                "nf4",
                rows,
                columns,
                codes.view(rows, columns // 2),
                scales.view(rows, columns // NF4_GROUP),
            )
        numbers = table[torch.stack((codes >> 4, codes & 15), dim=1).view(-1).int()]
        numbers = numbers[: rows * columns]
        numbers = numbers * scales.repeat_interleave(size)[: rows * columns]
        return Weight.plain(numbers.view(rows, columns))

    def whole(self, stored: str) -> str | None:
        return None if stored.endswith(_PARTS) else stored


def bitsandbytes_packing(fields: Fields) -> Packing:
    """The packing that a `quantization_config` of bitsandbytes describes. Raises UserError."""
    eight, four = fields.switch("load_in_8bit", False), fields.switch("load_in_4bit", False)
    if eight == four:
        raise fields.wrong("load_in_4bit", f"and load_in_8bit are both {four}; one must be true")
    fields.refuse_unknown(_HARMLESS, {})
    if eight:
        return Bits8()
    kind = fields.text("bnb_4bit_quant_type", "fp4")  # transformers' own default
    if kind != "nf4":
        raise fields.wrong("bnb_4bit_quant_type", f"{kind!r} is not served; quantize to nf4")
    return Bits4()


def _scales_of(name: str) -> str:
    return name.removesuffix("weight") + "SCB"


def _state(files: Stored, name: str) -> Fields:
    part = name + _STATE + "nf4"
    entry = files.entry(part)
    if entry.dtype != "U8" or entry.stop - entry.start > _STATE_BYTES_MAX:
        raise broken(files.file_of(name), f"has a {part} that is not JSON")
    try:
        found: Any = json.loads(bytes(files.read(part).numpy()))
    except (ValueError, RecursionError) as error:
        raise broken(files.file_of(name), f"has a {part} that is not JSON") from error
    if not isinstance(found, dict) or found.get("quant_type", "nf4") != "nf4":
        raise broken(files.file_of(name), f"has a {part} that is not of nf4")
    return Fields(found, f"{files.file_of(name)}: {part}")


def _scales(files: Stored, name: str, fields: Fields, groups: int) -> Tensor:
    """One scale for each group, fp32, the double quantization undone. Raises UserError."""
    absmax = name + ".absmax"
    if files.entry(absmax).dtype == "U8":
        need(files, name, name + ".nested_absmax")
        need(files, name, name + ".nested_quant_map")
        size = fields.whole("nested_blocksize", top=_SIZE_MAX)
        offset = fields.take("nested_offset", None)
        if not isinstance(offset, float):
            raise fields.wrong("nested_offset", f"is {offset!r}, not a number")
        codes = expect(files, absmax, ("U8",), (groups,))
        table = expect(files, name + ".nested_quant_map", ("F32",), (256,))
        outer = expect(files, name + ".nested_absmax", ("F32",), (-(-groups // size),))
        scales = table[codes.int()] * outer.repeat_interleave(size)[:groups]
        scales += torch.tensor(offset)
    else:
        scales = expect(files, absmax, ("F32",), (groups,))
    if not torch.isfinite(scales).all():
        raise broken(files.file_of(name), f"has scales of {name} that are not finite")
    return scales


def _bytes(files: Stored, name: str, count: int) -> Tensor:
    """The codes, in whatever dtype they are kept. Raises UserError."""
    entry = files.entry(name)
    if entry.stop - entry.start != count or entry.dtype not in _WIDE:
        raise broken(
            files.file_of(name),
            f"has {entry.stop - entry.start} bytes of {entry.dtype} for {name}, not {count}",
        )
    return files.read(name).reshape(-1).view(torch.uint8)
