"""What this node gives, counted and signed for; and what others may use of it in turn.

A client that comes on somebody's account greets us (swarm/settlement.py): from then on what it is
given is given to that account, and it may use the device on that account's credit (swarm/credit.py,
favour.py). Who never greets is served as ever, from the commons.

    greeting ──▶ accounts ── weights, every few seconds ──▶ Favour of each lane ──▶ passes
       │ offer ◀── counts ◀── Metered.step                     │ used
       └─ tally ──▶ credit.db ──▶ Credit ◀────────── spent ────┘

Tallies that clients of this home sign elsewhere come by the same file. A full disk ends nobody's
session: nothing is signed then.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from ...crypto.codec import decode, encode
from ...crypto.keys import IdentityKey
from ...dht.allowance import Allowances
from ...dht.network import prefixes_of
from ...errors import Refused, RemoteError, TransportError, UserError
from ...swarm.blocks import BlockRange
from ...swarm.credit import Credit
from ...swarm.favour import Ages, Favour, Place
from ...swarm.forks import Shown
from ...swarm.settlement import (
    ANSWER_BYTES_MAX,
    GREETING_BYTES_MAX,
    PROTOCOL,
    Answer,
    Claim,
    Greeting,
    make_offer,
    read_greeting,
    read_head,
)
from ...swarm.tally import (
    BLOCK_WEIGHTS,
    EVERY_S,
    EVERY_TOKENS,
    Tally,
    read_offer,
    read_tally,
    work_of,
)
from ...swarm.testimony import Contradiction
from ...swarm.wire import Step
from ..compute.worker import Worker
from ..letters import receive_letter, send_letter
from ..log import get_logger
from ..net.host import Host
from ..net.stream import Stream
from .tallies import Tallies, open_tallies

log = get_logger()

T = TypeVar("T")

TICK_S: Final = 5.0  # guess: what is used meanwhile is known to the lane at once
HURRY_S: Final = 0.1  # for who has just greeted
KEEP_EVERY_S: Final = 60.0
EXCHANGE_S: Final = 10.0  # a deadline for each letter
GREETINGS_S: Final = 0.2  # of one client; an honest one greets after 512 tokens or 30 s,
GREETINGS_SAVED: Final = 20.0  # and at the begin and the end of what it does
OWNERS: Final = 1e15  # what a client of our own home may use: this device is its
ACCOUNTS_MAX: Final = 8192
DISK_CALLS: Final = 2  # at once
FORGIVEN: Final = 0.05  # guess: of what is signed, against arrears: clients are killed, too


class Till:
    """One for a node. `run` is its service, `attend` one of each device."""

    def __init__(
        self,
        host: Host,
        key: IdentityKey,
        tallies: Tallies,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Blocks: it reads what was kept."""
        self._host = host
        self._key = key
        self._tallies = tallies
        self._wall = wall
        self._credit = Credit(key.peer_id, wall(), tallies.book())
        self._ages = Ages(tallies.networks())
        self._change = 0  # of the pairs on the disk, that was taken in last
        self._account_of: dict[str, str] = {}  # of clients, the last greeted last
        self._given: dict[str, float] = {}  # to clients that are connected, and not signed for
        self._late_s: dict[str, float] = {}  # since when a client has signed for less than half
        self._arrears: dict[str, float] = {}  # of accounts: what was not signed for in the end
        self._unanswered: dict[str, tuple[str, Tally, float]] = {}  # (to whom, offer, work in it)
        self._settling: set[str] = set()
        self._shown = Shown()
        self.on_fork: Callable[[Contradiction], None] = lambda item: None  # two for one place
        self._greetings = Allowances(GREETINGS_S, GREETINGS_SAVED)  # they cost us signatures
        self._changed = trio.Event()
        # sqlite lets one write at a time: who waits for it keeps no other thread from its work
        self._disk = trio.CapacityLimiter(DISK_CALLS)

    # ---- what is given

    def gave(self, client: str, tokens: int, blocks: int, width: int) -> None:
        self._given[client] = self._given.get(client, 0.0) + work_of(tokens, blocks, width)
        self._late_s.setdefault(client, trio.current_time())

    def place_of(self, client: str) -> Place:
        """Where it comes from. All at home, or behind one proxy here, come from one network."""
        connection = self._host.best(client)
        remote = connection.remote[0] if connection is not None else ""
        _, wide, narrow = prefixes_of(f"/{'ip6' if ':' in remote else 'ip4'}/{remote}/tcp/1")
        return self._ages.age(wide, self._wall()), wide, narrow

    async def attend(self, metered: Metered) -> None:
        """A service: have a device's turns follow credit."""
        while True:
            changed = self._changed
            try:
                await self._exchange(metered)
            except Refused:
                log.debug("the device has no time for credit")
            with trio.move_on_after(TICK_S):
                await changed.wait()
                await trio.sleep(HURRY_S)  # more may have changed

    async def _exchange(self, metered: Metered) -> None:
        """What was used there, and what may be."""
        used = await metered.run(metered.favour.used)
        now = self._wall()
        for client, cost in used.items():
            account = self._account_of.get(client, client)
            if account != self._host.peer_id:
                self._credit.spend(account, cost * metered.unit, now)
        clients = {
            client: self._account_of[client]
            for client in self._account_of.keys() & set(self._host.connected())
            if self._signs(client, metered.unit)
        }
        count = Counter(clients.values())
        weights = self._credit.weights(list(count), now)
        if self._host.peer_id in weights:
            weights[self._host.peer_id] = OWNERS
        metered.funded = frozenset(who for who, account in clients.items() if weights[account] > 0)
        metered.post(
            metered.favour.fund,
            {
                client: weights[account] / count[account] / metered.unit
                for client, account in clients.items()
            },
        )

    def _signs(self, client: str, unit: float) -> bool:
        """Whether it signs for what it takes; the last interval may be on its way."""
        account = self._account_of[client]
        much = 2 * EVERY_TOKENS * unit
        late_s = trio.current_time() - self._late_s.get(client, trio.current_time())
        if self._given.get(client, 0.0) > much and late_s > 2 * EVERY_S:
            return account == self._host.peer_id
        return self._arrears.get(account, 0.0) <= 2 * much

    # ---- what is signed

    async def run(self) -> None:
        """A service: greet and settle; keep what was settled."""
        self._host.handle(PROTOCOL, self._greet)
        kept_s = trio.current_time()
        try:
            while True:
                await self._take_in()
                if trio.current_time() - kept_s >= KEEP_EVERY_S:
                    kept_s = trio.current_time()
                    await self._keep()
                await trio.sleep(TICK_S)
        finally:
            self._host.unhandle(PROTOCOL)
            with trio.CancelScope(shield=True):
                await self._keep()

    async def _take_in(self) -> None:
        """Tallies that were signed by whichever process of this home."""
        self._let_go()
        try:
            found, self._change = await self._at_disk(
                lambda: self._tallies.sums(after=self._change)
            )
        except UserError as error:
            log.warning("tallies not read", reason=str(error))
            return
        for tally in found:
            self._credit.settle(tally, self._wall())
            await trio.lowlevel.checkpoint()  # after a start they are all that there are

    def _let_go(self) -> None:
        """Of clients that have gone: what they did not sign for, their accounts answer for."""
        connected = set(self._host.connected())
        for gone in self._given.keys() - connected:
            work, account = self._given.pop(gone), self._account_of.get(gone)
            if account is not None and account != self._host.peer_id:
                self._arrears[account] = self._arrears.get(account, 0.0) + work
        for gone in self._late_s.keys() - connected:
            del self._late_s[gone]
        if len(self._arrears) > ACCOUNTS_MAX:
            most = sorted(self._arrears.items(), key=lambda item: -item[1])
            self._arrears = dict(most[: ACCOUNTS_MAX // 2])

    async def _keep(self) -> None:
        """What is written is of one moment: the thread sees nothing that goes on meanwhile."""
        book, networks = self._credit.keep(self._wall()), self._ages.keep()
        try:
            await self._at_disk(self._tallies.keep_book, book, networks)
        except UserError as error:
            log.warning("credit not kept", reason=str(error))

    async def _greet(self, stream: Stream) -> None:
        """The handler."""
        now = trio.current_time()
        if not self._greetings.of(stream.peer, now).has(now):
            await stream.reset()
            return
        raw = await self._receive(stream, GREETING_BYTES_MAX)
        account, greeting = read_greeting(raw, client=stream.peer, server=self._host.peer_id)
        self._know(stream.peer, account)
        if account == self._host.peer_id:
            self._hurry()
        if account == self._host.peer_id or account in self._settling:
            await self._send(stream, Claim(b"", b""))  # ours, or with another client of the same
            await stream.close()
            return
        self._settling.add(account)
        try:
            await self._settle(stream, account, greeting)
        except UserError as error:  # our disk
            log.warning("not settled", account=account, reason=str(error))
            await stream.reset()
        finally:
            self._settling.discard(account)

    async def _settle(self, stream: Stream, account: str, greeting: Greeting) -> None:
        me = self._host.peer_id
        pair = await self._at_disk(self._tallies.pair, account)
        if greeting.head not in (b"", pair.raw):  # an answer never came, or this disk is an old one
            shown = await self._sign(greeting.head, account)
            client, offered, gave = self._unanswered.get(account, ("", None, 0.0))
            if shown == offered:
                self._has_signed(client, account, gave)
            pair = await self._at_disk(self._tallies.pair, account)
        for raw in greeting.shown:
            tally = read_tally(raw)
            if account in tally.peers and me not in tally.peers:
                self._heard(raw, tally)
                if self._credit.matters(tally):
                    self._credit.settle(tally, self._wall())
            await trio.lowlevel.checkpoint()
        self._hurry()
        head = b"" if pair.raw == greeting.head else pair.raw
        gave = min(self._given.get(stream.peer, 0.0), greeting.took)
        if gave <= 0:
            await self._send(stream, Claim(head, b""))
            await stream.close()
            return
        now = self._wall()
        boot = await self._at_disk(self._tallies.next_boot, account, now)
        offer = make_offer(
            self._key, pair.tally, boot=boot, their_boot=greeting.boot, gave=gave, now=now
        )
        _, offered = read_offer(offer)
        self._unanswered.pop(account, None)
        self._unanswered[account] = stream.peer, offered, gave
        if len(self._unanswered) > ACCOUNTS_MAX:
            del self._unanswered[next(iter(self._unanswered))]
        await self._send(stream, Claim(head, offer))
        answer = decode(await self._receive(stream, ANSWER_BYTES_MAX), Answer)
        await stream.close()
        if not answer.tally:
            log.info("a tally was refused", account=account, work=round(gave, 3))
            return
        if read_tally(answer.tally) != offered:
            raise RemoteError("signed another tally than was offered")
        await self._sign(answer.tally, account)
        self._has_signed(stream.peer, account, gave)
        log.debug("tally", account=account, gave=round(gave, 6))

    async def _sign(self, raw: bytes, account: str) -> Tally:
        """A tally of ours, which both signed."""
        tally = read_head(raw, account, self._host.peer_id)
        self._heard(raw, tally)
        await self._at_disk(self._tallies.keep, raw, tally)
        self._credit.settle(tally, self._wall())
        return tally

    def _heard(self, raw: bytes, tally: Tally) -> None:
        for item in self._shown.hear(raw, tally):
            self.on_fork(item)

    def _has_signed(self, client: str, account: str, work: float) -> None:
        """If that client has gone, its account answers for less."""
        self._unanswered.pop(account, None)
        left = self._given.get(client, 0.0) - work
        self._given[client] = max(0.0, left)
        if account in self._arrears:
            paid = work * FORGIVEN + max(0.0, -left)
            self._arrears[account] = max(0.0, self._arrears[account] - paid)
        if left <= work:
            self._late_s.pop(client, None)

    async def _at_disk(self, call: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(call, *args, limiter=self._disk)

    def _know(self, client: str, account: str) -> None:
        """Whoever greets in two names keeps the first, with all that it has not signed for."""
        if self._account_of.get(client, account) != account:
            raise RemoteError("two accounts on one connection")
        self._account_of.pop(client, None)  # the last greeted last
        self._account_of[client] = account
        if len(self._account_of) > ACCOUNTS_MAX:
            del self._account_of[next(iter(self._account_of))]

    def _hurry(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _send(self, stream: Stream, message: Claim) -> None:
        with trio.move_on_after(EXCHANGE_S) as deadline:
            await send_letter(stream, encode(message))
        if deadline.cancelled_caught:
            raise TransportError(f"{stream.peer} took no claim in {EXCHANGE_S:.0f} s")

    async def _receive(self, stream: Stream, bytes_max: int) -> bytes:
        with trio.move_on_after(EXCHANGE_S) as deadline:
            raw = await receive_letter(stream, bytes_max)
        if deadline.cancelled_caught:
            raise TransportError(f"no word of {stream.peer} in {EXCHANGE_S:.0f} s")
        if raw is None:
            raise TransportError(f"{stream.peer} went without a word")
        return raw


class Metered:
    """A worker whose steps are counted. Implements server.Device."""

    def __init__(self, till: Till, worker: Worker, blocks: BlockRange, width: int) -> None:
        self.favour = Favour()
        self.funded: frozenset[str] = frozenset()  # clients with credit, as of the last exchange
        self.unit = len(blocks) * BLOCK_WEIGHTS * width * width  # work of one row
        self._till = till
        self._worker = worker
        self._width = width
        self._placed: dict[str, Place] = {}

    @property
    def waiting(self) -> int:
        return self._worker.waiting

    async def run(self, function: Any, *args: Any) -> Any:
        return await self._worker.run(function, *args)

    async def spare(self, slices: Iterator[None]) -> None:
        await self._worker.spare(slices)

    def gave(self, peer: str, tokens: int, blocks: int) -> None:
        """What was done in spare time: it takes nobody's turn, and is signed for as all else."""
        self._till.gave(peer, tokens, blocks, self._width)

    def post(self, function: Any, *args: Any) -> None:
        self._worker.post(function, *args)

    async def step(
        self, cache: Any, peer: str, payload: memoryview, step: Step, dtype: str, *, within_s: float
    ) -> tuple[memoryview, float]:
        if peer not in self._placed:
            self._placed[peer] = place = self._till.place_of(peer)
            self._worker.post(self.favour.place, peer, place)
            if len(self._placed) > 2 * ACCOUNTS_MAX:
                del self._placed[next(iter(self._placed))]
        answer = await self._worker.step(cache, peer, payload, step, dtype, within_s=within_s)
        self._till.gave(peer, sum(step.sizes), cache.stop - cache.start, self._width)
        return answer


async def open_till(host: Host, key: IdentityKey, home: Path) -> Till:
    """The till of a node, in service as long as the host is. Raises UserError when what it gives
    cannot be kept."""

    def opened() -> Till:
        return Till(host, key, open_tallies(home, key.peer_id))

    till = await trio.to_thread.run_sync(opened)
    host.nursery.start_soon(till.run)
    return till
