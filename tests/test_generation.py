"""An answer, token by token, over a pretended session."""

from __future__ import annotations

import pytest
import trio
from api_fakes import Inline, Interrupting, PretendedSession, demo

from potluck.errors import UserError
from potluck.node.generation import Generation, Piece, Request
from potluck.node.prompt import encode_request
from potluck.swarm.wan import CHUNK_TOKENS

PROMPT = tuple(range(40, 40 + 2 * CHUNK_TOKENS + 10))  # three chunks


def generation(worker: Inline) -> Generation:
    voice = demo().voice
    session = PretendedSession(voice.width, None, 0)
    request = Request(voice, PROMPT, max_new_tokens=6, ignore_eos=True)
    return Generation(session, worker, request)  # type: ignore[arg-type]


async def test_who_waits_with_a_deadline_and_comes_back_loses_no_token() -> None:
    """Interrupted while the prompt is read, and before each token: the tokens are the same."""
    plain = [piece async for piece in generation(Inline())]
    worker = Interrupting()
    answer = generation(worker)
    pieces: list[Piece] = []
    with trio.fail_after(10):
        while not pieces or pieces[-1].finish is None:
            with trio.CancelScope() as worker.scope:
                pieces.append(await anext(answer))
    assert worker.calls == 2 * (3 + len(plain))
    assert [(one.token, one.position, one.text, one.finish) for one in pieces] == [
        (one.token, one.position, one.text, one.finish) for one in plain
    ]


@pytest.mark.parametrize("prompt", ["caf\udce9", "\ud800 half a pair"])
def test_a_prompt_that_is_no_text_is_refused(prompt: str) -> None:
    """As a shell hands over bytes that are not UTF-8, or JSON half of a surrogate pair."""
    with pytest.raises(UserError, match="not text"):
        encode_request(demo().voice, prompt)
