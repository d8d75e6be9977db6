"""What a person sees of audits: the corrected text, a line for it, and what they came to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from potluck.cli.answer import AMENDED, Question, Told, audits_line, follow, tell_answer
from potluck.cli.habits import Habits
from potluck.errors import UserError
from potluck.node.config import find_audit
from potluck.node.generation import Piece, hear
from potluck.node.trust.docket import Tally


def piece(position: int, text: str, finish: str | None = None) -> Piece:
    return Piece(position, position, text, 0.1, (), finish)


SAID = [
    piece(5, "one "),
    piece(6, "lie "),
    piece(7, "lie "),
    piece(6, "two "),
    piece(7, "end", "eos"),
]


class Pretended:
    """A swarm with one answer in it. asked: by which options."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.audits = False

    @asynccontextmanager
    async def generation(self, model: str, prompt: str, **options: Any) -> AsyncIterator[Any]:
        self.asked = options

        class Answer:
            recoveries, seed, exact, adapter, guessed = (), None, True, None, None
            audits = Tally(signed=4, drawn=3, right=2, wrong=1, convicted=["peer-of-lies"])

            async def __aiter__(self) -> AsyncIterator[Piece]:
                for one in SAID:
                    yield one

        yield Answer()


async def test_what_is_replaced_is_told_in_one_line_and_the_text_stands_corrected() -> None:
    told, shown, swarm = Told(), [""], Pretended()
    question = Question("?", "demo", Habits(audit=True))
    await follow(swarm, question, told, shown.append)  # type: ignore[arg-type]
    assert told.text == "one two end" and told.finish == "eos"
    assert "".join(shown) == f"one lie lie \n{AMENDED}\none two end"
    assert swarm.asked["audit"] == "on"
    assert told.facts()["audits"]["convicted"] == ["peer-of-lies"]
    assert "3 of 4 signed chunks audited: 2 right, 1 wrong, convicted -of-lies" in told.summary()


@pytest.mark.parametrize("audit", [True, False])
def test_into_a_pipe_go_no_words_that_are_replaced_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], audit: bool
) -> None:
    @asynccontextmanager
    async def joined(*args: object, **options: object) -> AsyncIterator[Pretended]:
        yield Pretended()

    monkeypatch.setattr("potluck.cli.answer.open_swarm", joined)
    question = Question("?", "demo", Habits(audit=audit))
    assert not tell_answer(question, join=(), home=None, offline=True, json=False, quiet=True)
    shown = capsys.readouterr().out
    assert (shown == "one two end\n") == audit


def test_a_piece_replaces_what_stands_from_its_position_on() -> None:
    stand: list[Piece] = []
    assert [hear(stand, one) for one in SAID] == [False, False, False, True, False]
    assert [one.text for one in stand] == ["one ", "two ", "end"]


def test_what_audits_came_to_is_told_in_words() -> None:
    assert audits_line(Tally(signed=3)) == "0 of 3 signed chunks audited"
    assert audits_line(Tally(signed=9, drawn=5, right=2, open=1, unaudited=2)) == (
        "3 of 9 signed chunks audited: 2 right, 1 open, 2 that nobody could audit"
    )


@pytest.mark.parametrize(
    "given, text, audits",
    [
        (None, "", False),
        (None, 'audit = "on"', True),
        (None, 'audit = "off"', False),
        ("on", 'audit = "off"', True),
        ("off", 'audit = "on"', False),
    ],
)
def test_answers_are_audited_as_given_or_else_as_the_config_says(
    tmp_path: Path, given: str | None, text: str, audits: bool
) -> None:
    (tmp_path / "config.toml").write_text(text)
    assert find_audit(given, tmp_path) is audits


@pytest.mark.parametrize("text", ['audit = "often"', "audit = true", "audit = [1]"])
def test_an_audit_that_is_neither_on_nor_off_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UserError, match=r'config.toml: audit must be "on" or "off"'):
        find_audit(None, tmp_path)
    with pytest.raises(UserError, match="audit"):
        find_audit("sometimes", tmp_path)


def test_habits_say_nothing_of_audits_unless_they_are_told_to() -> None:
    assert "audit" not in Habits().options()
    assert Habits(audit=False).options()["audit"] == "off"
