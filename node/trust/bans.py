"""Whom this home shuns on evidence, with the proofs: kept on disk, so that a restart forgets none.

    home/bans/<peer id>     one ban, with its proof, by the one codec; each written in one go

A file a ban, so that the next one costs no more than the first; which go of too many, and why no
flood of strangers moves the others, is in swarm/banned.py.
Whoever asks for the proof can be shown it. What cannot be read is put aside as <peer id>.broken; a
disk that takes no more loses the ban at the next start, and evidence that is heard again brings it
back.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from ...crypto.codec import Range, Size, decode, encode
from ...errors import RemoteError
from ...swarm.banned import STRANGER, Acquaintance, Ban, Banned
from ...swarm.reputation import FOR_GOOD_S
from ...swarm.testimony import (
    ITEM_BYTES_MAX,
    Contradiction,
    Peer,
    SignedAccusation,
    SignedAttestation,
    check_contradiction,
)
from ..home import replace_file
from ..log import get_logger

BANS: Final = "bans"
BROKEN: Final = ".broken"
KEPT_MAX: Final = 4096  # files: 10 MB. Identities are cheap, and each may contradict itself
NETWORK_CHARS_MAX: Final = 256  # of a name of the DNS: its domain
BAN_BYTES_MAX: Final = ITEM_BYTES_MAX + 512

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Kept:
    """One file. until_s: unix seconds; the codec knows no infinity."""

    version: Annotated[int, Range(1, 1)]
    peer: Peer
    until_s: Annotated[float, Range(0, FOR_GOOD_S)]
    grounds: Literal["contradiction", "recomputed", "attested", "false accusations"]
    proof: Contradiction | SignedAccusation | SignedAttestation


@dataclass(frozen=True, slots=True)
class _Known:
    """One file, and how its peer was known; a file of the first version says the ban alone."""

    version: Annotated[int, Range(2, 2)]
    ban: _Kept
    known_s: Annotated[float, Range(0, 1e11)]
    network: Annotated[str, Size(NETWORK_CHARS_MAX)]


class Bans:
    """Those of one home; home: None keeps none. Everything here blocks for a file or a folder."""

    def __init__(self, home: Path | None) -> None:
        self._folder = None if home is None else home / BANS
        self._kept = Banned(KEPT_MAX)

    def load(self, now: float) -> tuple[Ban, ...]:
        """Those in force, the oldest first. Files of the others are removed."""
        if self._folder is None or not self._folder.is_dir():
            return ()
        found: list[tuple[float, Ban]] = []
        for path in self._folder.iterdir():
            try:
                ban = _read(path)
                if ban is not None and now < ban.until_s:
                    found.append((path.stat().st_mtime, ban))
                elif ban is not None:
                    path.unlink()
            except OSError as error:
                log.warning("ban passed over", path=str(path), reason=str(error))
        found.sort(key=lambda one: (one[0], one[1].peer))
        self._kept = Banned(KEPT_MAX)
        for _, ban in found:
            self._remember(ban, now)
        return self._kept.all()

    def keep(self, ban: Ban, now: float) -> bool:
        """Whether it is on disk now."""
        if self._folder is None:
            return False
        until_s = min(ban.until_s, FOR_GOOD_S)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept = _Kept(1, ban.peer, until_s, ban.grounds, ban.proof)
            network = ban.known.network[:NETWORK_CHARS_MAX]
            raw = encode(_Known(2, kept, ban.known.known_s, network))
            replace_file(self._folder / ban.peer, raw)
        except OSError as error:
            log.warning("ban not written", banned=ban.peer, reason=str(error))
            return False
        self._remember(ban, now)
        return True

    def _remember(self, ban: Ban, now: float) -> None:
        assert self._folder is not None
        for peer in self._kept.put(ban, now):
            with suppress(OSError):  # it goes when they are loaded next
                (self._folder / peer).unlink()


def look(home: Path, now: float) -> tuple[Ban, ...]:
    """Those in force on this disk, the latest to end first, for whoever only looks: nothing is
    moved or removed. Blocks."""
    found: list[Ban] = []
    with suppress(OSError):
        for path in (home / BANS).iterdir():
            with suppress(OSError, RemoteError), path.open("rb") as file:
                told, known = _decode(file.read(BAN_BYTES_MAX + 1))
                if now < told.until_s:
                    found.append(Ban(told.peer, told.until_s, told.grounds, told.proof, known))
    return tuple(sorted(found, key=lambda one: (-one.until_s, one.peer)))


def proven(raw: bytes) -> tuple[str, str]:
    """(who is banned, on which grounds), by the file of a ban that is read beside everything else.
    Raises RemoteError unless its proof convicts that peer, whoever reads it; what only some could
    compute again proves nothing here."""
    told, _ = _decode(raw)
    if not isinstance(told.proof, Contradiction):
        raise RemoteError(f"banned on what nobody can read from signatures: {told.grounds}")
    if check_contradiction(told.proof) != told.peer:
        raise RemoteError(f"what is signed does not convict {told.peer}")
    return told.peer, told.proof.domain


def _read(path: Path) -> Ban | None:
    """The ban in this file; None for one that was put aside. Raises OSError."""
    if path.name.startswith(".") or path.name.endswith(BROKEN):
        return None
    try:
        with path.open("rb") as file:
            told, known = _decode(file.read(BAN_BYTES_MAX + 1))
        if told.peer != path.name:
            raise RemoteError(f"the ban of {told.peer}")
    except RemoteError as error:
        aside = path.with_name(path.name + BROKEN)
        path.replace(aside)
        log.warning("ban put aside", broken=str(aside), reason=str(error))
        return None
    until_s = math.inf if told.until_s >= FOR_GOOD_S else told.until_s
    return Ban(told.peer, until_s, told.grounds, told.proof, known)


def _decode(raw: bytes) -> tuple[_Kept, Acquaintance]:
    """Raises RemoteError."""
    try:
        return decode(raw, _Kept, max_bytes=BAN_BYTES_MAX), STRANGER
    except RemoteError:
        told = decode(raw, _Known, max_bytes=BAN_BYTES_MAX)
        return told.ban, Acquaintance(told.known_s, told.network)
