"""What is asked of guesses, and what is told of them: client and command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from api_fakes import Inline, demo

from potluck.cli.answer import Told
from potluck.cli.habits import Habits
from potluck.errors import UserError
from potluck.node.client import Swarm
from potluck.node.compute.draft_model import DraftModel
from potluck.node.drafting import Drafts, Guessed
from potluck.node.generation import Piece
from potluck.node.latest import Latest
from potluck.node.library import DEMO_FOLDER


def swarm(home: Path) -> Swarm:
    made = SimpleNamespace(
        _loading=trio.Lock(), _draft_models=Latest(2), _home=home, _worker=Inline(), _offline=True
    )  # fmt: skip
    return cast(Swarm, made)


async def test_guesses_are_made_of_what_was_said_of_a_small_model_too_or_not_at_all(
    tmp_path: Path,
) -> None:
    """A small model is loaded once."""
    here, voice = swarm(tmp_path), demo().voice
    assert await Swarm.drafts(here, voice, "auto") == Drafts()
    assert await Swarm.drafts(here, voice, "off") is None
    first = await Swarm.drafts(here, voice, DEMO_FOLDER)
    again = await Swarm.drafts(here, voice, str(DEMO_FOLDER))
    assert first is not None and again is not None
    assert isinstance(first.model, DraftModel) and first.model is again.model
    with pytest.raises(UserError):
        await Swarm.drafts(here, voice, tmp_path / "nothing")


def told(guessed: Guessed | None) -> Told:
    pieces = [Piece(5, 3, "one", 0.5, ()), Piece(6, 4, " two", 0.0, (), "length", guessed=True)]
    return Told(pieces=pieces, guessed=guessed)


def test_how_many_guesses_were_right_is_told_where_any_were_sent() -> None:
    some = told(Guessed(sent=8, accepted=6, steps=3))
    assert "6 of 8 guesses right" in some.summary()
    assert some.facts()["guesses"] == {"sent": 8, "accepted": 6, "share": 0.75, "steps": 3}
    none = told(Guessed(steps=4))
    assert "guesses" not in none.summary()
    assert none.facts()["guesses"] == {"sent": 0, "accepted": 0, "share": None, "steps": 4}
    assert told(None).facts()["guesses"] is None


@pytest.mark.parametrize("draft", ["auto", "off", "./small"])
def test_the_command_line_hands_on_what_shall_guess(draft: str) -> None:
    options: dict[str, Any] = dict(Habits(draft=draft).options())
    assert options["draft"] == draft
