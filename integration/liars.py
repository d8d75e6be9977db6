"""Bar E1: real daemons, of which three cheat: chunks until each is banned, and who is blamed.

    python -m integration.liars [--runs 30] [--nodes 12] [--rate .05] [--texts 30]

Two nodes serve the first half of the demo model, all others the second, of which three cheat: one
computes with weights of four bits, one leaves a block out, one answers a tenth of its chunks with
noise. So many serve one half because a dispute is settled for certain only where five honest peers
contradict one whom we trusted as much as them (swarm/audit.py: each by .95 at most). The client has
its chunks signed for, draws audits by lot and takes disputes to others, by its own objects:
session, router, auditor, book of trust.

A run is, for each liar, a client that has met nobody, but knows each peer by so many audits that
passed that their rate is at its floor, which is .05 here (at .02, a client's own, all takes 2.5
times as long). It sends sessions of four chunks through the liar, and through anybody in the other
stage, until the liar is banned. Counted are the chunks in which it cheated, all of the session in
which it was caught among them; whether it cheated, an honest stage here says, bit by bit. Sessions
should be geometric, with the chance that the draw (audit_law.py, whose interval it is) reaches a
chunk in which it cheated and that a comparison sees that: so p is what the law says of such a liar,
for each of its false chunks. (Another liar is caught, too, when it audits and is contradicted; that
is no sample, but counts among the blamed.)

For the text a client of its own asks as people do, with audits on, and is given the words of an
honest swarm.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Any

import torch
import trio

from potluck.errors import PotluckError
from potluck.node.client import Swarm, open_swarm
from potluck.node.compute.voice import Voice
from potluck.node.compute.worker import Worker, open_worker
from potluck.node.config import NodeConfig
from potluck.node.generation import Generation, Request, open_generation
from potluck.node.library import DEMO_FOLDER
from potluck.node.router import FRESH_S, Router
from potluck.node.serving import open_model
from potluck.node.session import SessionPlan, open_session
from potluck.node.testnet.launcher import LOOK_EVERY_S, LocalSwarm, Plan, open_testnet
from potluck.node.trust.again import compute_again
from potluck.node.trust.auditor import Auditor, Finding
from potluck.node.trust.book import Trust
from potluck.node.trust.limits import load_limits
from potluck.swarm.audit import AuditConfig
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Work
from potluck.swarm.receipt import CHUNK_TOKENS
from potluck.swarm.view import SwarmView
from potluck.swarm.wire import Step

from .audit_law import interval_95, until_caught

BLOCKS, CUT = 8, 4  # of the demo model, and where its second stage begins
FIRST = 2  # nodes of the first stage
LIES = {"four_bit": 1.0, "skip": 1.0, "random:0.1": 0.1}  # and in which part of the chunks
KNOWN = 1000  # audits that passed: the rate is at its floor, whatever passes yet
READY_S = 300.0  # of a dozen nodes at once, on two cores that others use
STEPS = 4  # chunks of one session
RUNS_MORE = 20  # in the place of those in which a liar was banned otherwise
SESSIONS_MAX = 1000  # of one liar in one run: then it is not banned
PROMPT, TOKENS = 64, 48  # of an answer


class Pinned(Router):
    """Routes through one peer in its stage, and through anybody in the others."""

    through = ""

    async def view(self, model: str, blocks: int, *, within_s: float = FRESH_S) -> SwarmView:
        view = await super().view(model, blocks, within_s=within_s)
        mine = [span for span in view.spans if span.peer == self.through]
        if not mine:
            return view
        others = [span for span in view.spans if span.blocks != mine[0].blocks]
        return replace(view, spans=(*mine, *others))


@dataclass
class Count:
    """What became of one kind of liar, over the runs. false: chunks until the ban, each run."""

    runs: int = 0
    banned: int = 0
    chunks: list[int] = field(default_factory=list)
    false: list[int] = field(default_factory=list)
    otherwise: int = 0  # bans that came of nothing that it had signed for us
    audited: int = 0  # chunks in which it cheated
    seen: int = 0  # of those, how many were found wrong
    undecided: int = 0
    wronged: int = 0  # convicted of a chunk in which it did not cheat

    def told(self, often: float, config: AuditConfig) -> dict[str, Any]:
        """often: the part of its chunks in which it cheats."""
        q = self.seen / max(1, self.audited)
        expected, _ = until_caught(STEPS, config.floor, config, lambda at: often, max(q, 1e-9))
        mean = statistics.mean(self.false) if self.false else math.nan
        low, high = interval_95(mean, len(self.false)) if self.false else (math.nan, math.nan)
        return {
            "runs": self.runs,
            "samples": len(self.false),
            "banned": self.banned,
            "mean": round(mean, 2),
            "interval_95": [round(low, 2), round(high, 2)],
            "expected": round(expected, 2),
            "p": round(1 / (expected * q), 4) if q else None,
            "q": round(q, 4),
            "chunks_mean": round(statistics.mean(self.chunks), 1) if self.chunks else None,
            "audits_of_false_chunks": self.audited,
            "undecided": self.undecided,
            "banned_otherwise": self.otherwise,
            "convicted_of_right_chunks": self.wronged,
        }


@dataclass
class Client:
    """One that knows each peer by so many audits that passed, and routes through whom we say."""

    swarm: Swarm
    worker: Worker
    trust: Trust
    router: Pinned
    auditor: Auditor

    @staticmethod
    def of(
        swarm: Swarm, worker: Worker, home: Path, peers: Iterable[str], config: AuditConfig
    ) -> Client:
        trust = Trust(config=config)
        for peer in peers:
            for _ in range(KNOWN):
                trust.audited(peer, right=True, tokens=CHUNK_TOKENS)
        member = swarm.member
        router = Pinned(member.host, member.directory, SystemRandom(), trust)
        compute = partial(compute_again, member.host)
        limits = load_limits(home)
        auditor = Auditor(router, compute, worker, trust, limits, trust.lots(), config)
        return Client(swarm, worker, trust, router, auditor)

    async def send(
        self, voice: Voice, ids: Sequence[int], signed: Callable[[Work], None],
        found: Callable[[Finding], None],
    ) -> None:  # fmt: skip
        """One session of so many tokens, a chunk at a time, until all its audits have ended."""
        docket = self.auditor.docket(found)

        def told(work: Work) -> None:
            signed(work)
            docket.signed(work)

        plan = SessionPlan(
            voice.digest, voice.name, voice.blocks, voice.width, len(ids), receipts=True
        )
        async with open_session(self.swarm.member.host, self.router, plan, told) as session:
            for at in range(0, len(ids), CHUNK_TOKENS):
                chunk = ids[at : at + CHUNK_TOKENS]
                payload = await self.worker.run(voice.embed, chunk)
                session.feed(payload, tokens=len(chunk), rows=len(chunk))
                await session.output()
            await session.settle()
        docket.ended()
        await docket.idle()


class Trial:
    """The testnet, and what was found in it so far."""

    def __init__(
        self, net: LocalSwarm, swarm: Swarm, worker: Worker, voice: Voice, config: AuditConfig
    ) -> None:
        self._config = config
        self.swarm = swarm
        self.worker = worker
        self.voice = voice
        self._home = net.roster.folder
        self.lies = {seat.peer: seat.lie for seat in net.seats if seat.lie}
        self._blocks = {seat.peer: BlockRange(seat.start, seat.stop) for seat in net.seats}
        self.ids = voice.text.encode((DEMO_FOLDER / "README.md").read_text(encoding="utf-8") * 20)
        node = NodeConfig(self._home, "demo", threads=1, cache_mib=64, offline=True)
        model = open_model(node)
        self._honest = {one: model.open(one).engine for one in set(self._blocks.values())}
        self.counts: dict[str, Count] = {lie: Count() for lie in self.lies.values()}
        self.blamed = self.blamed_right = self.honest_banned = self.honest_audits = 0

    @property
    def fewest(self) -> int:
        """Runs that ended with a chunk of the liar's own, of the lie that has fewest of them."""
        return min(len(count.false) for count in self.counts.values())

    async def run(self) -> None:
        """For each liar a client, from its first chunk until that liar is banned."""
        for liar in self.lies:
            client = Client.of(self.swarm, self.worker, self._home, self._blocks, self._config)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.auditor.run)
                await self._meet(liar, client)
                nursery.cancel_scope.cancel()
            honest = self._blocks.keys() - self.lies.keys()
            self.honest_banned += sum(client.trust.banned(peer) for peer in honest)

    async def _meet(self, liar: str, client: Client) -> None:
        """Sessions through this one, until it is banned."""
        client.router.through = liar
        works: list[Work] = []
        findings: list[Finding] = []

        def signed(work: Work) -> None:
            if work.peer == liar:
                works.append(work)

        for number in range(SESSIONS_MAX):
            if client.trust.banned(liar):
                break
            at = number * 97 % (len(self.ids) - STEPS * CHUNK_TOKENS)
            ids = self.ids[at : at + STEPS * CHUNK_TOKENS]
            await client.send(self.voice, ids, signed, findings.append)
        self._blame(findings)
        self._count(liar, works, findings, banned=client.trust.banned(liar))

    def _blame(self, findings: Iterable[Finding]) -> None:
        """Who was convicted, and whether it lies."""
        for finding in findings:
            self.blamed += len(finding.wrong)
            self.blamed_right += sum(peer in self.lies for peer in finding.wrong)
            self.honest_audits += finding.work.peer not in self.lies

    def _count(
        self, liar: str, works: list[Work], findings: Iterable[Finding], *, banned: bool
    ) -> None:
        count = self.counts[self.lies[liar]]
        count.runs += 1
        count.banned += banned
        of = {_name(one.work): one for one in findings if one.work.peer == liar}
        cheats = list(self._cheated(works))
        for work, cheated in zip(works, cheats, strict=True):
            finding = of.get(_name(work))
            if finding is None:
                continue
            if cheated:
                count.audited += 1
                count.seen += finding.verdict == "wrong"
                count.undecided += finding.verdict == "open"
            elif liar in finding.wrong:
                count.wronged += 1
            if liar in finding.wrong:
                count.chunks.append(len(works))
                count.false.append(sum(cheats))
                return
        count.otherwise += banned

    def _cheated(self, works: list[Work]) -> Iterator[bool]:
        """Of each, whether an honest stage gives other bits: it runs each session once."""
        last = {work.account.names[0]: work for work in works}
        rows: dict[bytes, memoryview] = {}
        for name, work in last.items():
            engine, total = self._honest[work.blocks], sum(work.sizes)
            cache = engine.open_cache(work.blocks, total)
            took = memoryview(b"".join(bytes(one) for one in work.took))
            step = engine.begin(cache, took, Step(0, work.sizes, total), work.dtype)
            engine.run([(step, total)])
            rows[name] = step.answer()
            engine.close_cache(cache)
        for work in works:
            whole, row = rows[work.account.names[0]], len(work.gave) // work.rows
            stop = sum(work.sizes) * row
            yield bytes(whole[stop - len(work.gave) : stop]) != bytes(work.gave)


