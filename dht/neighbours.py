"""Who is around us in the key space: meeting peers, asking them, looking up, staying in touch.

The table, the look-up and the streams put together; what is kept at a place is not its business.
Whoever is met says itself, on a stream that proves its id, where it is; what others say of it is
hearsay, good for one try. Whoever answers with lies is shunned for ten minutes.
"""

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final, TypeVar

import trio

from ..crypto.keys import public_of
from ..errors import Refused, RemoteError, TransportError
from .calls import ASK_S, Calls, Host
from .crowd import is_besieged, siblings, size_seen
from .keyspace import PLACE_BYTES, peer_point, shared_bits
from .lookup import Lookup
from .message import CONTACTS_MAX, Answer, Contact, Find, Found, Hello, Question
from .network import Prefixes, place_of
from .pace import Pace
from .table import RoutingTable

BESIEGED_S: Final = 1.5  # for the records of the wider region; the honest answer in time
SIZES: Final = 3  # places at which we look how dense the swarm is; two of them are not besieged
SIZES_AGE_S: Final = 60.0  # after which a suspicion is checked anew
SHUN_S: Final = 600.0  # of whoever told lies; a guess
SHUNNED_MAX: Final = 4096
TEND_S: Final = 10.0
SILENT_S: Final = 60.0  # after which a peer is asked whether it is there
REFRESH_BUCKET_S: Final = 600.0  # libp2p's; each look-up in a small swarm meets every peer anyway
JITTER: Final = 0.2  # algorithms 3.5: +-20 %, so that a swarm started at once spreads out
BOOTSTRAP_S: Final = 10.0
GRACE_S: Final = 1.0  # for the others, once one of those we join by has answered
JOIN_MAX: Final = 64  # addresses to join by again: the first named, for those the owner chose
SAID_MAX: Final = 1024  # peers; 0.3 MB
LOST_MAX: Final = 16  # peers that stopped answering, to be tried when nobody else is left
ADDRESSES_MAX: Final = 8
ADDRESS_CHARS_MAX: Final = 256

T = TypeVar("T")


