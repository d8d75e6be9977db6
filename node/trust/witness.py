"""What a client does about a liar: it tells the swarm, and shows nobody's words.

Two signatures that contradict each other speak for themselves, and are told as they are. Work that
an audit found wrong does not: whoever is to compute it again needs its rows, from which a prompt
can be read. So the convict is asked once more, with words that everybody has (Python's own
documentation, from a place drawn by lot), whose rows others have brought as far as its blocks. What
it signs for wrongly then is accused; who lies now and then only is asked some times.

    finding ─▶ public words ─▶ the blocks before ─▶ rows ─┬─▶ the convict, as any client's prompt
                                                          └─▶ one that was right: do they differ?
               accused at those who serve the blocks ◀─ yes ─┘
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pydoc_data import topics
from typing import Final, Protocol

import trio

from ...dht.record import Announcement
from ...errors import Refused, RemoteError, TransportError
from ...swarm.audit import judge
from ...swarm.blocks import BlockRange
from ...swarm.ledger import Work
from ...swarm.receipt import CHUNK_TOKENS
from ...swarm.topics import topic_of
from ..compute.compare import errors_of
from ..compute.tensor import Payload
from ..compute.voice import DTYPE, Voice
from ..log import get_logger
from ..net.host import Host
from .again import Again, took_last
from .auditor import Compute, Peers
from .docket import Finding
from .evidence import Court
from .limits import Limits

TRIES: Final = 8  # of a liar at every tenth chunk a half is caught; it is banned here anyway
ASKED_MAX: Final = 3  # peers, for each part of the way, until one answers
COMPUTE_S: Final = 30.0  # guess: to reach a peer, its queue, and 32 tokens on a slow device
JUDGES_MAX: Final = 6  # guess: who computes it again tells the others
MET_S: Final = 15.0  # guess: until one of them that we dialed has said what it wants to hear
TAKEN_S: Final = 10.0  # guess: for one to fetch the exhibit
WAITING_MAX: Final = 8

log = get_logger()


class Worker(Protocol):
    """The worker's thread."""

    async def run(self, fn: Callable[..., memoryview], *args: object) -> memoryview: ...


