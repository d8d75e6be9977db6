"""Keeps a view of the swarm that a flood of liars cannot capture, and offers peers drawn from it.

The rules stand in swarm/sampling.py; here is what waits. Each round one peer is asked for its view
and another is told ours, on a stream of its own. A peer is ranked by the network it is in, so its
address counts only as far as the road bears it out: where we dialled it, or what it says of itself
at the very host that its packets come from.

    talks ─▶ Sampling ─▶ contacts(): whoever needs peers that nobody chose for us
    directory.wander ─▶┘  ├─▶ drawn(): peers sampled one by one, all the same likely
                          └─▶ ranked(): these, then the others, for lookouts.py
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from random import Random
from typing import Final, Protocol

import trio

from ...dht.allowance import Intake
from ...dht.known import Known
from ...dht.message import Contact
from ...dht.network import diverse, prefixes_of
from ...errors import RemoteError, TransportError
from ...swarm.machine import Fired, SetTimer
from ...swarm.sampling import PIN_EVERY, SLOTS, Sampling
from ...swarm.sampling_events import (
    ADDRESS_CHARS_MAX,
    LETTER_BYTES_MAX,
    PROTOCOL,
    Back,
    Effect,
    Event,
    Heard,
    Lost,
    Member,
    Pull,
    Received,
    Sample,
    Send,
    Shunned,
    Size,
    View,
    Walk,
)
from ..log import get_logger
from ..net.access import plain
from ..net.address import parse_known
from ..net.host import Host
from ..net.peers import Connection
from ..net.stream import Stream
from ..timers import Timers
from .talks import TALK_S, Talk, open_talk

log = get_logger()

OF_EACH: Final = (1.0, 20.0)  # talks a second, and at once: a peer has two for us in a round
OF_ALL: Final = (20.0, 60.0)  # the machine takes VIEWS_MAX and PULLS_MAX a round; to read costs too
DOING_MAX: Final = 16  # effects that wait to be carried out: three a round
DRAWN_MAX: Final = 64


class Wanders(Protocol):
    """What the sampling needs of a directory."""

    async def wander(self) -> Sequence[Contact]: ...
    def size(self) -> float: ...
    def answered(self) -> Sequence[Known]: ...
    async def bootstrap(self, addresses: Sequence[str]) -> int: ...


class Sampler:
    """One for a process. shunned: whom never to know, besides those that the host does not welcome;
    pinned: whom the owner named, always to be known; watches: a client's, which costs nothing for
    its first seconds, answers nobody, and is known to none."""

    def __init__(
        self,
        host: Host,
        directory: Wanders,
        dice: Random,
        *,
        slots: int = SLOTS,
        shunned: Callable[[str], bool] = lambda peer: False,
        pinned: Iterable[Member] = (),
        watches: bool = False,
    ) -> None:
        self._host = host
        self._watches = watches
        self._directory = directory
        self._dice = dice
        self._machine = Sampling(
            host.peer_id,
            lambda: dice.getrandbits(64),
            slots=slots,
            shunned=lambda peer: shunned(peer) or not host.welcomes(peer),
            pinned=pinned,
            watches=watches,
        )
        self._timers = Timers(lambda key: self._dispatch(Fired(key)))
        self._effects, self._to_do = trio.open_memory_channel[Effect](DOING_MAX)
        self._intake = Intake(OF_EACH, OF_ALL)
        self._drawn: deque[Member] = deque(maxlen=DRAWN_MAX)

    def contacts(self, count: int) -> tuple[str, ...]:
        """Peers of the view, in random order, those that have spoken to us first, but now and then
        somebody pinned; of the others no network has more than its part. The host knows where to
        dial each."""
        some, pinned = list(self._machine.members()), self._machine.pinned()
        self._dice.shuffle(some)
        some.sort(key=lambda one: not self._machine.met(one.peer))
        if pinned and not self._dice.randrange(PIN_EVERY):
            some.insert(0, self._dice.choice(pinned))
        ranked = (
            (one, () if one in pinned else (prefixes_of(one.address),))
            for one in dict.fromkeys(some)
        )
        chosen = diverse(ranked, count)
        for one in chosen:
            self._host.learn(one.peer, (one.address,))
        return tuple(dict.fromkeys(one.peer for one in chosen))

    def drawn(self) -> tuple[str, ...]:
        """The last samples, each drawn from the whole swarm, the newest last. None in the first
        minutes, and never many: a slot has to hear of everybody first."""
        return tuple(one.peer for one in self._drawn)

    def ranked(self) -> tuple[Member, ...]:
        """Who has answered us of late: those drawn, the newest first, then others of the view in
        random order, which are as good as the view is: it takes minutes to draw anybody."""
        others = list(self._machine.members())
        self._dice.shuffle(others)
        found = dict.fromkeys((*reversed(self._drawn), *others))
        return tuple(one for one in found if self._machine.met(one.peer))

    def met(self, peer: str) -> bool:
        """Whether it has answered us of late, at the address that it is ranked by."""
        return self._machine.met(peer)

    def shun(self, peer: str) -> None:
        """Forget it: it was banned."""
        left = [one for one in self._drawn if one.peer != peer]
        self._drawn.clear()
        self._drawn.extend(left)
        self._dispatch(Shunned(peer))

    def counts(self) -> dict[str, int]:
        """How many peers the view holds."""
        return {"sampled": len(self._machine.members())}

    async def run(self) -> None:
        """A service."""
        if not self._watches:
            self._host.handle(PROTOCOL, self._receive)
        self._perform(self._machine.start(trio.current_time()))
        if self._watches:
            self._hear(())
        else:
            self._perform([Walk()])
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._timers.run)
                async for effect in self._to_do:  # left open: handlers may outlive us
                    nursery.start_soon(self._do, effect)
        finally:
            if not self._watches:
                self._host.unhandle(PROTOCOL)

    # ---- what happens

    def _dispatch(self, event: Event) -> None:
        self._perform(self._machine.handle(event, trio.current_time()))

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case SetTimer(key, at_s):
                    self._timers.set(key, at_s)
                case Sample(member):
                    self._drawn.append(member)
                case _:
                    with suppress(trio.WouldBlock):  # a round without it: there are others
                        self._effects.send_nowait(effect)

    async def _do(self, effect: Effect) -> None:
        match effect:
            case Send(member, message):
                await self._send(member, message)
            case Walk():
                await self._walk()
            case Back(member):
                await self._rejoin(member)

    async def _walk(self) -> None:
        self._hear(await self._directory.wander())

    def _hear(self, wandered: Iterable[Contact]) -> None:
        """Of these, and of whom the directory knows already."""
        met = [*wandered]
        met += [Contact(known.peer, known.addresses) for known in self._directory.answered()]
        self._dispatch(Heard(tuple(one for contact in met for one in self._members(contact))))
        size = self._directory.size()
        if size < float("inf"):
            self._dispatch(Size(round(size)))

    def _members(self, contact: Contact) -> Iterable[Member]:
        """Where it was seen to be, or else what is said of it first."""
        seen = self._seen(contact.peer)
        if seen.address:
            yield seen
            return
        tail = f"/p2p/{contact.peer}"
        for address in contact.addresses[:1]:
            bare = address.removesuffix(tail)
            if 0 < len(bare) <= ADDRESS_CHARS_MAX:
                yield Member(contact.peer, bare)

    async def _rejoin(self, member: Member) -> None:
        """The directory forgets who does not answer: halves of it find each other by us."""
        try:
            await self._directory.bootstrap([f"{member.address}/p2p/{member.peer}"])
        except TransportError as error:
            log.debug("not joined again", by=member.peer, reason=str(error))

    # ---- the road

    async def _send(self, member: Member, message: Pull | View) -> None:
        peer = member.peer
        self._host.learn(peer, (member.address,))
        try:
            if isinstance(message, Pull):
                await self._look(member)
            async with open_talk(
                self._host, peer, PROTOCOL, (Pull, View), LETTER_BYTES_MAX
            ) as talk:
                await talk.send(message)
                if isinstance(message, View):
                    return
                answer = await talk.receive()
                if answer is None:
                    return  # it has answered enough of us in this round
                if not isinstance(answer, View):
                    raise RemoteError("a question where a view belongs")
                self._dispatch(Received(self._seen(peer, member.address), answer))
            if not self._machine.met(peer):
                self._dispatch(Lost(member))  # it answers, and from somewhere else
        except TransportError:
            self._dispatch(Lost(member))
        except RemoteError as error:
            self._host.blame(peer, error)

    async def _look(self, member: Member) -> None:
        """Dial a peer that we have not met where it is said to be, though it may have dialled us.

        Raises TransportError.
        """
        peer = member.peer
        if self._machine.met(peer) or not self._host.connections(peer):
            return
        if self._seen(peer, member.address).address != member.address:
            with trio.move_on_after(TALK_S):
                connection = await self._host.dial_at(peer, parse_known([member.address], peer))
                await connection.asked.wait()

    async def _receive(self, stream: Stream) -> None:
        """The handler: a question, or a view, to a stream."""
        if not self._intake.takes(stream.peer, trio.current_time()):
            await stream.reset()
            return
        talk = Talk(stream, (Pull, View), LETTER_BYTES_MAX)
        with trio.move_on_after(TALK_S) as deadline:
            message = await talk.receive()
            if message is None:
                raise TransportError("nothing was said")
            await self._host.identified(stream.peer)
            member = self._seen(stream.peer)
            effects = self._machine.handle(Received(member, message), trio.current_time())
            answers = [one for one in effects if isinstance(one, Send) and one.member == member]
            self._perform(one for one in effects if one not in answers)
            await talk.send(*(one.message for one in answers))
            await talk.close()
        if deadline.cancelled_caught:
            raise TransportError(f"not all was said in {TALK_S:.0f} s")

    def _seen(self, peer: str, wanted: str = "") -> Member:
        """A peer with an address that a connection bears out, `wanted` if one does; "" if none."""
        found = {seen_at(connection) for connection in self._host.connections(peer)}
        return Member(peer, wanted if wanted in found else max(found, default=""))


def seen_at(connection: Connection) -> str:
    """Where the other end can be dialled, as far as the connection itself shows it.

    What was dialled from a port where we listen may have been a hole punched into a NAT, which
    nobody else can use.
    """
    dialed = connection.relay is None and connection.mux.dialer and not connection.from_port
    if dialed and connection.listens_at is not None:
        return str(connection.listens_at)
    if connection.claims is None:
        return ""
    host = plain(connection.remote[0])
    for address in connection.claims.addresses:
        if address.is_ip and address.relay == connection.relay and plain(address.host) == host:
            return str(address.bare)
    return ""
