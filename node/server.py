"""Serves a span: sessions in, steps to the device, answers out.

One task a session, one step of it at a time: the next frames wait in the stream, so a client can
fill no queue but its own window. The device's worker takes the waiting steps in passes, in an order
that is fair to peers. While a step waits behind others its stream is watched, so that nothing is
computed for a client that has given up. What a peer sends is bounded before it is kept: no payload
before `Open`, none larger than the session's own length after it, a deadline on the first frame, a
lease on the rest.

A server that leaves says so on every stream, and serves on until its sessions have moved:

    drain ── Leaving(within_s) ──▶ client: fills a standby while we serve, then closes
      └───── the time is up ─────▶ Busy: whoever found nobody replays elsewhere
"""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

import trio

from ..crypto.keys import IdentityKey
from ..errors import PotluckError, Refused, RemoteError, TransportError
from ..swarm.admission import RETRY_LATEST_S, Admission
from ..swarm.blocks import BlockRange
from ..swarm.frame import PAYLOAD_BYTES_MAX
from ..swarm.rows import row_bytes
from ..swarm.wire import (
    Apart,
    Ask,
    Busy,
    Fence,
    Follow,
    Lead,
    Leaving,
    Message,
    Onward,
    Open,
    Opened,
    Output,
    Push,
    Recall,
    Remember,
    Renew,
    Sign,
    Step,
    Truncate,
    Wear,
)
from .chain import Seat, answer_to
from .compute.prefix_cache import PrefixCache
from .engine import Device, Engine
from .frames import FrameStream
from .leading import Chains
from .log import get_logger
from .net.stream import Stream
from .opening import ANSWER_S, serve_stream
from .remembering import Memory, attend
from .served import Served, check_asked, next_of, unfit, watch_for_end
from .signing import Notaries, check_room, note, signed
from .wardrobe import Lent, Wardrobe

log = get_logger()

HOLD_S = 0.02  # guess: receipts wait so long for an answer to go with; below any client's hedge


