"""The log of a run by scalars: what each peer said, in order, signed, once; and what follows.

A peer's word is a row of pages without a gap, one byte for each round, and each page names the one
before. So it cannot take anything back: two pages that cannot both be of one row convict whoever
signed them, for everybody who sees both, and nothing that it said counts any more.

    peer a   [ 0..15 ]─[16..16]─[17..40]─ ...            a page lies within one epoch
    peer b              [20..31]─[32..32]─ ...           joined in round 20

Logs are merged in any order, pulled from anybody (Demers et al., 1987: anti-entropy): what counts
is a function of the set of pages. What is older than a snapshot is folded into it and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from ...crypto.codec import Size, decode, encode
from ...crypto.digest import DIGEST_BYTES, digest
from ...crypto.envelope import OVERHEAD_BYTES, open_, sign
from ...crypto.keys import PEER_ID_CHARS, IdentityKey
from ...crypto.merkle import Digest
from ...errors import RemoteError
from .seeds import Change, Rounds, Rules

PROTOCOL: Final = "/potluck/scalars/1"
DOMAIN: Final = "potluck scalars"
FIRST: Final = bytes(DIGEST_BYTES)  # `before` of a peer's first page
CODES_MAX: Final = 1024
PAGE_BYTES_MAX: Final = CODES_MAX + 128 + OVERHEAD_BYTES
PEERS_MAX: Final = 1024  # in one run
PAGES_MAX: Final = 64  # in one message
FORKS_MAX: Final = 8
LETTER_BYTES_MAX: Final = 256 * 1024  # 1,024 heads have 140 KB
PAGES_BYTES_MAX: Final = 64 * 1024
EPOCHS_MAX: Final = 8  # guess: that are open, above the last snapshot

Raw = Annotated[bytes, Size(PAGE_BYTES_MAX)]
PeerId = Annotated[str, Size(PEER_ID_CHARS, PEER_ID_CHARS)]


@dataclass(frozen=True, slots=True)
class Page:
    """What a peer measured in the rounds from `start` on. before: the digest of its page before."""

    run: Digest
    start: Rounds
    before: Digest
    codes: Annotated[bytes, Size(CODES_MAX, 1)]

    @property
    def stop(self) -> int:
        return self.start + len(self.codes)


@dataclass(frozen=True, slots=True)
class Head:
    """How far a peer's row is known: the next round, and the digest of the last page."""

    peer: PeerId
    next: Rounds
    last: Digest


@dataclass(frozen=True, slots=True)
class Fork:
    """Two pages of which one peer cannot honestly have signed both."""

    one: Raw
    other: Raw


@dataclass(frozen=True, slots=True)
class Sync:
    """What the sender knows: of whom, how far, back to which round."""

    TAG: ClassVar[str] = "sync"

    run: Digest
    floor: Rounds
    heads: Annotated[tuple[Head, ...], Size(PEERS_MAX)]
    convicted: Annotated[tuple[PeerId, ...], Size(PEERS_MAX)]


def parted(ours: Sync, theirs: Sync) -> int | None:
    """The first round of which two logs may know different things; None: nowhere above what either
    has folded."""
    base = max(ours.floor, theirs.floor)
    if ours.convicted != theirs.convicted:
        return base
    mine = {head.peer: head for head in ours.heads if head.next > base}
    other = {head.peer: head for head in theirs.heads if head.next > base}
    found: list[int] = []
    for peer in mine.keys() | other.keys():
        one, two = mine.get(peer), other.get(peer)
        if one is None or two is None or (one.next == two.next and one != two):
            found.append(base)
        elif one != two:
            found.append(min(one.next, two.next))
    return min(found, default=None)


@dataclass(frozen=True, slots=True)
class Pages:
    """What the other did not know, as much as a letter holds, each peer's in order. floor: before
    which there is only a snapshot."""

    TAG: ClassVar[str] = "pages"

    floor: Rounds
    pages: Annotated[tuple[Raw, ...], Size(PAGES_MAX)]
    forks: Annotated[tuple[Fork, ...], Size(FORKS_MAX)]


def sign_page(key: IdentityKey, page: Page) -> bytes:
    return sign(key, DOMAIN, encode(page))


