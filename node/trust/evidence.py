"""Who is shunned here, and why: evidence comes in by gossip, is judged, and has consequences.

The rules stand in swarm/evidence.py and what may be said in swarm/testimony.py; here is what waits.

    gossip ────────────────▶ judge ──▶ Evidence ──▶ Pass ──▶ gossip
    the directory's reader ──┘ ▲                    Ban ──▶ home/bans, Trust, the host's door, told
    the registry ──────────────┤                    Recompute ──▶ one at a time ──▶ Recomputed
    an auditor of ours ────────┘                    Attest ──▶ signed, gossip

A peer that is banned is not dialed, is sent away when it connects, and what it says of itself is
left out of what `find` tells. Contradictions go to everybody, again and again while who is banned
is still about; accusations, and what others found when they computed the work again, to those who
serve the same segment of the model.
"""

from __future__ import annotations

import math
import random
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from ...crypto.codec import decode_any, encode
from ...crypto.keys import IdentityKey
from ...dht.record import DOMAIN as RECORD
from ...dht.record import SKEW_MAX_S, Announcement, Record, read
from ...errors import RemoteError
from ...swarm.banned import Acquaintance, Ban
from ...swarm.blocks import BlockRange
from ...swarm.evidence import (
    CASES_MAX,
    KEEP_S,
    Attest,
    Blame,
    Effect,
    Event,
    Evidence,
    Heard,
    Pass,
    Received,
    Recompute,
    Recomputed,
)
from ...swarm.machine import Fired, SetTimer
from ...swarm.receipt import CHUNK_TOKENS
from ...swarm.recent import Verdict as Passed
from ...swarm.testimony import (
    ITEM_BYTES_MAX,
    ITEMS,
    Accusation,
    Attestation,
    Case,
    Contradiction,
    Item,
    SignedAttestation,
    Verdict,
    contradiction_of,
    sign_accusation,
    sign_attestation,
    suspect,
)
from ...swarm.topics import (
    CAPABILITY,
    EVIDENCE,
    RUNS,
    Message,
    fits,
    home_of,
    kind_of,
    told_in,
    topics_of,
)
from ..log import get_logger
from ..member import Member
from ..net.gossip import Gossiper
from ..net.host import Host
from ..timers import Timers
from .bans import KEPT_MAX, Bans
from .book import Trust
from .exhibit import PROTOCOL as EXHIBIT
from .exhibit import Exhibits, exhibit_of
from .standing import Cleared, Standings

if TYPE_CHECKING:  # they bring numpy, and light nodes are without it
    from ...swarm.ledger import Work
    from ..placing import Finds

TOPICS_EVERY_S: Final = 5.0  # until blocks that moved are heard of
AGAIN_S: Final = 60.0  # guess: a newcomer with a mesh of eight hears of eight proofs a minute
RECOMPUTES_MAX: Final = 32  # that wait; others serve the blocks as well
ERROR_MOST: Final = 1e9  # what an accusation can say
EARLY_MAX: Final = 256  # attestations that came before their accusation

Serving = Callable[[], Iterable[tuple[str, BlockRange]]]
Compute = Callable[[Case], Awaitable[Verdict | None]]

log = get_logger()


