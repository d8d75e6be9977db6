"""Who starts beyond probation here, or half way: those pinned, and those that people we know name.

The rules stand in swarm/vouching.py; here is what waits. Words are asked for, never sent unasked:
of whom we trust, and of whom these vouch for, each is asked for its own and for those of its own
newcomers, so that a question tells it nothing that it does not know.

    home/vouched ── our own words ──┐
    home/vouches ── heard before ───┼─▶ Vouches ──▶ standings ──▶ Trust.head: audits, routes
    anchors ── Ask ──▶ Told ────────┘                  ▲
    Trust.on_convicted ── who vouched for it is doubted ┘

    home/vouches    a Book (swarm/vouching.py), by the one codec; what is lost is asked for again
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ...crypto.codec import decode, encode
from ...dht.allowance import Intake
from ...errors import RemoteError, TransportError, UserError
from ...swarm.receipt import CHUNK_TOKENS
from ...swarm.reputation import PROBATION_VALID
from ...swarm.vouch import (
    ASKED_MAX,
    LETTER_BYTES_MAX,
    PROTOCOL,
    TOLD_MAX,
    VOUCH_BYTES_MAX,
    Ask,
    Given,
    Told,
    check_vouch,
)
from ...swarm.vouching import STATEMENTS_MAX, VOUCHERS_MAX, Book, Vouches
from ..gossip.talks import TALK_S, Talk, open_talk
from ..home import replace_file
from ..identity import load_if_any
from ..log import get_logger
from ..net.host import Host
from ..net.stream import Stream
from .book import Trust
from .vouched import load_vouched

VOUCHES: Final = "vouches"
BOOK_BYTES_MAX: Final = STATEMENTS_MAX * VOUCHERS_MAX * (VOUCH_BYTES_MAX + 32)
FIRST_S: Final = 5.0  # guess: until those pinned are connected
ROUND_S: Final = 60.0  # guess: vouches live for weeks
ASKED_A_ROUND: Final = 2
ANCHORS_MAX: Final = 256  # of those that audits have made known; the most trusted
OF_EACH: Final = (0.1, 10.0)  # talks a second, and at once: an honest one asks once in some rounds
OF_ALL: Final = (5.0, 40.0)
CHECKED_AT_ONCE: Final = 16  # statements, 2 ms; then others have their turn

KINDS: Final = (Ask, Told)
log = get_logger()


@dataclass(frozen=True, slots=True)
class Found:
    """What a home has. heard: with when we heard that it was taken back."""

    heard: tuple[tuple[Given, float], ...] = ()
    ours: tuple[Given, ...] = ()


class Vouching:
    """One for a process. me: the home's own peer, whose words are on its disk; "" for none.
    banned: on evidence, besides those whom the book of trust has.

    Everything but `run` answers at once.
    """

    def __init__(
        self,
        host: Host,
        trust: Trust,
        home: Path,
        me: str,
        pinned: Collection[str],
        dice: random.Random,
        *,
        banned: Callable[[str], bool] = lambda peer: False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._trust = trust
        self._banned = lambda peer: trust.banned(peer) or banned(peer)
        self._home = home
        self._me = me
        self._pinned = frozenset(pinned)
        self._dice = dice
        self._wall = wall
        self._vouches = Vouches()
        self._reached: list[str] = []
        self._standings: dict[str, float] = {}
        self._turn = 0
        self._written = Book(())
        self._intake = Intake(OF_EACH, OF_ALL)
        trust.head = self.head
        trust.on_convicted.append(self._convicted)

    def head(self, peer: str) -> float:
        """How many audits this peer is taken to have passed, unless anything is against it."""
        if peer in self._pinned:
            return float(PROBATION_VALID)
        return self._standings.get(peer, 0.0)

    def counts(self) -> dict[str, int]:
        return {"vouches": len(self._vouches), "vouched": len(self._standings)}

    # ---- the disk

    def load(self, found: Found) -> None:
        """What was heard before, and our own words as they were now."""
        for given, ended_s in found.heard:
            self._vouches.put(given, self._wall(), ended_s=ended_s)
        self._take_ours(found.ours)
        self._weigh()

    def _take_ours(self, kept: Iterable[Given]) -> None:
        for given in kept:
            if given.voucher == self._me:
                self._vouches.put(given, self._wall())

    def _save(self, book: Book) -> bool:
        """Whether it is on disk now. Blocks."""
        try:
            replace_file(self._home / VOUCHES, encode(book))
        except OSError as error:
            log.warning("vouches not written", reason=str(error))
            return False
        return True

    # ---- what it comes to

    def _weigh(self) -> None:
        now = self._wall()
        earned = sorted(self._trust.earned().items(), key=lambda one: (-one[1], one[0]))
        anchors = dict(earned[:ANCHORS_MAX]) | dict.fromkeys(sorted(self._pinned), 1.0)
        if self._me:
            anchors[self._me] = 1.0
        self._reached = self._vouches.reached([*anchors], now)
        self._vouches.forget(now, self._reached)
        self._standings = self._vouches.standings(anchors, now, self._banned)

    def _convicted(self, peer: str) -> None:
        """Whoever vouched for it answers for that. Of strangers, who may be many, this is all."""
        vouchers = self._vouches.vouchers_of(peer, self._wall())
        for voucher in vouchers:
            if voucher != self._me:
                log.info("vouched for a liar", voucher=voucher, convicted=peer)
                self._trust.doubted(voucher, tokens=CHUNK_TOKENS)
        if vouchers or peer in self._reached:
            self._weigh()

    # ---- the road

    async def run(self, answers: bool = True) -> None:
        """A service: tell what we know, ask what we do not. answers: not of a client, of which
        nobody is to know whose it is."""
        if answers:
            self._host.handle(PROTOCOL, self._answer)
        try:
            await trio.sleep(FIRST_S)
            while True:
                for peer in self._next():
                    await self._ask(peer)
                self._take_ours(await trio.to_thread.run_sync(load_vouched, self._home))
                self._weigh()
                book = self._vouches.keep()
                if book != self._written and await trio.to_thread.run_sync(self._save, book):
                    self._written = book
                await trio.sleep(ROUND_S * self._dice.uniform(0.8, 1.2))
        finally:
            if answers:
                self._host.unhandle(PROTOCOL)
            self._trust.on_convicted.remove(self._convicted)

    def _next(self) -> list[str]:
        """Who is asked in this round: in turn, of those whose words count, who is there."""
        connected = set(self._host.connected()) | self._pinned
        there = [one for one in self._reached if one in connected and one != self._me]
        there = [one for one in there if self._host.welcomes(one)]
        count = min(ASKED_A_ROUND, len(there))
        chosen = [there[(self._turn + number) % len(there)] for number in range(count)]
        self._turn += count
        return chosen

    async def _ask(self, peer: str) -> None:
        """For its own words, and some of those of whom it vouches for."""
        others = [one for one in self._vouches.links(peer, self._wall()) if one != self._me]
        some = self._dice.sample(others, min(ASKED_MAX - 1, len(others)))
        asked = (peer, *some)
        try:
            async with open_talk(self._host, peer, PROTOCOL, KINDS, LETTER_BYTES_MAX) as talk:
                await talk.send(Ask(asked))
                told = await talk.receive()
            if told is None:
                return  # it has answered enough of us
            if not isinstance(told, Told):
                raise RemoteError("a question where an answer belongs")
            await self._take(told, asked)
        except TransportError as error:
            log.debug("no vouches heard", peer=peer, reason=str(error))
        except RemoteError as error:
            self._host.blame(peer, error)

    async def _take(self, told: Told, asked: Collection[str]) -> None:
        """Raises RemoteError at the first word that is forged, or was not asked for."""
        for number, raw in enumerate(told.vouches, start=1):
            given = check_vouch(raw, self._wall())
            if given.voucher not in asked:
                raise RemoteError(f"the word of {given.voucher}, who was not asked for")
            if given.voucher != self._me:
                self._vouches.put(given, self._wall())
            if number % CHECKED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    async def _answer(self, stream: Stream) -> None:
        """The handler: one question to a stream."""
        if not self._intake.takes(stream.peer, trio.current_time()):
            await stream.reset()
            return
        talk = Talk(stream, KINDS, LETTER_BYTES_MAX)
        with trio.move_on_after(TALK_S) as deadline:
            asked = await talk.receive()
            if not isinstance(asked, Ask):
                raise RemoteError("no question")
            known = [
                given.raw for peer in dict.fromkeys(asked.of) for given in self._vouches.of(peer)
            ]
            await talk.send(Told(tuple(known[:TOLD_MAX])))
            await talk.close()
        if deadline.cancelled_caught:
            raise TransportError(f"not all was said in {TALK_S:.0f} s")


async def open_vouching(
    host: Host,
    trust: Trust,
    home: Path,
    pinned: Collection[str],
    banned: Callable[[str], bool] = lambda peer: False,
) -> Vouching:
    """That of this home: a node's, or a client's beside it."""
    me = await trio.to_thread.run_sync(_me_of, home)
    found = await trio.to_thread.run_sync(read_vouches, home, time.time())
    made = Vouching(host, trust, home, me, pinned, random.SystemRandom(), banned=banned)
    made.load(found)
    return made


def read_vouches(home: Path, now: float) -> Found:
    """What this home has on its disk. Blocks; what cannot be read is passed over."""
    path = home / VOUCHES
    try:
        with path.open("rb") as file:
            book = decode(file.read(BOOK_BYTES_MAX + 1), Book, max_bytes=BOOK_BYTES_MAX)
    except FileNotFoundError:
        book = Book(())
    except (OSError, RemoteError) as error:
        log.warning("vouches passed over", path=str(path), reason=str(error))
        book = Book(())
    heard = []
    for one in book.kept:
        try:
            heard.append((check_vouch(one.raw, now), one.ended_s))
        except RemoteError as error:  # of a clock that was ahead then
            log.debug("vouch passed over", reason=str(error))
    return Found(tuple(heard), load_vouched(home))


def _me_of(home: Path) -> str:
    try:
        key = load_if_any(home)
    except UserError as error:
        log.warning("without our own vouches", reason=str(error))
        return ""
    return "" if key is None else key.peer_id
