"""How much memory a device has left, and a refusal with figures before it is gone.

On a GPU it is the driver's word. Else it is the least of what the machine has available and of what
each control group around this process (a container, a service's limits) may still take. Processors
are counted in the same way.
"""

import os
from pathlib import Path

import psutil
import torch

from ...errors import UserError

_RESERVE = 0.05  # of what is free: left for the rest of the process and its neighbours; a guess
_MIB = 1 << 20
_UNLIMITED = 1 << 62
_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    groups = _group_folders(_GROUPS, _MEMBERSHIP)
    return max(0, min([int(psutil.virtual_memory().available), *map(_group_free, groups)]))


def require_memory(needed: int, device: torch.device, purpose: str) -> None:
    """Raise UserError when `needed` bytes are not there."""
    free = free_bytes(device)
    if needed > free * (1 - _RESERVE):
        raise UserError(
            f"{purpose} needs {needed / _MIB:.0f} MiB on {device}, but {free / _MIB:.0f} MiB are"
            " free; serve fewer blocks or free memory"
        )


def processors() -> int:
    """Processors that this process may use: of a container's share each thread more would only
    spend what the others wait for."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    shares = map(_group_processors, _group_folders(_GROUPS, _MEMBERSHIP))
    return max(1, min([found or 1, *shares]))


def _group_folders(root: Path, membership: Path) -> list[Path]:
    """The control groups (version 2) that this process is in, from its own to the outermost.

    Inside a container its own is the root of what can be seen.
    """
    try:
        told = membership.read_text().splitlines()
    except OSError:
        return []  # not Linux
    place = next((line[3:] for line in told if line.startswith("0::")), "/")
    folder = root / place.strip("/")
    return [folder, *(one for one in folder.parents if one.is_relative_to(root))]


def _group_processors(group: Path) -> int:
    """How many processors' time a control group may take, rounded up."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return _UNLIMITED if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return _UNLIMITED  # no limit known


def _group_free(group: Path) -> int:
    """What a control group may still take; pages of files can be given up."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        reclaimable = next(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return _UNLIMITED if limit == "max" else int(limit) - used + reclaimable
    except (OSError, StopIteration, ValueError):
        return _UNLIMITED  # no limit known
