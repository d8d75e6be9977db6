"""What takes long shows how far it is, to whoever looks at a terminal, and to nobody else."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from potluck.cli import bars
from potluck.cli.bars import LONG_TOKENS, prefill_bar, show_loading
from potluck.node.compute import loading
from potluck.node.compute.loading import counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Answer:
    prompt_tokens: int
    prompt_read: int = 0


@pytest.fixture
def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Call it inside the test: before it, pytest puts its own streams in place once more."""

    def opened() -> Terminal:
        made = Terminal()
        monkeypatch.setattr(sys, "stderr", made)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(loading, "LISTENERS", [])
        return made

    return opened


def test_each_block_that_is_loaded_is_told_once_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(loading, "LISTENERS", [lambda done, of: told.append((done, of))])
    seen = []
    for index in counted({4: "a", 5: "b", 6: "c"}):
        assert len(told) == len(seen)
        seen.append(index)
    assert seen == [4, 5, 6] and told == [(1, 3), (2, 3), (3, 3)]


def test_a_terminal_sees_blocks_come(open_terminal: Callable[[], Terminal]) -> None:
    terminal = open_terminal()
    show_loading()
    assert list(counted([0, 1, 2, 3])) == [0, 1, 2, 3]
    said = terminal.getvalue()
    assert "\x1b[?25h" in said and said.endswith("\x1b[2K")  # the cursor, and no bar, is left
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert "loading" in plain and "4/4" in plain and "blocks/s" in plain


def test_a_terminal_sees_how_far_a_long_prompt_is(open_terminal: Callable[[], Terminal]) -> None:
    terminal = open_terminal()
    answer = Answer(2 * LONG_TOKENS)
    with prefill_bar(answer, True) as ended:  # type: ignore[arg-type]
        answer.prompt_read = LONG_TOKENS
        ended()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert f"{LONG_TOKENS}/{2 * LONG_TOKENS}" in plain and "tokens/s" in plain


@pytest.mark.parametrize("tokens, shown", [(LONG_TOKENS - 1, True), (LONG_TOKENS, False)])
def test_a_short_prompt_and_who_wants_quiet_see_none(
    open_terminal: Callable[[], Terminal], tokens: int, shown: bool
) -> None:
    terminal = open_terminal()
    with prefill_bar(Answer(tokens), shown) as ended:  # type: ignore[arg-type]
        ended()
    assert terminal.getvalue() == ""


def test_a_pipe_sees_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LISTENERS", [])
    assert not bars.shows_bars()
    show_loading()
    assert loading.LISTENERS == []
    with prefill_bar(Answer(2 * LONG_TOKENS), True) as ended:  # type: ignore[arg-type]
        ended()
    assert capsys.readouterr().err == ""
