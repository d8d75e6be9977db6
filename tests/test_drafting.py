"""Guesses change no word: real stages, real sampling, and what is told of the guesses.

The session is a stage in this process, without servers between: a step of a token and guesses goes
through it as it would through a server's, and what is taken back is truncated there.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from api_fakes import Inline, Interrupting, demo

from potluck.errors import UserError
from potluck.node.api.grammar import schema_grammar
from potluck.node.api.speaker import Speaker
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.draft_model import DraftModel
from potluck.node.compute.native import library
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.pages import Pool
from potluck.node.compute.sampling import Settings
from potluck.node.compute.tensor import pack, unpack
from potluck.node.compute.voice import DTYPE, Voice
from potluck.node.drafting import Drafts, Guessed
from potluck.node.generation import Generation, Piece, Request
from potluck.node.library import DEMO_FOLDER

pytestmark = pytest.mark.skipif(not library.is_available(), reason=str(library.why_not()))

TOKENS = 40
ROAD_S = 10.0  # beside which no guess of the small model takes long, on any machine
CODE = (
    "def total(rows):\n    found = 0\n    for row in rows:\n        found += row.size\n"
    "    return found\n\ndef total_of(rows):\n    found = 0\n    for row in rows:\n"
)
PROMPTS = (
    CODE,
    "The function returns the number of items. The function returns",
    "class Node:\n    def __init__(self, name, parent):\n        self.name = name\n",
    "one two three one two three one two",
)
SCHEMA = {
    "type": "object",
    "properties": {"names": {"type": "array", "items": {"enum": ["north", "northeast"]},
                             "minItems": 4, "maxItems": 4}},
    "required": ["names"],
    "additionalProperties": False,
}  # fmt: skip


class StageSession:
    """What a Generation needs of a session, over a stage of all blocks."""

    def __init__(self, stage: NativeStage, tokens: int, rows_alike: int = 1 << 10) -> None:
        pages = stage.stop * (tokens // 64 + 2)
        budget_bytes = pages * (stage.page_bytes + (1 << 14))
        pool = Pool(budget_bytes=budget_bytes, page_bytes=stage.page_bytes)
        self.route = ()
        self.recoveries: list[object] = []
        self.exact = True
        self.chained = None
        self.ledger: object | None = None
        self.rows_alike = rows_alike
        self.answered_s = self._began_s = 0.0
        self.sizes: list[int] = []
        self._stage = stage
        self._lease = pool.open(0, stage.stop, tokens)
        self._outputs: deque[memoryview] = deque()

    @property
    def length(self) -> int:
        return self._lease.length

    def feed(self, payload: Any, tokens: int, rows: int, at: int, *, splits: bool = False) -> None:
        self._began_s = trio.current_time()
        hidden = unpack(payload, tokens, self._stage.spec.hidden, DTYPE)
        self._lease.reserve(at, at + tokens)
        out = self._stage.forward_rows(hidden, [(self._lease, at, tokens)])
        self._lease.length = at + tokens
        self._outputs.append(pack(out[tokens - rows :], DTYPE) if rows else memoryview(b""))
        self.sizes.append(tokens)

    def take_back(self, at: int) -> None:
        self._lease.truncate(at)

    async def output(self) -> memoryview:
        self.answered_s = self._began_s + ROAD_S + 0.001 * self.sizes[-1]
        return self._outputs.popleft()


STAGES: dict[tuple[str, bool], NativeStage] = {}


def stage_of(quantization: str = "none", byte_pages: bool = False) -> NativeStage:
    key = quantization, byte_pages
    if key not in STAGES:
        checkpoint = open_checkpoint(DEMO_FOLDER)
        STAGES[key] = NativeStage.load(
            checkpoint, 0, checkpoint.spec.blocks, quantization=quantization, threads=1,
            byte_pages=byte_pages,
        )  # fmt: skip
    return STAGES[key]


async def said(
    stage: NativeStage,
    voice: Voice,
    ids: tuple[int, ...],
    settings: Settings,
    drafts: Drafts | None,
    *,
    worker: Inline | None = None,
    rows_alike: int = 1 << 10,
    **more: Any,
) -> tuple[list[Piece], Generation]:
    more = {"max_new_tokens": TOKENS, "ignore_eos": True} | more
    session = StageSession(stage, len(ids) + more["max_new_tokens"], rows_alike)
    request = Request(voice, ids, settings, drafts=drafts, **more)
    answer = Generation(session, worker or Inline(), request)  # type: ignore[arg-type]
    return [piece async for piece in answer], answer


def told(pieces: list[Piece]) -> list[tuple[int, int, str, str | None]]:
    return [(one.token, one.position, one.text, one.finish) for one in pieces]


DRAWS = {
    "greedy": Settings(),
    "sampled": Settings(0.8, seed=3),
    "narrow": Settings(0.6, top_k=20, top_p=0.9, min_p=0.02, seed=11),
    "penalties": Settings(
        0.7, seed=5, repetition_penalty=1.2, presence_penalty=0.4, frequency_penalty=0.3
    ),
    "biased": Settings(bias=((300, 4.0), (17, -100.0)), frequency_penalty=0.5),
}


@pytest.mark.parametrize("draw", DRAWS)
async def test_the_words_are_the_same_with_guesses_and_without(draw: str) -> None:
    """Four prompts each; where nothing keeps the text from repeating itself many guesses are right,
    so that most tokens come from rows behind others."""
    voice, total = demo().voice, Guessed()
    for prompt in PROMPTS:
        ids = tuple(voice.prompt(prompt))
        plain, _ = await said(stage_of(), voice, ids, DRAWS[draw], None)
        pieces, answer = await said(stage_of(), voice, ids, DRAWS[draw], Drafts())
        assert told(pieces) == told(plain)
        assert answer.guessed is not None
        total.sent += answer.guessed.sent
        total.accepted += answer.guessed.accepted
        assert answer._session.length == ids_fed(ids, pieces)
    assert total.sent > 0
    if draw == "greedy":
        assert total.accepted > 30, "or hardly any row behind a guess was drawn from"


def ids_fed(ids: tuple[int, ...], pieces: list[Piece]) -> int:
    """All but the last token: what was guessed beyond the end was taken back."""
    return len(ids) + len(pieces) - 1


@pytest.mark.parametrize(
    ("quantization", "byte_pages"), [("int8", False), ("nf4", False), ("int8", True)]
)
async def test_quantized_stages_give_a_row_the_same_bits_behind_guesses(
    quantization: str, byte_pages: bool
) -> None:
    """Keys and values in bytes too: what was taken back leaves no trace in a page."""
    voice, stage = demo().voice, stage_of(quantization, byte_pages)
    for number, prompt in enumerate(PROMPTS[:3]):
        ids = tuple(voice.prompt(prompt))
        for settings in (Settings(), Settings(0.8, seed=number)):
            plain, _ = await said(stage, voice, ids, settings, None)
            pieces, answer = await said(stage, voice, ids, settings, Drafts())
            assert told(pieces) == told(plain)
            assert answer.guessed is not None and answer.guessed.steps > 0


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
async def test_rows_of_a_verified_step_equal_those_of_single_steps_bit_for_bit(
    quantization: str,
) -> None:
    """Thirty-three rows in one step, of which the last twenty are taken back and others come, equal
    rows that came one by one."""
    stage, voice = stage_of(quantization), demo().voice
    ids = voice.prompt(CODE * 2)[:60]
    hidden = voice.ends.embed(ids)
    wrong = voice.ends.embed([(one * 7 + 5) % 300 for one in ids])

    session = StageSession(stage, 200)
    single = torch.cat([rows_of(session, hidden[at : at + 1], at) for at in range(60)])
    guessed = torch.cat([hidden[10:23], wrong[23:43]])
    session = StageSession(stage, 200)
    found = [
        rows_of(session, hidden[:10], 0),
        rows_of(session, guessed, 10)[:13],
        rows_of(session, hidden[23:], 23),
    ]
    assert torch.equal(torch.cat(found), single)


def rows_of(session: StageSession, hidden: torch.Tensor, at: int) -> torch.Tensor:
    session.feed(pack(hidden, DTYPE), len(hidden), len(hidden), at)
    return unpack(session._outputs.pop(), *hidden.shape, DTYPE)


async def test_an_answer_that_keeps_to_a_schema_is_the_same_and_so_are_its_notes() -> None:
    """The automaton takes each token once, in order, and none beyond the end."""
    language = demo()
    ids = tuple(language.voice.prompt('{"names": ["north", "northeast", "north"]}\n'))
    found = []
    for drafts in (None, Drafts()):
        constraint = language.tokens.constraint(schema_grammar(SCHEMA))
        speaker = Speaker.speaking(language.voice, begun=len(ids), constraint=constraint, top=2)
        pieces, answer = await said(
            stage_of(), speaker, ids, Settings(0.9, seed=2), drafts, ignore_eos=False
        )
        found.append((told(pieces), list(speaker.notes)))
    assert found[0] == found[1] and found[0][0][-1][3] == "eos"
    assert answer.guessed is not None and answer.guessed.accepted > 3


async def test_a_stop_string_in_the_middle_of_guesses_ends_the_answer_there() -> None:
    voice = demo().voice
    ids = tuple(voice.prompt(PROMPTS[3]))
    plain, _ = await said(stage_of(), voice, ids, Settings(), None)
    stop = "".join(one.text for one in plain)[20:24]
    found = [
        await said(stage_of(), voice, ids, Settings(), drafts, stops=(stop,))
        for drafts in (None, Drafts())
    ]
    (expected, _), (pieces, answer) = found
    assert told(pieces) == told(expected) and pieces[-1].finish == "stop"
    assert answer._session.length == ids_fed(ids, pieces)


async def test_who_is_interrupted_between_rows_loses_no_token() -> None:
    voice = demo().voice
    ids = tuple(voice.prompt(PROMPTS[2]))
    plain, _ = await said(stage_of(), voice, ids, Settings(), None)
    worker, pieces = Interrupting(), list[Piece]()
    session = StageSession(stage_of(), len(ids) + TOKENS)
    request = Request(voice, ids, max_new_tokens=TOKENS, ignore_eos=True, drafts=Drafts())
    answer = Generation(session, worker, request)  # type: ignore[arg-type]
    while not pieces or pieces[-1].finish is None:
        with trio.CancelScope() as worker.scope:
            pieces.append(await anext(answer))
    assert told(pieces) == told(plain)
    assert max(session.sizes[1:]) > 4


async def test_where_a_step_of_several_rows_promises_no_equal_bits_nothing_is_guessed() -> None:
    voice = demo().voice
    ids = tuple(voice.prompt(PROMPTS[2]))
    for rows_alike, widest in ((1, 1), (4, 4)):
        session = StageSession(stage_of(), len(ids) + TOKENS, rows_alike)
        request = Request(voice, ids, max_new_tokens=TOKENS, ignore_eos=True, drafts=Drafts())
        answer = Generation(session, Inline(), request)  # type: ignore[arg-type]
        assert len([piece async for piece in answer]) == TOKENS
        assert max(session.sizes[1:]) == widest


async def test_a_small_model_guesses_what_the_large_one_draws_and_changes_no_word() -> None:
    """The model itself, as its own small model: sampled too, nearly every guess is right, since
    both draw with the same noise. Its numbers are another class's."""
    voice = demo().voice
    drafts = Drafts(DraftModel.load(DEMO_FOLDER, voice.text))
    for settings in (Settings(), Settings(0.8, seed=4)):
        ids = tuple(voice.prompt("A new kind of"))
        plain, _ = await said(stage_of(), voice, ids, settings, None)
        pieces, answer = await said(stage_of(), voice, ids, settings, drafts)
        assert told(pieces) == told(plain)
        assert answer.guessed is not None and answer.guessed.share is not None
        assert answer.guessed.share > 0.7 and answer.guessed.accepted > TOKENS // 2


def test_a_small_model_with_other_words_is_refused(tmp_path: Path) -> None:
    """The same files, but for two tokens that have changed places."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(DEMO_FOLDER / name)
    tokenizer = json.loads((DEMO_FOLDER / "tokenizer.json").read_text("utf-8"))
    words = tokenizer["model"]["vocab"]
    one, other = sorted(words)[50:52]
    words[one], words[other] = words[other], words[one]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(UserError, match="other tokens"):
        DraftModel.load(tmp_path, demo().voice.text)
