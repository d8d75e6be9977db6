"""A run as one peer stands in it, on disk: enough to go on after kill -9 as if nothing had been.

    home/runs/<name>/state         one file, replaced as a whole and synced (compute/kept.py)
    home/runs/<name>/identity.key  who the peer is, in this run

It is written when the steps of an epoch are done, before anybody is told of their weights: whoever
comes back says what it signed, and goes on with the exchange.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from ...errors import UserError
from ..chunks.store import replace_durably
from ..compute.kept import pack_kept, unpack_kept
from ..compute.mixing import Vector
from ..home import sync_folder
from ..log import get_logger

FOLDER: Final = "runs"
STATE: Final = "state"
_RAW: Final = ("statement", "told")
_EMPTY: Final = b"\0"  # safetensors has no tensor of nothing that comes back

log = get_logger()


@dataclass(frozen=True, slots=True)
class Progress:
    """One epoch of one peer, and all that came before. loss: the mean over its steps, before each.
    held_out: after the exchange; None where it was not measured. tokens_s: while it took steps.
    share: of the time that went into steps."""

    epoch: int
    epochs: int
    loss: float
    held_out: float | None
    steps: int
    tokens: int
    tokens_s: float
    share: float
    peers: int
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class State:
    """Behind the steps of `epoch`, of which the exchange is to come; none is when it is the last
    one. vectors: of the optimizer and of the exchange. statement, told: what was signed."""

    run: bytes
    epoch: int
    tokens: int  # of this epoch
    loss: float  # of this epoch
    steps: int  # of this epoch
    vectors: dict[str, Vector]
    statement: bytes = b""
    told: bytes = b""
    history: tuple[Progress, ...] = field(default=())


class Shelf:
    """The state of one run in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._full = False

    async def save(self, state: State) -> bool:
        """Whether it is on disk. A disk that takes no more ends no run; it is said once."""
        try:
            await trio.to_thread.run_sync(_write, self.folder / STATE, state)
        except OSError as error:
            if not self._full:
                log.warning(
                    "no checkpoint was written, and nobody is told our weights until one is: free"
                    " the disk", path=str(self.folder / STATE), why=error.strerror,
                )  # fmt: skip
            self._full = True
            return False
        self._full = False
        return True

    def load(self, run: bytes) -> State | None:
        """The state of this run; None when there is none. Blocks. Raises UserError when it is of
        another run, or broken."""
        path = self.folder / STATE
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            vectors, raw, facts = unpack_kept(content)
            state = _read(vectors, raw, facts)
        except (UserError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}: {error}; remove it to begin this run anew") from error
        if state.run != run:
            raise UserError(
                f"{path}: is of another run of this name; choose another name in the run's file, or"
                f" remove {self.folder} to forget that one"
            )
        return state


def _write(path: Path, state: State) -> None:
    """In one go, and on the disk when this returns. Raises OSError."""
    facts = {
        "run": state.run.hex(),
        "epoch": str(state.epoch),
        "tokens": str(state.tokens),
        "loss": repr(state.loss),
        "steps": str(state.steps),
        "history": json.dumps([asdict(one) for one in state.history]),
    }
    raw = {"statement": state.statement or _EMPTY, "told": state.told or _EMPTY}
    content = pack_kept(state.vectors, raw, facts)
    replace_durably(path, content)
    sync_folder(path.parent)


def _read(vectors: dict[str, Vector], raw: dict[str, bytes], facts: dict[str, str]) -> State:
    history: list[dict[str, Any]] = json.loads(facts["history"])
    statement, told = (raw[name] for name in _RAW)
    return State(
        bytes.fromhex(facts["run"]), int(facts["epoch"]), int(facts["tokens"]),
        float(facts["loss"]), int(facts["steps"]), vectors,
        b"" if statement == _EMPTY else statement, b"" if told == _EMPTY else told,
        tuple(Progress(**one) for one in history),
    )  # fmt: skip
