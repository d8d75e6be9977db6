"""What there is to compute with on this machine, for whoever asks before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .device import choose_device
from .memory import free_bytes


@dataclass(frozen=True, slots=True)
class Survey:
    """torch: its version. device: the one that a node would take by itself."""

    torch: str
    device: str
    name: str
    threads: int
    free_bytes: int


def survey() -> Survey:
    """Look at the device that `--device auto` means."""
    device = choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Survey(torch.__version__, str(device), name, torch.get_num_threads(), free_bytes(device))
