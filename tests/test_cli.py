"""The command line: what it says, and what it exits with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from potluck import __version__
from potluck.cli.commands import WELCOME, app
from potluck.cli.edge import report, until_signalled
from potluck.cli.main import main
from potluck.cli.options import stops_of
from potluck.errors import (
    LocalError,
    MissingBlocks,
    PotluckError,
    Refused,
    TransportError,
    UserError,
)

HEAVY = {"torch", "trio", "libp2p", "numpy", "rich", "structlog", "tokenizers", "psutil", "asyncio"}


pytestmark = pytest.mark.usefixtures("logs_as_before")


def commands() -> list[list[str]]:
    """Every command that there is, as its words."""

    def walk(command: object, words: list[str]) -> Iterator[list[str]]:
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*words, name])

    return list(walk(get_command(app), []))


# ---- what it says


def test_help_loads_nothing_that_computes_or_waits() -> None:
    """Loading torch takes seconds, and `--help` has 0.4 s on the slowest machine."""
    script = (
        "import sys; from potluck.cli.main import main; main(['--help']);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "generate" in done.stdout
    assert HEAVY.isdisjoint(done.stderr.split())


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    is_group = words in ([], ["testnet"], ["bench"], ["pin"], ["vouch"], ["service"], ["models"])
    assert "Example" in said or (is_group and "Commands:" in said)
    for example in re.findall(r"^ +(?:cat .*\| )?potluck (.*)$", said, re.MULTILINE):
        assert any(example.split()[: len(known)] == known for known in commands())


def test_alone_it_shows_three_commands_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said == WELCOME
    shown = re.findall(r"^  potluck (\w+)", said, re.MULTILINE)
    assert shown == ["demo", "testnet", "generate"]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"potluck {__version__}\n"


# ---- how it ends


@pytest.mark.parametrize(
    "line",
    ["nod", "node", "generate -m demo", "generate x -m demo -n 0", "testnet", "testnet kill",
     "node -m demo --port 70000", "status --nonsense", "testnet up --nodes many"],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_2(line: str, one_line: Callable[[], str]) -> None:
    assert main(line.split()) == 2
    assert "--help)" in one_line()


def test_a_stop_that_is_empty_is_refused(one_line: Callable[[], str]) -> None:
    assert main(["generate", "x", "-m", "demo", "--stop", "a", "--stop", ""]) == 2
    assert "--stop is empty" in one_line()


def test_a_stop_may_name_what_shells_cannot() -> None:
    assert stops_of(["a\\n\\n", "\\tb", "c"]) == ("a\n\n", "\tb", "c")
    assert stops_of(None) == ()


nested = st.recursive(
    st.sampled_from([UserError("a"), TransportError("b"), MissingBlocks("m", ((0, 2),))]),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(
        lambda errors: ExceptionGroup("group", errors)
    ),
)


@given(nested)
def test_however_deep_in_groups_an_expected_error_is_found(error: Exception) -> None:
    bad_input = "UserError" in repr(error)
    assert report(error) == (2 if bad_input else 1)


@pytest.mark.parametrize(
    "error, code",
    [
        (UserError("give another"), 2),
        (MissingBlocks("demo", ((2, 5),)), 1),
        (Refused("full", retry_after_s=1.0), 1),
        (PotluckError("a message\nof  two lines"), 1),
    ],
)
def test_an_expected_error_is_one_line(
    error: PotluckError, code: int, one_line: Callable[[], str]
) -> None:
    assert report(error) == code
    assert one_line() == f"potluck: {' '.join(str(error).split())}\n"


@pytest.mark.parametrize(
    "error", [ValueError("x"), LocalError("x"), ExceptionGroup("g", [UserError("y"), KeyError(1)])]
)
def test_our_own_fault_is_loud(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(error) == 70
    assert "Error" in capsys.readouterr().err


def test_ctrl_c_is_130_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    inside = BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError("torn down in between")])
    assert report(KeyboardInterrupt()) == report(inside) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_cancels_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with until_signalled() as interruption:
        signal.raise_signal(number)
        await trio.sleep_forever()
    assert interruption.exit_code == 128 + number
    assert signal.getsignal(number) == before


async def test_without_a_signal_nothing_is_cancelled() -> None:
    with until_signalled() as interruption:
        await trio.lowlevel.checkpoint()
    assert interruption.exit_code == 0


def test_a_reader_that_leaves_is_no_fault() -> None:
    """`potluck ... | head -1`: no traceback, whoever wrote into the closed pipe."""
    script = (
        "import sys; from potluck.cli.edge import report\n"
        "try:\n  print('x' * 200_000, flush=True)\n"
        "except OSError as error: sys.exit(report(ExceptionGroup('g', [error])))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