class Court:
    """One for a node. told: called with each peer that is banned; wall: unix seconds."""

    def __init__(
        self,
        host: Host,
        key: IdentityKey,
        trust: Trust,
        bans: Bans,
        standings: Standings,
        dice: random.Random,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.told: list[Callable[[str], None]] = []
        self.met: Callable[[str], bool] = lambda peer: False  # by the sampling
        self.capability: Callable[[Message], Passed] = lambda message: "drop"  # capability.py
        self.poisoned: Callable[[str], bool] = lambda peer: False  # weights/poison.py
        self.gossip = Gossiper(host, self._judge, dice, trust.mean)
        self._host = host
        self._key = key
        self._dice = dice
        self.trust = trust
        self._bans = bans
        self._standings = standings
        self._wall = wall
        self._machine = Evidence(key.peer_id, standings.of, self._acquaintance)
        self._timers = Timers(self._fire)
        self.exhibits = Exhibits()
        self._cases: OrderedDict[bytes, str] = OrderedDict()  # accusations: where they are told
        self._early: deque[tuple[bytes, SignedAttestation]] = deque(maxlen=EARLY_MAX)
        self._to_compute, self._computing = trio.open_memory_channel[Case](RECOMPUTES_MAX)
        self._unwritten: deque[Ban] = deque(maxlen=KEPT_MAX)
        self._banning = trio.Event()
        self._has_twin = False

    # ---- for the node

    def banned(self, peer: str) -> bool:
        return self._machine.banned(peer, self._wall()) or self.poisoned(peer)

    def bans(self) -> tuple[Ban, ...]:
        return self._machine.bans(self._wall())

    def contradicts(self, one: Record, other: Record) -> None:
        """Two records of one slot, boot and seq were read that say different things."""
        self.take(contradiction_of(RECORD, one.raw, other.raw))

    def is_about(self, record: Record) -> None:
        """Who is banned still says this of itself: whoever believes it has to hear of the proof."""
        if record.kind == Announcement.KIND:
            with suppress(RemoteError):  # rightly signed nonsense
                self._standings.learn([read(record, Announcement)])

    def take(self, item: Item) -> None:
        """What was found here, by us. Nonsense is found nowhere: it is passed over."""
        try:
            self._dispatch(Received(item), home_of(item))
        except RemoteError as error:
            log.warning("no evidence", reason=str(error))

    async def accuse(self, work: Work, error: float) -> bytes:
        """Say to all who serve these blocks that this work is wrong, by so much, and show it to
        whoever asks for an hour: its rows too, from which a prompt can be read again, so that
        nobody's words may be in it. The exhibit's name. Raises RemoteError when it is too large to
        be shown."""
        raw = await trio.to_thread.run_sync(exhibit_of, work)
        opening, chunk = work.account.raw[0], work.account.raw[work.place + 1]
        inputs = self.exhibits.put(raw)
        error = min(error, ERROR_MOST)
        told = Accusation(work.peer, opening, chunk, inputs, error, self._wall())
        self.take(sign_accusation(self._key, told))
        return inputs

    def cleared(self, finds: Finds) -> Finds:
        """The same directory, without those who are banned; who serves what is learned by it."""
        return Cleared(finds, self._standings, self.banned)

    def counts(self) -> dict[str, int]:
        return {
            **self.gossip.counts(),
            "cases": self._machine.open_cases(),
            "bans": len(self.bans()),
        }

    async def restore(self) -> None:
        """Shun whom this home shunned before. To be called before anybody is served."""
        now = self._wall()
        kept = await trio.to_thread.run_sync(self._bans.load, now)
        self._machine.restore(kept, now)
        for ban in kept:
            if not self.trust.banned(ban.peer):  # its book was lost
                self.trust.convict(ban.peer, for_good=ban.until_s == math.inf)
        self._host.shun(self.banned)

    async def run(self, serving: Serving, compute: Compute | None = None) -> None:
        """A service. serving: which blocks of which models, now; compute: work, again."""
        self._host.handle(EXHIBIT, self.exhibits.serve)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.gossip.run)
                nursery.start_soon(self._timers.run)
                nursery.start_soon(self._standings.keep)
                nursery.start_soon(self.trust.keep)
                nursery.start_soon(self._keep_bans)
                nursery.start_soon(self._tell_again)
                if compute is not None:
                    nursery.start_soon(self._recompute, compute)
                await self._keep_topics(serving)
        finally:
            self._host.unhandle(EXHIBIT)
            self._write_bans(self._wall())

    # ---- what comes in

    def _judge(self, message: Message) -> Passed:
        """What gossip is to make of a message (swarm/gossip.py)."""
        if kind_of(message.topic) == CAPABILITY:
            return self.capability(message)
        try:
            item = decode_any(message.data, ITEMS, max_bytes=ITEM_BYTES_MAX)
            if not fits(item, message.topic):
                raise RemoteError(f"evidence that does not belong to {message.topic}")
            if not self._is_of_now(item):
                return "stale"
            passed = self._dispatch(Received(item), message.topic, judged=item)
        except RemoteError as error:
            log.debug("evidence refused", reason=str(error))
            return "wrong"
        if not passed and isinstance(item, SignedAttestation):
            self._keep_early(item)
        if isinstance(item, Contradiction) and suspect(item) == self._key.peer_id:
            self._warn_of_twin()
        return "pass" if passed else "drop"

    def _is_of_now(self, item: Item) -> bool:
        """Whether it may be heard of now: asked before any signature is checked."""
        if isinstance(item, Contradiction):
            return True
        told = told_in(item)
        now = self._wall()
        return told.issued_s - 2 * SKEW_MAX_S <= now < told.issued_s + KEEP_S

    def _keep_early(self, item: SignedAttestation) -> None:
        about = told_in(item)
        assert isinstance(about, Attestation)
        if about.accusation not in self._cases:
            self._early.append((about.accusation, item))

    def _warn_of_twin(self) -> None:
        if not self._has_twin:
            self._has_twin = True
            log.warning(
                "another node signs with our key: a home was copied, and others shun us by now; "
                "begin anew, without identity.key"
            )

    def _fire(self, key: Hashable) -> None:
        self._dispatch(Fired(key))

    # ---- what comes of it

    def _dispatch(self, event: Event, topic: str = EVIDENCE, *, judged: Item | None = None) -> bool:
        """Whether what is judged is to be passed on; raises RemoteError at what nobody honest
        says."""
        effects = self._machine.handle(event, self._wall())
        passed = False
        for effect in effects:
            if isinstance(effect, Pass) and effect.item is judged:
                passed = True
            else:
                self._perform(effect, topic)
        return passed

    def _perform(self, effect: Effect, topic: str) -> None:
        match effect:
            case Pass(item):
                self.gossip.publish(topic, encode(item))
            case Attest(told):
                item = sign_attestation(self._key, told)
                self.gossip.publish(self._cases.get(told.accusation, topic), encode(item))
            case SetTimer(key, at_s):
                self._timers.set(key, trio.current_time() + at_s - self._wall())
                match key:
                    case ("settle", bytes(id)):
                        self._opened(id, topic)
            case Recompute(case):
                with suppress(trio.WouldBlock):  # others serve these blocks as well
                    self._to_compute.send_nowait(case)
            case Blame(peer):
                self.trust.audited(peer, right=False, tokens=CHUNK_TOKENS)
            case Heard(about, by, said):
                self.trust.heard(about, by, right=None if said is None else said == "right")
            case Ban():
                self._ban(effect)

    def _opened(self, id: bytes, topic: str) -> None:
        """A case: what was said of it before it was known is heard now."""
        self._cases[id] = topic
        if len(self._cases) > CASES_MAX:
            self._cases.popitem(last=False)
        early = [item for about, item in self._early if about == id]
        if early:
            kept = [one for one in self._early if one[0] != id]
            self._early.clear()
            self._early.extend(kept)
        for item in early:
            self._dispatch(Received(item), topic)  # its signature was found good when it came

    def _acquaintance(self, peer: str) -> Acquaintance:
        """In our sight is also who is connected, or has answered the sampling at its address."""
        known, connection = self._standings.acquaintance(peer), self._host.best(peer)
        if connection is None and not self.met(peer):
            return known
        network = known.network if connection is None else connection.network[1]
        return Acquaintance(max(1.0, known.known_s), network)

    def _ban(self, ban: Ban) -> None:
        log.warning("banned on evidence", banned=ban.peer, grounds=ban.grounds)
        self.trust.convict(ban.peer, for_good=ban.until_s == math.inf)
        self._unwritten.append(ban)
        self._banning.set()
        self._host.shun(self.banned)
        for tell in self.told:
            tell(ban.peer)

    # ---- what waits

    async def _keep_topics(self, serving: Serving) -> None:
        while True:
            wanted = {EVIDENCE, RUNS}
            for model, blocks in serving():
                wanted |= topics_of(model, blocks) | topics_of(model, blocks, CAPABILITY)
            self.gossip.subscribe(wanted)
            await trio.sleep(TOPICS_EVERY_S)

    async def _tell_again(self) -> None:
        """Whoever came since has not heard of a ban; who knows of it passes nothing on."""
        while True:
            await trio.sleep(AGAIN_S * self._dice.uniform(0.8, 1.2))
            there = self._standings.lately()
            proofs = [
                ban.proof
                for ban in self.bans()
                if ban.peer in there and isinstance(ban.proof, Contradiction)
            ]
            if proofs:
                proof = self._dice.choice(proofs)
                self.gossip.publish(home_of(proof), encode(proof))

    async def _recompute(self, compute: Compute) -> None:
        async for case in self._computing:
            if self.banned(case.accuser) or self.banned(case.told.accused):
                continue
            verdict = await compute(case)
            log.info("computed again", accused=case.told.accused, verdict=verdict or "unsure")
            self._dispatch(Recomputed(case.id, verdict))

    async def _keep_bans(self) -> None:
        while True:
            await self._banning.wait()
            self._banning = trio.Event()
            await trio.to_thread.run_sync(self._write_bans, self._wall())

    def _write_bans(self, now: float) -> None:
        with suppress(IndexError):
            while True:
                self._bans.keep(self._unwritten.popleft(), now)


async def open_court(member: Member, home: Path, trust: Trust | None = None) -> Court:
    """The court of a node: whom it shunned is shunned again, and the directory is watched.

    trust: a client's own book, beside which the home's node may be running: whom that one has met
    is not the client's to write down. It hears of contradictions alone, and judges nobody's work.
    """
    met = home if trust is None else None
    if trust is None:
        trust = await trio.to_thread.run_sync(Trust, home)
    standings = await trio.to_thread.run_sync(
        partial(Standings, trust.trust, met, where=member.host.where)
    )
    court = Court(
        member.host, member.key, trust, Bans(home), standings, random.SystemRandom()
    )  # fmt: skip
    await court.restore()
    member.directory.contradicted.append(court.contradicts)
    member.directory.refused.append(court.is_about)
    member.directory.shun(court.banned)
    court.told.append(member.directory.forget)
    return court
