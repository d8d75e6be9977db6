"""Prompts that begin alike: what their beginnings are called, and which of them stay remembered.

Rows of a boundary are named by chains of digests, a link for each 64 positions, as vLLM names its
blocks (Kwon et al., 2023): a name is over all bytes from the first position on. Two sessions whose
names at a boundary are equal sent the same bytes over it, so what a server computed of them for the
one is what it would compute for the other, bit for bit, where its numbers depend on nothing but a
session's rows. Nothing that a client says goes in but the rows themselves: whoever sends others
gets another name, and spoils nothing.

    rows 0..64      64..128         128..192
         │             │                │
    "" ──▶ name 0 ─────▶ name 1 ────────▶ name 2          name i = H(name i - 1, leaves of its rows)

What is kept lies on a shelf, under a scope (whose it is, for which blocks) and a name. How soon a
server answers tells whether it had a beginning already, and so what others have asked: a client
finds what it brought itself, unless it shares on purpose, and then what others shared.

On the shelf the longest unused goes first. Whoever uses the end of a chain uses its beginnings too,
a moment later, so that they always go after it: nothing stays that nobody could find.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from ..crypto.digest import digest
from ..crypto.merkle import Bytes, leaves_of

GRAIN: Final = 64  # positions of a name: what a page of keys and values holds
NAMES_MAX: Final = 256  # of one prompt: 16,384 positions; their names fit into one header
OWNER_SHARE: Final = 0.75  # of a shelf for one owner: as of leases (admission.py)
ROWS_BYTES_MAX: Final = 128 * 1024 * 1024  # guess: five prompts of 1,500 tokens, width 4,096, f32
KNOWN_MAX: Final = 1 << 16  # names that a client remembers to have brought to somebody

Prefix = Literal["off", "own", "shared"]  # who finds a beginning: nobody, its client, anybody
Scope = tuple[str, int, int, str, int]  # owner, blocks, dtype, kind; an owner "" is everybody
Names = Sequence[bytes]
T = TypeVar("T")


class Chain:
    """The names of one boundary's rows, as they go over it."""

    def __init__(self, row_bytes: int) -> None:
        self.names: list[bytes] = []
        self._row_bytes = row_bytes
        self._leaves: list[bytes] = []  # behind the last name
        self._last: list[bytes] = []  # of the last name; empty: not known

    @property
    def length(self) -> int:
        """Positions so far."""
        return GRAIN * len(self.names) + len(self._leaves)

    def add(self, rows: Bytes) -> list[tuple[bytes, ...]]:
        """The next rows; the leaves of each name that this completes."""
        return self.add_leaves(leaves_of(rows, self._row_bytes))

    def add_leaves(self, leaves: Sequence[bytes]) -> list[tuple[bytes, ...]]:
        """The same of rows whose leaves are known."""
        self._leaves += leaves
        found: list[tuple[bytes, ...]] = []
        while len(self._leaves) >= GRAIN:
            self._last = self._leaves[:GRAIN]
            del self._leaves[:GRAIN]
            before = self.names[-1] if self.names else b""
            self.names.append(digest("prefix", before, *self._last))
            found.append(tuple(self._last))
        return found

    def skip(self, names: Names) -> None:
        """The next names, whose rows are not at hand. Only at the end of one."""
        assert not self._leaves
        self.names += names
        self._last = []

    def back(self, at: int) -> bool:
        """Forget positions from `at` on; false where that is too far back."""
        if GRAIN * len(self.names) > at:
            if not self._last or GRAIN * (len(self.names) - 1) > at:
                return False
            self.names.pop()
            self._leaves, self._last = self._last, []
        del self._leaves[max(0, at - GRAIN * len(self.names)) :]
        return True


