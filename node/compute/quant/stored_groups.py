"""Checkpoints of GPTQ and AWQ: whole numbers with a zero and a scale for each group of inputs.

    w[n, k] = (q[k, n] - z[g, n]) · s[g, n]        g: the group of input k

    GPTQ   qweight int32 (k·bits/32, n): inputs packed, the lowest bits first
           qzeros int32 (g, n·bits/32): outputs packed; version 1 keeps z - 1, version 2 z
           scales (g, n), g_idx int32 (k,): each input's group, when the inputs were reordered
    AWQ    qweight int32 (k, n/8), qzeros int32 (g, n/8): outputs packed in the order
           0 2 4 6 1 3 5 7, scales (g, n)

The product of a whole number below 2^9 and a scale is exact in fp32; it is rounded once, to the
scales' dtype, which gives the same bits as those packages' own arithmetic in that dtype.

Source: AutoGPTQ's qlinear_cuda and GPTQModel's torch kernels; AutoAWQ's packing_utils.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fields import Fields
from ..shards import broken
from ..weight import Format, Weight
from .packing import Packing, Stored, expect, need, unpack

_FLOATS = ("F16", "BF16", "F32")
_AWQ_PLACE = (0, 4, 1, 5, 2, 6, 3, 7)  # where column i of eight lies in its int32
_CHUNK = 64  # outputs turned back at once; a multiple of how many an int32 holds
_GROUP_MAX = 1 << 20

_GPTQ_HARMLESS = frozenset(
    re.findall(
        r"\S+",
        """
    act_group_aware backend batch_size block_name_to_quantize cache_block_outputs
    damp_auto_increment damp_percent dataset exllama_config exllama_version group_aware lm_head
    max_input_length meta model_file_base_name model_name_or_path model_seqlen
    module_name_preceding_first_block modules_in_block_to_quantize mse offload_to_disk
    offload_to_disk_path pad_token_id quant_method static_groups sym tokenizer true_sequential
    use_cuda_fp16 use_exllama vram_strategy
    """,
    )
)
_AWQ_HARMLESS = frozenset(
    re.findall(
        r"\S+",
        """
    backend do_fuse exllama_config fuse_max_seq_len modules_to_fuse modules_to_not_convert
    quant_method
    """,
    )
)


@dataclass(frozen=True, slots=True)
class Groups:
    """GPTQ's or AWQ's packing: both keep a matrix as x.qweight, x.qzeros and x.scales."""

    awq: bool
    bits: int
    group: int | None  # inputs of a group; None: all of them
    reordered: bool = False
    zeros_less_one: bool = False

    @property
    def format(self) -> Format:
        return "int8"  # to round four bits' numbers to others of four bits would lose some again

    @property
    def verbatim(self) -> bool:
        return False

    def parts(self, files: Stored, name: str) -> tuple[str, ...]:
        codes, zeros, scales, order = _names(name)
        if not files.stored(codes):
            return ()
        need(files, codes, zeros)
        need(files, codes, scales)
        if self.reordered:
            need(files, codes, order)
        found = (codes, zeros, scales)
        return (*found, order) if files.stored(order) and not self.awq else found

    def shape(self, files: Stored, name: str) -> tuple[int, int]:
        codes = _names(name)[0]
        shape = files.entry(codes).shape
        if len(shape) != 2 or not all(shape):
            raise broken(files.file_of(codes), f"has {codes} of shape {list(shape)}")
        per = 32 // self.bits
        return (shape[1] * per, shape[0]) if self.awq else (shape[1], shape[0] * per)

    def weight(self, files: Stored, name: str) -> Weight:
        codes, zeros, scales, order = _names(name)
        rows, columns = self.shape(files, name)
        per = 32 // self.bits
        size = columns if self.group is None else self.group
        groups = -(-columns // size)
        packed = expect(files, codes, ("I32",), files.entry(codes).shape)
        scale = expect(files, scales, _FLOATS, (groups, rows))
        if rows % per or not torch.isfinite(scale).all():
            raise broken(files.file_of(codes), f"has {rows} outputs or scales of {name} amiss")
        zero = self._outputs(expect(files, zeros, ("I32",), (groups, rows // per)))
        if self.zeros_less_one:
            zero = (zero + 1) & ((1 << self.bits) - 1)
        if order in self.parts(files, name):
            of = expect(files, order, ("I32",), (columns,)).long()
            if int(of.min()) < 0 or int(of.max()) >= groups:
                raise broken(files.file_of(order), f"has an {order} that names no group")
        else:
            of = torch.arange(columns) // size
        part = self._outputs if self.awq else self._inputs
        return Weight.plain(_numbers(packed, part, zero, scale, of, per if self.awq else 1))

    def whole(self, stored: str) -> str | None:
        base, _, last = stored.rpartition(".")
        if last == "qweight":
            return base + ".weight"
        return None if last in ("qzeros", "scales", "g_idx") else stored

    def _inputs(self, packed: Tensor) -> Tensor:
        """(k / per, n) int32 to (k, n): GPTQ's codes."""
        return unpack(packed, self.bits).transpose(1, 2).reshape(-1, packed.shape[1])

    def _outputs(self, packed: Tensor) -> Tensor:
        """(g, n / per) int32 to (g, n): the zeros of both, and AWQ's codes."""
        found = unpack(packed, self.bits)
        if self.awq:
            found = found[..., list(_AWQ_PLACE)]
        return found.reshape(len(packed), -1)


