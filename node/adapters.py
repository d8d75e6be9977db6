"""Adapters of a home, by their digests; found for who names one, and brought to servers.

    home/adapters/<digest>/manifest, 0, 1, ...     what is for each block: all of it, or some

What a client was given as a folder it keeps here, so that its digest is enough the next time; a
server keeps what it was brought. Everything is checked against the digest whenever it is read, so
nothing here has to be trusted, and all of it may be deleted at any time.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
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
KEPT_BYTES_MAX: Final = 1 << 30  # guess: a hundred adapters of a small model, or three of a large


class Shelf:
    """The adapters kept in one home. Everything here blocks for files."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER

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
        """Whether it is here now. The longest unused make room."""
        size = sum(map(len, bundle.parts.values()))
        if size > KEPT_BYTES_MAX:
            return False
        folder = self._folder / bundle.hex
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for block, raw in bundle.parts.items():
                replace_file(folder / str(block), raw)
            replace_file(folder / MANIFEST, bundle.raw)
            self._make_room()
        except OSError:
            return False  # a disk that takes no more: it is brought again
        return True

    def _make_room(self) -> None:
        """Raises OSError."""
        sizes: list[tuple[float, int, Path]] = []
        for folder in self._folder.iterdir():
            files = [path.stat() for path in folder.iterdir()]
            used_s = max((one.st_mtime for one in files), default=0.0)
            sizes.append((used_s, sum(one.st_size for one in files), folder))
        total = sum(size for _, size, _ in sizes)
        for _, size, folder in sorted(sizes)[:-1]:
            if total <= KEPT_BYTES_MAX:
                break
            shutil.rmtree(folder, ignore_errors=True)
            total -= size


def find_adapter(ref: str | Path, voice: Voice, home: Path) -> Bundle:
    """The adapter that a folder or a digest means, whole, for this model. Blocks. Raises
    UserError."""
    shelf, text = Shelf(home), str(ref)
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