def read_page(raw: bytes, rules: Rules) -> tuple[str, Page]:
    """Who signed it, and what. Raises RemoteError for what is no page of this run."""
    peer, body = open_(raw, DOMAIN, max_bytes=PAGE_BYTES_MAX)
    page = decode(body, Page)
    if page.run != rules.run:
        raise RemoteError("a page of another run")
    if page.start // rules.epoch_rounds != (page.stop - 1) // rules.epoch_rounds:
        raise RemoteError(f"a page of rounds {page.start}..{page.stop - 1}, across a snapshot")
    return peer, page


def name_of(page: Page) -> bytes:
    return digest("scalar page", encode(page))


def forked(one: Page, other: Page) -> bool:
    """Whether no row has both: they overlap, or both are the first, or the second does not follow
    the first though it begins where that ends."""
    if one == other:
        return False
    first, second = sorted((one, other), key=lambda page: page.start)
    if second.start < first.stop or one.before == other.before:
        return True
    return second.start == first.stop and second.before != name_of(first)


def read_fork(fork: Fork, rules: Rules) -> str:
    """Whom it convicts. Raises RemoteError when it convicts nobody."""
    (peer, one), (other_peer, other) = (read_page(raw, rules) for raw in (fork.one, fork.other))
    if peer != other_peer or not forked(one, other):
        raise RemoteError("two pages that prove nothing")
    return peer


@dataclass(frozen=True, slots=True)
class Merged:
    """What a page made of us. new: it was not known. convicted: whom it proves a liar."""

    new: bool = False
    changes: tuple[Change, ...] = ()
    convicted: str | None = None


