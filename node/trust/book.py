"""How far this home trusts each peer: the book of reputation on disk, shared by its processes.

    home/trust         a Book (swarm/reputation.py), by the one codec
    home/trust.lots    the secret that audits are drawn by (swarm/audit.py)
    home/trust.lock    held while either is read or written

A process keeps what it found as a list of changes. To write them down it takes the lock, reads the
book as it is *now*, makes its changes on that, replaces the file, and goes on from what it wrote:
whatever another process of this home found meanwhile stands, and is known here from then on.

A book that cannot be read is kept aside as trust.broken, and a new one is begun: what it knew would
be guessed at, and everybody is a stranger again.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import filelock
import trio

from ...crypto.codec import decode, encode
from ...errors import RemoteError, UserError
from ...swarm.audit import KEY_BYTES, AuditConfig, Lots, rate
from ...swarm.receipt import CHUNK_TOKENS
from ...swarm.reputation import PEERS_MAX, PROBATION_VALID, TRUST_LEAST, Book, Reputation, Score
from ..home import prepare_home, replace_file
from ..log import get_logger

TRUST: Final = "trust"
BOOK_BYTES_MAX: Final = 256 * PEERS_MAX  # a score takes about 150 bytes
CHANGES_MAX: Final = 4096  # that a full disk has not taken: the oldest are not written any more
LOCK_S: Final = 5.0  # another process holds it for as long as it reads and writes one file
SAVE_EVERY_S: Final = 1.0

Change = Callable[[Reputation], None]
log = get_logger()


class Trust:
    """The book, as this process knows it. Everything but `save` answers at once.

    home: None keeps it in memory alone. clock: unix seconds.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        clock: Callable[[], float] = time.time,
        config: AuditConfig | None = None,
    ) -> None:
        """Blocks for as long as reading the book takes."""
        self._home = home
        self._clock = clock
        self._config = config or AuditConfig()
        self._book = Reputation(None if home is None else _read(home))
        self._changes: list[Change] = []
        self._dirty = trio.Event()
        self._kept = False
        self.on_convicted: list[Callable[[str], None]] = []
        self.on_probation: Callable[[str], bool] = lambda peer: False  # as node/toll.py says
        self.head: Callable[[str], float] = lambda peer: 0.0  # of a head start (vouching.py)

    # ---- what routing asks

    def banned(self, peer: str) -> bool:
        return self._book.banned(peer, self._clock())

    def cost_factor(self, peer: str) -> float:
        """What its times count: 1 for a stranger, a half for a peer that is fully trusted, and
        infinitely for one that is not to be used."""
        return self._book.cost_factor(peer, self._clock(), head=self.head(peer)) * TRUST_LEAST

    def usable(self, peer: str) -> bool:
        """Neither banned, nor known and trusted too little."""
        return math.isfinite(self.cost_factor(peer))

    def scores(self) -> tuple[Score, ...]:
        """What is known of each peer, as of now."""
        return self._book.keep(self._clock()).scores

    # ---- what audits ask

    def rate(self, peer: str) -> float:
        """With which probability a chunk of this peer's is audited: all, while on probation."""
        head = self.head(peer)
        owes = head < PROBATION_VALID and self.on_probation(peer)  # who is pinned owes us nothing
        valid = 0 if owes else self._book.valid(peer, head=head)
        return rate(valid, self._book.credence(peer, self._clock(), head=head), self._config)

    def mean(self, peer: str) -> float:
        """With which probability it is honest, as far as we know."""
        return self._book.mean(peer, self._clock())

    def earned(self) -> dict[str, float]:
        """Whom our own audits have taken out of probation, with how far each is trusted."""
        return self._book.earned(self._clock())

    def trust(self, peer: str) -> float:
        """The lower bound of that; of a head start nothing, and of what others say: neither makes
        anybody a witness."""
        return self._book.trust(peer, self._clock())

    def lots(self) -> Lots:
        """The coins of this home; in memory alone, of this process. Blocks; raises UserError."""
        if self._home is None:
            return Lots(secrets.token_bytes(KEY_BYTES))
        return Lots(_secret(self._home))

    # ---- what is found

    def audited(self, peer: str, *, right: bool, tokens: int) -> None:
        """An audit of a chunk of so many tokens was settled."""
        now, weight = self._clock(), weight_of(tokens)
        self._change(lambda book: book.audited(peer, right=right, weight=weight, now=now))

    def doubted(self, peer: str, *, tokens: int) -> None:
        """A dispute was left open in which it stood with the fewer."""
        now, weight = self._clock(), weight_of(tokens)
        self._change(lambda book: book.doubted(peer, weight=weight, now=now))

    def heard(self, peer: str, by: str, *, right: bool | None) -> None:
        """What another found that computed accused work again; None: that is settled, and what it
        said of it counts no more. Not kept on disk."""
        if right is None:
            self._book.words.take_back(peer, by)
        else:
            self._book.heard(peer, by, right=right, now=self._clock())

    def convict(self, peer: str, *, for_good: bool = False) -> None:
        """By evidence that anybody could check: no route leads to it for 30 days, or ever. All of
        `on_convicted` are told, so that no answer goes on with it."""
        now = self._clock()
        self._change(lambda book: book.convict(peer, now, for_good=for_good))
        for tell in list(self.on_convicted):
            tell(peer)

    def _change(self, change: Change) -> None:
        change(self._book)
        if self._home is not None:
            self._changes.append(change)
            self._dirty.set()

    # ---- the disk

    async def keep(self) -> None:
        """A service: write down what is found, soon after; once more when cancelled. Of several
        that share this book one does it: what two wrote would count twice."""
        if self._kept:
            await trio.sleep_forever()
        self._kept = True
        try:
            while True:
                await self._dirty.wait()
                self._dirty = trio.Event()
                made = list(self._changes)
                self._adopt(await trio.to_thread.run_sync(self._write, made), len(made))
                await trio.sleep(SAVE_EVERY_S)
        finally:
            self.save()

    def save(self) -> None:
        """Write down what was found, if anything was. Blocks."""
        made = list(self._changes)
        self._adopt(self._write(made), len(made))

    def _write(self, made: list[Change]) -> Reputation | None:
        """The book on disk with these changes made; None when it could not be written."""
        if self._home is None or not made:
            return None
        path = self._home / TRUST
        try:
            prepare_home(self._home)
            with _locked(self._home):
                book = Reputation(_load(path), words=self._book.words)
                for change in made:
                    change(book)
                replace_file(path, encode(book.keep(self._clock())))
        except (OSError, filelock.Timeout, UserError) as error:
            log.warning("trust not written", path=str(path), reason=str(error))
            return None
        return book

    def _adopt(self, written: Reputation | None, count: int) -> None:
        """Go on from what was written, and what was found since."""
        if written is None:
            del self._changes[:-CHANGES_MAX]
            return
        del self._changes[:count]
        for change in self._changes:
            change(written)
        self._book = written


