"""Serves a span to who trains through it: a batch in, hidden states or gradients out, no state.

    Train + pieces ──▶ room? ──▶ adapter? ──▶ line ──▶ slices in spare time ──▶ Trained + pieces
                         └ Busy     └ Lacking    └ by peer, who was given least first

What a request takes while it is here comes out of the sessions' room (admission.py), and all of
them together have a share of it: whoever finds none is told when to come back, and goes elsewhere.
One request at a time is computed, in slices (compute/gradients.py), so that sessions go on beside;
another stands behind it, so that the device need not wait for the event loop between the two.
Of it are left when it is answered, as long as nobody needs their room: the adapter, though an
optimizer's next step brings another, under another digest (wardrobe.py); and of a forward what its
backward would compute anew (recall.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, Protocol

import trio

from ..crypto.digest import DIGEST_BYTES
from ..errors import PotluckError, Refused, RemoteError, TransportError, UserError
from ..swarm.admission import RETRY_LATEST_S, RETRY_SOONEST_S, Admission
from ..swarm.blocks import BlockRange
from ..swarm.rows import DTYPE_BYTES
from ..swarm.spare import BACKWARD_COST, Turns
from ..swarm.wire import PIECE_BYTES_MAX, TRAIN_BYTES_MAX, Busy, Train, Trained
from .frames import FrameStream
from .pieces import receive_pieces, seconds_for, send_pieces
from .recall import Recall
from .wardrobe import Lent, Wardrobe

SHARE: Final = 0.5  # guess: of the sessions' room, for batches that are here
RECALL_SHARE: Final = 0.25  # guess: of it, for what forwards left, while it is free
AHEAD: Final = 2  # requests that the device has: one waits behind it, so that it need not
WAIT_S: Final = 10.0  # guess: until the first bytes, beside what all of them take
WITHIN_MAX_S: Final = 600.0  # guess: for which a request is kept at most
SMOOTHING: Final = 0.2  # guess: of how long a row takes, for whoever is told when to come back


class Lesson(Protocol):
    """A request on its way through the blocks."""

    answer: list[memoryview]
    spent_s: float
    name: bytes
    kept: Any

    def slices(self) -> Iterator[None]:
        """Each `next` is one slice. Raises UserError for numbers that grow beyond their format."""


class Teacher(Protocol):
    """What computes: frozen blocks (compute/gradients.py). Every call may block."""

    def dress(self, name: str, parts: Mapping[int, bytes]) -> Any: ...

    def bytes_of(self, asked: Train) -> int:
        """What it takes while it is here, beside its payload."""

    def payload_bytes(self, asked: Train) -> int:
        """What follows it."""

    def kept_bytes(self, asked: Train) -> int:
        """What a forward leaves for its backward."""

    def begin(self, payload: memoryview, asked: Train, worn: Any, *, keeps: bool) -> Lesson:
        """Raises RemoteError for what no honest client sends."""


class SpareDevice(Protocol):
    """The one thread that touches the device, in its spare time."""

    async def spare(self, slices: Iterator[None]) -> None: ...


class Training:
    """Of one stage, until it is told to leave."""

    def __init__(
        self,
        load: Callable[[], Teacher],
        device: SpareDevice,
        admission: Admission,
        wardrobe: Wardrobe,
        *,
        blocks: BlockRange,
        model: str,
        context: int,
        token_bytes: int,
        release: Callable[[object], None],
        gave: Callable[[str, int, int], None] = lambda peer, tokens, blocks: None,
    ) -> None:
        """load: blocks for files; at the first request. token_bytes: the unit of the book.
        release: gives room of the book back. gave: is told of work that was done for a peer."""
        self._load = load
        self._device = device
        self._admission = admission
        self._wardrobe = wardrobe
        self._blocks = blocks
        self._model = model
        self._context = context
        self._token_bytes = token_bytes
        self._release = release
        self._gave = gave
        room_bytes = admission.free_tokens * token_bytes
        self._budget_bytes = int(SHARE * room_bytes)
        self._recall_bytes = int(RECALL_SHARE * room_bytes)
        self._recall = Recall(self._spare_bytes)
        wardrobe.behind = self._recall.make_room
        self._taken_bytes = 0
        self._teacher: Teacher | None = None
        self._loading = trio.Lock()
        self._turns: Turns[trio.Event] = Turns()
        self._given = 0  # turns, to requests that are not through
        self._bringing: dict[tuple[str, bytes], trio.Event] = {}  # adapters on their way in
        self._scopes: set[trio.CancelScope] = set()
        self._left = False
        self._row_s = 0.0  # of forward through one block, as lately
        self.requests_served = 0

    @property
    def requests(self) -> int:
        """That are here now."""
        return len(self._scopes)

    def holds(self, asked: Train) -> bool:
        """Whether it serves these blocks, and takes batches."""
        mine = self._blocks
        return not self._left and mine.start <= asked.start < asked.stop <= mine.stop

    def leave(self) -> None:
        """Take nothing more, and let go what is here: any other peer computes it as well."""
        self._left = True
        for scope in self._scopes:
            scope.cancel()

    async def converse(self, frames: FrameStream, asked: Train) -> None:
        """One request, to its answer. Raises RemoteError or TransportError; UserError for what an
        honest client may ask, and will not get."""
        blocks = self._check(asked)
        scope = trio.CancelScope(deadline=trio.current_time() + min(asked.within_s, WITHIN_MAX_S))
        self._scopes.add(scope)
        if self._left:
            scope.cancel()
        began_s = trio.current_time()
        try:
            teacher = await self._loaded()
            size = teacher.payload_bytes(asked)
            if size > TRAIN_BYTES_MAX:
                raise UserError(f"a batch of {size} bytes, where {TRAIN_BYTES_MAX} are taken")
            with self._room(frames.peer, teacher.bytes_of(asked) + size, blocks):
                with scope:
                    lesson = await self._serve(frames, asked, blocks, teacher, size)
                if not scope.cancelled_caught:
                    queue_s = trio.current_time() - began_s - lesson.spent_s
                    await self._answer(frames, lesson, max(0.0, queue_s))
                    return
            why = "the server is leaving" if self._left else "the batch waited too long"
            retry_after_s = RETRY_LATEST_S if self._left else self._retry_after_s()
            await self._refuse(frames, why, retry_after_s)
        except Refused as refusal:
            await self._refuse(frames, refusal.reason, refusal.retry_after_s)
        finally:
            self._scopes.discard(scope)

    def _check(self, asked: Train) -> BlockRange:
        if asked.model != self._model:
            raise RemoteError("another model is served here")
        if not self._blocks.start <= asked.start < asked.stop <= self._blocks.stop:
            raise RemoteError(f"blocks {asked.start}:{asked.stop} are not in {self._blocks}")
        if asked.tokens > self._context:
            raise RemoteError(f"{asked.tokens} positions; this model has {self._context}")
        if asked.prompts > asked.tokens:
            raise RemoteError(f"{asked.prompts} prompts in {asked.tokens} positions")
        if asked.dtype not in DTYPE_BYTES:
            raise RemoteError(f"unknown dtype {asked.dtype}")
        if len(asked.adapter) not in (0, DIGEST_BYTES):
            raise RemoteError("an adapter's digest that is none")
        return BlockRange(asked.start, asked.stop)

    async def _serve(
        self, frames: FrameStream, asked: Train, blocks: BlockRange, teacher: Teacher, size: int
    ) -> Lesson:
        """Raises Refused, UserError, RemoteError or TransportError."""
        payload = memoryview(await self._read(frames, size))
        lent = await self._dress(frames, asked, blocks, teacher)
        worn = None if lent is None else lent.worn
        forward = asked.kind == "forward"
        cost = asked.batch * asked.tokens * (1 if forward else BACKWARD_COST)
        try:
            with self._recall.promised(teacher.kept_bytes(asked) if forward else 0) as keeps:
                begin = partial(teacher.begin, payload, asked, worn, keeps=keeps)
                lesson = await trio.to_thread.run_sync(begin)
                key = frames.peer, lesson.name
                if not forward:
                    lesson.kept = self._recall.take(key)
                await self._compute(frames, cost * len(blocks), lesson)
            if forward and lesson.kept is not None:
                self._recall.keep(key, lesson.kept)
        finally:
            if lent is not None:
                self._wardrobe.give_back(lent)
        self._gave(frames.peer, cost, len(blocks))
        self._row_s += SMOOTHING * (lesson.spent_s / (cost * len(blocks)) - self._row_s)
        self.requests_served += 1
        return lesson

    async def _loaded(self) -> Teacher:
        async with self._loading:
            if self._teacher is None:
                try:
                    self._teacher = await trio.to_thread.run_sync(self._load)
                except UserError as error:  # the owner's to mend, and no client's
                    raise UserError(f"nobody trains through this peer: {error}") from error
        return self._teacher

    @contextmanager
    def _room(self, peer: str, size: int, blocks: BlockRange) -> Iterator[None]:
        """Of the sessions' book. Raises Refused; UserError for what will never fit."""
        if size > self._budget_bytes:
            raise UserError(
                f"a batch that takes {size} bytes, where {self._budget_bytes} are for batches:"
                " send fewer sequences at once"
            )
        if self._taken_bytes + size > self._budget_bytes:
            raise Refused(
                f"{size} bytes for a batch, of {self._budget_bytes - self._taken_bytes} free",
                retry_after_s=self._retry_after_s(),
            )
        key = object()
        tokens = max(1, -(-size // (self._token_bytes * len(blocks))))
        self._admission.admit(key, peer, blocks, tokens, trio.current_time())
        self._wardrobe.make_room()
        self._taken_bytes += size
        try:
            yield
        finally:
            self._taken_bytes -= size
            self._release(key)

    def _spare_bytes(self) -> int:
        """For what forwards left: of the room that nobody was promised, and no adapter lies in."""
        free_bytes = self._admission.free_tokens * self._token_bytes - self._wardrobe.idle_bytes
        return min(self._recall_bytes, free_bytes)

    def _retry_after_s(self) -> float:
        """When what waits now will have been computed, if nobody else is served."""
        return min(max(self._turns.cost * self._row_s, RETRY_SOONEST_S), RETRY_LATEST_S)

    async def _read(self, frames: FrameStream, size: int) -> bytearray:
        frames.allow(PIECE_BYTES_MAX)
        with trio.move_on_after(WAIT_S) as deadline:
            return await receive_pieces(frames, size, deadline)
        raise TransportError(f"{frames.peer} sends no batch, or too slowly")

    async def _dress(
        self, frames: FrameStream, asked: Train, blocks: BlockRange, teacher: Teacher
    ) -> Lent | None:
        if not asked.adapter:
            return None
        key = frames.peer, asked.adapter  # of a client's microbatches one brings it
        while (other := self._bringing.get(key)) is not None:
            await other.wait()
        mine = self._bringing[key] = trio.Event()
        try:
            return await self._wardrobe.lend(frames, asked, blocks, trained=teacher.dress)
        finally:
            del self._bringing[key]
            mine.set()

    async def _compute(self, frames: FrameStream, cost: float, lesson: Lesson) -> None:
        """All slices, when it is its turn; nothing more of it once the client has gone."""
        failure: PotluckError | None = None

        async def watch() -> None:
            nonlocal failure
            await frames.broken()
            failure = TransportError(f"{frames.peer} has left")
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                async with self._turn(frames.peer, cost):
                    await self._device.spare(lesson.slices())
            except (UserError, RemoteError, Refused) as error:
                failure = error  # the nursery would wrap it in a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def _turn(self, peer: str, cost: float) -> AsyncIterator[None]:
        mine = trio.Event()
        self._turns.add(mine, peer, cost)
        self._call_next()
        try:
            await mine.wait()
            yield
        finally:
            if mine.is_set():
                self._given -= 1
            else:
                self._turns.drop(mine, peer)
            self._call_next()

    def _call_next(self) -> None:
        while self._given < AHEAD and (event := self._turns.next()) is not None:
            self._given += 1
            event.set()

    async def _refuse(self, frames: FrameStream, reason: str, retry_after_s: float) -> None:
        with trio.move_on_after(WAIT_S):
            await frames.send(Busy(reason[:250], retry_after_s))
            await frames.close()

    async def _answer(self, frames: FrameStream, lesson: Lesson, queue_s: float) -> None:
        size = sum(map(len, lesson.answer))
        with trio.move_on_after(WAIT_S + seconds_for(size)) as deadline:
            await frames.send(Trained(size, lesson.spent_s, queue_s))
            await send_pieces(frames, lesson.answer)
            await frames.close()
        if deadline.cancelled_caught:
            raise TransportError(f"{frames.peer} takes no answer, or too slowly")
