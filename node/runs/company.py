"""Who else is in a run: met through the directory, and drawn as the sampling of peers draws.

    keep_providing(meeting) ─▶ directory ─▶ providers(meeting) ─▶ Meet ─▶ Same ─▶ known
    whoever pulls from us ───────────────────────────────────────────────▶ known ─▶ draw(count)
    serve ◀── Meet, Pull      here is who answers both; of weights gossip alone has any

The meeting place of a run is that of its name: so whoever comes with another file of that name
meets its members, and is told by what it differs. A member is known once it has said that it is in
this very run. Of those who are known, BASALT's slots keep some (swarm/sampling.py): whoever floods
the place with names gets no larger part of them than its networks have.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ...crypto.codec import encode
from ...crypto.digest import digest
from ...dht.allowance import Intake
from ...dht.record import Provider
from ...errors import RemoteError, TransportError
from ...swarm.run.plan import Terms, read_terms
from ...swarm.run.statement import (
    ANSWERS,
    LETTER_BYTES_MAX,
    PROTOCOL,
    QUESTIONS,
    Absent,
    Meet,
    Other,
    Pull,
    Same,
)
from ...swarm.sampling import SLOTS, Sampling
from ...swarm.sampling_events import Heard, Member, Shunned
from ..gossip.talks import Talk
from ..log import get_logger
from ..net.access import plain
from ..net.host import Host
from ..net.stream import Stream

LOOK_EVERY_S: Final = 30.0  # guess: for newcomers that have not pulled from us yet
LOOK_SOON_S: Final = 1.0  # guess: while some are waited for; while nobody is known, at first
MEET_S: Final = 10.0  # a dial across the world, and a few round trips
STRANGERS_MAX: Final = 16  # asked at a look, all at the same time
FORGET_AFTER: Final = 3  # pulls that failed in a row
OTHERS_MAX: Final = 64  # peers of whom we remember that they are in another run
OF_EACH: Final = (2.0, 16.0)  # guess: questions a second, and at once: one an epoch is due
OF_ALL: Final = (32.0, 128.0)
OPEN_S: Final = 10.0  # for a question

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

log = get_logger()


class Meets(Protocol):
    """What a run needs of a directory (dht/directory.py)."""

    async def keep_providing(self, chunks: Callable[[], Sequence[bytes]]) -> None: ...
    async def providers(self, chunks: Sequence[bytes]) -> Mapping[bytes, tuple[Provider, ...]]: ...


def meeting_of(name: str) -> bytes:
    """Where those who run something of this name meet."""
    return digest("run meeting", name.encode())


class Company:
    """Of one run, as one peer knows it. dice: whom it draws must not be guessable by others. epoch:
    that is under way here. pulls: what answers who pulls our weights, if anything does."""

    def __init__(
        self,
        host: Host,
        directory: Meets,
        terms: Terms,
        dice: Random,
        seen: Callable[[str], str] = lambda peer: "",
    ) -> None:
        """seen: where a connected peer is, as a multiaddr, by the road and not by its own word."""
        self._host = host
        self._directory = directory
        self._terms = terms
        self._run = terms.run
        self._meeting = meeting_of(terms.name)
        self._dice = dice
        self._seen = seen
        self.epoch: Callable[[], int] = lambda: 0
        self.pulls: Callable[[Talk, Pull], Awaitable[None]] | None = None
        self._intake = Intake(OF_EACH, OF_ALL)
        self._liars: set[str] = set()
        self._sampling = Sampling(
            host.peer_id, lambda: dice.getrandbits(64), shunned=self._liars.__contains__
        )
        self._addresses: dict[str, str] = {}  # of those who are known
        self._failures: dict[str, int] = {}  # in a row
        self._others: dict[str, Terms] = {}  # who is in another run of this name
        self._changed = trio.Event()
        self._awaited = False  # somebody waits for more of them
        self._hurry = trio.Event()  # has begun to

    @property
    def members(self) -> Collection[str]:
        """Who is known to be in this run."""
        return self._addresses.keys()

    @property
    def others(self) -> Collection[Terms]:
        """Other runs of this name."""
        return self._others.values()

    def draw(self, count: int) -> tuple[str, ...]:
        """Different members, at random, of those whom the slots keep."""
        kept = [one.peer for one in self._sampling.members(SLOTS) if one.peer in self._addresses]
        return tuple(self._dice.sample(kept, min(count, len(kept))))

    def met(self, peer: str) -> None:
        """It has said that it is in this run."""
        self._failures.pop(peer, None)
        self._others.pop(peer, None)
        if peer in self._addresses or peer in self._liars or peer == self._host.peer_id:
            return
        address = self._seen(peer) or f"/p2p/{peer}"
        self._addresses[peer] = address
        self._sampling.handle(Heard((Member(peer, address),)), trio.current_time())
        kept = {one.peer for one in self._sampling.members(SLOTS)}
        for gone in self._addresses.keys() - kept:
            del self._addresses[gone]  # whom no slot keeps is not known
        self._changed.set()
        self._changed = trio.Event()

    def failed(self, peer: str) -> None:
        """Nothing came of a pull from it."""
        self._failures[peer] = self._failures.get(peer, 0) + 1
        if self._failures[peer] >= FORGET_AFTER:
            self._forget(peer)

    def shun(self, peer: str) -> None:
        """It contradicted itself: never again."""
        self._liars.add(peer)
        self._forget(peer)

    def _forget(self, peer: str) -> None:
        """Until it is met again."""
        self._failures.pop(peer, None)
        self._addresses.pop(peer, None)
        self._sampling.handle(Shunned(peer), trio.current_time())

    async def until(self, count: int) -> None:
        """Until so many others are known."""
        try:
            while len(self._addresses) < count:
                if not self._awaited:
                    self._awaited = True
                    self._hurry.set()
                    self._hurry = trio.Event()
                await self._changed.wait()
        finally:
            self._awaited = False  # also where they are waited for no more

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service; started once it has looked around for the first time."""
        self._host.handle(PROTOCOL, self.serve)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._directory.keep_providing, lambda: [self._meeting])
                await self._look()
                task_status.started()
                await self._look_around()
        finally:
            self._host.unhandle(PROTOCOL)

    async def _look_around(self) -> None:
        wait_s = LOOK_SOON_S
        while True:
            pause_s = LOOK_EVERY_S if self._addresses else wait_s
            with trio.move_on_after(LOOK_SOON_S if self._awaited else pause_s):
                await self._hurry.wait()
            wait_s = min(2 * wait_s, LOOK_EVERY_S)
            await self._look()

    # ---- being asked

    async def serve(self, stream: Stream) -> None:
        """The handler: one question to a stream. Raises RemoteError, TransportError."""
        if not self._intake.takes(stream.peer, trio.current_time()):
            await stream.reset()
            return
        talk = Talk(stream, QUESTIONS, LETTER_BYTES_MAX)
        with trio.move_on_after(OPEN_S) as opening:
            asked = await talk.receive()
        if opening.cancelled_caught:
            raise TransportError(f"{stream.peer} asks nothing")
        answer: Same | Absent | Other
        match asked:
            case Pull(run) if run == self._run and self.pulls is not None:
                await self.pulls(talk, asked)
                return
            case Pull(run) | Meet(run) if run == self._run:
                self.met(stream.peer)
                answer = Same(self.epoch()) if isinstance(asked, Meet) else Absent(self.epoch())
            case _:
                answer = own_terms(self._terms)
        with trio.move_on_after(MEET_S) as sending:
            if asked is not None:
                await talk.send(answer)
            await talk.close()
        if sending.cancelled_caught:
            raise TransportError(f"{stream.peer} takes no answer")

    # ---- looking for others

    async def _look(self) -> None:
        """Meet who else is there."""
        found: tuple[Provider, ...] = ()
        try:
            with trio.move_on_after(MEET_S):
                found = (await self._directory.providers([self._meeting]))[self._meeting]
        except TransportError as error:
            log.info("the directory is not there", reason=str(error))
        new = [one for one in found if one.peer not in self._addresses and self._may(one.peer)]
        async with trio.open_nursery() as nursery:
            for one in self._dice.sample(new, min(STRANGERS_MAX, len(new))):
                nursery.start_soon(self._meet, one)

    def _may(self, peer: str) -> bool:
        known = peer in self._liars or peer == self._host.peer_id
        return not known and self._host.welcomes(peer)

    async def _meet(self, told: Provider) -> None:
        """Ask a stranger whether it is in this run."""
        self._host.learn(told.peer, told.addresses)
        try:
            with trio.fail_after(MEET_S):
                answer = await self._ask(told.peer)
        except (TransportError, trio.TooSlowError) as error:
            log.debug("not met", peer=told.peer, reason=str(error))
            return
        except RemoteError as error:
            self._host.blame(told.peer, error)
            return
        if isinstance(answer, Same):
            self.met(told.peer)
        elif answer.name == self._terms.name and len(self._others) < OTHERS_MAX:
            self._others[told.peer] = answer

    async def _ask(self, peer: str) -> Same | Terms:
        """Raises RemoteError or TransportError."""
        stream = await self._host.open_stream(peer, PROTOCOL)
        try:
            talk = Talk(stream, ANSWERS, LETTER_BYTES_MAX)
            await talk.send(Meet(self._run))
            answer = await talk.receive()
        finally:
            with trio.CancelScope(shield=True):
                await stream.close()
        if isinstance(answer, Other):
            return read_terms(answer.terms)
        if not isinstance(answer, Same):
            raise TransportError(f"{peer} does not say which run it is in")
        return answer


def seen_by(host: Host) -> Callable[[str], str]:
    """Where a peer's connection comes from: the relay's place for one behind a relay."""

    def seen(peer: str) -> str:
        connection = host.best(peer)
        if connection is None:
            return ""
        place = plain(connection.remote[0])
        return f"/ip{place.version}/{place}"

    return seen


def own_terms(terms: Terms) -> Other:
    """What whoever is in another run is told."""
    return Other(encode(terms))