class Witness:
    """One for a client. `heard` takes each conviction; `run` it in a nursery.

    voice_of: of a model by its digest, if it is loaded.
    """

    def __init__(
        self,
        host: Host,
        court: Court,
        peers: Peers,
        compute: Compute,
        worker: Worker,
        limits: Limits,
        voice_of: Callable[[str], Voice | None],
        dice: random.Random,
    ) -> None:
        self.court = court
        self._host = host
        self._peers = peers
        self._compute = compute
        self._worker = worker
        self._limits = limits
        self._voice_of = voice_of
        self._dice = dice
        self._pending = 0
        self._idle = trio.Event()
        self._send, self._receive = trio.open_memory_channel[tuple[Finding, Work]](WAITING_MAX)

    def heard(self, finding: Finding) -> None:
        """Somebody was convicted by an audit. Never waits."""
        for work in finding.convicting:
            try:
                self._send.send_nowait((finding, work))
            except trio.WouldBlock:
                return  # they are banned here, and others will convict them too
            self._pending += 1

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.court.run, list)
            async for finding, work in self._receive:
                try:
                    await self._tell(finding, work)
                except (TransportError, RemoteError, Refused) as error:
                    log.info("not accused", convicted=work.peer, reason=str(error))
                self._pending -= 1
                self._idle.set()
                self._idle = trio.Event()

    async def idle(self) -> None:
        """Until all who were convicted are accused, as far as that can be."""
        while self._pending:
            await self._idle.wait()

    async def _tell(self, finding: Finding, work: Work) -> None:
        voice = self._voice_of(work.account.opening.model.hex())
        if voice is None or work.dtype != DTYPE:
            return
        for _ in range(TRIES):
            asked = await self._question(voice, work)
            its = await self._answer(asked, [work.peer])
            other = await self._answer(asked, finding.right)
            off = await self._apart(asked, its, other)
            if off is None:
                continue
            told = replace(
                asked, account=its.account, place=len(its.account.chunks) - 1,
                numerics=its.numerics, gave=its.gave,
            )  # fmt: skip
            await self._accuse(told, off)
            return
        log.info("not accused", convicted=work.peer, reason="its answers are right by now")

    async def _question(self, voice: Voice, work: Work) -> Work:
        """Rows of public words for the blocks of this work, which nobody has answered yet."""
        ids = voice.text.encode(public_words(self._dice))[: min(CHUNK_TOKENS, voice.context - 1)]
        rows: Payload = await self._worker.run(voice.embed, ids)
        count, at = len(ids), 0
        # bare: an adapter may be private, and whoever judges would have to be given it
        asked = replace(work, sizes=(count,), took=(rows,), rows=count, gave=b"", adapter=b"")
        while at < work.blocks.start:
            told = await self._serving(asked, at)
            stop = min(max((one.stop for one in told), default=at), work.blocks.start)
            if stop == at:
                raise TransportError(f"nobody is there for block {at}")
            names = [one.peer for one in told if one.stop >= stop]
            part = replace(asked, blocks=BlockRange(at, stop), took=(rows,))
            rows = (await self._answer(part, names)).gave
            at = stop
        return replace(asked, took=(rows,))

    async def _serving(self, work: Work, block: int) -> list[Announcement]:
        """Who serves this block, in any order."""
        told = await self._peers.announcements(work.account.opening.model.hex())
        found = [
            one
            for one in told
            if one.start <= block < one.stop
            and one.state == "online"
            and one.peer != work.peer
            and self._peers.may_serve(one.peer)
        ]
        self._dice.shuffle(found)
        return found

    async def _answer(self, asked: Work, peers: list[str] | tuple[str, ...]) -> Again:
        """Of the first of these that answers. Raises TransportError, RemoteError or Refused."""
        failure: TransportError | RemoteError | Refused = TransportError("nobody to ask")
        for peer in peers[:ASKED_MAX]:
            try:
                with trio.fail_after(COMPUTE_S):
                    return await self._compute(peer, asked, ())
            except (TransportError, RemoteError, Refused) as error:
                failure = error
            except trio.TooSlowError:
                failure = TransportError(f"{peer} took longer than {COMPUTE_S:.0f} s")
        raise failure

    async def _apart(self, asked: Work, its: Again, other: Again) -> float | None:
        """By how much it is off, if it is wrong."""
        opening = its.account.opening
        tolerance = self._limits.of(
            opening.model.hex(), its.numerics, other.numerics, asked.dtype, len(asked.blocks)
        )
        errors = await trio.to_thread.run_sync(
            errors_of,
            took_last(asked),
            its.gave,
            other.gave,
            asked.rows,
            opening.width,
            asked.dtype,
        )
        found = judge(errors, tolerance)
        return found.median if found.verdict == "wrong" else None

    async def _accuse(self, told: Work, off: float) -> None:
        """At some who serve the blocks; they pass it on."""
        judges = await self._serving(told, told.blocks.start)
        there: list[str] = []
        async with trio.open_nursery() as nursery:
            for one in judges[:JUDGES_MAX]:
                nursery.start_soon(self._meet, one, there)
        topic = topic_of(told.account.opening.model.hex(), told.blocks.start)
        with trio.move_on_after(MET_S):
            await self.court.gossip.until_wanted(topic)
        name = await self.court.accuse(told, off)
        log.warning("accused", accused=told.peer, off=round(off, 3), judges=len(there))
        with trio.move_on_after(TAKEN_S):
            await self.court.exhibits.taken(name)

    async def _meet(self, judge: Announcement, there: list[str]) -> None:
        try:
            there.append(await self._host.connect(judge.addresses))
        except TransportError as error:
            log.debug("not met", judge=judge.peer, reason=str(error))


def public_words(dice: random.Random) -> str:
    """Prose that everybody has, from anywhere in it: about a hundred words, more than 32 tokens."""
    name = dice.choice([name for name, text in sorted(topics.topics.items()) if len(text) > 2000])
    words = topics.topics[name].split()
    at = dice.randrange(max(1, len(words) - 100))
    return " ".join(words[at : at + 100])
