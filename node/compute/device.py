"""Which device computes, and in which number format."""

import torch

from ...errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Raises UserError for one that is not here."""
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UserError(f"device {wanted!r} is not known; use auto, cpu, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"device {wanted}: {count} CUDA devices are here; use another or cpu")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("device mps is not here; use cpu")
        return device
    if device.type != "cpu":
        raise UserError(f"device {wanted!r} is not served; use auto, cpu, cuda:N or mps")
    return torch.device("cpu")


def choose_dtype(wanted: str | None, device: torch.device) -> torch.dtype:
    """`fp32`, `bf16`, `fp16`; None: what is fast and exact enough on the device.

    On a CPU that is fp32, whatever the weights are stored in: below AVX-512-BF16 products of
    bf16 are many times slower. On a GPU it is bf16, or fp16 where bf16 is emulated.
    """
    if wanted is not None:
        if wanted not in DTYPES:
            raise UserError(f"dtype {wanted!r} is not known; use one of {', '.join(DTYPES)}")
        return DTYPES[wanted]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32