def gptq_packing(fields: Fields) -> Packing:
    """The packing that a `quantization_config` of GPTQ describes. Raises UserError."""
    bits = fields.whole("bits", top=32)
    if bits not in (4, 8):
        raise fields.wrong("bits", f"is {bits}, which is not served; quantize to 4 or 8")
    layout = fields.text("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise fields.wrong("checkpoint_format", f"{layout!r} is not served; save it as gptq")
    found = Groups(
        awq=False,
        bits=bits,
        group=_group(fields),
        reordered=fields.switch("desc_act", False),
        zeros_less_one=layout == "gptq",
    )
    fields.refuse_unknown(
        _GPTQ_HARMLESS,
        {"is_marlin_format": (False,), "dynamic": ({},), "pack_dtype": ("int32",)},
    )
    return found


def awq_packing(fields: Fields) -> Packing:
    """The packing that a `quantization_config` of AWQ describes. Raises UserError."""
    bits = fields.whole("bits", top=32)
    if bits != 4:
        raise fields.wrong("bits", f"is {bits}, which is not served; quantize to 4")
    version = fields.text("version", "gemm")
    if version.lower() != "gemm":
        raise fields.wrong("version", f"{version!r} is not served; quantize with version gemm")
    if not fields.switch("zero_point", True):
        raise fields.wrong("zero_point", "is false, which is not served; quantize with zero points")
    found = Groups(awq=True, bits=bits, group=_group(fields))
    fields.refuse_unknown(_AWQ_HARMLESS, {})
    return found


def _group(fields: Fields) -> int | None:
    size = fields.whole("group_size", 128, least=-1, top=_GROUP_MAX)
    if size == 0:
        raise fields.wrong("group_size", "is 0, not a number of inputs, nor -1 for all")
    return None if size < 0 else size


def _names(name: str) -> tuple[str, str, str, str]:
    base = name.removesuffix("weight")
    return base + "qweight", base + "qzeros", base + "scales", base + "g_idx"


def _numbers(
    packed: Tensor,
    part: Callable[[Tensor], Tensor],
    zero: Tensor,
    scale: Tensor,
    of: Tensor,
    per: int,
) -> Tensor:
    """The matrix (n, k), a few outputs at a time: in between it is several times as large.

    per: outputs in one column of `packed`.
    """
    rows = scale.shape[1]
    whole = torch.empty((rows, len(of)), dtype=scale.dtype)
    for at in range(0, rows, _CHUNK):
        chosen = slice(at, at + _CHUNK)
        codes = part(packed[:, at // per : (at + _CHUNK) // per])
        numbers = (codes - zero[:, chosen][of]).float().mul_(scale[:, chosen].float()[of])
        whole[chosen] = numbers.t()
    return whole
