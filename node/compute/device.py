"""Which device computes, in which number format, and what makes two of them agree."""

import importlib.metadata
import platform
from pathlib import Path

import torch

from ...errors import UserError
from .weight import Format

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


def devices_of(wanted: str) -> tuple[str, ...]:
    """The devices that `--device` names, in their order: one, or several with commas between.

    One that is named twice is two, which share its memory. Raises UserError for one that is not
    here.
    """
    names = [name.strip() for name in wanted.split(",")]
    if len(names) > 1 and "auto" in names:
        raise UserError(f"--device {wanted}: auto is one device by itself; name each")
    return tuple(str(choose_device(name)) for name in names)


def choose_dtype(wanted: str | None, device: torch.device, *, wide: bool = False) -> torch.dtype:
    """`fp32`, `bf16`, `fp16`; None: what is fast and exact enough on the device.

    On a CPU that is fp32, whatever the weights are stored in: below AVX-512-BF16 products of
    bf16 are many times slower. On a GPU it is bf16, or fp16 where bf16 is emulated; fp32 there
    for a model whose hidden states grow beyond fp16's 65504 (wide: Gemma's do).
    """
    if wanted is not None:
        if wanted not in DTYPES:
            raise UserError(f"dtype {wanted!r} is not known; use one of {', '.join(DTYPES)}")
        return DTYPES[wanted]
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16
    elif device.type != "mps":
        return torch.float32
    return torch.float32 if wide else torch.float16


def numerics_class(
    device: torch.device, dtype: torch.dtype, format: Format = "none", kernel: str = ""
) -> str:
    """A name for everything that a kernel's last bits depend on, at most 128 characters.

    kernel: of ours, for few rows (quant/race.py); it stands behind the card, since limits are kept
    for cards and what follows them.

    Products are reduced in an order that the library chooses by processor, by its own version
    and by the number of threads (measured: one and two threads differ in the last bits).
    """
    name = next(name for name, known in DTYPES.items() if known == dtype)
    if format != "none":
        name = f"{format} {name}"
        if device.type == "cuda":
            name += f" bitsandbytes {importlib.metadata.version('bitsandbytes')}"
    if device.type == "cuda":
        place = f"{torch.cuda.get_device_name(device)} {kernel}".strip()
    elif device.type == "mps":  # not the processor beside it, whose kernels are others
        place = f"MPS {_processor()} macOS {platform.mac_ver()[0]}"
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        place = f"{_processor()} {capability} threads {torch.get_num_threads()}"
    return f"{name} torch {torch.__version__} {place}"[:128]


def _processor() -> str:
    """Vendor, family and model, or what the platform has to say."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass  # not Linux
    known = [facts[key] for key in ("vendor_id", "cpu family", "model") if key in facts]
    return " ".join(known) or platform.processor() or platform.machine()
