"""Exchanges in a guarded group, over streams: the machine of swarm/run/btard.py, its sockets, its
clock and its thread.

    exchange(weights) ─▶ contribution = anchor - weights ─▶ Guard ─▶ Done ─▶ anchor - rate * mean
                           ▲      │ Send, SendLoad ─▶ an outbox for each member ─▶ its stream
    streams of members ────┘      │ Work ─▶ one at a time, on a thread (btard_work.py)
                                  └ Convict ─▶ evidence to whoever is told, and no stream any more

One stream each way between two members: letters, in order. What belongs to a step that we have not
come to waits in its stream, and so does its sender: the slow hold up whoever is ahead of them, for
`gather_s` at most. A member may send so many messages and bytes in a step, and no load that nobody
named. Everybody begins from the same bits and adds the same bits to them, so all stay equal.

Batches are not ours to choose: `seed` fixes them, and whoever trains on others is convicted by the
first honest validator that draws it. Source: Gorbunov et al., 2022.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import trio

from ...crypto.codec import encode
from ...crypto.keys import IdentityKey
from ...errors import LocalError, Refused, RemoteError, TransportError, UserError
from ...swarm.machine import Fired, SetTimer
from ...swarm.run.btard import Guard
from ...swarm.run.btard_events import (
    Came,
    Convict,
    Done,
    Effect,
    Event,
    Loaded,
    Over,
    Send,
    SendLoad,
    Terms,
    Work,
    Worked,
)
from ...swarm.run.btard_wire import (
    DOMAIN,
    MESSAGE_BYTES_MAX,
    PROTOCOL,
    Load,
    Proof,
    load_digest,
    read_message,
)
from ...swarm.run.coin import batch_seed
from ...swarm.run.lives import LIVES_MAX, moment_of, number_of
from ...swarm.testimony import contradiction_of
from ..compute.mixing import Vector
from ..letters import receive_letter, receive_up_to
from ..log import get_logger
from ..net.stream import Stream
from ..pieces import seconds_for
from ..timers import Timers
from .btard_file import file_of
from .btard_judge import Law
from .btard_numbers import NUMBER
from .btard_place import Conviction, Place, Rules, anchor_digest, contribution_of
from .btard_work import Workshop
from .exchange import Exchanged
from .outbox import Outboxes

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

JOBS_MAX: Final = 4096  # that wait for the thread
OUTBOX_BYTES: Final = 16 << 20  # guess: of messages that wait for one member, beside loads
STREAMS_MAX: Final = 4  # of one member: the one that it keeps, and some that broke
MESSAGES_MAX: Final = 65_536  # of one member in one step, what it passes on included
LOADS_TIMES: Final = 16  # guess: the contribution's bytes that a member may send in one step

Handler = Callable[[Stream], Awaitable[None]]

log = get_logger()


class Roads(Protocol):
    """What is needed of node/net/host.py's Host."""

    async def open_stream(self, peer: str, protocol: str) -> Stream: ...
    def handle(self, protocol: str, handler: Handler) -> None: ...


class Trains(Protocol):
    def __call__(self, anchor: Vector, seed: bytes) -> Vector:
        """The weights after the inner steps, from these weights on the batches of this seed, with a
        fresh optimizer: the same bits for everybody of one class of numerics. Blocks; may be called
        on a thread while the own steps are taken on another."""


@dataclass(eq=False)
class _Step:
    """One exchange that is under way, or was the last."""

    terms: Terms
    guard: Guard
    shop: Workshop
    over: trio.Event
    messages: dict[str, int]
    loads_bytes: dict[str, int]
    done: Done | None = None
    why: str = ""


