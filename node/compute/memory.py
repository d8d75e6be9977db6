"""How much memory a device has left, and a refusal with figures before it is gone."""

import os
from pathlib import Path

import torch

from ...errors import UserError

_RESERVE = 0.05  # of what is free: left for the rest of the process and its neighbours; a guess
_MIB = 1 << 20


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_machine_free(), _group_free())


def require_memory(needed: int, device: torch.device, purpose: str) -> None:
    """Raise UserError when `needed` bytes are not there."""
    free = free_bytes(device)
    if needed > free * (1 - _RESERVE):
        raise UserError(
            f"{purpose} needs {needed / _MIB:.0f} MiB on {device}, but {free / _MIB:.0f} MiB are"
            " free; serve fewer blocks or free memory"
        )


def _machine_free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: all of the memory is the best bound known
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_free() -> int:
    """What the control group (container) of this process may still take."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        reclaimable = next(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
    except (OSError, StopIteration, ValueError):
        return 1 << 62  # no limit known
    return 1 << 62 if limit == "max" else int(limit) - used + reclaimable
