"""Guesses over memory roads, from the generation to real servers: whoever dies, leaves or lies in
the middle of a step of guesses, the words are those of one token at a time."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import trio
from api_fakes import Inline
from sim.alike_engine import NUMERICS, AlikeEngine, add_alike
from sim.memory_swarm import World, world
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.node.drafting import Drafts
from potluck.node.generation import Generation, Piece, Request, open_generation
from potluck.swarm.proof import check_proof

from . import test_audited_answer as audited

PROMPT = tuple(number % 12 for number in range(40))
TOKENS = 60
STAGES = ((0, 2), (2, 4), (4, 6), (0, 2), (2, 4), (4, 6), (0, 2), (2, 4), (4, 6))
WORDS = 12
PLAIN: list[str] = []


class RepeatingVoice(audited.PretendedVoice):
    """Five words in six are the ones that followed before, so that most guesses are right."""

    def embed(self, ids: Sequence[int]) -> memoryview:
        rows = [[token, token * 3 + 1, token * 5 + 2, token * 7 + 3] for token in ids]
        return memoryview(np.array(rows).astype("<f4").tobytes())

    def next_token(
        self, payload: memoryview, settings: object, position: int, history: Sequence[int]
    ) -> tuple[int, memoryview]:
        assert position == len(history)
        last = int(np.frombuffer(payload, "<f4")[0])
        number = int.from_bytes(hashlib.blake2b(bytes(payload), digest_size=4).digest())
        token = number // 6 % WORDS if number % 6 == 0 else (last + 1) % WORDS
        return token, self.embed([token])


@dataclass
class Heard:
    answer: Generation
    pieces: list[Piece] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@asynccontextmanager
async def stages() -> AsyncIterator[World]:
    async with world() as made:
        for start, stop in STAGES:
            await add_alike(made, start, stop)
        yield made


async def ask(
    made: World,
    drafts: Drafts | None,
    *,
    kill_s: float | None = None,
    stage: int = 0,
    receipts: bool = False,
    chain: bool = False,
) -> Heard:
    """kill_s: how long after the first token the peer of this stage dies."""
    host, router = made.client()
    request = Request(
        RepeatingVoice(), PROMPT, max_new_tokens=TOKENS, drafts=drafts, receipts=receipts,  # type: ignore[arg-type]
        chain=chain,
    )  # fmt: skip
    async with (
        open_generation(host, router, Inline(), request) as answer,  # type: ignore[arg-type]
        trio.open_nursery() as nursery,
    ):
        heard = Heard(answer)

        async def kill() -> None:
            assert kill_s is not None
            await trio.sleep(kill_s)
            await made.serving(2 * stage).host.die()

        async for piece in answer:
            heard.pieces.append(piece)
            if len(heard.pieces) == 1 and kill_s is not None:
                nursery.start_soon(kill)
        nursery.cancel_scope.cancel()
        if receipts:
            proof = check_proof(await answer.proof(IdentityKey.generate()))
            assert proof.good and proof.bare == [] and proof.linked > 0
    return heard


async def plain() -> str:
    """One token at a time, undisturbed; made once."""
    if not PLAIN:
        async with stages() as made:
            PLAIN.append((await ask(made, None)).text)
    return PLAIN[0]


async def test_most_guesses_are_right_and_the_words_are_the_same(
    autojump_clock: MockClock,
) -> None:
    async with stages() as made:
        heard = await ask(made, Drafts())
    assert heard.text == await plain() and heard.answer.exact
    guessed = heard.answer.guessed
    assert guessed is not None and guessed.share is not None
    assert guessed.accepted > TOKENS / 2 and guessed.steps < TOKENS / 2
    assert heard.answer.recoveries == []


@pytest.mark.parametrize(("stage", "receipts"), [(0, False), (1, True), (2, True)])
async def test_a_death_at_any_moment_of_a_step_of_guesses_changes_no_word(
    autojump_clock: MockClock, stage: int, receipts: bool
) -> None:
    """A step takes 60 ms and more; the peer dies at twelve moments of half a second: before it has
    the step, with it, and when its answer is with the next hop."""
    lost = 0
    for number in range(0, 48, 4):
        async with stages() as made:
            heard = await ask(made, Drafts(), kill_s=0.011 * number, stage=stage, receipts=receipts)
            assert heard.text == await plain(), number
            lost += len(heard.answer.recoveries)
    assert lost >= 12


async def test_servers_hold_what_was_accepted_and_nothing_behind_the_end(
    autojump_clock: MockClock,
) -> None:
    """With receipts, which are signed for all but the last token: it is never fed."""
    async with stages() as made:
        await ask(made, Drafts(), receipts=True)
        served = [node for node in made.nodes if node.server.steps_served]
        assert len(served) == 3
        computed = {node.server.tokens_served for node in served}
    assert min(computed) > len(PROMPT) + TOKENS - 1, "what was computed for nothing is told apart"


async def test_a_class_that_promises_nothing_is_asked_one_token_at_a_time(
    autojump_clock: MockClock,
) -> None:
    async with world() as made:
        for start, stop in ((0, 4), (4, 6)):
            node = await made.add(start, stop, numerics="adding")
            node.engine.__class__ = AlikeEngine
        heard = await ask(made, Drafts())
        assert heard.text == await plain()
        assert {step.sizes for node in made.nodes for step in node.device.ran} == {(40,), (1,)}


@pytest.mark.parametrize("after", [0, 160, 200])
async def test_a_liar_behind_guesses_is_convicted_and_the_words_are_honest(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """As in test_audited_answer.py; what is audited are the accepted rows."""
    monkeypatch.setattr(audited, "PretendedVoice", RepeatingVoice)
    monkeypatch.setattr(audited, "PROMPT", tuple(number % 12 for number in range(150)))

    class Liar(audited.Liar, AlikeEngine):
        pass

    def alike(asked: audited.Asked) -> None:
        for node in asked.made.nodes:
            lies = isinstance(node.engine, audited.Liar)
            node.engine.__class__ = Liar if lies else AlikeEngine

    async with audited.asked(None) as asked:
        alike(asked)
        await asked.ask(audit=False)
        honest = asked.text
    async with audited.asked(after) as asked:
        alike(asked)
        answer = await asked.ask(drafts=Drafts())
        assert asked.text == honest
        assert answer.audits is not None and answer.audits.convicted == [asked.liar]
        assert answer.guessed is not None and answer.guessed.accepted > 30


async def test_honest_servers_are_found_right_in_all_that_they_gave_behind_guesses(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audited, "PretendedVoice", RepeatingVoice)
    monkeypatch.setattr(audited, "PROMPT", tuple(number % 12 for number in range(150)))
    async with audited.asked(None) as asked:
        for node in asked.made.nodes:
            node.engine.__class__ = AlikeEngine
        answer = await asked.ask(drafts=Drafts())
        told = answer.audits
        assert told is not None and asked.replaced == []
        assert told.right == told.drawn > 6 and told.wrong == told.open == told.unaudited == 0
        assert answer.guessed is not None and answer.guessed.accepted > 30
    assert NUMERICS == audited.NUMERICS


async def test_a_sudden_fall_has_the_next_chunks_looked_at(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would be audited, for all are trusted; then what was foreseen comes no more."""
    voice = RepeatingVoice()
    monkeypatch.setattr(audited, "PretendedVoice", lambda: voice)
    monkeypatch.setattr(audited, "PROMPT", tuple(number % 12 for number in range(150)))
    async with audited.asked(None) as asked:
        for node in asked.made.nodes:
            node.engine.__class__ = AlikeEngine
        asked.trust.rate = lambda peer: 0.0  # type: ignore[method-assign]
        turned: list[int] = []

        class Turning(RepeatingVoice):
            def next_token(self, payload, settings, position, history):  # type: ignore[no-untyped-def]
                token, _ = super().next_token(payload, settings, position, history)
                if position > 300:
                    turned.append(position)
                    token = (token * 7 + position * position) % 101
                return token, self.embed([token])

        monkeypatch.setattr(audited, "PretendedVoice", Turning)
        async with asked.answer(max_new_tokens=400, drafts=Drafts()) as answer:
            seen = []
            async for piece in answer:
                seen.append((piece.position, answer.audits.drawn if answer.audits else 0))
        assert turned
        assert max(drawn for position, drawn in seen if position < 300) == 0
        assert answer.audits is not None and answer.audits.right == answer.audits.drawn > 0


@pytest.mark.parametrize(("stage", "receipts"), [(0, False), (1, False), (2, True)])
async def test_guesses_that_go_from_hop_to_hop_bring_the_same_words_whoever_dies(
    autojump_clock: MockClock, stage: int, receipts: bool
) -> None:
    for kill_s in (None, 0.03, 0.1, 0.2):
        async with stages() as made:
            heard = await ask(
                made, Drafts(), kill_s=kill_s, stage=stage, receipts=receipts, chain=True
            )
            assert heard.text == await plain() and heard.answer.chained > 3
            assert heard.answer.guessed is not None and heard.answer.guessed.accepted > TOKENS / 3
            if kill_s is None:
                assert heard.answer.recoveries == []