def _name(work: Work) -> bytes:
    """Of its receipt."""
    return work.account.names[work.place + 1]


async def words_of(answer: Generation) -> list[int]:
    """The tokens that stand at its end."""
    tokens: dict[int, int] = {}
    async for piece in answer:
        tokens = {at: token for at, token in tokens.items() if at < piece.position}
        tokens[piece.position] = piece.token
    return list(tokens.values())


async def honest_words(trial: Trial, ids: Sequence[int]) -> list[int]:
    """What a client answers itself that was told who lies."""
    trust, member = Trust(), trial.swarm.member
    for liar in trial.lies:
        trust.convict(liar)
    router = Router(member.host, member.directory, SystemRandom(), trust)
    request = Request(trial.voice, tuple(ids), max_new_tokens=TOKENS, ignore_eos=True)
    async with open_generation(member.host, router, trial.worker, request) as answer:
        return await words_of(answer)


async def audited_words(join: Sequence[str], home: Path, ids: Sequence[int]) -> list[int]:
    """What a client that knows nobody is answered, with audits."""
    async with (
        open_swarm(join, home=home, threads=1) as swarm,
        swarm.generation("demo", ids, max_new_tokens=TOKENS, ignore_eos=True, audit="on") as answer,
    ):
        return await words_of(answer)


