"""What a node stands on, and what is wrong with it: machine, home, model, hub. Nothing here waits.

One half of the doctor's verdicts; the network's is diagnosis.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Verdict = Literal["good", "note", "warning", "bad"]

MIB: Final = 1 << 20
GIB: Final = 1 << 30
MEMORY_LITTLE: Final = GIB  # guess: a block of a 7B model in bf16 has 0.4 GiB, and there is a cache
DISK_LITTLE: Final = 10 * GIB  # guess: a share of a 7B model's weights
DISK_NONE: Final = 64 * MIB  # records, peers, logs


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. remedy: what to do; "" when nothing need be."""

    about: str
    verdict: Verdict
    told: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """torch: its version, or ""; then `fault` says why.

    memory_bytes, memory_free_bytes: of the host. kernels: the instructions that ours use, "" where
    they are missing, as kernels_fault tells. driver: of a card's maker, "" where there is no card;
    driver_fault: why torch does not compute there.
    """

    version: str
    python: str
    system: str
    torch: str = ""
    fault: str = ""
    device: str = ""
    threads: int = 0
    free_bytes: int = 0
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    kernels: str = ""
    kernels_fault: str = ""
    driver: str = ""
    driver_fault: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """The home. mode: its rights, None when it is not there. fault: why it cannot be used.

    peer: who we are there, "" when that is not decided. key_fault, config_fault: as a node would
    refuse them. held: by a process that says nothing of itself.
    """

    path: str
    mode: int | None
    fault: str
    disk_free_bytes: int
    peer: str
    key_fault: str
    config_fault: str
    held: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model that a node is to serve. fault: why it cannot. here: whether its files are, which
    otherwise come from the hub. block_bytes: of its largest block; fit: how many of `blocks` fit
    here."""

    name: str
    fault: str = ""
    here: bool = True
    blocks: int = 0
    block_bytes: int = 0
    fit: int = 0


@dataclass(frozen=True, slots=True)
class Hub:
    """Where models are fetched from. fault: why it cannot be reached. off: it was switched off."""

    address: str
    fault: str = ""
    took_s: float = 0.0
    off: bool = False


def on_machine(machine: Machine) -> Iterator[Finding]:
    program = f"potluck {machine.version}, Python {machine.python}, {machine.system}"
    yield Finding("program", "good", program)
    yield from _memory(machine)
    if machine.driver_fault:
        yield Finding(
            "driver", "warning", f"{machine.driver}: {machine.driver_fault}",
            "install the torch that fits the driver (pytorch.org tells which), or a newer driver",
        )  # fmt: skip
    elif machine.driver:
        yield Finding("driver", "good", machine.driver)
    if not machine.torch:
        yield Finding(
            "device", "bad", f"torch cannot be loaded: {machine.fault}",
            "pip install --force-reinstall torch; `potluck bootstrap` runs without it",
        )  # fmt: skip
        return
    told = (
        f"{machine.device}, {size(machine.free_bytes)} free, torch {machine.torch}, "
        f"{machine.threads} threads"
    )
    if machine.free_bytes < MEMORY_LITTLE:
        yield Finding(
            "device", "warning", told, "free memory, or serve few blocks of a small model"
        )
    else:
        yield Finding("device", "good", told)
    if machine.kernels_fault:
        yield Finding(
            "kernels", "warning", machine.kernels_fault,
            "install a C compiler (gcc or clang) and start anew; until then torch computes, slower",
        )  # fmt: skip
    elif machine.kernels:
        yield Finding("kernels", "good", f"our own, with {machine.kernels}")


def _memory(machine: Machine) -> Iterator[Finding]:
    if not machine.memory_bytes:
        return
    told = f"{size(machine.memory_free_bytes)} free of {size(machine.memory_bytes)}"
    if machine.memory_free_bytes < MEMORY_LITTLE:
        yield Finding("memory", "warning", told, "end what takes it, or give a low --max-memory")
    else:
        yield Finding("memory", "good", told)


def on_place(place: Place) -> Iterator[Finding]:
    if place.fault:
        yield Finding("home", "bad", f"{place.path}: {place.fault}", "mend it, or give --home")
    elif place.held:
        yield Finding(
            "home", "bad",
            f"{place.path}: another process runs under it, and has not said yet that it serves",
            f"wait for it, or end it (lsof {place.path}/lock names it), or give --home",
        )  # fmt: skip
    elif place.mode is None:
        yield Finding("home", "note", f"{place.path}: not there; the first start makes it")
    elif place.mode & 0o022:
        yield Finding(
            "home", "bad", f"{place.path}: others may write there (mode {place.mode:o})",
            f"chmod 700 {place.path}",
        )  # fmt: skip
    elif place.mode & 0o077:
        yield Finding(
            "home", "warning", f"{place.path}: others may look in (mode {place.mode:o})",
            f"chmod 700 {place.path}",
        )  # fmt: skip
    else:
        yield Finding("home", "good", place.path)
    free = f"{size(place.disk_free_bytes)} free"
    if place.disk_free_bytes < DISK_NONE:
        yield Finding("disk", "bad", free, "free the disk: neither records nor logs can be kept")
    elif place.disk_free_bytes < DISK_LITTLE:
        yield Finding("disk", "warning", free, "room for a small model's weights alone: free some")
    else:
        yield Finding("disk", "good", free)
    if place.key_fault:
        yield Finding("identity", "bad", place.key_fault, "do as it says")
    elif place.peer:
        yield Finding("identity", "good", place.peer)
    else:
        yield Finding("identity", "note", "none yet; the first start makes one")
    if place.config_fault:
        yield Finding("settings", "bad", place.config_fault, "mend the line that it names")


def on_model(model: Wanted) -> Finding:
    if model.fault:
        return Finding("model", "bad", model.fault, "do as it says, or serve another model")
    if not model.here:
        return Finding("model", "note", f"{model.name}: comes from the hub at the first start")
    told = f"{model.name}: {model.blocks} blocks of {size(model.block_bytes)}, {model.fit} fit here"
    if not model.fit:
        return Finding(
            "model", "bad", told, "free memory, serve it with --quantization nf4, or a smaller one"
        )
    return Finding("model", "good", told)


def on_hub(hub: Hub, model: Wanted | None) -> Finding:
    """model: what is to be fetched from it, if that is known."""
    if hub.off:
        return Finding("hub", "note", f"{hub.address}: not asked, HF_HUB_OFFLINE is set")
    if not hub.fault:
        return Finding("hub", "good", f"{hub.address} answers in {1e3 * hub.took_s:.0f} ms")
    needed = model is not None and not model.here
    return Finding(
        "hub", "bad" if needed else "warning", f"{hub.address} cannot be reached: {hub.fault}",
        "check the network, a proxy (HTTPS_PROXY) and HF_ENDPOINT; models that lie here are served "
        "without it",
    )  # fmt: skip


def size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count // MIB} MiB"