class GuardedExchange:
    """An `Exchange`, once `run` is started. told: of each conviction."""

    def __init__(
        self,
        host: Roads,
        key: IdentityKey,
        run: bytes,
        place: Place,
        anchor: Vector,
        rules: Rules,
        trains: Trains,
        told: Callable[[Conviction], None] = lambda conviction: None,
        *,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.place = place
        self.life = 0  # of the step that is next (swarm/run/lives.py)
        self._host = host
        self._key = key
        self._run = run
        self._anchor = anchor.detach().clone()
        self._rules = rules
        self._trains = trains
        self._told = told
        self._entropy = entropy
        self._timers = Timers(self._fired)
        self._steps: dict[int, _Step] = {}
        self._begun = trio.Event()
        self._rested = trio.Event()  # no job is being done
        self._rested.set()
        self._load_bytes = NUMBER.itemsize * anchor.numel()  # a contribution's
        self._outboxes = Outboxes(
            lambda peer: self._host.open_stream(peer, PROTOCOL),
            OUTBOX_BYTES + LOADS_TIMES * self._load_bytes,
        )
        self._streams: Counter[str] = Counter()  # that are read, of each member
        self._jobs, self._todo = trio.open_memory_channel[tuple[_Step, Work]](JOBS_MAX)
        self._banned: set[str] = set()
        self._proofs: dict[str, Proof] = {}
        self._attempts = 0
        self.received_bytes = 0

    @property
    def attempts(self) -> int:
        """Since the group began: each draws its validators anew."""
        return self._attempts + sum(
            step.guard.attempts for step in self._steps.values() if step.done is None
        )

    @property
    def sent_bytes(self) -> int:
        return self._outboxes.sent_bytes

    @property
    def anchor(self) -> Vector:
        """Where the last step that we know of ended."""
        return self._anchor

    def follow(self, place: Place, anchor: Vector) -> None:
        """Go on from where others are: what we had no part in, or sat out. Between two steps."""
        self.place, self._anchor, self.life = place, anchor.detach().clone(), 0
        self._keep_seated()
        self._begun.set()  # what waits for a step that is over is read over
        self._begun = trio.Event()

    @property
    def seed(self) -> bytes:
        """Of the own batches in the coming step."""
        return batch_seed(self.place.coin, self._key.peer_id)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service."""
        async with trio.open_nursery() as nursery:
            self._outboxes.begin(nursery)
            self._host.handle(PROTOCOL, self.serve)
            nursery.start_soon(self._timers.run)
            nursery.start_soon(self._work)
            task_status.started()

    async def exchange(self, epoch: int, weights: Vector, tokens: int) -> Exchanged:
        """As exchange.py says; all count the same, whatever their tokens. Raises TransportError
        when there is no outcome for us: we are out, or too few are left. UserError for weights that
        are not finite: nobody signs for those."""
        if epoch != self.place.epoch:
            raise LocalError(f"step {epoch}, where {self.place.epoch} is next")
        if len(self.place.roster) < 2:
            raise TransportError("nobody else has a seat in this group any more")
        number = number_of(epoch, self.life)
        if number in self._steps:
            raise TransportError(f"step {epoch} is over here: who speaks twice in it is banned")
        before = self.sent_bytes, self.received_bytes
        contribution = contribution_of(self._anchor, weights)
        if not bool(np.isfinite(np.frombuffer(contribution, NUMBER)).all()):
            raise UserError("the weights are not finite; begin anew with a lower learning rate")
        step = self._begin(number, contribution)
        try:
            await step.over.wait()
            await self._rested.wait()  # what takes others' steps again would disturb the next ones
        finally:
            for one in [one for one in self._steps if moment_of(one) < moment_of(number)]:
                del self._steps[one]  # the last one is still asked after
        if step.done is None:
            raise TransportError(f"step {epoch} has no outcome here: {step.why}")
        roster = step.terms.roster
        peers = tuple(roster[seat] for seat in step.done.standing.members)
        self._settle(step, step.done)
        return Exchanged(
            self._anchor.clone(), peers,
            self.sent_bytes - before[0], self.received_bytes - before[1],
        )  # fmt: skip

    def _begin(self, number: int, contribution: bytes) -> _Step:
        rules, place = self._rules, self.place
        anchor = anchor_digest(self._anchor)
        transfer_s = seconds_for(len(contribution))  # of all parts, to all; so of all results
        phase_s = rules.phase_s + 2 * transfer_s
        terms = Terms(
            self._run, number, place.roster, anchor, place.coin, rules.radius, rules.far_most,
            rules.numerics, rules.validators, rules.gather_s, phase_s, rules.check_s,
            show_s=phase_s + len(place.roster) * transfer_s,
        )  # fmt: skip
        law = Law(place.roster, self._anchor.numel(), rules.radius, rules.numerics, rules.tolerance)
        shop = Workshop(law, contribution, self._again)
        guard = Guard(terms, self._key, self._entropy)
        step = _Step(terms, guard, shop, trio.Event(), {}, {})
        self._steps[number] = step
        now = trio.current_time()
        self._perform(step, guard.start(now))
        for proof in list(self._proofs.values()):  # of what was heard when the last step was over
            self._tell(step, Came(self._key.peer_id, replace(proof, epoch=number)))
        self._begun.set()
        self._begun = trio.Event()
        return step

    def _again(self, anchor: bytes, seed: bytes) -> bytes:
        """Pledges of other weights are no pledges of this step: the machine has seen to it."""
        return contribution_of(self._anchor, self._trains(self._anchor.clone(), seed))

    def _settle(self, step: _Step, done: Done) -> None:
        """The next anchor, and who is there to go on from it."""
        mean = np.frombuffer(b"".join(step.shop.loads[one] for one in done.results), NUMBER)
        self._anchor = self._anchor - self._rules.rate * self._anchor.new_tensor(mean)
        self._attempts += done.attempts
        self.place, self.life = self.place.after(done), 0
        self._keep_seated()

    def _keep_seated(self) -> None:
        """Whoever has no seat any more is not spoken to, nor about."""
        seated = self.place.roster
        self._proofs = {peer: one for peer, one in self._proofs.items() if peer in seated}
        self._outboxes.keep(seated)

    # ---- the machine's events and effects

    def _tell(self, step: _Step, event: Event) -> None:
        self._perform(step, step.guard.handle(event, trio.current_time()))

    def _fired(self, key: Hashable) -> None:
        assert isinstance(key, tuple)
        step = self._steps.get(key[0])
        if step is not None:
            self._tell(step, Fired(key[1]))

    def _perform(self, step: _Step, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self._post(step, peer, encode(message))
                case SendLoad(peer, name):
                    load = step.shop.loads[name]
                    self._post(step, peer, encode(Load(step.terms.epoch, name, len(load))), load)
                case Work():
                    self._jobs.send_nowait((step, effect))
                case SetTimer(key, at_s):
                    self._timers.set((step.terms.epoch, key), at_s)
                case Convict():
                    self._convict(step, effect)
                case Done():
                    step.done = effect
                    step.over.set()
                case Over(reason):
                    step.why = reason
                    step.over.set()

    def _convict(self, step: _Step, convict: Convict) -> None:
        proof, found = convict.proof, None
        self._banned.add(convict.peer)
        file = b""
        if proof is not None:
            self._proofs[convict.peer] = proof
            found = contradiction_of(DOMAIN, proof.one, proof.other)
        elif convict.case is not None:
            file = file_of(convict, self._run, step.terms.epoch, step.terms.roster, step.shop.loads)
        self._outboxes.hush(convict.peer)
        log.warning("convicted", peer=convict.peer, case=convict.case and convict.case.kind)
        if convict.peer == self._key.peer_id:
            return  # the others will not hear of us; the step is over for us
        self._told(Conviction(convict.peer, found, file))

    async def _work(self) -> None:
        async for step, work in self._todo:
            if step.over.is_set():
                continue
            self._rested = trio.Event()
            try:
                outcome = await trio.to_thread.run_sync(step.shop.do, work.job)
            finally:
                self._rested.set()
            if self._steps.get(step.terms.epoch) is step:
                self._tell(step, Worked(work.key, outcome))

    # ---- streams

    def _post(self, step: _Step, peer: str, message: bytes, load: bytes = b"") -> None:
        """To be sent in its turn, while the step can make use of it: whoever has not come to it
        yet reads nothing for `gather_s` at most, and then all that is shown at once."""
        if peer in self._banned:
            return
        until_s = trio.current_time() + step.terms.gather_s + step.terms.show_s
        self._outboxes.post(peer, message, load, until_s)

    async def serve(self, stream: Stream) -> None:
        """A member's stream, until it ends. Raises Refused, RemoteError, TransportError."""
        peer = stream.peer
        if peer not in self.place.roster:
            raise Refused("no seat in this group", retry_after_s=self._rules.gather_s)
        if self._streams[peer] >= STREAMS_MAX:
            raise Refused("more streams than a member needs", retry_after_s=self._rules.gather_s)
        self._streams[peer] += 1
        try:
            await self._hear(stream)
        finally:
            self._streams[peer] -= 1

    async def _hear(self, stream: Stream) -> None:
        peer = stream.peer
        while (raw := await receive_letter(stream, MESSAGE_BYTES_MAX)) is not None:
            if peer in self._banned:
                raise RemoteError(f"{peer} is convicted, and speaks on")
            message = read_message(raw)
            self.received_bytes += len(raw)
            step = await self._step_of(message.epoch)
            if isinstance(message, Load):
                await self._receive(stream, message, step)
            elif step is not None:
                step.messages[peer] = step.messages.get(peer, 0) + 1
                if step.messages[peer] > MESSAGES_MAX:
                    raise RemoteError(f"{peer} sends too many messages")
                self._tell(step, Came(peer, message))

    async def _step_of(self, number: int) -> _Step | None:
        """Once it is begun; None for one that is over."""
        while moment_of(number) > max(
            map(moment_of, self._steps), default=(self.place.epoch - 1, LIVES_MAX)
        ):
            await self._begun.wait()
        return self._steps.get(number)

    async def _receive(self, stream: Stream, load: Load, step: _Step | None) -> None:
        """What nobody wants is read over. Raises RemoteError for what is not as it says."""
        most = self._load_bytes
        used = 0 if step is None else step.loads_bytes.get(stream.peer, 0) + load.size
        if load.size > most or used > LOADS_TIMES * most:
            raise RemoteError(f"{stream.peer} sends {load.size} bytes more than belong to a step")
        if step is not None:
            step.loads_bytes[stream.peer] = used  # before it comes: others come beside it
        data = await receive_up_to(stream, load.size)
        self.received_bytes += len(data)
        if len(data) < load.size:
            raise RemoteError("the stream ended inside a load")
        if step is None:
            return
        if step.guard.wants(stream.peer, load.digest):
            if load_digest(data) != load.digest:
                raise RemoteError(f"{stream.peer} sends another load than it says")
            step.shop.keep(data)
            self._tell(step, Loaded(load.digest))
