"""Takes part in a run by one byte a step: measures, says so, hears the others, goes on.

    each round   two forward passes ─▶ hear ─▶ a byte, signed, on disk ─▶ said ─▶ most have spoken,
                                                                                  or it is time
    each epoch   the one before the last is folded into a snapshot, once others know the same of it;
                 snapshots are compared (leading.py)
    newcomer     the snapshot that most have, from several peers (states.py); then their pages
    the end      all who can be reached know the same (ending.py), and have the same snapshot

In a round nobody waits for anybody longer than it may take, at the end four times as long. Who was
too slow says that it was absent, and goes on with the others. The weights follow from the pages
alone, so that peers who know the same pages have them equal to the bit (../compute/scalar.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from ...crypto.keys import IdentityKey
from ...errors import Refused, RemoteError, TransportError, UserError
from ...swarm.run.claims import LEAST
from ...swarm.run.scalars import Log, Page, Sync, name_of, parted, read_page, sign_page
from ...swarm.run.seeds import ABSENT, Change, Rules, code_of
from ..chunks.fetch import Blame, Fetcher, Host
from ..compute.scalar import Loss, ScalarWeights, Scale
from ..compute.snapshot import Snapshot
from ..log import get_logger
from .ending import Ending
from .hearing import Hearing
from .journal import Journal
from .leading import led_by
from .store import Checkpoints

if TYPE_CHECKING:
    from random import Random

log = get_logger()

ASKED: Final = 8  # guess: of whom a majority is a majority
LATE: Final = 2  # guess: rounds, so many behind most, and still it measures what they did
OVERDUE: Final = 4  # guess: epochs, after which nobody waits for logs to be alike
TRIES: Final = 3  # to begin, before it is said that it cannot be
LATELY: Final = 4  # rounds: who said nothing for so long is not waited for
FANOUT: Final = 2  # guess: talks begun in each round; as many come in
AGAIN_S: Final = 0.5  # guess: between talks while a round is waited for


@dataclass(frozen=True, slots=True)
class Pace:
    """round_s: how long a round waits for others. most: of those who take part, until whose words
    it waits. least: answers, to believe a snapshot."""

    round_s: float = 30.0
    most: float = 2 / 3  # guess: the slowest third holds up nobody
    least: int = LEAST


class ScalarRun:
    """One peer's part in one run."""

    def __init__(
        self,
        host: Host,
        key: IdentityKey,
        rules: Rules,
        scale: Scale,
        weights: ScalarWeights,
        kept: Checkpoints,
        journal: Journal,
        fetcher: Fetcher,
        *,
        peers: Callable[[], Sequence[str]],
        losses: Callable[[int], Loss],
        blame: Blame,
        dice: Random,
        pace: Pace | None = None,
        may: Callable[[str], bool] = lambda peer: True,
        talked: Callable[[str, bool], None] = lambda peer, answered: None,
    ) -> None:
        """peers: who else takes part, as far as is known. losses: of this peer's data of a round.
        fetcher: into `kept.chunks`. talked: is told of each talk, and whether anybody answered."""
        self._host = host
        self._key = key
        self._rules = rules
        self._scale = scale
        self._weights = weights
        self._kept = kept
        self._journal = journal
        self._fetcher = fetcher
        self._peers = peers
        self._losses = losses
        self._blame = blame
        self._dice = dice
        self._pace = pace or Pace()
        self._may = may
        self._talked = talked
        self._changes: list[Change] = []  # that the weights have not gone yet
        self._heard = trio.Event()
        self._device = trio.Lock()
        self._behind = False
        self._last: Page | None = None  # that we said
        self._alike: dict[str, int] = {}  # up to which round, when we last talked to whom
        self.hearing = Hearing(Log(rules, may=may), self._took)

    @property
    def round(self) -> int:
        """The next that this peer speaks of."""
        known = self.hearing.log.next(self._key.peer_id)
        return self.hearing.log.floor if known is None else known

    async def begin(self) -> None:
        """From our own disk and from what most others have. Raises TransportError, RemoteError,
        UserError."""
        own = await trio.to_thread.run_sync(self._kept.latest)
        said = await trio.to_thread.run_sync(self._journal.read)
        if said:
            self._last = read_page(said[-1], self._rules)[1]
        if own is not None:
            await self._begin_with(own)
        for raw in said:
            self._took(self.hearing.log.merge(raw).changes)
        for left in reversed(range(TRIES)):
            try:
                await self._join()
                return
            except TransportError:
                if not left:
                    raise
                await trio.sleep(AGAIN_S)

    async def _join(self) -> None:
        """Raises TransportError, RemoteError, UserError."""
        await self._compare()
        floors: list[int] = []

        async def ask(peer: str) -> None:
            if (theirs := await self._talk(peer)) is not None:
                floors.append(theirs.floor)

        async with trio.open_nursery() as nursery:
            for peer in self._some(len(self._peers())):
                nursery.start_soon(ask, peer)
        if 2 * sum(floor > self.hearing.log.floor for floor in floors) > len(floors):
            raise TransportError(
                "most peers have folded what they said first into snapshots, and too few of them"
                " agree on one: begin again when more can be reached"
            )

    async def run(self, rounds: int, of: int | None = None) -> None:
        """Until so many rounds are over. of: how many the run has in all, if it has more. Raises
        UserError for our disk, or for a key that has no voice in this run; TransportError when
        nobody knows what we said last."""
        end, muted_s = of or rounds, trio.current_time()
        while self.round < rounds:
            await self._catch_up(end)
            if self._mute:
                if trio.current_time() - muted_s > LATELY * self._pace.round_s:
                    raise TransportError(
                        "we have said more in this run than our disk knows, and nobody can be"
                        " reached who heard it: begin again when more can be"
                    )
                await self._hear(FANOUT)
                await self._hear_within(AGAIN_S)
                continue
            if self.round < rounds:
                await self._measure(end)
                await self._hear(FANOUT)
                await self._wait_for_most()
            await self._fold()
            muted_s = trio.current_time()

    async def finish(self, rounds: int) -> None:
        """So many were all: until everybody who can be reached has come to the end and knows what
        we know, and has a snapshot that is ours or gives way to it; or for as long as whoever is
        silent is waited for. Then the weights are where all leads."""
        ending = Ending(self.hearing, rounds, self._talk)
        with trio.move_on_after(LATELY * self._pace.round_s):
            while not await ending.reached_by(self._some(ASKED)):
                await self._hear_within(AGAIN_S)
        await self._fold(over=True)
        until_s = trio.current_time() + LATELY * self._pace.round_s
        while not await self._compare_or_go_on() and trio.current_time() < until_s:
            await self._hear_within(AGAIN_S)  # what is being fetched is not cut off
        await self.settle()

    async def amend(self) -> None:
        """After the end: what others have said since, or hold against our last snapshot."""
        await self._compare_or_go_on()
        await self.settle()

    async def settle(self) -> None:
        """The weights are where all that was heard leads."""
        async with self._device:
            changes, self._changes = self._changes, []
            with trio.CancelScope(shield=True):  # or they would be lost
                await trio.to_thread.run_sync(self._weights.apply, changes)

    # ---- a round

    @property
    def _mute(self) -> bool:
        """Whether we have said more than we know of: whoever heard it will tell us."""
        return self._last is not None and self._last.stop > self.round

    async def _measure(self, end: int) -> None:
        round_ = self.round
        code = await self._slope(round_)
        await self._hear(FANOUT)
        if self.round == round_ and not self._too_late(end):
            await self._say([code])  # else others have told us what we said in another life

    async def _slope(self, round_: int) -> int:
        """What our byte of this round is."""
        direction = self._rules.direction(self._key.peer_id, round_)
        await self.settle()
        async with self._device:
            here = await trio.to_thread.run_sync(self._weights.weights)
        slope = await trio.to_thread.run_sync(
            self._weights.slope, here, self._losses(round_), round_, direction
        )
        return code_of(slope, self._scale.grain)

    async def _say(self, codes: Sequence[int]) -> None:
        """In pages that lie within one epoch. On disk before anybody hears it."""
        me, left = self._key.peer_id, list(codes)
        while left:
            if me in self.hearing.log.convicted or not self._may(me):
                raise UserError(
                    f"{me} has no voice in this run: it is no member, or was found to have said"
                    " two things of one round; take part under another key"
                )
            start = self.round
            room = self._rules.epoch_rounds - start % self._rules.epoch_rounds
            told, left = left[:room], left[room:]
            before = self.hearing.log.before(me)
            if self.hearing.log.next(me) is None and self._last is not None:
                before = name_of(self._last)  # in an epoch that is over
            page = Page(self._rules.run, start, before, bytes(code & 255 for code in told))
            raw = sign_page(self._key, page)
            await trio.to_thread.run_sync(self._journal.append, raw)
            self._last = page
            self._took(self.hearing.log.merge(raw).changes)

    def _most(self, end: int) -> int:
        """The round that most have come to, of so many."""
        return min(self.hearing.log.reached(), self.hearing.log.ceiling, end)

    def _too_late(self, end: int) -> bool:
        """Whether some may not hear any more what we measured: soon the epoch of our round is
        folded, or most have come to the end of all."""
        most, epoch_rounds = self._most(end), self._rules.epoch_rounds
        folded = (self.round // epoch_rounds + 2) * epoch_rounds
        soon = most + max(LATE, epoch_rounds // 4) >= folded
        return self.round < most and (most == end or soon)

    async def _catch_up(self, end: int) -> None:
        """Say that we were absent in rounds that most have behind them."""
        if self._behind:
            self._behind = False
            await self._compare_or_go_on()
        late = self._most(end) - self.round
        if (late > LATE or self._too_late(end)) and not self._mute:
            await self._say([ABSENT] * late)

    async def _wait_for_most(self) -> None:
        """Until most of those who take part have spoken of the round that we spoke of last."""
        last = self.round - 1
        with trio.move_on_after(self._pace.round_s):
            while self._answered(last) < self._pace.most:
                if not await self._hear_within(AGAIN_S):
                    await self._hear(1)

    def _answered(self, round_: int) -> float:
        """Of those who take part, by how many."""
        known = self.hearing.log
        return known.answers(round_) / max(1, known.active(round_ - LATELY))

    async def _hear_within(self, seconds: float) -> bool:
        """Whether anything was heard."""
        heard = self._heard
        with trio.move_on_after(seconds):
            await heard.wait()
        return heard.is_set()

    # ---- what others say

    async def _hear(self, count: int) -> None:
        """Talk to some, all at once."""
        async with trio.open_nursery() as nursery:
            for peer in self._some(count):
                nursery.start_soon(self._talk, peer)

    async def _talk(self, peer: str) -> Sync | None:
        """How far the other had come, if it says so."""
        try:
            theirs = await self.hearing.talk(self._host, peer)
        except RemoteError as error:
            self._blame(peer, error)
        except (TransportError, Refused) as error:
            log.debug("no talk", peer=peer, reason=str(error))
        else:
            self._behind = self._behind or theirs.floor > self.round
            known = self.hearing.log
            apart = parted(known.ask(), theirs)
            self._alike[peer] = known.ceiling if apart is None else apart
            self._talked(peer, True)
            return theirs
        self._alike.pop(peer, None)
        self._talked(peer, False)
        return None

    def _some(self, count: int) -> list[str]:
        peers = [peer for peer in self._peers() if peer != self._key.peer_id]
        return self._dice.sample(peers, min(count, len(peers)))

    def _took(self, changes: Iterable[Change]) -> None:
        self._changes += changes
        self._heard.set()
        self._heard = trio.Event()

    # ---- snapshots

    async def _fold(self, *, over: bool = False) -> None:
        """The epoch before the last is over for us; whoever says something of it is too late.
        over: and so is the run."""
        epoch_rounds = self._rules.epoch_rounds
        while self.round >= (floor := self.hearing.log.floor + epoch_rounds) + epoch_rounds:
            if not (over or self._settled(floor)):
                return
            async with self._device:
                changes, self._changes = self._changes, []  # of one moment, as is what is above
                above = self.hearing.log.steps(floor)
                self.hearing.log.fold(floor)
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._weights.apply, changes)
                    taken = await trio.to_thread.run_sync(self._weights.snapshot, floor, above)
            await trio.to_thread.run_sync(self._kept.save, taken)
            await self._forget()
            await self._compare_or_go_on()

    def _settled(self, floor: int) -> bool:
        """Whether those with whom we talked last knew what we know of all before this round; or it
        is so long ago that we do not wait for it."""
        if self.round >= floor + OVERDUE * self._rules.epoch_rounds:
            return True
        return all(one >= floor for one in self._alike.values())

    async def _forget(self) -> None:
        """Of what we said, what is above all snapshots stays in the journal, and the last of all:
        we may have to begin with an older one again."""
        said = await trio.to_thread.run_sync(self._journal.read)
        marks = await trio.to_thread.run_sync(self._kept.marks)
        floor = min(mark.epoch for mark in marks) * self._rules.epoch_rounds
        kept = [raw for raw in said if read_page(raw, self._rules)[1].stop > floor]
        await trio.to_thread.run_sync(self._journal.rewrite, kept or said[-1:])

    async def _compare_or_go_on(self) -> bool:
        try:
            return await self._compare()
        except (TransportError, RemoteError) as error:
            log.warning("snapshots not compared", reason=str(error))
            return False

    async def _compare(self) -> bool:
        """Begin with what most have, where ours is older, or another of the same moment. Whether
        ours is what all will find."""
        led = await led_by(
            self._host, self._fetcher, self._kept, self._key.peer_id, self._some(ASKED),
            self._weights.shapes, self._blame, least=self._pace.least,
        )  # fmt: skip
        if led.begins is not None:
            log.info("begins with what most have", epoch=led.begins.epoch)
            await self._begin_with(led.begins)
        return led.sure

    async def _begin_with(self, found: Snapshot) -> None:
        """With this, and with all pages above it that are known."""
        said = await trio.to_thread.run_sync(self._journal.read)
        async with self._device:  # and then nothing waits: what comes meanwhile would count twice
            known = [*said, *self.hearing.log.pages()]
            self._weights.begin(found)
            self._changes = []
            self._alike = {}
            floor = found.epoch * self._rules.epoch_rounds
            self.hearing.log = Log(self._rules, floor, may=self._may)
            for raw in known:
                self._took(self.hearing.log.merge(raw).changes)
