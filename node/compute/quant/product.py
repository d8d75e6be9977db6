"""A product with a weight in any format, where our own kernels are not: torch, or bitsandbytes.

Without a compiler, and on devices other than CUDA: the weight is turned back to fp32 in panels of
rows that the second cache holds, each multiplied at once, so that memory never holds the whole. No
activation is quantized: a scale that a batch shares would let one session's numbers change
another's (fbgemm's dynamic int8 has one), and even a scale for each token costs 1e-2.

On CUDA bitsandbytes' kernels read the same bytes: nf4 with the activations as they come, int8 with
activations quantized for each token.
"""

import importlib
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import UserError
from ..weight import INT8_STEP, NF4_GROUP, Weight

_PANEL_BYTES = 1 << 20  # of fp32: half of a usual second cache
_LARGEST = 127.0


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x (..., k) times the weight's rows, plus the bias (n,): (..., n) in x's dtype.

    All on one device. On CUDA raises UserError when bitsandbytes is not installed.
    """
    if weight.format != "none" and x.is_cuda:
        return bitsandbytes_linear(x, weight, bias)
    if weight.format == "none" and weight.codes.dtype == x.dtype:
        return F.linear(x, weight.codes, bias)
    flat = x.reshape(-1, weight.columns).float()
    out = torch.empty((len(flat), weight.rows), device=x.device)
    size = max(1, _PANEL_BYTES // (4 * weight.columns))
    for start in range(0, weight.rows, size):
        stop = min(start + size, weight.rows)
        panel = weight.pick(start, stop)
        if panel.format == "int8":  # a row's scale may as well follow the product
            torch.mm(flat, panel.codes.float().t(), out=out[:, start:stop])
        else:
            torch.mm(flat, panel.dequantize().t(), out=out[:, start:stop])
    if weight.format == "int8" and weight.scales is not None:
        out *= weight.scales * INT8_STEP
    if bias is not None:
        out += bias
    return out.to(x.dtype).view(*x.shape[:-1], weight.rows)


def bitsandbytes_linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """The same by bitsandbytes' kernels, for int8 and nf4. Raises UserError without them.

    x: fp32, bf16 or fp16. int8 goes by way of each token's own largest number, and never through
    fp16, so that activations above 65504 stay numbers.
    """
    require_bitsandbytes()
    ops = torch.ops.bitsandbytes
    flat = x.reshape(-1, weight.columns)
    if weight.format == "nf4":
        shape = (weight.rows, weight.columns)
        out = ops.gemm_4bit.default(
            flat, weight.codes.view(-1, 1), shape, weight.scales, NF4_GROUP, "nf4", bias=bias
        )
    else:
        largest = flat.abs().amax(dim=1).float()
        factor = _LARGEST / largest.clamp(min=1e-30)
        codes = torch.round(flat * factor[:, None]).to(torch.int8)
        out = ops.int8_scaled_mm.default(
            codes, weight.codes, largest, weight.scales, bias=bias, dtype=x.dtype
        )
    result: Tensor = out.view(*x.shape[:-1], weight.rows)
    return result


def require_bitsandbytes() -> None:
    """Load bitsandbytes, which takes 3 s and 120 MB. Raises UserError when it is not there."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "int8 and nf4 on CUDA need bitsandbytes; pip install 'potluck[cuda]',"
            " or use --quantization none"
        )
    importlib.import_module("bitsandbytes")