@asynccontextmanager
async def open_trust(home: Path) -> AsyncIterator[Trust]:
    """The home's, kept on disk until this is left."""
    trust = await trio.to_thread.run_sync(Trust, home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trust.keep)
        yield trust
        nursery.cancel_scope.cancel()


def weight_of(tokens: int) -> float:
    """What an audit of so many tokens counts: 1 for a whole chunk."""
    return min(1.0, tokens / CHUNK_TOKENS)


def _locked(home: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(home / f"{TRUST}.lock", timeout=LOCK_S, mode=0o600)


def _read(home: Path) -> Book | None:
    """What is on disk; None when there is nothing that can be used."""
    path = home / TRUST
    if not path.exists():
        return None
    try:
        with _locked(home):
            return _load(path)
    except (OSError, filelock.Timeout) as error:
        log.warning("trust passed over", path=str(path), reason=str(error))
        return None


def _load(path: Path) -> Book | None:
    """The book, under the lock. One that cannot be read is put aside. Raises OSError."""
    try:
        with path.open("rb") as file:
            return decode(file.read(BOOK_BYTES_MAX + 1), Book, max_bytes=BOOK_BYTES_MAX)
    except FileNotFoundError:
        return None
    except RemoteError as error:
        aside = path.with_name(f"{TRUST}.broken")
        path.replace(aside)
        log.warning("trust begun anew", broken=str(aside), reason=str(error))
        return None


def _secret(home: Path) -> bytes:
    """The home's own, made the first time. Raises UserError."""
    path = home / f"{TRUST}.lots"
    try:
        prepare_home(home)
        with _locked(home):
            if path.exists() and len(kept := path.read_bytes()) == KEY_BYTES:
                return kept
            made = secrets.token_bytes(KEY_BYTES)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:  # half of one is no key, and made anew
                file.write(made)
            return made
    except (OSError, filelock.Timeout) as error:
        raise UserError(f"{path}: cannot be used ({error}); mend or remove it") from error
