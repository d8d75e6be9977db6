"""Who belongs to a testnet: what its launcher wrote down before and after each start.

The file is replaced in one go, so that whoever reads it, or finds it after a crash, reads a whole
one. It says less than the truth for a moment only: a process just born is known by its mark
(process.py) and not yet by its pid.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from ...errors import UserError
from ..process import ProcessId, find

STATE = "testnet.json"
_WRITING = threading.Lock()  # chaos starts nodes in threads, while it looks at others


@dataclass(frozen=True, slots=True)
class Seat:
    """One node of a testnet, and its blocks. pid 0: it was about to be started. lie: what it was
    told to lie about (lies.py), if it was."""

    name: str
    start: int
    stop: int
    pid: int = 0
    created_s: float = 0.0
    peer: str = ""
    addresses: tuple[str, ...] = ()
    lie: str = ""

    @property
    def process(self) -> psutil.Process | None:
        """The process, while it lives."""
        return find(ProcessId(self.pid, self.created_s)) if self.pid else None

    @property
    def state(self) -> str:
        """serving, starting, stopped (by SIGSTOP), or dead."""
        process = self.process
        if process is None:
            return "dead"
        with suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                return "stopped"
        return "serving" if self.peer else "starting"


@dataclass(slots=True)
class Roster:
    """A testnet on disk. program and environment: how its nodes are started.

    owner: who ends it: a launcher at work, a demo, a test; None when it was left running.
    isolated: each node has a network of its own (islands.py). epoch_s: how often nodes that choose
    their own blocks ask who moves; 0: they are told which to serve.
    """

    folder: Path
    source: str
    model: str
    blocks: int
    program: tuple[str, ...]
    environment: Mapping[str, str]
    seats: dict[str, Seat]
    owner: ProcessId | None = None
    isolated: bool = False
    epoch_s: float = 0.0

    @property
    def runs(self) -> bool:
        """Whether it is in somebody's hands: its owner's, or, left running, its nodes' own.

        Nodes whose owner has died are what a crash left behind.
        """
        if self.owner is not None:
            return find(self.owner) is not None
        return any(seat.process for seat in self.seats.values())

    def create(self) -> None:
        """Write it where no other is. Raises FileExistsError."""
        with _WRITING:
            beside = self._beside()
            try:
                os.link(beside, self.folder / STATE)  # unlike rename, it refuses to replace
            finally:
                beside.unlink()

    def note(self, seat: Seat) -> None:
        """Write down what became of one node. Raises OSError when the disk refuses."""
        with _WRITING:
            self.seats[seat.name] = seat
            self._beside().replace(self.folder / STATE)

    def forget(self, name: str) -> None:
        """Strike out one node. Raises OSError."""
        with _WRITING:
            del self.seats[name]
            self._beside().replace(self.folder / STATE)

    def release(self) -> None:
        """Leave it running: from now on nobody owns it. Raises OSError."""
        with _WRITING:
            self.owner = None
            self._beside().replace(self.folder / STATE)

    def _beside(self) -> Path:
        told = asdict(self) | {"seats": [asdict(one) for one in self.seats.values()]}
        path = self.folder / f".{STATE}.{os.getpid()}"
        path.write_text(json.dumps(told, indent=1, default=str), encoding="utf-8")
        return path

    @staticmethod
    def read(folder: Path) -> Roster | None:
        """The roster in this folder; None when there is none. Raises UserError."""
        try:
            told = json.loads((folder / STATE).read_text(encoding="utf-8"))
            return _roster(folder, told)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / STATE} cannot be read ({error!r}): potluck testnet down clears it away"
            ) from error


def _roster(folder: Path, told: dict[str, Any]) -> Roster:
    seats = [Seat(**one | {"addresses": tuple(one["addresses"])}) for one in told["seats"]]
    return Roster(
        folder=folder,
        source=told["source"],
        model=told["model"],
        blocks=told["blocks"],
        program=tuple(told["program"]),
        environment=told["environment"],
        seats={seat.name: seat for seat in seats},
        owner=ProcessId(**told["owner"]) if told["owner"] else None,
        isolated=told.get("isolated", False),
        epoch_s=told.get("epoch_s", 0.0),
    )