@contextmanager
def open_net(home: Path, nodes: int) -> Iterator[LocalSwarm]:
    """The testnet, ready; the last nodes lie."""
    plan = Plan(home, str(DEMO_FOLDER), "demo", BLOCKS, nodes=2, offline=True, ready_s=READY_S)
    with open_testnet(plan) as net:
        later = [f"n{number}" for number in range(3, nodes + 1)]
        lies = [""] * (len(later) - len(LIES)) + list(LIES)
        for number, (name, lie) in enumerate(zip(later, lies, strict=True), start=2):
            net.add(name, *((0, CUT) if number <= FIRST else (CUT, BLOCKS)), lie)
            net.launch(name, net.join)
        deadline_s = time.monotonic() + READY_S
        while later:
            later = [name for name in later if net.ready(name) is None]
            if time.monotonic() > deadline_s:
                raise PotluckError(f"{', '.join(later)} not ready in {READY_S:.0f} s")
            time.sleep(LOOK_EVERY_S)
        yield net


async def _measure(runs: int, nodes: int, rate: float, texts: int) -> dict[str, Any]:
    config = AuditConfig(rate, canary_share=0.0)  # counted are chunks, audited by their own rows
    with (
        tempfile.TemporaryDirectory(prefix="potluck-liars-") as folder,
        open_net(Path(folder), nodes) as net,
    ):
        async with (
            open_swarm(net.join, home=folder, threads=1) as swarm,
            open_worker(threads=1) as worker,
        ):
            trial = Trial(net, swarm, worker, await swarm.voice("demo"), config)
            right = 0
            for number in range(texts):
                ids = trial.ids[number * PROMPT : (number + 1) * PROMPT]
                home = Path(folder) / f"client {number}"
                words = await audited_words(net.join, home, ids)
                right += words == await honest_words(trial, ids)
            rounds = 0
            while trial.fewest < runs and rounds < runs + RUNS_MORE:
                await trial.run()
                rounds += 1
    return {
        "nodes": nodes,
        "rate": rate,
        "until_ban": {lie: one.told(LIES[lie], config) for lie, one in trial.counts.items()},
        "blamed": trial.blamed,
        "blamed_right": trial.blamed_right,
        "honest_banned": trial.honest_banned,
        "audits_of_honest_peers": trial.honest_audits,
        "texts": texts,
        "texts_right": right,
    }


def measure(runs: int = 30, nodes: int = 12, rate: float = 0.05, texts: int = 30) -> dict[str, Any]:
    """Figures as in the bar."""
    torch.set_num_threads(1)
    return trio.run(_measure, runs, nodes, rate, texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--rate", type=float, default=0.05, help="of audits, at their floor")
    parser.add_argument("--texts", type=int, default=30)
    print(json.dumps(measure(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
