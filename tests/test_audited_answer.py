"""Answers with audits, from the generation to real servers over memory roads: a liar among known
peers is convicted in mid-answer, and the words are those of honest servers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trio
from api_fakes import Inline, Interrupting
from sim.adding_engine import WIDTH, AddingCache, AddingEngine
from sim.memory_swarm import BLOCKS, MODEL, World, world
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory
from potluck.errors import Refused
from potluck.node.api.backend import SwarmBackend
from potluck.node.generation import Generation, Piece, Request, hear, open_generation
from potluck.node.router import Router
from potluck.node.trust.again import compute_again
from potluck.node.trust.auditor import Auditor
from potluck.node.trust.book import Trust
from potluck.node.trust.limits import Limits
from potluck.swarm.audit import Lots
from potluck.swarm.proof import check_proof
from potluck.swarm.wire import Step

NUMERICS = "none c1"
HONEST = 5  # beside the liar: four that are trusted fully are enough to convict
PROMPT = tuple(range(150))  # two chunks
HONEST_TEXT: list[str] = []


class PretendedStream:
    """Each token is a letter, which is certain when the next one is there."""

    stopped = False

    def __init__(self) -> None:
        self._kept = ""

    def push(self, token: int) -> str:
        text, self._kept = self._kept, chr(0x4E00 + token)
        return text

    def finish(self) -> str:
        text, self._kept = self._kept, ""
        return text


@dataclass
class PretendedVoice:
    name: str = "adding"
    digest: str = MODEL
    blocks: int = BLOCKS
    width: int = WIDTH
    context: int = 1024
    wire: str = "f32"
    eos: tuple[int, ...] = ()

    @property
    def text(self) -> PretendedVoice:
        return self

    def stream(self, ids: Sequence[int], stops: Sequence[str]) -> PretendedStream:
        return PretendedStream()

    def embed(self, ids: Sequence[int]) -> memoryview:
        rows = np.array(
            [[(token * (column + 3)) % 251 for column in range(WIDTH)] for token in ids]
        )
        return memoryview(rows.astype("<f4").tobytes())

    def next_token(
        self, payload: memoryview, settings: object, position: int, history: Sequence[int]
    ) -> tuple[int, memoryview]:
        assert position == len(history)
        digest = hashlib.blake2b(bytes(payload), digest_size=4).digest()
        token = int.from_bytes(digest) % 1000
        return token, self.embed([token])


class Liar(AddingEngine):
    """Right until position `after`, and then off by little."""

    after = 0

    def run(
        self, cache: AddingCache, payload: memoryview, step: Step, dtype: str
    ) -> tuple[memoryview, float]:
        rows, seconds = super().run(cache, payload, step, dtype)
        if step.at < self.after or not step.rows:
            return rows, seconds
        return memoryview((np.frombuffer(rows, "<f4") + np.float32(1)).tobytes()), seconds


@dataclass
class Asked:
    """A client with audits in a world with one liar, by whom its first route leads."""

    made: World
    liar: str
    router: Router
    trust: Trust
    auditor: Auditor
    pieces: list[Piece] = field(default_factory=list)  # all that came
    stand: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.stand)

    @property
    def replaced(self) -> list[int]:
        """Where the words went back to."""
        pairs = zip(self.pieces, self.pieces[1:], strict=False)
        return [after.position for before, after in pairs if after.position <= before.position]

    @asynccontextmanager
    async def answer(
        self, worker: Inline | None = None, **more: object
    ) -> AsyncIterator[Generation]:
        settings: dict[str, object] = {"max_new_tokens": 100, "audit": True}
        request = Request(PretendedVoice(), PROMPT, **(settings | more))  # type: ignore[arg-type]
        host = self.router._host
        async with open_generation(
            host,
            self.router,
            worker or Inline(),
            request,
            self.auditor,  # type: ignore[arg-type]
        ) as answer:
            yield answer

    async def ask(self, **more: object) -> Generation:
        async with self.answer(**more) as answer:
            async for piece in answer:
                self.pieces.append(piece)
                hear(self.stand, piece)
        return answer


@asynccontextmanager
async def asked(after: int | None, *, known: bool = True) -> AsyncIterator[Asked]:
    """after: the position from which on the liar lies; None: it never does."""
    async with world() as made:
        first = await made.add(0, 2, numerics=NUMERICS)
        liar = await made.add(2, 6, numerics=NUMERICS)
        others = [await made.add(2, 6, numerics=NUMERICS) for _ in range(HONEST)]
        await made.add(0, 2, numerics=NUMERICS)
        if after is not None:
            liar.engine.__class__ = Liar
            liar.engine.after = after  # type: ignore[attr-defined]
        key = IdentityKey.generate()
        host, trust = made.net.host(key.peer_id), Trust()
        trust.rate = lambda peer: 1.0  # type: ignore[method-assign]
        router = Router(host, MemoryDirectory(key, made.shelf), random.Random(1), trust)  # type: ignore[arg-type]
        for node in others:
            for _ in range(100 if known else 0):
                trust.audited(node.host.peer_id, right=True, tokens=32)
            for _ in range(5):  # slow: the route leads to the liar
                router.answered(node.host.peer_id, 9.0, 1, 4, queue_s=0.0)
        auditor = Auditor(
            router,
            partial(compute_again, host),  # type: ignore[arg-type]
            Inline(),
            trust,
            Limits(),
            Lots(bytes(32)),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(auditor.run)
            yield Asked(made, liar.host.peer_id, router, trust, auditor)
            nursery.cancel_scope.cancel()
        assert first.engine.caches == [] == liar.engine.caches


async def honest_text() -> str:
    """Without a liar, and without audits; made once."""
    if not HONEST_TEXT:
        async with asked(None) as world:
            await world.ask(audit=False)
            assert len(world.pieces) == 100
            HONEST_TEXT.append(world.text)
    return HONEST_TEXT[0]


@pytest.mark.parametrize("after", [0, 60, 128, 150, 170, 200, 231, 248])
async def test_a_liar_is_convicted_and_the_words_are_those_of_honest_servers(
    autojump_clock: MockClock, after: int
) -> None:
    """It lies from the prompt on, in the middle, or in the last words alone."""
    expected = await honest_text()
    async with asked(after) as world:
        answer = await world.ask()
        assert world.text == expected
        assert answer.audits is not None and answer.audits.convicted == [world.liar]
        assert world.trust.banned(world.liar)
        assert world.liar not in [hop.peer for hop in answer.route]
        assert [one.reason for one in answer.recoveries] == ["convicted of wrong work"]
        assert len(world.replaced) <= 1
        for position in world.replaced:
            assert position >= max(len(PROMPT), after - 32), "what was right stays"


async def test_honest_servers_are_found_right_and_nothing_is_replaced(
    autojump_clock: MockClock,
) -> None:
    expected = await honest_text()
    async with asked(None) as world:
        answer = await world.ask()
        assert world.text == expected and world.replaced == []
        told = answer.audits
        assert told is not None
        assert told.right == told.drawn > 6 and told.wrong == told.open == told.unaudited == 0


async def test_among_strangers_it_is_doubted_and_the_words_are_right_all_the_same(
    autojump_clock: MockClock,
) -> None:
    expected = await honest_text()
    async with asked(170, known=False) as world:
        answer = await world.ask()
        assert world.text == expected
        assert answer.audits is not None and answer.audits.convicted == []
        assert not world.trust.banned(world.liar)
        assert world.trust.mean(world.liar) < 0.6


async def test_evidence_from_elsewhere_takes_the_answer_back_too(
    autojump_clock: MockClock,
) -> None:
    expected = await honest_text()
    async with asked(None) as world, world.answer() as answer:
        async for piece in answer:
            world.pieces.append(piece)
            hear(world.stand, piece)
            if len(world.pieces) == 60:
                world.trust.convict(world.liar, for_good=True)
        assert world.text == expected
        assert world.liar not in [hop.peer for hop in answer.route]


async def test_words_that_nobody_has_signed_for_yet_are_taken_back_with_the_rest(
    autojump_clock: MockClock,
) -> None:
    """All chunks until 182 are found right. It lies from 190 on, and is convicted by evidence from
    elsewhere before it signs for that."""
    expected = await honest_text()
    async with asked(190) as world, world.answer() as answer:
        async for piece in answer:
            world.pieces.append(piece)
            hear(world.stand, piece)
            if piece.position == 200 and not world.replaced:
                await trio.sleep(10)  # for the audits
                world.trust.convict(world.liar)
        assert world.text == expected
        assert world.replaced == [183]


@pytest.mark.parametrize("stranger", [True, False])
async def test_a_liar_that_is_gone_before_it_signs_has_gained_nothing(
    autojump_clock: MockClock, stranger: bool
) -> None:
    """It lies from 190 on and dies at 200. A known peer that dies there takes no word back: it is
    audited so seldom that this makes no difference."""
    expected = await honest_text()
    async with asked(190) as world, world.answer() as answer:
        if not stranger:
            world.trust.rate = lambda peer: 0.01  # type: ignore[method-assign]
        async for piece in answer:
            world.pieces.append(piece)
            hear(world.stand, piece)
            if piece.position == 200 and not world.replaced:
                await next(n for n in world.made.nodes if n.host.peer_id == world.liar).host.die()
        assert (world.text == expected) == stranger
        assert world.replaced == ([183] if stranger else [])


async def test_where_nothing_may_be_replaced_a_conviction_ends_the_answer(
    autojump_clock: MockClock,
) -> None:
    async with asked(170) as world:
        with pytest.raises(Refused, match="convicted"):
            await world.ask(amend=False)
        assert world.replaced == []


async def test_without_audits_nobody_signs_and_a_liar_is_believed(
    autojump_clock: MockClock,
) -> None:
    expected = await honest_text()
    async with asked(170) as world:
        answer = await world.ask(audit=False)
        assert answer.audits is None and world.text != expected
        assert not world.trust.banned(world.liar)


async def test_the_proof_of_an_audited_answer_is_good_and_tells_the_audits(
    autojump_clock: MockClock,
) -> None:
    for after in (None, 170):
        async with asked(after) as world, world.answer() as answer:
            async for _ in answer:
                pass
            proof = check_proof(await answer.proof(IdentityKey.generate()))
            assert proof.good, proof.faults
            assert proof.audited and all(one.verdict == "right" for one in proof.audited)
            assert any(one.shown for one in proof.audited)
            assert (
                world.liar not in {one.peer for one in proof.signers}
                or after is None
                or (proof.audited_share > 0.5)
            )


async def test_who_waits_with_a_deadline_and_comes_back_hears_the_same(
    autojump_clock: MockClock,
) -> None:
    """Interrupted before each token, while the answer goes back, and while the end is audited."""
    expected = await honest_text()
    for after in (170, 248):
        async with asked(after) as world:
            worker = Interrupting()
            async with world.answer(worker) as answer:
                while not world.pieces or world.pieces[-1].finish is None:
                    with trio.CancelScope() as worker.scope:
                        worker.scope.deadline = trio.current_time() + 0.05
                        world.pieces.append(await anext(answer))
                        hear(world.stand, world.pieces[-1])
            assert world.text == expected and world.trust.banned(world.liar)


@pytest.mark.parametrize("audits", [True, False])
async def test_the_api_audits_as_the_home_says_and_never_takes_a_word_back(audits: bool) -> None:
    asked: list[Request] = []

    @asynccontextmanager
    async def answering(one: Request, worker: object) -> AsyncIterator[None]:
        asked.append(one)
        yield

    swarm: Any = SimpleNamespace(audits=audits, chains=False, answer=answering)
    backend = SwarmBackend(swarm, worker=None, loader=None, home=Path(), offline=True)  # type: ignore[arg-type]
    async with backend.answer(Request(PretendedVoice(), PROMPT)):  # type: ignore[arg-type]
        assert len(backend.flows) == 1
    assert not backend.flows
    assert [(one.audit, one.amend) for one in asked] == [(audits, False)]