class Log:
    """Of one run. may: whether a peer takes part; it must say the same everywhere."""

    def __init__(
        self, rules: Rules, floor: int = 0, *, may: Callable[[str], bool] = lambda peer: True
    ) -> None:
        """floor: the first round that is not in the snapshot with which it begins."""
        assert floor % rules.epoch_rounds == 0
        self.rules = rules
        self.floor = floor
        self._may = may
        self._rows: dict[str, list[tuple[bytes, Page]]] = {}
        self._codes: dict[tuple[int, int], dict[str, int]] = {}  # by round and direction
        self._forks: dict[str, Fork] = {}
        self._known: set[bytes] = set()  # all that is in rows

    @property
    def ceiling(self) -> int:
        """The first round that is not taken in yet: who is there is far ahead, or lies."""
        return self.floor + EPOCHS_MAX * self.rules.epoch_rounds

    @property
    def convicted(self) -> tuple[str, ...]:
        return tuple(sorted(self._forks))

    def next(self, peer: str) -> int | None:
        """The first round of which this peer said nothing yet; None: it is not known."""
        row = self._rows.get(peer)
        return row[-1][1].stop if row else None

    def answers(self, round_: int) -> int:
        """How many have spoken of this round, though it be to say that they were absent."""
        return sum(len(self._codes.get((round_, one), ())) for one in range(self.rules.directions))

    def before(self, peer: str) -> bytes:
        """What the peer's next page has to name."""
        row = self._rows.get(peer)
        return name_of(row[-1][1]) if row else FIRST

    def pages(self) -> list[bytes]:
        """All that count, each row in order."""
        return [raw for row in self._rows.values() for raw, _ in row]

    def steps(self, start: int) -> list[Change]:
        """What was gone in the rounds from `start` on, in all."""
        found = [
            Change(*key, self.rules.step(key[0], codes.values()))
            for key, codes in self._codes.items()
            if key[0] >= start
        ]
        return [one for one in found if one.delta]

    def active(self, start: int) -> int:
        """How many have spoken of a round from `start` on."""
        return sum(row[-1][1].stop > start for row in self._rows.values())

    def reached(self) -> int:
        """The round that half of the peers have come to: liars in the minority cannot feign it."""
        found = sorted(row[-1][1].stop for row in self._rows.values())
        return found[len(found) // 2] if found else self.floor

    # ---- taking in

    def merge(self, raw: bytes) -> Merged:
        """Take in a page. Raises RemoteError for what no honest peer hands on; a page behind a gap
        is left for later, when what is before it has come."""
        if raw in self._known:
            return Merged()  # before its signature is looked at: the same comes from many
        peer, page = read_page(raw, self.rules)
        if peer in self._forks or page.stop <= self.floor or not self._may(peer):
            return Merged()
        row = self._rows.get(peer, [])
        for known, other in row:
            if forked(page, other):
                return self._convict(peer, Fork(known, raw))
        due = row[-1][1].stop if row else page.start
        if page.start != due or page.stop > self.ceiling:
            return Merged()  # known; or behind a gap; or too far ahead
        if not row and page.before != FIRST and page.start != self.floor:
            return Merged()  # what is before it is above the floor, and has not come
        if not row and len(self._rows) >= PEERS_MAX:
            return Merged()
        self._rows.setdefault(peer, row).append((raw, page))
        self._known.add(raw)
        return Merged(True, tuple(self._put(peer, page)))

    def merge_fork(self, fork: Fork) -> Merged:
        """Believe a proof. Raises RemoteError for one that proves nothing."""
        peer = read_fork(fork, self.rules)
        return Merged() if peer in self._forks else self._convict(peer, fork)

    def fold(self, floor: int) -> None:
        """The rounds before this one are in a snapshot, as they are now."""
        assert floor % self.rules.epoch_rounds == 0 and floor >= self.floor
        self.floor = floor
        for peer, row in list(self._rows.items()):
            kept = [one for one in row if one[1].stop > floor]
            if kept or row[-1][1].stop == floor:
                self._rows[peer] = kept or row[-1:]  # the last one says what the next must name
            else:
                del self._rows[peer]
        self._codes = {key: codes for key, codes in self._codes.items() if key[0] >= floor}
        self._known = set(self.pages())

    def _convict(self, peer: str, fork: Fork) -> Merged:
        if len(self._forks) < PEERS_MAX:
            self._forks[peer] = fork
        changes: list[Change] = []
        for key, codes in self._codes.items():
            if peer in codes:
                without = {one: code for one, code in codes.items() if one != peer}
                changes += self._replace(key, without)
        self._known -= {raw for raw, _ in self._rows.pop(peer, [])}
        return Merged(True, tuple(changes), peer)

    def _put(self, peer: str, page: Page) -> Iterator[Change]:
        for round_, byte in enumerate(page.codes, page.start):
            if round_ >= self.floor:
                key = round_, self.rules.direction(peer, round_)
                code = byte - 256 if byte > 127 else byte
                yield from self._replace(key, {**self._codes.get(key, {}), peer: code})

    def _replace(self, key: tuple[int, int], codes: dict[str, int]) -> Iterator[Change]:
        before = self.rules.step(key[0], self._codes.get(key, {}).values())
        self._codes[key] = codes
        after = self.rules.step(key[0], codes.values())
        if after != before:
            yield Change(*key, after - before)

    # ---- giving away

    def ask(self) -> Sync:
        """What we know."""
        heads = tuple(
            Head(peer, row[-1][1].stop, name_of(row[-1][1]))
            for peer, row in sorted(self._rows.items())
        )
        return Sync(self.rules.run, self.floor, heads, self.convicted)

    def answer(self, asked: Sync) -> Pages:
        """What the other does not know, as much as goes into a letter: the oldest first."""
        heads = {head.peer: head for head in asked.heads}
        wanted = [
            (page.start, peer, raw)
            for peer, row in self._rows.items()
            for raw, page in _unknown(row, heads.get(peer), asked.floor)
            if peer not in asked.convicted
        ]
        pages: list[bytes] = []
        left = PAGES_BYTES_MAX
        for _, _, raw in sorted(wanted)[:PAGES_MAX]:
            left -= len(raw)
            if left < 0:
                break
            pages.append(raw)
        forks = [fork for peer, fork in self._forks.items() if peer not in asked.convicted]
        return Pages(self.floor, tuple(pages), tuple(forks[:FORKS_MAX]))


def _unknown(
    row: Iterable[tuple[bytes, Page]], head: Head | None, floor: int
) -> Iterator[tuple[bytes, Page]]:
    """Of a row, what somebody lacks whose row ends there; all of it, where theirs is another."""
    pages = list(row)
    last = pages[-1][1]
    same = head is None or head.next != last.stop or head.last == name_of(last)
    start = head.next if head is not None and same else floor
    return ((raw, page) for raw, page in pages if page.stop > start)