class Server:
    """The handler of session streams."""

    def __init__(
        self,
        engine: Engine,
        device: Device,
        admission: Admission,
        model: str,
        key: IdentityKey,
        wardrobe: Wardrobe | None = None,
        prefixes: PrefixCache | None = None,
        chains: Chains | None = None,
    ) -> None:
        """key: by which receipts are signed. wardrobe: for sessions with adapters; None: none.
        prefixes: what is kept of prompts; None: nothing. chains: for sessions that go from hop to
        hop; None: none do."""
        self._engine = engine
        self._device = device
        self._admission = admission
        self._model = model
        self._notaries = Notaries(key)
        self._wardrobe = wardrobe
        self._prefixes = prefixes
        self._chains = chains
        self._live: dict[object, Served] = {}
        self._empty = trio.Event()
        self._leaves_s: float | None = None  # by trio's clock: when the time to move is up
        self.rows = 0  # of steps that wait for the device, or are with it
        self.steps_served = 0
        self.tokens_served = 0

    @property
    def sessions(self) -> int:
        return len(self._live)

    def holds(self, asked: Open) -> bool:
        """Whether it serves these blocks, and takes sessions."""
        mine = self._engine.blocks
        return self._leaves_s is None and mine.start <= asked.start < asked.stop <= mine.stop

    async def serve(self, stream: Stream) -> None:
        """One session, from `Open` to its end."""
        await serve_stream(stream, Open, lambda asked: self)

    async def converse(self, frames: FrameStream, asked: Open) -> None:
        """One session that was asked for, to its end."""
        key = object()
        session = await self._open(frames, asked, key)
        if session is None:
            return
        with session.scope:
            self._live[key] = session
            try:
                if self._leaves_s is not None:  # it opened while the others were told
                    if trio.current_time() >= self._leaves_s:
                        session.scope.cancel()
                    await self._tell(session)
                while await self._step(session, key):
                    pass
            finally:
                del self._live[key]
                # in this order: what is admitted from now on is opened after this is closed
                self._device.post(self._engine.close_cache, session.cache)
                self._undress(session.worn)
                self.release(key)
                if session.seat is not None:
                    session.seat.end()
        with trio.move_on_after(1):
            if session.scope.cancelled_caught:
                await frames.send(Busy("the server has left", RETRY_LATEST_S))
            await frames.close()

    async def drain(self, within_s: float) -> None:
        """Take nothing new, and tell the live sessions to move; serve them until they have, or
        until the time is up. Cancelled, it ends them at once."""
        self._admission.leave()
        self._leaves_s = trio.current_time() + within_s
        try:
            with trio.move_on_after(within_s):
                async with trio.open_nursery() as nursery:
                    for session in list(self._live.values()):
                        nursery.start_soon(self._tell, session)
                    await self._until_empty()
        finally:
            for session in self._live.values():
                session.scope.cancel()
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await self._until_empty()

    async def _tell(self, session: Served) -> None:
        """Say that we leave; whoever hears it has a standby filled while we serve on."""
        assert self._leaves_s is not None
        within_s = max(0.0, self._leaves_s - trio.current_time())
        with suppress(TransportError):  # the road is broken: its own task finds that out
            await self._answer(session, Leaving(within_s))

    def release(self, key: object) -> None:
        self._admission.release(key, trio.current_time())
        if not self._admission.sessions:
            self._empty.set()
            self._empty = trio.Event()

    async def _until_empty(self) -> None:
        while self._admission.sessions:  # those that are being opened among them
            await self._empty.wait()

    async def _open(self, frames: FrameStream, asked: Open, key: object) -> Served | None:
        blocks = check_asked(asked, self._engine, self._model)
        try:
            self._admission.admit(key, frames.peer, blocks, asked.tokens, trio.current_time())
            return await self._reserve(frames, asked, blocks, key)
        except Refused as refusal:
            await frames.send(Busy(refusal.reason, refusal.retry_after_s))
            await frames.close()
            return None

    async def _reserve(
        self, frames: FrameStream, asked: Open, blocks: BlockRange, key: object
    ) -> Served:
        """What an admitted session needs. Raises Refused."""
        row_size = row_bytes(self._engine.width, asked.dtype)
        payload_bytes_max = min(PAYLOAD_BYTES_MAX, asked.tokens * row_size)
        with ExitStack() as undone:  # from the last to the first, unless the client has been told
            undone.callback(self.release, key)
            worn = await self._dress(frames, asked, blocks)
            undone.callback(self._undress, worn)
            how = (blocks, asked.tokens) if worn is None else (blocks, asked.tokens, worn.worn)
            frames.allow(payload_bytes_max)
            cache = await self._device.run(self._engine.open_cache, *how)
            undone.callback(self._device.post, self._engine.close_cache, cache)
            session = Served(frames, cache, blocks, asked.tokens, asked.dtype, payload_bytes_max)
            session.worn = worn
            if isinstance(asked, Remember) and self._prefixes is not None:
                peer = frames.peer
                session.memory = Memory(self._prefixes, self._device, peer, asked, row_size)
            elif self._chains is not None:  # a step that is recalled could not be pushed on
                width, tell = self._engine.width, partial(self._answer, session)
                session.seat = Seat(
                    self._chains, frames.peer, asked, width, payload_bytes_max, tell
                )
            opened = Opened(self._admission.lease_s, self._engine.width, self._engine.numerics)
            if asked.receipts:
                session.notary = self._notaries.open(asked, opened)
                opened = replace(opened, opening=session.notary.opening)
            await self._answer(session, opened)
            undone.pop_all()
        return session

    async def _dress(self, frames: FrameStream, asked: Open, blocks: BlockRange) -> Lent | None:
        if self._wardrobe is None:
            if isinstance(asked, Wear):
                raise RemoteError("no adapters are served here")
            return None
        self._wardrobe.make_room()  # whoever was admitted has it
        return await self._wardrobe.lend(frames, asked, blocks) if isinstance(asked, Wear) else None

    def _undress(self, worn: Lent | None) -> None:
        if worn is not None and self._wardrobe is not None:
            self._wardrobe.give_back(worn)

    async def _step(self, session: Served, key: object) -> bool:
        """Serve one frame; False at the end of the session."""
        received = await self._next(session, key)
        if received is None:
            return False
        self._admission.renew(key, trio.current_time())
        if not isinstance(received[0], Step):
            await self._give_held(session)
        match received:
            case Step() as step, payload:
                return await self._run(session, key, step, payload)
            case (Lead() | Follow() | Fence()) as told, _ if session.seat is not None:
                await session.seat.hear(told)
            case Truncate(at), _:
                if at > session.length:
                    raise RemoteError(f"truncating to {at} of {session.length}")
                await self._device.run(self._engine.truncate, session.cache, at)
                session.length = at
                if session.notary is not None:
                    session.notary.truncate(at)
                if session.memory is not None:
                    session.memory.forget(at)
            case (Ask() | Recall()) as asked, _:
                session.length += await attend(
                    session.memory, asked, session.cache, session.length,
                    session.payload_bytes_max, session.notary, partial(self._answer, session),
                )  # fmt: skip
            case Sign(), _:
                session.held = await signed(session.notary)
                if not session.brisk:
                    await self._give_held(session)
            case Renew(), _:
                pass
            case other, _:
                raise RemoteError(f"{type(other).__name__} inside a session")
        return True

    async def _next(self, session: Served, key: object) -> tuple[Message, memoryview] | None:
        """The next frame; None when the client has ended, or its lease."""
        if session.ahead:
            return session.ahead.popleft()
        if session.held is not None:
            with trio.move_on_after(HOLD_S):
                return await next_of(session)
            await self._give_held(session)
        with trio.move_on_at(self._admission.expires_s(key)):
            return await next_of(session)
        await self._answer(session, Busy("the lease ran out", 0.0))
        return None

    async def _give_held(self, session: Served) -> None:
        """Receipts that no answer is there for to go with."""
        held, session.held = session.held, None
        if held is not None:
            await self._answer(session, held)

    async def _run(self, session: Served, key: object, step: Step, payload: memoryview) -> bool:
        """Serve a step; False when the session has ended meanwhile."""
        tokens, seat = sum(step.sizes), session.seat
        if why := unfit(session, step, tokens):
            if seat is None or not isinstance(step, Push):
                raise RemoteError(why)
            await seat.refuse(why)
            return True
        onward = step if isinstance(step, Onward) and step.hops else None
        own = Step(step.at, step.sizes, step.rows if onward is None else tokens)
        if session.notary is not None:
            check_room(session.notary)
        waiting = self._device.waiting
        if waiting:
            await self._give_held(session)
        began = trio.current_time()
        self.rows += tokens
        try:
            # pushes are taken first: what the client says meanwhile must not wait for all of them
            watch = waiting > 0 or (seat is not None and seat.pushed)
            done = await self._compute(session, own, payload, watch=watch)
        except Refused as refusal:  # it waited for all of its time, or too many do
            await self._give_held(session)
            await self._answer(session, Busy(refusal.reason, refusal.retry_after_s))
            return False
        finally:
            self.rows -= tokens
        if done is None:
            return False
        answer, compute_s = done
        session.length = step.at + tokens
        self._admission.renew(key, trio.current_time())  # a long step is no silence
        self.steps_served += 1
        self.tokens_served += tokens
        elapsed_s = trio.current_time() - began
        queue_s = max(0.0, elapsed_s - compute_s)
        if not math.isfinite(compute_s):
            compute_s = 0.0
        held, session.held = session.held, None
        session.brisk = len(step.sizes) == 1 and elapsed_s < HOLD_S
        alone = onward is not None and (seat is None or not seat.push(onward, answer))
        told = Output(step.at, tokens, own.rows, compute_s, queue_s, waiting)
        await self._answer(session, answer_to(step, told), answer, before=held)
        if alone:
            await self._answer(session, Apart(True, "nobody follows here"))
        if session.notary is not None:
            await note(session.notary, step.at, payload, answer)
        if session.memory is not None:
            whole = own.rows == tokens
            await session.memory.heard(session.cache, step.at, payload, answer, whole=whole)
        return True

    async def _compute(
        self, session: Served, step: Step, payload: memoryview, *, watch: bool
    ) -> tuple[memoryview, float] | None:
        """The device's answer; None when the client went while it waited.

        watch: others wait too, so that looking after the stream meanwhile costs no time.
        """
        within_s = self._admission.lease_s
        done: list[tuple[memoryview, float]] = []

        async def compute() -> None:
            done.append(
                await self._device.step(
                    session.cache, session.frames.peer, payload, step, session.dtype,
                    within_s=within_s,
                )
            )  # fmt: skip

        if not watch:
            await compute()
            return done[0]
        ended: list[PotluckError | None] = []
        failure: PotluckError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_for_end, session, nursery.cancel_scope, ended)
            try:
                await compute()
            except (RemoteError, Refused) as error:
                failure = error  # the nursery would wrap it in a group
            nursery.cancel_scope.cancel()
        failure = next((error for error in ended if error is not None), failure)
        if failure is not None:
            raise failure
        return None if ended else done[0]

    async def _answer(
        self,
        session: Served,
        message: Message,
        *payload: memoryview,
        before: Message | None = None,
    ) -> None:
        """Send one frame whole, or two: a step's answer and `Leaving` come from two tasks."""
        with trio.move_on_after(ANSWER_S) as deadline:
            async with session.sending:
                if before is None:
                    await session.frames.send(message, *payload)
                else:
                    await session.frames.send_both(message, *payload, before=before)
        if deadline.cancelled_caught:
            raise TransportError(f"{session.frames.peer} took no answer in {ANSWER_S:.0f} s")
