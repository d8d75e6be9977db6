"""What a node of a testnet has said: its log is the one thing that outlives it.

... counts leases=0 pages=0 ...                 on SIGUSR1: what is open in it
... moved epoch=29394 new=3:8 old=0:5 ...       each time that it moved
Traceback (most recent call last): ...          it ended by a fault of its own
"""

from __future__ import annotations

import re
from pathlib import Path

LOG = "log"
COUNTS = " counts "
TRACEBACK = "Traceback (most recent call last)"
MOVED = re.compile(r"\] moved .*\bepoch=(\d+)")  # and not: not moved


def log_bytes(folder: Path, name: str) -> int:
    """How much a node of the testnet in this folder has said so far."""
    log = folder / name / LOG
    return log.stat().st_size if log.is_file() else 0


def logged(folder: Path) -> list[str]:
    """Every node of which there is a log, also those that left."""
    return sorted(log.parent.name for log in folder.glob(f"*/{LOG}"))


def broke(folder: Path, name: str, since: int) -> bool:
    """Whether it has told of a fault of its own behind byte `since`."""
    return any(TRACEBACK in line for line in _lines(folder, name, since))


def counts(folder: Path, name: str, since: int) -> dict[str, int] | None:
    """What it said last is open in it, behind byte `since` of its log."""
    said = [line for line in _lines(folder, name, since) if COUNTS in line]
    if not said:
        return None
    return {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", said[-1])}


def moves(folder: Path, name: str, since: int) -> list[int]:
    """The epoch of each of its moves that it told of behind byte `since`, in order."""
    told = [MOVED.search(line) for line in _lines(folder, name, since)]
    return [int(move[1]) for move in told if move is not None]


def _lines(folder: Path, name: str, since: int) -> list[str]:
    """Whole ones."""
    with (folder / name / LOG).open("rb") as file:
        file.seek(since)
        return file.read().decode("utf-8", "replace").split("\n")[:-1]
