"""An exchange by gossip: pulls from a few members, judges what came, and is pulled from.

    exchange ─▶ encode, sign ─▶ keep() ─▶ Published ──▶ whoever waits for it
                                   └▶ Begin ─▶ Ask x s ─▶ Told + parts ─▶ Settled ─▶ rule ─▶ gate

The rules of who is asked and what is taken are the machine's (swarm/run/gossip.py), the arithmetic
is compute/mixing.py; here is what waits. What is signed for is on disk before anybody is told: a
peer that is killed and comes back says the same again, so that only liars contradict themselves.

The gate: what came is taken unless it makes the loss on held-out sequences worse than the best that
was taken before, by more than a share; then the own steps alone, unless they do too; then nothing
(Bristle; against the best, so that many small lies do not add up). Whoever was away, and finds the
others far ahead, goes on from the middle of what they tell. What others say of their tokens weighs
nothing here: who says more would weigh more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from ...crypto.keys import IdentityKey
from ...errors import RemoteError, TransportError
from ...swarm.machine import Fired, SetTimer, StopTimer
from ...swarm.run.gossip import (
    BEHIND_MAX,
    Answer,
    Ask,
    Asked,
    Begin,
    Came,
    Contradicted,
    Decline,
    Event,
    Failed,
    Gone,
    Leave,
    Offered,
    Published,
    Settled,
    Shown,
    near,
)
from ...swarm.run.gossip import Gossip as Machine
from ...swarm.run.plan import Terms
from ...swarm.run.statement import (
    PART_BYTES,
    WITHIN_MAX_S,
    Absent,
    Part,
    Pull,
    Said,
    Told,
    check_weights,
    read_statement,
    state,
)
from ..compute.average.outer import Outer
from ..compute.mixing import Mixer, Vector
from ..gossip.talks import Talk
from ..log import get_logger
from ..net.host import Host
from ..pieces import seconds_for
from ..timers import Timers
from .company import Company
from .exchange import Computes, Exchanged
from .pulls import Behind, fetch

PATIENCE: Final = 0.02  # of an epoch's time: issue F promises 95 % of it for work
PATIENCE_LEAST_S: Final = 0.25  # guess: so that those who are in step meet
SPARE: Final = 2  # times as many are drawn as are asked, for those who fail
JOIN_FROM: Final = 3  # peers that a newcomer wants to hear at least (algorithms.md 5)
FRAMING_BYTES: Final = 4  # of a letter

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

LossOf = Callable[[Vector], Awaitable[float]]

log = get_logger()


class Gossip:
    """exchange.Exchange, for one run on one peer, while `run` does. keep: writes a checkpoint, with
    `carried` in it; whether it is there. loss_of: on what is held out. compute: what judges others'
    weights, and may need the swarm for it. on_fork: is told of two statements that one peer signed.
    """

    def __init__(
        self,
        host: Host,
        company: Company,
        key: IdentityKey,
        terms: Terms,
        mixer: Mixer,
        *,
        keep: Callable[[], Awaitable[bool]],
        loss_of: LossOf,
        compute: Computes = trio.to_thread.run_sync,
        on_fork: Callable[[Said, Said], None] = lambda one, other: None,
    ) -> None:
        self._host = host
        self._company = company
        self._key = key
        self._terms = terms
        self._run = terms.run
        self._mixer = mixer
        self._keep = keep
        self._loss_of = loss_of
        self._compute = compute
        self._on_fork = on_fork
        asked, reply_s = terms.exchange.asked, terms.exchange.reply_s
        self._machine = Machine(key.peer_id, asked=asked, reply_s=reply_s)
        self._timers = Timers(lambda timer: self._handle(Fired(timer)))
        self._pulls: trio.Nursery | None = None
        self._running = trio.Event()
        self._scopes: dict[str, trio.CancelScope] = {}  # of pulls
        self._came: dict[str, Vector] = {}
        self._settled: Settled | None = None
        self._over = trio.Event()
        self._signed: tuple[Said, bytes] | None = None  # the last that was signed
        self._public: tuple[Said, bytes] | None = None  # the last that is given out
        self._askers = count()
        self._answers: dict[Hashable, tuple[trio.Event, list[bool]]] = {}
        self._turns = count()
        self._began_s = 0.0  # the steps that led to the next exchange
        self._least: float | None = None  # the held-out loss, of all that was taken
        self.sent_bytes = 0
        self.received_bytes = 0
        self.refused = 0  # exchanges, by the gate
        self._wanted = trio.Event()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service."""
        self._company.epoch, self._company.pulls = lambda: self._machine.epoch, self._answer
        try:
            async with trio.open_nursery() as self._pulls:
                self._began_s = trio.current_time()
                self._pulls.start_soon(self._timers.run)
                self._running.set()
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._company.pulls = None

    # ---- what a run asks for

    async def exchange(self, epoch: int, weights: Vector, tokens: int) -> Exchanged:
        """Raises UserError for weights that have diverged."""
        await self._running.wait()
        sent, received = self.sent_bytes, self.received_bytes
        if self._signed is None or self._signed[0].statement.epoch != epoch:
            raw = await trio.to_thread.run_sync(self._mixer.encode, weights)
            self._signed = state(self._key, self._run, epoch, tokens, raw), raw
        if await self._keep():
            self._public = self._signed
            self._handle(Published(epoch))
        self._came, self._settled, self._over = {}, None, trio.Event()
        drawn = self._company.draw(SPARE * self._terms.exchange.asked)
        self._handle(Begin(epoch, drawn))
        await self._over.wait()
        self._began_s = trio.current_time()
        settled = self._settled
        assert settled is not None
        peers = [one for one in settled.peers if one in self._came]
        pulled = [self._came[one] for one in peers]
        if settled.next > epoch + 1 + BEHIND_MAX and len(pulled) >= JOIN_FROM:
            log.info("the others are far ahead: going on from where they are", epoch=settled.next)
            outer = await trio.to_thread.run_sync(self._mixer.middle, pulled)
        else:
            outer = await self._compute(partial(self._mixer.mixed, weights, pulled))
        outer, peers = await self._gated(outer, weights, peers)
        return Exchanged(
            self._mixer.adopt(outer), tuple(peers),
            self.sent_bytes - sent, self.received_bytes - received,
            settled.next, settled.lead,
        )  # fmt: skip

    async def join(self) -> tuple[int, Vector] | None:
        """Where a newcomer begins: the epoch, and the weights in the middle of what several members
        tell. None where nobody is, or nobody has any yet."""
        await self._running.wait()
        found: list[tuple[int, Vector]] = []

        async def ask(peer: str) -> None:
            with trio.move_on_after(self._terms.exchange.reply_s), suppress(TransportError):
                try:
                    said, raw = await self._fetch(peer, Pull(self._run, 0, 0.0), None)
                    found.append((said.statement.epoch, await self._decoded(raw)))
                except RemoteError as error:
                    self._host.blame(peer, error)

        asked = self._company.draw(max(JOIN_FROM, self._terms.exchange.asked))
        async with trio.open_nursery() as nursery:
            for peer in asked:
                nursery.start_soon(ask, peer)
        if not found:
            return None
        epoch, places = near([one for one, _ in found])
        if len(places) < min(JOIN_FROM, len(asked)):
            log.info("joined on the word of few", peers=len(places), asked=len(asked))
        self._machine.resume(epoch + 1)
        return epoch + 1, self._mixer.adopt(self._mixer.middle([found[at][1] for at in places]))

    async def pulled(self) -> None:
        """Until somebody pulls from us again."""
        await self._wanted.wait()

    def carried(self) -> dict[str, Vector]:
        return self._mixer.carried()

    def carry_on(self, kept: dict[str, Vector], epoch: int) -> None:
        """Raises UserError."""
        self._mixer.carry_on(kept)
        self._machine.resume(epoch)

    @property
    def signed(self) -> tuple[bytes, bytes] | None:
        """The last statement and its weights' bytes: to be on disk before it is given out."""
        return None if self._signed is None else (self._signed[0].raw, self._signed[1])

    def resign(self, statement: bytes, weights: bytes) -> None:
        """What `signed` was, from our own disk. Raises RemoteError for what is not ours."""
        said = read_statement(statement, self._run)
        check_weights(said, weights)
        if said.peer != self._key.peer_id:
            raise RemoteError("a statement of another peer")
        self._signed = said, weights

    async def _gated(
        self, outer: Outer, weights: Vector, peers: list[str]
    ) -> tuple[Outer, list[str]]:
        """What may be taken of it, and whose weights are in that."""
        gate = self._terms.exchange.gate
        if not gate:
            return outer, peers
        if self._least is None:
            self._least = await self._loss_of(self._mixer.anchor)
        most = self._least * (1 + gate)
        tries = [(outer, peers)]
        if peers:
            tries.append((self._mixer.alone(weights), []))
        for tried, whose in tries:
            loss = await self._loss_of(tried.anchor)
            if loss <= most:  # not for one that is no number
                self._least = min(self._least, loss)
                return tried, whose
            self.refused += 1
            log.warning("an exchange was refused: the held-out loss would rise", loss=loss)
        return self._mixer.back(), []

    # ---- the machine's effects

    def _handle(self, event: Event) -> None:
        for effect in self._machine.handle(event, trio.current_time()):
            match effect:
                case Ask(peer):
                    assert self._pulls is not None
                    self._pulls.start_soon(self._pull, peer)
                case Leave(peer, why):
                    log.debug("left", peer=peer, why=why)
                    if peer in self._scopes:
                        self._scopes[peer].cancel()
                case Settled():
                    self._settled = effect
                    self._over.set()
                case Answer(key) | Decline(key):
                    woken, given = self._answers[key]
                    given.append(isinstance(effect, Answer))
                    woken.set()
                case Contradicted(one, other):
                    log.warning("it says two things of one epoch", peer=one.peer)
                    self._company.shun(one.peer)
                    self._on_fork(one, other)
                case SetTimer(timer, at_s):
                    self._timers.set(timer, at_s)
                case StopTimer(timer):
                    self._timers.stop(timer)

    # ---- pulling

    async def _pull(self, peer: str) -> None:
        """One pull, to its end; whatever it comes to, the machine hears of it."""
        event: Event = Failed(peer)
        with trio.move_on_after(self._terms.exchange.reply_s) as scope:
            self._scopes[peer] = scope
            try:
                lately = self._machine.lately(next(self._turns))
                shown = tuple(one.raw for one in lately if one.peer != peer)
                asked = Pull(self._run, self._machine.epoch, self._patience_s(), shown)
                _, raw = await self._fetch(peer, asked, self._offered)
                self._came[peer] = await self._decoded(raw)
                self._company.met(peer)
                event = Came(peer)
            except Behind as behind:
                event = Failed(peer, behind.epoch)
            except TransportError as error:
                log.debug("not pulled", peer=peer, reason=str(error))
                self._company.failed(peer)
            except RemoteError as error:
                self._company.failed(peer)
                self._host.blame(peer, error)
        if self._scopes.get(peer) is scope:
            del self._scopes[peer]
        if not scope.cancelled_caught:
            self._handle(event)

    def _offered(self, said: Said) -> None:
        """Whoever is not wanted has its pull cancelled by this."""
        self._handle(Offered(said))

    def _patience_s(self) -> float:
        """For whoever we ask to end its own steps."""
        lasted_s = trio.current_time() - self._began_s
        most_s = min(self._terms.exchange.reply_s / 2, WITHIN_MAX_S)
        return min(max(PATIENCE * lasted_s, PATIENCE_LEAST_S), most_s)

    async def _fetch(
        self, peer: str, asked: Pull, offered: Callable[[Said], None] | None
    ) -> tuple[Said, bytearray]:
        """Raises Behind, RemoteError, TransportError."""
        said, raw = await fetch(self._host, peer, asked, self._mixer.size, offered)
        self.sent_bytes += FRAMING_BYTES + sum(map(len, asked.shown)) + len(self._run)
        self.received_bytes += len(raw) + len(said.raw) + FRAMING_BYTES
        return said, raw

    async def _decoded(self, raw: bytearray) -> Vector:
        return await trio.to_thread.run_sync(self._mixer.decode, memoryview(raw))

    # ---- being pulled from

    async def _answer(self, talk: Talk, asked: Pull) -> None:
        """Raises RemoteError, TransportError."""
        size_s = seconds_for(self._mixer.size)
        with trio.move_on_after(WITHIN_MAX_S + self._terms.exchange.reply_s + size_s) as deadline:
            self._company.met(talk.peer)
            self._wanted.set()
            self._wanted = trio.Event()
            for raw in asked.shown:
                self._handle(Shown(read_statement(raw, self._run)))
            await self._give(talk, self._public if await self._waited(asked) else None)
            await talk.close()
        if deadline.cancelled_caught:
            raise TransportError(f"{talk.peer} takes no weights, or too slowly")

    async def _give(self, talk: Talk, public: tuple[Said, bytes] | None) -> None:
        if public is None:
            await talk.send(Absent(self._machine.epoch))
            return
        said, weights = public
        await talk.send(Told(said.raw))
        for at in range(0, len(weights), PART_BYTES):
            await talk.send(Part(weights[at : at + PART_BYTES]))
        self.sent_bytes += len(weights) + len(said.raw) + FRAMING_BYTES

    async def _waited(self, asked: Pull) -> bool:
        """Whether there is an answer, when it is time for one."""
        key = next(self._askers)
        woken, given = self._answers[key] = trio.Event(), []
        try:
            self._handle(Asked(key, asked.epoch, asked.within_s))
            await woken.wait()
        finally:
            del self._answers[key]
            if not given:
                self._handle(Gone(key))
        return given[0]
