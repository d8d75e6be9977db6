"""Adapters of a home, by their digests; found for who names one, and brought to servers.

    home/adapters/<digest>/manifest, 0, 1, ...     what is for each block: all of it, or some
                           own                     the owner gave it, or asked for it

What a client was given as a folder it keeps here, so that its digest is enough the next time; a
server keeps what it was brought, which takes no room from what is the owner's own. Everything is
checked against the digest whenever it is read, so nothing here has to be trusted, and all of it may
be deleted at any time.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections import Counter
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from ..crypto.digest import DIGEST_BYTES
from ..errors import RemoteError, UserError
from ..swarm.adapter import Bundle, check_part, read_manifest
from ..swarm.blocks import BlockRange
from ..swarm.wire import Bring, Open, Wear
from .compute.parts import read_bundle
from .compute.voice import Voice
from .frames import FrameStream
from .home import replace_file
from .pieces import send_pieces

FOLDER: Final = "adapters"
MANIFEST: Final = "manifest"
OWN: Final = "own"  # a file of this name: the owner gave it
KEPT_BYTES_MAX: Final = 1 << 30  # guess: a hundred adapters of a small model, or three of a large
BROUGHT_BYTES_MAX: Final = KEPT_BYTES_MAX // 2  # guess: of that, what strangers brought


class Shelf:
    """The adapters kept in one home. Everything here blocks for files."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER
        self._saving = threading.Lock()
        self._worn: Counter[str] = Counter()  # by sessions, of this process

    def load(self, name: bytes, blocks: BlockRange | None = None) -> Bundle | None:
        """Its parts for these blocks; None: for all. None when one of them is not here, or is
        damaged."""
        folder = self._folder / name.hex()
        try:
            manifest = read_manifest((folder / MANIFEST).read_bytes(), name)
            found: dict[int, bytes] = {}
            for part in manifest.parts if blocks is None else manifest.of(blocks):
                found[part.block] = raw = (folder / str(part.block)).read_bytes()
                check_part(part, raw)
            with suppress(OSError):
                (folder / MANIFEST).touch()  # used last
        except (OSError, RemoteError):
            return None
        return Bundle(name, manifest, found)

    def save(self, bundle: Bundle) -> bool:
        """The owner's own: whether it is here now. What others brought makes room for it first,
        then the longest unused."""
        return self._save(bundle, own=True)

    def save_brought(self, bundle: Bundle) -> bool:
        """What a stranger brought: whether it is here now. It has a share of what the owner's own
        leave, where only what strangers brought makes room, and that nobody wears."""
        return self._save(bundle, own=False)

    def claim(self, name: bytes) -> None:
        """It is the owner's own from now on, whoever brought it."""
        with suppress(OSError):  # then it is, the next time it is asked for
            (self._folder / name.hex() / OWN).touch()

    def hold(self, name: bytes) -> None:
        """A session wears it: until `let_go` nothing that strangers bring takes its room."""
        self._worn[name.hex()] += 1

    def let_go(self, name: bytes) -> None:
        self._worn[name.hex()] -= 1
        if not self._worn[name.hex()]:
            del self._worn[name.hex()]

    def _save(self, bundle: Bundle, *, own: bool) -> bool:
        folder = self._folder / bundle.hex
        files = {str(block): raw for block, raw in bundle.parts.items()} | {MANIFEST: bundle.raw}
        with self._saving:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                size = sum(map(len, files.values())) + _bytes(folder, besides=files)
                if not self._make_room(folder, size, own or is_own(folder)):
                    return False
                for name, raw in files.items():
                    replace_file(folder / name, raw)
                if own:
                    (folder / OWN).touch()
            except OSError:
                return False  # a disk that takes no more: it is brought again
        return True

    def _make_room(self, folder: Path, size: int, own: bool) -> bool:
        """Whether there is room for so many bytes there. Raises OSError."""
        others = [_Kept.of(one) for one in self._folder.iterdir() if one != folder]
        if own:
            room, left = KEPT_BYTES_MAX - size, others
        else:
            owned = sum(one.size for one in others if one.own)
            room = min(BROUGHT_BYTES_MAX, KEPT_BYTES_MAX - owned) - size
            left = [one for one in others if not one.own]
        total = sum(one.size for one in left)
        going: list[_Kept] = []
        for one in sorted(left, key=lambda one: (one.own, one.name in self._worn, one.used_s)):
            if total > room and (own or one.name not in self._worn):
                going.append(one)
                total -= one.size
        if total > room:
            return False
        for one in going:
            shutil.rmtree(self._folder / one.name, ignore_errors=True)
        return True


@dataclass(frozen=True, slots=True)
class _Kept:
    """One that is here. used_s: when it was used last, unix seconds."""

    name: str
    own: bool
    size: int
    used_s: float

    @classmethod
    def of(cls, folder: Path) -> _Kept:
        used_s = 0.0
        for path in _files(folder):
            with suppress(OSError):
                used_s = max(used_s, path.stat().st_mtime)
        return cls(folder.name, is_own(folder), _bytes(folder), used_s)


@cache
def shelf_of(home: Path) -> Shelf:
    """The one of this process: all who wear something of it know of each other."""
    return Shelf(home)


def is_own(folder: Path) -> bool:
    """Whether this is an adapter that the owner gave, and nobody brought."""
    return (folder / OWN).exists()


def _bytes(folder: Path, besides: Container[str] = ()) -> int:
    total = 0
    for path in _files(folder):
        with suppress(OSError):  # it goes while we look
            total += 0 if path.name in besides else path.stat().st_size
    return total


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def find_adapter(ref: str | Path, voice: Voice, home: Path) -> Bundle:
    """The adapter that a folder or a digest means, whole, for this model. Blocks. Raises
    UserError."""
    shelf, text = shelf_of(home), str(ref)
    if not is_digest(text):
        bundle = read_bundle(Path(ref).expanduser(), voice.ends.spec, voice.digest)
        shelf.save(bundle)
        return bundle
    found = shelf.load(bytes.fromhex(text))
    if found is None:
        raise UserError(f"no adapter {text[:16]}... is kept here: give its folder once")
    if found.manifest.model.hex() != voice.digest:
        raise UserError(
            f"adapter {text[:16]}... is for the model {found.manifest.model.hex()[:12]}, and"
            f" {voice.name} is {voice.digest[:12]}: give one that was trained on it"
        )
    shelf.claim(found.name)
    return found


def is_digest(text: str) -> bool:
    """Whether it is written as digests are."""
    return re.fullmatch(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}", text, re.ASCII) is not None


def question(
    worn: Bundle | None,
    session: bytes,
    model: str,
    blocks: BlockRange,
    tokens: int,
    dtype: str,
    receipts: bool,
) -> Open:
    """What a server is opened with, with an adapter on or without."""
    said = (session, model, blocks.start, blocks.stop, tokens, dtype, receipts)
    if worn is None:
        return Open(*said)
    return Wear(*said, adapter=worn.name, size=worn.manifest.size(blocks))


async def bring(frames: FrameStream, bundle: Bundle, blocks: BlockRange) -> None:
    """Send a server that lacks it what it needs of an adapter. Raises TransportError."""
    await frames.send(Bring(), bundle.raw)
    await send_pieces(frames, (bundle.parts[part.block] for part in bundle.manifest.of(blocks)))
