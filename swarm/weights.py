"""Which pieces of a weight file a peer has, and whose word on them is believed.

A weight file is known by its sha256, which the hub tells and the model's digest covers. It is cut
into pieces of 1 MiB, each a chunk with a digest of its own (chunk.py). But a sha256 says nothing of
a part: whoever holds some blocks of a file can check what a neighbour says of its pieces only by
the root, or by others. So each peer says what it has, and apart from that what of it it *vouches*
for: what it read from the root itself, or from a whole file whose sha256 was right.

    opener                           other                          `/potluck/weights/1`
    Ask{file: sha256} ─────────────▶
             ◀──── Table{file, size, pieces, vouched}, signed       or an empty letter: not here

    a piece is believed   read from the root, or in a file that was checked whole
                          vouched for by a peer that the owner has pinned
                          by three networks, or by one of whom samples were right at the root
                          by anybody, where the file will be whole here: then its sha256 tells
             disputed     two say different things: the root is read, and who lied has signed it

A table that the root refutes convicts whoever signed it before anybody who reads the same bytes
there. Sources: Merkle, 1987; BitTorrent's pieces, Cohen, 2003, whose metainfo is what a table is,
only that nobody published it. Nothing here waits, or reads a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final

from ..crypto.codec import Range, Size, decode, encode
from ..crypto.digest import DIGEST_BYTES
from ..crypto.envelope import OVERHEAD_BYTES, open_, sign
from ..crypto.keys import IdentityKey
from ..crypto.merkle import Digest
from ..errors import RemoteError
from .chunk import CHUNK_BYTES, Chunk

PROTOCOL: Final = "/potluck/weights/1"
DOMAIN: Final = "weights"
PIECES_MAX: Final = 1 << 16  # 64 GiB: the hub takes no file above 50 GB
TABLE_BYTES_MAX: Final = PIECES_MAX * DIGEST_BYTES + PIECES_MAX // 8 + 512 + OVERHEAD_BYTES
ASK_BYTES_MAX: Final = 128
NETWORKS: Final = 3  # that say the same: evidence.py's ATTESTERS_MIN
SAMPLES_MIN: Final = 2
SAMPLES_MAX: Final = 16  # guess: of whose pieces a tenth are false is missed once in five times
SAMPLE_SHARE: Final = 0.02  # of what is wanted: a hundredth of the root's bytes is what trust costs
NOT_HERE: Final = bytes(DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class Ask:
    """What do you have of the file with this sha256?"""

    TAG: ClassVar[str] = "ask"

    file: Digest


@dataclass(frozen=True, slots=True)
class Table:
    """pieces: their digests, one after another, NOT_HERE for what the signer has not. vouched: a
    bit for each, the first in the lowest, for what it checked against the root."""

    TAG: ClassVar[str] = "table"

    file: Digest
    size: Annotated[int, Range(1, PIECES_MAX * CHUNK_BYTES)]
    pieces: Annotated[bytes, Size(PIECES_MAX * DIGEST_BYTES)]
    vouched: Annotated[bytes, Size(PIECES_MAX // 8)]

    def __post_init__(self) -> None:
        count = pieces_of(self.size)
        if len(self.pieces) != count * DIGEST_BYTES or len(self.vouched) != -(-count // 8):
            raise ValueError(f"a table of another length than {count} pieces have")

    def piece(self, index: int) -> bytes | None:
        """The digest of a piece that the signer has."""
        found = self.pieces[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        return None if found == NOT_HERE else found

    def vouches(self, index: int) -> bool:
        return bool(self.vouched[index // 8] >> index % 8 & 1)


def pieces_of(size: int) -> int:
    """How many pieces a file of so many bytes has."""
    return -(-size // CHUNK_BYTES)


def piece_bytes(size: int, index: int) -> int:
    """How many bytes piece `index` of such a file has."""
    return min(CHUNK_BYTES, size - index * CHUNK_BYTES)


def covering(spans: Iterable[tuple[int, int]]) -> list[int]:
    """The pieces that hold these half-open byte ranges, in order."""
    found: set[int] = set()
    for start, stop in spans:
        if stop > start:
            found.update(range(start // CHUNK_BYTES, pieces_of(stop)))
    return sorted(found)


def table_of(file: bytes, size: int, had: Mapping[int, tuple[bytes, bool]]) -> Table:
    """had: by piece, its digest, and whether we vouch for it."""
    count = pieces_of(size)
    pieces, vouched = bytearray(count * DIGEST_BYTES), bytearray(-(-count // 8))
    for index, (name, ours) in had.items():
        pieces[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] = name
        vouched[index // 8] |= ours << index % 8
    return Table(file, size, bytes(pieces), bytes(vouched))


def sign_table(key: IdentityKey, table: Table) -> bytes:
    return sign(key, DOMAIN, encode(table))


def read_table(raw: bytes, peer: str, file: bytes, size: int) -> Table:
    """The table that this peer signed. Raises RemoteError unless it did, of this file."""
    signer, body = open_(raw, DOMAIN, max_bytes=TABLE_BYTES_MAX)
    table = decode(body, Table, max_bytes=TABLE_BYTES_MAX)
    if signer != peer:
        raise RemoteError(f"a table of {signer}")
    if table.file != file or table.size != size:
        raise RemoteError("a table of another file")
    return table


@dataclass(slots=True)
class _Voice:
    """network: where it stands; empty for one that counts as no network of its own."""

    table: Table
    network: str
    pinned: bool
    right: int = 0  # of its pieces, that the root gave as it says


@dataclass(frozen=True, slots=True)
class Lie:
    """The root gives other bytes for a piece than this peer signed."""

    peer: str
    index: int
    said: bytes
    root: bytes


@dataclass(slots=True)
class Beliefs:
    """Of one file. whole: all of it will be here, and its sha256 is checked in the end."""

    size: int
    whole: bool
    known: dict[int, bytes] = field(default_factory=dict)  # by the root, or in a whole file
    _voices: dict[str, _Voice] = field(default_factory=dict)
    _liars: set[str] = field(default_factory=set)

    def heard(self, peer: str, table: Table, *, network: str = "", pinned: bool = False) -> (
        list[Lie]
    ):  # fmt: skip
        """What a peer says; in place of what it said before. What is refuted already."""
        if peer in self._liars or table.size != self.size:
            return []
        old = self._voices.get(peer)
        self._voices[peer] = _Voice(table, network, pinned, 0 if old is None else old.right)
        lies = []
        for index, name in self.known.items():
            lies += self._judge(peer, index, name)
        return lies[:1]

    def gone(self, peer: str) -> None:
        """It is asked no more, whatever it says."""
        self._voices.pop(peer, None)
        self._liars.add(peer)

    def learned(self, index: int, name: bytes) -> list[Lie]:
        """The root was read. Who said otherwise, and is heard no more."""
        self.known[index] = name
        lies = []
        for peer in list(self._voices):
            found = self._judge(peer, index, name)
            if not found and self._voices[peer].table.vouches(index):
                self._voices[peer].right += 1
            lies += found
        return lies

    def _judge(self, peer: str, index: int, name: bytes) -> list[Lie]:
        """Of what it does not vouch for it may have been deceived itself: that is not asked for."""
        voice = self._voices.get(peer)
        said = None if voice is None else voice.table.piece(index)
        if voice is None or said is None or said == name or not voice.table.vouches(index):
            return []
        self.gone(peer)
        return [Lie(peer, index, said, name)]

    def believed(self, index: int, samples: int = SAMPLES_MIN) -> bytes | None:
        """Its digest; None when nobody says, too few do, or not all the same. samples: of a peer,
        that have to be right for its word alone."""
        if index in self.known:
            return self.known[index]
        said = self._said(index)
        if len({name for name, _ in said}) != 1:
            return None
        name, voices = said[0][0], [voice for _, voice in said]
        networks = {voice.network for voice in voices if voice.network}
        if self.whole or len(networks) >= NETWORKS:
            return name
        alone = any(voice.pinned or voice.right >= samples for voice in voices)
        return name if alone else None

    def _said(self, index: int) -> list[tuple[bytes, _Voice]]:
        """By those who vouch for it; where the file will be whole, by whoever has it."""
        found = []
        for voice in self._voices.values():
            name = voice.table.piece(index)
            if name is not None and (self.whole or voice.table.vouches(index)):
                found.append((name, voice))
        return found

    def disputed(self, wanted: Iterable[int]) -> list[int]:
        """Of which two say different things."""
        return [
            index for index in wanted
            if index not in self.known and len({name for name, _ in self._said(index)}) > 1
        ]  # fmt: skip

    def said(self, index: int) -> bool:
        """Whether anybody has it."""
        return any(one.table.piece(index) is not None for one in self._voices.values())

    def samples(self, wanted: Iterable[int], need: int, draw: Callable[[int], int]) -> list[int]:
        """Pieces to be read from the root to know one more peer: of who has most of what is said
        and not believed. need: of a peer, that have to be right. draw: a number below the one
        given."""
        open_ = [one for one in wanted if self.said(one) and self.believed(one, need) is None]
        has: Counter[str] = Counter()
        for index in open_:
            for peer, voice in self._voices.items():
                has[peer] += voice.table.piece(index) is not None and voice.table.vouches(index)
        if not has or not max(has.values()):
            return []
        peer = max(sorted(has), key=lambda one: has[one])
        voice = self._voices[peer]
        mine = [one for one in open_ if voice.table.piece(one) and voice.table.vouches(one)]
        for at in range(min(need - voice.right, len(mine))):  # Fisher and Yates
            other = at + draw(len(mine) - at)
            mine[at], mine[other] = mine[other], mine[at]
        return mine[: max(0, need - voice.right)]

    def chunks(self, wanted: Iterable[int], samples: int) -> (
        tuple[dict[int, Chunk], dict[str, list[bytes]]]
    ):  # fmt: skip
        """What may be fetched from peers, by piece; and who has which."""
        found: dict[int, Chunk] = {}
        holders: dict[str, list[bytes]] = {peer: [] for peer in self._voices}
        for index in wanted:
            name = self.believed(index, samples)
            having = [
                peer for peer, one in self._voices.items()
                if name is not None and one.table.piece(index) == name
            ]  # fmt: skip
            if name is not None and having:
                found[index] = Chunk(name, piece_bytes(self.size, index))
                for peer in having:
                    holders[peer].append(name)
        return found, {peer: names for peer, names in holders.items() if names}


def samples_of(wanted: int) -> int:
    """How many samples of a peer have to be right, where so many pieces are wanted."""
    return min(SAMPLES_MAX, max(SAMPLES_MIN, round(SAMPLE_SHARE * wanted)))