def names_of(rows: Iterable[Bytes], row_bytes: int) -> tuple[bytes, ...]:
    """The names of a prompt's rows, which lie in these pieces one after another; as many as can be
    asked for, and none for the last row, of which an output is always wanted."""
    chain = Chain(row_bytes)
    for piece in rows:
        chain.add(piece)
    whole = (chain.length - 1) // GRAIN
    return tuple(chain.names[: min(whole, NAMES_MAX)])


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a session begins with. names: of its rows at the first boundary. shared: with anybody
    who says the same."""

    names: tuple[bytes, ...]
    tokens: int
    shared: bool = False


class Shelf(Generic[T]):
    """What is kept, by scope and name, up to `size_max` together."""

    def __init__(self, size_max: int, owner_share: float = OWNER_SHARE) -> None:
        self._size_max = size_max
        self._owner_max = int(owner_share * size_max)
        self._items: OrderedDict[tuple[Scope, bytes], tuple[T, int]] = OrderedDict()
        self._owned: dict[str, OrderedDict[tuple[Scope, bytes], None]] = {}
        self._sizes: dict[str, int] = {}  # by owner
        self.size = 0

    def __len__(self) -> int:
        return len(self._items)

    def holds(self, scope: Scope, name: bytes) -> bool:
        return (scope, name) in self._items

    def find(self, scope: Scope, names: Names) -> list[T]:
        """What is kept of this chain, from its first name on. It counts as used."""
        found: list[T] = []
        for name in names:
            item = self._items.get((scope, name))
            if item is None:
                break
            found.append(item[0])
        self._use(scope, names[: len(found)])
        return found

    def put(self, scope: Scope, names: Names, what: T, size: int) -> list[T]:
        """Keep this under the last of these names. What has to go for it, or it itself, where it
        does not fit or nobody could find it."""
        owner, key = scope[0], (scope, names[-1])
        if size > self._owner_max or key in self._items:
            return [what]
        self._use(scope, names[:-1])
        gone: list[T] = []
        while self._sizes.get(owner, 0) + size > self._owner_max:
            gone.append(self._drop(next(iter(self._owned[owner]))))
        while self.size + size > self._size_max:
            gone.append(self._drop(next(iter(self._items))))
        if not all((scope, name) in self._items for name in names[:-1]):
            return [*gone, what]
        self._items[key] = what, size
        self._owned.setdefault(owner, OrderedDict())[key] = None
        self._sizes[owner] = self._sizes.get(owner, 0) + size
        self.size += size
        self._use(scope, names)
        return gone

    def pop(self) -> T | None:
        """What was unused for longest, and is not kept any more; None: nothing is left."""
        return self._drop(next(iter(self._items))) if self._items else None

    def _use(self, scope: Scope, names: Names) -> None:
        """From the last to the first, which is then the latest used."""
        for name in reversed(names):
            if (key := (scope, name)) in self._items:
                self._items.move_to_end(key)
                self._owned[scope[0]].move_to_end(key)

    def _drop(self, key: tuple[Scope, bytes]) -> T:
        what, size = self._items.pop(key)
        owner = key[0][0]
        del self._owned[owner][key]
        self.size -= size
        self._sizes[owner] -= size
        if not self._owned[owner]:
            del self._owned[owner], self._sizes[owner]
        return what


class Rows:
    """Rows that a client was given before, by their names: they need not travel again."""

    def __init__(self, bytes_max: int = ROWS_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self.bytes = 0

    def put(self, name: bytes, rows: Bytes) -> None:
        if name not in self._kept and len(rows) <= self._bytes_max:
            self._kept[name] = bytes(rows)
            self.bytes += len(rows)
            while self.bytes > self._bytes_max:
                _, gone = self._kept.popitem(last=False)
                self.bytes -= len(gone)

    def find(self, names: Names) -> bytes | None:
        """The rows of all these names, one after another; None where one of them is not here."""
        found: list[bytes] = []
        for name in names:
            rows = self._kept.get(name)
            if rows is None:
                return None
            self._kept.move_to_end(name)
            found.append(rows)
        return b"".join(found)


class Brought:
    """To whom a client brought which beginnings: what it may expect to find there."""

    def __init__(self, most: int = KNOWN_MAX) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._mute: OrderedDict[str, None] = OrderedDict()

    def note(self, peer: str, names: Names, held: int) -> None:
        """The peer has the first `held` of these names, and not the others."""
        for name in names[:held]:
            self._known[peer, name] = None
            self._known.move_to_end((peer, name))
        for name in names[held:]:
            self._known.pop((peer, name), None)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def note_mute(self, peer: str) -> None:
        """The peer is of an older kind, which remembers nothing."""
        self._mute[peer] = None
        if len(self._mute) > self._most:
            self._mute.popitem(last=False)

    def is_mute(self, peer: str) -> bool:
        return peer in self._mute

    def tokens(self, peer: str, names: Names) -> int:
        """How many positions of a prompt with these names the peer is thought to have."""
        held = 0
        while held < len(names) and (peer, names[held]) in self._known:
            held += 1
        return GRAIN * held