class Neighbours:
    """The peers that this one knows and asks."""

    def __init__(
        self, host: Host, nursery: trio.Nursery, *, serve: bool, dice: random.Random
    ) -> None:
        self.table = RoutingTable(host.peer_id)
        self.came = trio.Event()  # set, and replaced, when the table stops being empty
        self.convicted: Callable[[str], bool] = lambda peer: False  # whom never to know
        self.sampled: Callable[[], Sequence[Contact]] = tuple  # nobody chose them for us
        self._host = host
        self._serve = serve
        self._dice = dice
        self._point = peer_point(host.peer_id)
        self._shunned: dict[str, float] = {}
        self._refreshed: dict[int, float] = {}
        self._join: tuple[str, ...] = ()
        self._lost: OrderedDict[str, Contact] = OrderedDict()  # the last one lost at the end
        self._said: OrderedDict[str, tuple[str, ...]] = OrderedDict()  # where each says to be
        self._pace = Pace()
        self._first_pace = Pace()  # of a first answer: a connection and a stream are opened before
        self._sized_s = -math.inf
        self._sizes: list[float] = []  # of the swarm, as seen at some places
        self.calls = Calls(host, nursery, self.hello, self.met)

    def hello(self) -> Hello:
        short = [a for a in self._host.addresses() if len(a) <= ADDRESS_CHARS_MAX]
        return Hello(tuple(short[:ADDRESSES_MAX]), self._serve)

    def met(self, peer: str, hello: Hello) -> None:
        """A peer said where it is, on a stream that proves who it is."""
        if not hello.serving or peer in self._shunned or self.convicted(peer):
            return
        own = tuple(a for a in hello.addresses if a.endswith(f"/p2p/{peer}"))
        self._say(peer, own)
        alone = len(self.table) == 0
        if self.table.addresses(peer) != own:  # new, or back at another port
            self._learn(peer, own)
        seen = self._host.where(peer)
        if self.table.heard(Contact(peer, own), trio.current_time(), seen=seen) and alone:
            self.came.set()
            self.came = trio.Event()

    def place(self, peer: str) -> Prefixes:
        """The network of a peer that has spoken: as the road shows it, else as it says."""
        return place_of(self._said.get(peer, ()), self._host.where(peer))

    async def join(self, addresses: Sequence[str]) -> int:
        """Meet these peers and those close to us; how many we know then.

        Raises TransportError when none of them answers.
        """
        self._join = tuple(dict.fromkeys((*self._join, *addresses)))[:JOIN_MAX]
        await self._meet(addresses)
        await self.lookup(self._point)
        return len(self.table)

    async def _meet(self, addresses: Sequence[str]) -> None:
        """Greet all; when one has answered, the others have a second. Raises TransportError."""
        groups: dict[str, list[str]] = {}
        for address in addresses:
            _, named, peer = address.rpartition("/p2p/")
            if not named or peer != self._host.peer_id:
                groups.setdefault(peer if named else address, []).append(address)
        failures: list[str] = []
        async with trio.open_nursery() as nursery:

            async def greet(group: list[str]) -> None:
                if await self._greet(group, failures):
                    enough_s = trio.current_time() + GRACE_S
                    nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, enough_s)

            for group in groups.values():
                nursery.start_soon(greet, group)
        if groups and len(failures) == len(groups):
            raise TransportError("; ".join(failures))

    async def lookup(
        self, place: bytes, take: Callable[[Found], None] | None = None,
        have: Callable[[], bytes] = bytes,
    ) -> list[Contact]:  # fmt: skip
        """The 20 closest peers to a place that answer, closest first; more at a besieged place.

        take: is given each answer, with the records there, and raises RemoteError at a lie;
        have: names those that need not be sent again. Without `take` no records are asked for.
        """
        near = await self._search(place, take, have)
        if is_besieged(place, near, self.size()):
            if trio.current_time() - self._sized_s > SIZES_AGE_S:
                await self._size_up()  # the swarm may have grown
            if is_besieged(place, near, self.size()):
                return [*near, *await self._beyond(near, place, take, have)]
        return near

    async def _beyond(
        self, near: Sequence[Contact], place: bytes, take: Callable[[Found], None] | None,
        have: Callable[[], bytes],
    ) -> list[Contact]:  # fmt: skip
        """The other peers of a besieged place's region; their records are asked for too.

        Those who stand around the place are not asked for the others: they would name their like,
        and may be all whom we know in that part of the space.
        """
        wide: dict[str, Contact] = {}

        besiegers = frozenset(contact.peer for contact in near)

        async def search(sibling: bytes) -> None:
            for contact in await self._search(sibling, but=besiegers):
                wide[contact.peer] = contact

        async def ask(contact: Contact) -> None:
            assert take is not None
            try:
                found = await self.find(contact, Find(0, place, True, have()))
                self.believe(contact.peer, lambda: take(found))
            except (TransportError, RemoteError):
                del wide[contact.peer]

        async with trio.open_nursery() as nursery:
            for sibling in siblings(place, self.size()):
                nursery.start_soon(search, sibling)
        if take is not None:
            with trio.move_on_after(BESIEGED_S):
                async with trio.open_nursery() as nursery:
                    for contact in list(wide.values()):
                        nursery.start_soon(ask, contact)
        return list(wide.values())

    async def wander(self) -> list[Contact]:
        """All that are heard of on the way to a place that nobody else can know: five times as
        many as are asked."""
        return (await self._walk(self._dice.randbytes(PLACE_BYTES))).heard()

    async def _search(
        self, place: bytes, take: Callable[[Found], None] | None = None,
        have: Callable[[], bytes] = bytes, *, but: frozenset[str] = frozenset(),
    ) -> list[Contact]:  # fmt: skip
        """The 20 closest that one look-up finds, without these."""
        return (await self._walk(place, take, have, but=but)).closest(CONTACTS_MAX)

    async def _walk(
        self, place: bytes, take: Callable[[Found], None] | None = None,
        have: Callable[[], bytes] = bytes, *, but: frozenset[str] = frozenset(),
    ) -> Lookup:  # fmt: skip
        """One look-up, to its end."""
        known = self.table.closest(place, CONTACTS_MAX + len(but))
        seeds = [contact for contact in known if contact.peer not in but][:CONTACTS_MAX]
        lookup = Lookup(
            place, seeds, me=self._host.peer_id, shunned=self._shunned.keys() | but,
            patience=self._patience, sampled=() if but else self.sampled(),
        )  # fmt: skip
        heard = trio.Event()

        async def ask(contact: Contact) -> None:
            try:
                found = await self.find(contact, Find(0, place, take is not None, have()))
                if take is not None:
                    self.believe(contact.peer, lambda: take(found))
            except (TransportError, RemoteError):
                lookup.failed(contact.peer)
            else:
                lookup.answered(contact.peer, found.closer, seen=self._host.where(contact.peer))
            heard.set()

        async with trio.open_nursery() as asking:
            while True:
                for contact in lookup.next(trio.current_time()):
                    asking.start_soon(ask, contact)
                if lookup.done():
                    break
                with trio.move_on_at(lookup.wake_s()):
                    await heard.wait()
                heard = trio.Event()
            asking.cancel_scope.cancel()  # those who are slow are not waited for
        return lookup

    async def find(self, contact: Contact, question: Find) -> Found:
        """Raises TransportError, or RemoteError at nonsense; the table knows of either."""
        answer = await self.ask(contact, question)

        def check() -> Found:
            if not isinstance(answer, Found):
                raise RemoteError("an answer to another question")
            for closer in answer.closer:
                public_of(closer.peer)
            return answer

        return self.believe(contact.peer, check)

    async def ask(
        self, contact: Contact, question: Question, *, deadline_s: float = ASK_S
    ) -> Answer:
        """Raises TransportError, or RemoteError at nonsense; the table knows of either."""
        peer = contact.peer
        if contact.addresses and peer not in self.table:
            self._learn(peer, contact.addresses)
        try:
            begun_s = trio.current_time()
            pace = self._pace if self.calls.linked(peer) else self._first_pace
            answer = await self.calls.ask(peer, question, deadline_s=deadline_s)
            pace.took(trio.current_time() - begun_s)
        except TransportError:
            addresses = self.table.addresses(peer)
            self.table.failed(peer)
            if addresses is not None and peer not in self.table:
                self._lose(Contact(peer, addresses))
            raise
        except RemoteError:
            self._shun(peer)
            raise
        self.table.touch(peer, trio.current_time())
        return answer

    async def tend(self) -> None:
        """Upkeep, for ever: ask after the silent, look into old buckets, join again when alone."""
        await self._size_up()
        while True:
            await trio.sleep(self.jittered(TEND_S))
            now = trio.current_time()
            self._shunned = {peer: until for peer, until in self._shunned.items() if until > now}
            if not len(self.table) and (self._join or self._lost):
                await self._join_again()
            await self._ask_the_stalest(now)
            await self._refresh_a_bucket(now)

    def jittered(self, seconds: float) -> float:
        return seconds * self._dice.uniform(1 - JITTER, 1 + JITTER)

    async def _greet(self, addresses: list[str], failures: list[str]) -> bool:
        """Connect, exchange Hellos, and hear of the peer's neighbours; whether it answered."""
        try:
            with trio.move_on_after(BOOTSTRAP_S):
                peer = await self._host.connect(addresses)
                await self.find(Contact(peer, ()), Find(0, self._point, False, b""))
                return True
            failures.append(f"{addresses[0]}: no answer within {BOOTSTRAP_S:.0f} s")
        except (TransportError, RemoteError, Refused) as error:
            failures.append(f"{addresses[0]}: {error}")
        return False

    async def _join_again(self) -> None:
        lost = (address for contact in self._lost.values() for address in contact.addresses)
        try:
            await self._meet((*self._join, *lost))
            await self.lookup(self._point)
        except TransportError:
            return  # nobody is there yet; the next round tries again

    async def _ask_the_stalest(self, now: float) -> None:
        stalest = self.table.stalest()
        if stalest is None or now - stalest[1] < SILENT_S:
            return
        try:
            await self.find(stalest[0], Find(0, self._point, False, b""))
        except (TransportError, RemoteError):
            return  # the table knows of it

    async def _refresh_a_bucket(self, now: float) -> None:
        """Look up a random place in the widest bucket that is due.

        A look-up that met all who share that many bits with us has seen to the deeper ones too.
        """
        prefixes = self.table.prefixes()
        due = [p for p in prefixes if now - self._refreshed.get(p, -math.inf) >= REFRESH_BUCKET_S]
        if not due:
            return
        bits = due[0]
        self._refreshed[bits] = now
        place = self._place_with_prefix(bits)
        met = await self._search(place)
        if len(met) == CONTACTS_MAX and shared_bits(place, peer_point(met[-1].peer)) < bits:
            self._refreshed |= {deeper: now for deeper in prefixes if deeper > bits}

    def size(self) -> float:
        """How many peers the swarm has, as far as we saw; infinite while we saw nothing."""
        if self._sizes:
            return median(self._sizes)
        around = size_seen(self._point, self.table.closest(self._point))
        return math.inf if around is None else around  # until we have looked: as dense as around us

    async def _size_up(self) -> None:
        """See how dense the swarm is now, at places that nobody else can know."""
        self._sized_s = trio.current_time()
        seen: list[float] = []

        async def look() -> None:
            place = self._dice.randbytes(PLACE_BYTES)
            size = size_seen(place, await self._search(place))
            if size is not None:
                seen.append(size)

        async with trio.open_nursery() as nursery:
            for _ in range(SIZES):
                nursery.start_soon(look)
        self._sizes = seen

    def _place_with_prefix(self, bits: int) -> bytes:
        """A random place that shares exactly `bits` bits with our own point."""
        rest = PLACE_BYTES * 8 - bits  # at least 1, because nobody shares all with us
        mine = int.from_bytes(self._point)
        first_other = 1 << (rest - 1)
        return (mine ^ first_other ^ self._dice.getrandbits(rest - 1)).to_bytes(PLACE_BYTES)

    def _patience(self, peer: str) -> float:
        pace = self._pace if self.calls.linked(peer) else self._first_pace
        return pace.patience_s()

    def _say(self, peer: str, addresses: tuple[str, ...]) -> None:
        self._said.pop(peer, None)
        self._said[peer] = addresses
        while len(self._said) > SAID_MAX:
            self._said.popitem(last=False)

    def _lose(self, contact: Contact) -> None:
        self._lost.pop(contact.peer, None)
        self._lost[contact.peer] = contact
        while len(self._lost) > LOST_MAX:
            self._lost.popitem(last=False)

    def _learn(self, peer: str, addresses: Sequence[str]) -> None:
        try:
            self._host.learn(peer, addresses)
        except RemoteError:
            return  # no addresses that can be dialled: the peer will be unreachable, no more

    def believe(self, peer: str, check: Callable[[], T]) -> T:
        """What `check` gives; a peer whose answer it refuses is shunned."""
        try:
            return check()
        except RemoteError:
            self._shun(peer)
            raise

    def _shun(self, peer: str) -> None:
        """Neither ask nor tell of this peer for a while."""
        self.table.remove(peer)
        self._shunned[peer] = trio.current_time() + SHUN_S
        while len(self._shunned) > SHUNNED_MAX:
            del self._shunned[next(iter(self._shunned))]
