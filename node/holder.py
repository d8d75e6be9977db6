"""What this node holds: takes blocks up, moves to others, rests, leaves; each without harm.

                take                 rest: drain, give the memory back
    joining ───────────▶ online ◀──────────────────────────────────────▶ resting
                          │  ▲                      resume: load
            move: load ───┘  └─── announce, settle, drain the old         leave: drain ──▶ gone

One change at a time; to leave waits for none of them. Whatever is decided is logged in one line
with its reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Literal

import trio

from ..dht.record import Announcement
from ..dht.record import State as RecordState
from ..errors import PotluckError, TransportError
from ..swarm.blocks import BlockRange, parse_blocks
from ..swarm.placement import Move
from ..swarm.wire import Open, Train
from .ahead import BlockFiles, keep_ahead
from .compute.room import give_back
from .config import AUTO, NodeConfig
from .credit.till import Till
from .guest.disk import room_within
from .log import get_logger
from .member import Member
from .net.stream import Stream
from .opening import serve_stream
from .placing import JITTER_S, Elections, Finds, Place, find_place, may_switch
from .rest import Asked, Rest, Wishes, end_rest
from .server import Server
from .serving import Model, Serving, joining, measure, serve_blocks
from .training import Training

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

log = get_logger()

TOLD_S = 5.0  # for an announcement to reach its keepers, before we go on without
VIEWS_S = 5.0  # guess: by then every view has the new blocks; clients' are FRESH_S = 2 s old
WITHDRAW_S = 2.0
RETRY_S = 30.0  # after blocks could not be loaded again

State = Literal["joining", "serving", "draining", "resting", "leaving"]


class Holder:
    """The stages of one model that this node serves. `changed` is called after each change."""

    def __init__(
        self,
        config: NodeConfig,
        member: Member,
        model: Model,
        nursery: trio.Nursery,
        dice: Random,
        wall: Callable[[], float] = time.time,
        *,
        finds: Finds | None = None,
        till: Till | None = None,
    ) -> None:
        """finds: who serves what; by default whoever the directory names. till: for credit."""
        self._finds = finds or member.directory
        self._till = till
        self._config = config
        self._member = member
        self.model = model
        self._nursery = nursery
        self._dice = dice
        self._wall = wall
        self._servings: list[Serving] = []  # the newest last; those before it leave
        self._changing = trio.Lock()
        self._awake = trio.Event()  # while it is not set the directory is told nothing
        self._telling = trio.CancelScope()
        self.state: State = "joining"
        self.trouble = ""  # why we rest though nobody wants it
        self.wishes: Wishes = Asked(config.home, wall)
        self.patience = trio.CancelScope()  # cancelled: those who leave us have no time left
        self.changed: Callable[[], None] = lambda: None

    @property
    def current(self) -> Serving | None:
        """The stage that new sessions come to."""
        return self._servings[-1] if self._servings else None

    async def serve(self, stream: Stream) -> None:
        """The handler of session streams."""
        await serve_stream(stream, Open, self.choose)

    def _is(self, state: State) -> bool:
        """Now: another task may have changed it meanwhile."""
        return self.state == state

    def queue_s(self) -> float:
        """How long a step that came now would wait."""
        return 0.0 if self.current is None else self.current.queue_s()

    def step_s(self) -> float:
        """How long a step of usual size computes."""
        return 0.0 if self.current is None else self.current.step_s()

    def counts(self) -> dict[str, int]:
        """What is open in all stages."""
        found = dict.fromkeys(("sessions", "leases", "batches", "free_tokens", "pages"), 0)
        for serving in self._servings:
            for name, number in serving.counts().items():
                found[name] += number
        return found

    async def take(self) -> None:
        """Load what was asked for, or what is needed most. Raises UserError."""
        blocks, why = await self._first_blocks()
        await self._load(blocks)
        log.info("taken", blocks=str(blocks), why=why)
        self.state = "serving"

    async def keep_told(self, *, task_status: TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: keep the directory's record of us fresh; started with its keepers."""
        told = task_status
        while True:
            with trio.CancelScope() as self._telling:
                await self._member.directory.keep(self._announcement, task_status=told)
            told = trio.TASK_STATUS_IGNORED
            await self._awake.wait()

    async def keep_rest(self) -> None:
        """A service: rest when it is wished for, and resume."""
        while True:
            rest = self.wishes.rest()
            if rest is not None and self._is("serving"):
                await self._rest(rest)
            elif rest is None and self._is("resting"):
                log.info("resuming", why="told to, or nothing asks for rest any more")
                end_rest(self._config.home)
                await self._resume()
                if self._is("resting"):
                    await trio.sleep(RETRY_S)
            await self.wishes.changed()

    async def keep_place(self) -> None:
        """A service: move, in an epoch in which we are elected to."""
        if self._config.blocks != AUTO:
            return  # the owner has chosen
        every_s = self._config.epoch_s
        async with trio.open_nursery() as fetching:
            if self._config.fetch_ahead and self.current is not None:
                me, length = self._member.host.peer_id, len(self.current.blocks)
                files = BlockFiles(self.model.checkpoint)
                room = room_within(self._config.home, self._config.max_disk_mib << 20)
                fetching.start_soon(keep_ahead, files, me, length, room)
            await self._keep_electing(every_s)

    async def _keep_electing(self, every_s: float) -> None:
        elections = Elections(self._member.host.peer_id, self.model.total)
        while True:
            epoch = int(self._wall() // every_s) + 1
            jitter_s = self._dice.uniform(0, min(JITTER_S, every_s / 10))
            await trio.sleep(max(0.0, epoch * every_s - self._wall()) + jitter_s)
            if self._is("serving") and await self._hold(elections, epoch):
                give_back()

    async def _hold(self, elections: Elections, epoch: int) -> bool:
        """Hold an election; whether we tried to move."""
        old, me = self.current, self._member.host.peer_id
        try:
            found = await self._finds.find(self.model.digest)
        except TransportError as error:
            log.debug("no election", epoch=epoch, why=str(error))
            return False
        moves = elections.hold(found, epoch, self._wall())
        mine = next((move for move in moves if move.peer == me), None)
        if mine is None or old is None or mine.blocks == old.blocks:
            log.debug("staying", epoch=epoch, elected=[move.peer for move in moves])
            return False
        await self._move(mine, epoch)
        return True

    async def leave(self, within_s: float) -> None:
        """Hand over every session, withdraw. Once."""
        if self._is("leaving"):
            return
        self.state = "leaving"
        with self.patience:
            await self._see_off(within_s, self._servings)
        self._hush()
        await self.unsay(WITHDRAW_S)
        self._end(*self._servings)

    async def unsay(self, within_s: float) -> None:
        """Have the directory know that nothing of this model is here, as far as it can be told."""
        with trio.move_on_after(within_s):
            await self._member.directory.withdraw(self.model.digest)

    # ---- one change at a time

    async def _move(self, move: Move, epoch: int) -> None:
        """Make before break, where there is room for both; never below the floor."""
        async with self._changing:
            old = self.current
            if old is None or not self._is("serving"):
                return
            say = log.bind(epoch=epoch, old=str(old.blocks), new=str(move.blocks))
            beside = await trio.to_thread.run_sync(
                self.model.room_beside, move.blocks, len(old.blocks)
            )
            say.info("moving", gain=round(move.gain, 3), beside=beside, why="elected")
            if not beside:
                if why := await self._why_not(old.blocks, move.blocks):
                    say.info("not moved", why=why)
                    return
                await self._go(old)
                if not self._is("joining"):
                    return
                await self._say_joining(Place(move.blocks, old.stage.rates[0], "elected"))
            try:
                new = await self._load(move.blocks)
            except PotluckError as error:
                say.warning("not moved", why=str(error))
                if not beside and self._is("joining"):
                    await self._return_to(old.blocks)
                return
            if beside and (why := await self._why_not(old.blocks, move.blocks)):
                say.info("not moved", why=why)
                self._end(new)
                return
            say.info("moved", rate=round(new.stage.rates[0]))
            if not beside:
                self._back()
                return
            self.changed()
            await self._tell()
            await trio.sleep(VIEWS_S)  # who waits for the new blocks finds them first
            await old.drain(self._config.drain_s)
            self._end(old)

    async def _rest(self, rest: Rest) -> None:
        async with self._changing:
            if not self._is("serving"):
                return
            log.info("resting", why=rest.why or "asked to", until_s=rest.until_s)
            moved_s = await self._go(*self._servings, within_s=rest.within_s)
            if not self._is("joining"):
                return
            give_back()  # here nobody holds the stage any more
            log.info("gave the memory back", after_s=round(trio.current_time() - moved_s, 3))
            await self.unsay(TOLD_S)
            if not self._is("joining"):
                return
            self.state = "resting"
            self.changed()

    async def _resume(self) -> None:
        async with self._changing:
            if not self._is("resting"):
                return
            self.state = "joining"
            try:
                blocks, why = await self._first_blocks()
                await self._load(blocks)
                log.info("taken", blocks=str(blocks), why=why)
            except PotluckError as error:
                await self._give_up(error)
            else:
                self._back()

    async def _return_to(self, blocks: BlockRange) -> None:
        """Serve these once more, which were left for others that could not be had."""
        try:
            await self._load(blocks)
        except PotluckError as error:
            await self._give_up(error)
        else:
            self._back()

    async def _give_up(self, error: PotluckError) -> None:
        """Nothing can be served now: rest, and try again later (keep_rest)."""
        log.warning("not resumed", why=str(error))
        if self._is("joining"):
            await self.unsay(TOLD_S)  # others were told that we join
        if self._is("joining"):
            self.state, self.trouble = "resting", str(error)
        self.changed()

    async def _go(self, *servings: Serving, within_s: float = math.inf) -> float:
        """See the sessions of these off, and end them. When they had moved, by trio's clock."""
        self.state = "draining"
        self.changed()
        await self._see_off(min(within_s, self._config.drain_s), servings)
        moved_s = trio.current_time()
        if not self._is("draining"):
            return moved_s  # we leave altogether
        self._hush()
        self.state = "joining"
        self._end(*servings)
        for serving in servings:
            await serving.ended.wait()
        return moved_s

    def _back(self) -> None:
        """Serve, and say so."""
        self.state, self.trouble = "serving", ""
        self._awake.set()
        self.changed()

    def _hush(self) -> None:
        """Tell the directory nothing more, until we are back."""
        self._awake = trio.Event()
        self._telling.cancel()

    async def _see_off(self, within_s: float, servings: Sequence[Serving]) -> None:
        """Until the sessions have moved, or the time is up."""
        async with trio.open_nursery() as telling:
            telling.start_soon(self._tell)
            async with trio.open_nursery() as drains:
                for serving in list(servings):
                    drains.start_soon(serving.drain, within_s)
            telling.cancel_scope.cancel()

    def _end(self, *servings: Serving) -> None:
        for serving in servings:
            serving.over.set()
        self._servings = [one for one in self._servings if one not in servings]

    async def _load(self, blocks: BlockRange) -> Serving:
        """Serve these blocks too. Raises UserError."""
        serving: Serving = await self._nursery.start(
            serve_blocks, self.model, blocks, self._member.key, self._till, self._member.chains
        )
        if self._is("leaving"):
            serving.over.set()
            raise PotluckError("the node leaves")
        self._servings.append(serving)
        return serving

    async def _first_blocks(self) -> tuple[BlockRange, str]:
        """What to take, and why."""
        model, member = self.model, self._member
        if self._config.blocks != AUTO:
            return parse_blocks(self._config.blocks, model.total), "asked for"
        fit = await trio.to_thread.run_sync(model.room)
        if not member.directory.peers():
            return BlockRange(0, fit), f"alone; {fit} of {model.total} fit"

        async def tried(blocks: BlockRange) -> float:
            return await measure(model, blocks)

        place = await find_place(
            self._finds, model.digest, model.total, fit, member.host.peer_id,
            say=self._say_joining, measure=tried, wall=self._wall,
            jitter_s=self._dice.uniform(0, JITTER_S),
        )  # fmt: skip
        return place.blocks, place.why

    async def _why_not(self, old: BlockRange, new: BlockRange) -> str:
        """Why we must not switch; empty when we may."""
        me = self._member.host.peer_id
        try:
            found = await self._finds.find(self.model.digest)
        except TransportError as error:
            return str(error)
        return may_switch(found, me, old, new, self.model.total, self._wall())

    def choose(self, asked: Open) -> Server | None:
        """Who serves a session that asks for these blocks, or refuses it; None: nobody now."""
        for serving in reversed(self._servings):
            if serving.server.holds(asked):
                return serving.server
        return self._servings[-1].server if self._servings else None

    def choose_training(self, asked: Train) -> Training | None:
        """The same for a batch."""
        found = [serving.training for serving in reversed(self._servings)]
        return next((one for one in found if one.holds(asked)), found[0] if found else None)

    def _announcement(self) -> Announcement:
        state: RecordState = "online" if self._is("serving") else "draining"
        return self._servings[-1].announcement(state, self._member.host.addresses())

    async def _tell(self) -> None:
        """Have the directory know what has changed, as far as it can be told now."""
        if self._servings:
            with trio.move_on_after(TOLD_S), suppress(TransportError):
                await self._member.directory.announce(self._announcement())

    async def _say_joining(self, place: Place) -> None:
        if self._is("leaving"):
            return  # meanwhile
        told = joining(self.model, place.blocks, place.rate, self._member.host.addresses())
        with trio.move_on_after(TOLD_S), suppress(TransportError):
            await self._member.directory.announce(told)
