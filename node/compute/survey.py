"""What there is to compute with on this machine, for whoever asks before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import UserError
from ..footing import Wanted
from ..library import find_model
from .checkpoint import Checkpoint, open_checkpoint
from .choice import StageWish
from .device import choose_device
from .memory import free_bytes
from .native.library import isa, why_not
from .room import block_sizes, blocks_that_fit

DRIVER = Path("/proc/driver/nvidia/version")  # of NVIDIA's driver, on Linux


@dataclass(frozen=True, slots=True)
class Survey:
    """torch: its version. device: the one that a node would take by itself. kernels: which
    instructions ours use, "" with a fault. driver: of a card, "" without one."""

    torch: str
    device: str
    name: str
    threads: int
    free_bytes: int
    kernels: str = ""
    kernels_fault: str = ""
    driver: str = ""
    driver_fault: str = ""


def survey() -> Survey:
    """Look at the device that `--device auto` means."""
    device = choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    fault = why_not() or ""
    driver, driver_fault = look_for_driver()
    return Survey(
        torch.__version__,
        str(device),
        name,
        torch.get_num_threads(),
        free_bytes(device),
        "" if fault else isa(),
        fault,
        driver,
        driver_fault,
    )


def look_for_driver(file: Path = DRIVER) -> tuple[str, str]:
    """NVIDIA's driver, and why torch does not compute with it; both "" without a card."""
    try:
        words = file.read_text(encoding="utf-8").partition("Kernel Module")[2].split()
    except OSError:
        return "", ""
    driver = " ".join(("NVIDIA", *words[:1]))
    if torch.cuda.is_available():
        return driver, ""
    if torch.version.cuda is None:
        return driver, "there is a card, but this torch computes on processors alone"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return driver, str(error).partition("\n")[0][:160]
    return driver, "torch finds no card"


def look_at_model(ref: str, home: Path) -> Wanted:
    """A model that is to be served, as far as it lies here; nothing is fetched. Blocks."""
    try:
        shelf = find_model(ref, home)
        on_disk = Path(shelf.source).is_dir()
        try:
            checkpoint = open_checkpoint(shelf.source, offline=True)
        except UserError:
            if on_disk:
                raise
            return Wanted(shelf.name, here=False)
        checkpoint.fetch(checkpoint.names if on_disk else ())  # each file is opened and checked
        wish = StageWish()
        return Wanted(
            shelf.name,
            blocks=checkpoint.spec.blocks,
            block_bytes=max(block_sizes(checkpoint, wish)),
            fit=blocks_that_fit(checkpoint, wish) if _has_room(checkpoint, wish) else 0,
        )
    except UserError as error:
        return Wanted(ref, str(error))


def _has_room(checkpoint: Checkpoint, wish: StageWish) -> bool:
    """For one block, if it were alone."""
    return free_bytes(choose_device(wish.device)) > max(block_sizes(checkpoint, wish))
