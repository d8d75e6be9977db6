"""Steps that are sent before the answer to the one before them is here: no word changes, whether
they are right or have to be dropped."""

from __future__ import annotations

import pytest
import trio
from api_fakes import Inline, Interrupting, demo

from potluck.node import drafting
from potluck.node.compute.sampling import Settings
from potluck.node.drafting import Drafter, Drafts
from potluck.node.generation import Generation, Piece, Request

from .test_drafting import (
    CODE,
    DRAWS,
    PROMPTS,
    StageSession,
    pytestmark,  # noqa: F401
    said,
    stage_of,
    told,
)

TOKENS = 72


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long each step was that was sent ahead."""
    found, ahead = list[int](), Drafter.ahead

    def note(drafter: Drafter, guesses: tuple[int, ...], most: int) -> tuple[int, ...]:
        block = ahead(drafter, guesses, most)
        if block:
            found.append(len(block))
        return block

    monkeypatch.setattr(Drafter, "ahead", note)
    return found


@pytest.mark.parametrize("draw", DRAWS)
async def test_the_words_are_the_same_with_steps_ahead_that_are_often_wrong(
    draw: str, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "SURE", 0.0)
    voice, reached = demo().voice, 0
    for prompt in PROMPTS:
        ids = tuple(voice.prompt(prompt))
        plain, _ = await said(stage_of(), voice, ids, DRAWS[draw], None)
        pieces, answer = await said(stage_of(), voice, ids, DRAWS[draw], Drafts())
        assert told(pieces) == told(plain)
        assert answer.guessed is not None
        reached += answer.guessed.ahead
        sent = answer.guessed.widths
        assert min(sent.values()) >= 0 and sent.total() == answer.guessed.steps
    if draw == "greedy":
        assert 0 < reached < len(blocks), "some are right, and some are dropped"


async def test_a_text_in_circles_is_sent_ahead_and_hardly_ever_waits(blocks: list[int]) -> None:
    """The same word again and again: soon a step is sent with each that is confirmed."""
    voice = demo().voice
    ids, more = tuple(voice.prompt(PROMPTS[3])), {"max_new_tokens": 4 * TOKENS}
    settings = Settings(bias=((300, 100.0),))
    session = StageSession(stage_of(), len(ids) + 4 * TOKENS)
    plain, _ = await said(stage_of(), voice, ids, settings, None, **more)
    request = Request(voice, ids, settings, ignore_eos=True, drafts=Drafts(), **more)
    answer = Generation(session, Inline(), request)  # type: ignore[arg-type]
    pieces = [piece async for piece in answer]
    assert told(pieces) == told(plain)
    assert answer.guessed is not None and answer.guessed.ahead == len(blocks) > 1
    assert session.length == len(ids) + 4 * TOKENS - 1, "and nothing beyond the end"


async def test_nothing_is_sent_ahead_where_servers_sign(
    blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "SURE", 0.0)
    voice = demo().voice
    ids = tuple(voice.prompt(PROMPTS[3]))
    session = StageSession(stage_of(), len(ids) + TOKENS)
    session.ledger = object()
    request = Request(voice, ids, max_new_tokens=TOKENS, ignore_eos=True, drafts=Drafts())
    answer = Generation(session, Inline(), request)  # type: ignore[arg-type]
    assert len([piece async for piece in answer]) == TOKENS
    assert blocks == [] and max(session.sizes[1:]) > 4


async def test_who_is_interrupted_while_steps_are_dropped_loses_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drafting, "SURE", 0.0)
    voice = demo().voice
    ids = tuple(voice.prompt(CODE))
    plain, _ = await said(stage_of(), voice, ids, Settings(), None, max_new_tokens=TOKENS)
    worker, pieces = Interrupting(), list[Piece]()
    session = StageSession(stage_of(), len(ids) + TOKENS)
    output = session.output

    async def slow() -> memoryview:
        if len(pieces) % 3 == 1:
            await trio.lowlevel.checkpoint()
        return await output()

    session.output = slow  # type: ignore[method-assign]
    request = Request(voice, ids, max_new_tokens=TOKENS, ignore_eos=True, drafts=Drafts())
    answer = Generation(session, worker, request)  # type: ignore[arg-type]
    while not pieces or pieces[-1].finish is None:
        with trio.CancelScope() as worker.scope:
            pieces.append(await anext(answer))
    assert told(pieces) == told(plain)
