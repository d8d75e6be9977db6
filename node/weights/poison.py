"""Who gave false weights: shunned for 30 days, with what shows it, on disk.

    home/poison/<peer id>         what it did, in words and digests
    home/poison/<peer id>.table   what it signed, if it did

Two things prove it, and neither can happen to an honest peer, who checks what it gives. *Bytes*
that are not what was asked for came over a road that only this peer can write to (Noise): that is
proof to us and to nobody else, testimony.py's class C, so nobody is told. A *table* that the root
refutes is signed: whoever reads the same bytes at the root knows as well; it is kept to be shown.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ...crypto.keys import PEER_ID_CHARS
from ...errors import RemoteError
from ...swarm.chunk import Forged
from ...swarm.evidence import BAN_S
from ...swarm.weights import Lie
from ..home import replace_file
from ..log import get_logger

POISON: Final = "poison"
TABLE: Final = ".table"
KEPT_MAX: Final = 1024  # guess: the oldest go
PEER: Final = re.compile(rf"[A-Za-z0-9]{{{PEER_ID_CHARS}}}")

log = get_logger()


class Poisoners:
    """Of one home. caught: told of each that is found, by `tell`."""

    def __init__(self, home: Path | None, wall: Callable[[], float] = time.time) -> None:
        """home: None keeps them in memory alone. Blocks."""
        self._folder = None if home is None else home / POISON
        self._wall = wall
        self._until: dict[str, float] = {}
        self.caught: list[Callable[[str], None]] = []
        self._news: list[str] = []
        if self._folder is not None:
            for path in self._folder.glob("*"):
                if PEER.fullmatch(path.name):
                    self._load(path)

    def banned(self, peer: str) -> bool:
        return self._wall() < self._until.get(peer, 0.0)

    def __len__(self) -> int:
        return len(self._until)

    def gave(self, peer: str, error: RemoteError) -> bool:
        """What a peer sent as a chunk was none of it; whether that is poison, and no mere nonsense.
        Blocks for a file."""
        if not isinstance(error, Forged):
            return False
        asked, came = error.chunk.digest.hex(), error.came.hex()
        self._convict(peer, {"grounds": "bytes", "asked": asked, "came": came}, b"")
        return True

    def signed(self, lie: Lie, file: bytes, table: bytes) -> None:
        """The root refutes what it signed. Blocks for a file."""
        told = {
            "grounds": "table", "file": file.hex(), "piece": lie.index,
            "said": lie.said.hex(), "root": lie.root.hex(),
        }  # fmt: skip
        self._convict(lie.peer, told, table)

    def tell(self) -> None:
        """Who was found since: from trio's own thread, for connections end by it."""
        news, self._news = self._news, []
        for peer in news:
            for tell in self.caught:
                tell(peer)

    def _convict(self, peer: str, told: dict[str, Any], table: bytes) -> None:
        now = self._wall()
        if self.banned(peer):
            return
        self._until[peer] = now + BAN_S
        log.warning("gave false weights", banned=peer, **told)
        if self._folder is not None and PEER.fullmatch(peer):
            told = {"peer": peer, "until_s": now + BAN_S, **told}
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if table:
                    replace_file(self._folder / (peer + TABLE), table)
                replace_file(self._folder / peer, json.dumps(told, indent=1).encode())
            except OSError as error:
                log.warning("not written down", banned=peer, why=str(error))
        while len(self._until) > KEPT_MAX:
            self._forget(next(iter(self._until)))
        self._news.append(peer)

    def _load(self, path: Path) -> None:
        try:
            until_s = float(json.loads(path.read_bytes())["until_s"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("passed over", path=str(path), why=str(error)[:80])
            return
        self._until[path.name] = until_s
        if until_s <= self._wall():
            self._forget(path.name)

    def _forget(self, peer: str) -> None:
        self._until.pop(peer, None)
        if self._folder is not None:
            for name in (peer, peer + TABLE):
                with suppress(OSError):
                    (self._folder / name).unlink(missing_ok=True)
