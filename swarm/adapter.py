"""An adapter as it is named, sent and checked: a part for each block, under one digest.

A server needs of an adapter only what is for its own blocks, and must be able to check that alone.
So an adapter is a manifest, which says for which model it is and gives the digest of each block's
part; and the manifest's own digest is the adapter's name.

    adapter = H("adapter", manifest)
                  model, rank, targets
                  block 0: size, H("adapter part", bytes) ◀── scales and tensors (compute/parts.py)
                  block 1: ...

Two people who have the same adapter give it the same name. Whoever publishes one may sign for the
manifest; what a name stands for needs no signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from ..crypto.codec import Range, Size, decode, encode
from ..crypto.digest import digest
from ..crypto.envelope import OVERHEAD_BYTES, open_, sign
from ..crypto.keys import IdentityKey
from ..crypto.merkle import Bytes, Digest
from ..errors import RemoteError
from .blocks import BlockRange
from .wire import WORN_BYTES_MAX, BlockNumber

MANIFEST_BYTES_MAX: Final = 64 * 1024  # 700 blocks
RANK_MAX: Final = 512  # guess: PEFT's default is 8, and above 256 none was seen
DOMAIN: Final = "adapter"  # of its name, and of a publisher's signature
_PART: Final = "adapter part"


@dataclass(frozen=True, slots=True)
class Part:
    """What is for one block. size: in bytes."""

    block: BlockNumber
    size: Annotated[int, Range(1, WORN_BYTES_MAX)]
    digest: Digest


@dataclass(frozen=True, slots=True)
class Manifest:
    """model: the digest of its base. rank: the greatest of its matrices'. targets: the last names
    of the modules to which it adds."""

    model: Digest
    rank: Annotated[int, Range(1, RANK_MAX)]
    targets: Annotated[tuple[Annotated[str, Size(64, 1)], ...], Size(32, 1)]
    parts: Annotated[tuple[Part, ...], Size(4096, 1)]

    def __post_init__(self) -> None:
        blocks = [part.block for part in self.parts]
        if blocks != sorted(set(blocks)) or list(self.targets) != sorted(set(self.targets)):
            raise ValueError("parts or targets are not in order")

    def of(self, blocks: BlockRange) -> tuple[Part, ...]:
        """The parts for these blocks."""
        return tuple(part for part in self.parts if blocks.start <= part.block < blocks.stop)

    def size(self, blocks: BlockRange) -> int:
        """Bytes of the parts for these blocks."""
        return sum(part.size for part in self.of(blocks))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest, as it was read or made, and all parts or some. Made by the functions below."""

    name: bytes
    manifest: Manifest
    parts: Mapping[int, bytes]

    @property
    def hex(self) -> str:
        return self.name.hex()

    @property
    def raw(self) -> bytes:
        """The manifest's bytes."""
        return encode(self.manifest)


def name_of(manifest: Bytes) -> bytes:
    return digest(DOMAIN, manifest)


def make_bundle(
    model: bytes, rank: int, targets: Iterable[str], parts: Mapping[int, bytes]
) -> Bundle:
    """Of the parts of all blocks to which it adds anything."""
    told = tuple(
        Part(block, len(part), digest(_PART, part)) for block, part in sorted(parts.items())
    )
    manifest = Manifest(model, rank, tuple(sorted(set(targets))), told)
    return Bundle(name_of(encode(manifest)), manifest, parts)


def read_manifest(raw: Bytes, name: bytes) -> Manifest:
    """Raises RemoteError unless it is the one of this name."""
    if name_of(raw) != name:
        raise RemoteError("the manifest of another adapter")
    return decode(raw, Manifest, max_bytes=MANIFEST_BYTES_MAX)


def check_part(part: Part, raw: Bytes) -> None:
    """Raises RemoteError unless these are its bytes. Blocks: it hashes them."""
    if len(raw) != part.size or digest(_PART, raw) != part.digest:
        raise RemoteError(f"an adapter's part for block {part.block} that is not the one named")


def cut_parts(manifest: Manifest, blocks: BlockRange, raw: memoryview) -> dict[int, bytes]:
    """The parts for these blocks, which lie one after another. Raises RemoteError unless they are
    whole and those of the manifest. Blocks: it hashes them."""
    wanted, at = manifest.of(blocks), 0
    if len(raw) != manifest.size(blocks):
        raise RemoteError(f"{len(raw)} bytes of an adapter, where {manifest.size(blocks)} are due")
    found: dict[int, bytes] = {}
    for part in wanted:
        piece = raw[at : at + part.size]
        check_part(part, piece)
        found[part.block] = bytes(piece)
        at += part.size
    return found


def publish(key: IdentityKey, bundle: Bundle) -> bytes:
    """The manifest, signed by who gives the adapter out."""
    return sign(key, DOMAIN, bundle.raw)


def publisher_of(raw: bytes, bundle: Bundle) -> str:
    """The peer id of who signed for this adapter. Raises RemoteError unless somebody did."""
    signer, body = open_(raw, DOMAIN, max_bytes=MANIFEST_BYTES_MAX + OVERHEAD_BYTES)
    if name_of(body) != bundle.name:
        raise RemoteError("a signature for another adapter")
    return signer
