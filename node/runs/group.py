"""Averages with a group, to the bit: DiLoCo over an all-reduce that its members may leave or join.

    exchange ── Begin ──▶ the machine (swarm/run/commit.py) ──▶ Share, Reduce, Gathered: arithmetic
        ▲                     ▲     │                              (compute/average/nesterov.py)
        └── Adopt ◀───────────┘     └──▶ letters and parts (group_road.py)

All who take part begin at the same weights. After every exchange they stand at the same anchor and
momentum, whose digest they compared before any of them went there; whoever missed it fetches it by
that digest, and keeps what its own steps have done since. With nobody else there, the outer step is
made of the own weights alone.

In a grid (swarm/run/group.py) every round has other groups, whose members begin at weights of their
own: they get the same mean, and each makes its outer step towards it.

Whoever is slower, or joined in mid-epoch, ends its steps once enough of the others wait for it.

With several fragments, one of them is averaged at a time. With `overlap`, an exchange only begins:
it returns at once, with what the one before has brought, mixed into the weights as they are now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import trio

from ...crypto.envelope import sign
from ...crypto.keys import IdentityKey
from ...errors import RemoteError, UserError
from ...swarm.machine import Fired, SetTimer, StopTimer
from ...swarm.run.butterfly import Gathered, Reduce, SendPart
from ...swarm.run.commit import Group
from ...swarm.run.group import ROUND_COMMITS, Place, ahead_of, companions, round_place
from ...swarm.run.group_events import (
    Adopt,
    Begin,
    Came,
    Computed,
    Effect,
    Event,
    Fetch,
    Leave,
    Lost,
    Meet,
    Pace,
    Placed,
    Received,
    Reduced,
    Send,
    Share,
    Shared,
    Spoilt,
    Work,
)
from ...swarm.run.group_wire import (
    DOMAIN,
    Ask,
    Ballot,
    Given,
    Member,
    Message,
    Part,
    protocol_of,
)
from ..compute.average.codec import Bits, size_of
from ..compute.average.nesterov import MIX, Nesterov, Unreadable, Vector, concatenated, is_sound
from ..log import get_logger
from ..timers import Timers
from .exchange import Exchanged
from .group_road import Opens, Roads
from .group_states import GroupStates
from .group_sums import Attempt, Sums, digest_of, first_place, kept_place, read_place

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = get_logger()

SHOWN: Final = 16  # characters of a state's digest, in a log
RATE: Final = 50_000_000 // 8  # bytes a second, of whom nothing is known: issue F's links


@dataclass(frozen=True, slots=True)
class Settings:
    """What all members of a run have to agree on, and when one gives up."""

    bits: Bits = 8
    fragments: int = 1
    overlap: int = 0  # inner steps that are taken while an exchange is on its way
    mix: float = MIX  # with overlap
    grid: bool = False  # for runs of more peers than a group has
    within_s: float = 120.0  # guess: for one exchange; half as long again as an attempt
    pace: Pace = field(default_factory=Pace)


class GroupExchange:
    """An Exchange (exchange.py), of one peer in one run. To be run as a service beside it."""

    def __init__(
        self, host: Opens, key: IdentityKey, run: bytes, weights: Vector, *,
        boot: int, peers: Callable[[], Sequence[str]], rate: Callable[[], int] = lambda: RATE,
        blame: Callable[[str, RemoteError], None] = lambda peer, error: None,
        gone: Callable[[str], None] = lambda peer: None,
        settings: Settings = Settings(),  # frozen
    ) -> None:  # fmt: skip
        """run: its digest. weights: [d], those that the run begins with, the same for everybody.
        boot: is greater at each start of this process. peers: who else is in the run, as known
        now. rate: bytes a second that we can send. blame: is told of whose numbers are none;
        gone: of who cannot be spoken to."""
        self._host = host
        self._run = run
        self._settings = settings
        self._peers = peers
        self._rate = rate
        self._blame = blame
        self._gone = gone
        self._heard = trio.Event()
        mix = settings.mix if settings.overlap else 0.0
        self._sums = Sums(
            weights, fragments=settings.fragments, bits=settings.bits, mix=mix, grid=settings.grid
        )
        self._work = Work(
            self._sums.counts,
            lambda count: size_of(count, settings.bits) if count else 0,
            chained=not settings.grid,
        )
        self._tokens = [0] * len(self._sums.counts)  # since the fragment was averaged
        self._with: tuple[str, ...] = ()
        self._counted = (0, 0)
        self._until_s = 0.0
        self._settled = trio.Event()
        self._states = GroupStates(host, key, self._sums.counts, blame, settings.pace.step_s)
        self._events: deque[Event] = deque()
        self.changed = trio.Event()
        self._me = Member(key.peer_id, boot)
        self._machine = Group(
            self._me, run, first_place(self._sums.at), self._work,
            lambda body: sign(key, DOMAIN, body), settings.pace,
        )  # fmt: skip
        self._protocol = protocol_of(run)
        self._timers = Timers(lambda timer: self._dispatch(Fired(timer)))
        self._nursery: trio.Nursery | None = None
        self._roads: Roads | None = None

    @property
    def place(self) -> Place:
        """Where we stand: equal for all members after an exchange."""
        return self._machine.place

    @property
    def anchor(self) -> Sequence[Vector]:
        """The weights that all members share, by fragment."""
        return self._sums.at.anchors

    @property
    def sent_bytes(self) -> int:
        return self._states.sent_bytes + (self._roads.sent_bytes if self._roads else 0)

    @property
    def received_bytes(self) -> int:
        return self._states.received_bytes + (self._roads.received_bytes if self._roads else 0)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service. Ready once it can be spoken to."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._roads = Roads(self._host, self._protocol, self, nursery)
            self._host.handle(self._protocol, self._roads.serve)
            if not self._settings.grid:
                self._states.stand(self.place, self._sums.at)
                self._states.open()
            task_status.started()
            try:
                await self._timers.run()
            finally:
                self._host.unhandle(self._protocol)
                if not self._settings.grid:
                    self._states.close()
                self._roads.close()

    # ---- an exchange

    async def exchange(self, epoch: int, weights: Vector, tokens: int) -> Exchanged:
        """See exchange.py. Raises UserError for weights that nobody can reckon with."""
        if not is_sound(weights):
            raise UserError("the weights are not finite any more: lower the learning rate")
        known = await self._settle(weights)
        self._sums.hold(known)
        self._tokens = [one + tokens for one in self._tokens]
        self._settled = trio.Event()
        self._until_s = trio.current_time() + self._settings.within_s
        peers = tuple(self._peers())
        if self._settings.grid:
            peers = companions(self._run, peers, self._me.peer, epoch)
            self._dispatch(Placed(round_place(self._run, epoch)))
        fragment = self._work.fragment(self.place.commits)
        tokens = 0 if fragment in self._sums.unseen else self._tokens[fragment]
        self._dispatch(Begin(tokens, self._rate(), peers))
        if not self._settings.overlap:
            known = await self._settle(known)
        found = self._exchanged(known)
        if self._settings.grid:
            return found
        return replace(found, next=max(epoch + 1, self.place.commits))  # of who was away

    @property
    def overlap(self) -> int:
        return self._settings.overlap

    def called(self, left_s: float) -> bool:
        return self._machine.called and left_s > self._settings.pace.window_s / 2

    async def settle(self, weights: Vector) -> Exchanged:
        """What is on its way is waited for, until its deadline, and taken into these weights."""
        return self._exchanged(await self._settle(weights))

    async def join(self) -> tuple[int, Vector] | None:
        """Where a newcomer begins: the others' state. In a grid there is none; then it begins with
        the run's first weights, and takes the first mean in their place."""
        peers = tuple(self._peers())
        self._dispatch(Meet(peers))
        with trio.move_on_after(self._settings.within_s):  # else it would begin where nobody is
            while self._machine.unheard(peers) and not self._machine.cards():
                await self.changed.wait()
            with trio.move_on_after(self._settings.pace.step_s):
                while self._machine.unheard(peers):
                    await self.changed.wait()
        cards = self._machine.cards()
        if self._settings.grid:
            rounds = sorted(-(-card.commits // ROUND_COMMITS) for card in cards)
            if not rounds or not (epoch := rounds[(len(rounds) - 1) // 2]):
                return None
            self._sums.unseen.update(range(len(self._sums.counts)))
            return epoch, self._sums.take_in(concatenated(self.anchor))
        ahead = ahead_of(self.place, cards)
        assert self._roads is not None, "it is run as a service"
        if ahead is None:
            return None
        found = await self._states.fetch(self._roads, *ahead, peers)
        if found is None:
            return None
        start = concatenated(self.anchor)
        self._go_to(*found)
        return self.place.commits, self._sums.take_in(start)

    def carried(self) -> dict[str, Vector]:
        return {**self._sums.carried(), "place": kept_place(self.place)}

    def carry_on(self, kept: dict[str, Vector], epoch: int) -> None:
        """Raises UserError."""
        before, commits, members = read_place(kept)
        self._sums.carry_on(kept, self._work.fragment(commits))
        if not self._settings.grid:
            place = Place(b"", before, commits, members)
            self._dispatch(Placed(replace(place, state=digest_of(self._sums.at, place))))

    async def pulled(self) -> None:
        """Until somebody wants something of us again."""
        await self._heard.wait()

    async def _settle(self, weights: Vector) -> Vector:
        if self._machine.waits:
            with trio.move_on_at(self._until_s):
                await self._settled.wait()
        if self._machine.waits:
            log.info("no exchange", place=self.place.commits)
            self._dispatch(Leave())
        return self._sums.take_in(weights)

    def _exchanged(self, weights: Vector) -> Exchanged:
        assert self._roads is not None, "it is run as a service"
        now = self.sent_bytes, self.received_bytes
        sent, received = (new - old for new, old in zip(now, self._counted, strict=True))
        self._counted, met, self._with = now, self._with, ()
        return Exchanged(weights, met, sent, received)

    # ---- what the roads tell

    def heard(self, peer: str, message: Message) -> None:
        self._heard.set()
        self._heard = trio.Event()
        self._dispatch(Received(peer, message))

    def awaits(self, peer: str, part: Part) -> int | None:
        return self._machine.awaits(peer, part)

    def came(self, peer: str, part: Part, data: bytes) -> None:
        self._dispatch(Came(peer, part, data))

    def lost(self, peer: str) -> None:
        self._gone(peer)
        self._dispatch(Lost(peer))

    async def given(self, peer: str, ask: Ask) -> tuple[Given, bytes] | None:
        return await self._states.whole(peer, ask)

    # ---- what the machine wants

    def _dispatch(self, event: Event) -> None:
        """What happens while effects are performed waits for its turn."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            try:
                for effect in self._machine.handle(self._events[0], trio.current_time()):
                    self._perform(effect)
            finally:
                self._events.popleft()
        if not self._settings.grid and not self._events:
            self._states.stand(self.place, self._sums.at)
        self.changed.set()
        self.changed = trio.Event()

    def _perform(self, effect: Effect) -> None:
        assert self._roads is not None and self._nursery is not None, "it is run as a service"
        match effect:
            case Send(peer, message):
                self._roads.say(peer, message)
            case SendPart(peer, part, data):
                self._roads.carry(peer, part, data)
            case Share():
                self._roads.drop()
                self._nursery.start_soon(self._share, effect, self._sums.begin(effect))
            case Reduce():
                self._nursery.start_soon(self._reduce, effect)
            case Gathered():
                self._nursery.start_soon(self._gather, effect)
            case Adopt(_, place):
                self._adopt(place)
            case Fetch(state, holders):
                self._nursery.start_soon(self._fetch, state, holders)
            case SetTimer(key, at_s):
                self._timers.set(key, at_s)
            case StopTimer(key):
                self._timers.stop(key)

    async def _share(self, wanted: Share, attempt: Attempt) -> None:
        parts = await trio.to_thread.run_sync(self._sums.share, wanted, attempt)
        self._dispatch(Shared(wanted.ballot, parts))

    async def _reduce(self, wanted: Reduce) -> None:
        attempt = self._sums.attempted(wanted.ballot)
        if attempt is None:
            return
        try:
            part = await trio.to_thread.run_sync(self._sums.reduce, wanted, attempt)
        except Unreadable as error:
            self._spoil(wanted.ballot, wanted.peers, error)
            return
        self._dispatch(Reduced(wanted.ballot, part))

    async def _gather(self, found: Gathered) -> None:
        attempt = self._sums.attempted(found.ballot)
        if attempt is None:
            return
        try:
            state = await trio.to_thread.run_sync(self._sums.gather, found, attempt, self.place)
        except Unreadable as error:
            self._spoil(found.ballot, found.peers, error)
            return
        self._dispatch(Computed(found.ballot, state))

    def _spoil(self, ballot: Ballot, peers: Sequence[str], error: Unreadable) -> None:
        named = tuple(peers[at] for at in error.at)
        for peer in named:
            self._blame(peer, error)
        log.info("parts that cannot be used", of=named, reason=str(error))
        self._dispatch(Spoilt(ballot, named))

    def _adopt(self, place: Place) -> None:
        self._tokens[self._sums.adopt()] = 0
        self._with = tuple(one.peer for one in place.members if one != self._me)
        self._settled.set()
        members, state = len(place.members), place.state.hex()[:SHOWN]
        log.info("exchanged", commits=place.commits, members=members, state=state)

    async def _fetch(self, state: bytes, holders: tuple[str, ...]) -> None:
        if self._settings.grid:  # the round was over without us, and the next one has its own mean
            self._dispatch(Leave())
            self._settled.set()
            return
        assert self._roads is not None, "it is run as a service"
        found = await self._states.fetch(self._roads, state, holders, self._peers())
        if found is None:
            self._dispatch(Placed(None))
        elif self._machine.fetching:  # else it has gone elsewhere meanwhile
            self._go_to(*found)
        if not self._machine.waits:
            self._settled.set()

    def _go_to(self, at: Nesterov, place: Place) -> None:
        counted = self._sums.go_to(at)
        if counted is not None:
            self._tokens[counted] = 0
        self._dispatch(Placed(place))
