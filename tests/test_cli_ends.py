"""How commands end: by signals, with nowhere to write, in the middle of a conversation."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from potluck.cli import talk as talking
from potluck.cli.habits import Habits
from potluck.cli.main import main
from potluck.cli.options import say
from potluck.cli.tables import print_table
from potluck.errors import MissingBlocks, UserError

BLOCKED = """
import time, trio
from potluck.cli.edge import {name}
async def run():
    with {name}():
        print("blocked", flush=True)
        await trio.to_thread.run_sync(time.sleep, 60)
trio.run(run)
"""


@pytest.mark.parametrize("name", ["until_signalled", "ended_by_second_ctrl_c"])
def test_a_second_ctrl_c_waits_for_no_thread(name: str) -> None:
    """A model of many GiB is read by a thread that cannot be stopped: the first Ctrl-C waits."""
    command = [sys.executable, "-c", BLOCKED.format(name=name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"blocked\n"
        deadline_s = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline_s:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        process.kill()
    assert process.returncode == -signal.SIGINT


BEGINNING = """
import sys, time
class Slow:
    def find_spec(self, name, path, target=None):
        if name == "{name}":
            print("importing", flush=True)
            time.sleep({imports_s})
sys.meta_path.insert(0, Slow())
from potluck.cli.main import main
code = main()
print("done", flush=True)
time.sleep({ends_s})
sys.exit(code)
"""


@pytest.mark.parametrize("when", ["importing", "done"])
def test_ctrl_c_while_a_command_is_imported_or_over_is_130_and_no_traceback(when: str) -> None:
    """typing is the first that is imported and takes long."""
    imports_s = 60 * (when == "importing")
    script = BEGINNING.format(name="typing", imports_s=imports_s, ends_s=60)
    command = [sys.executable, "-c", script, "--version"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        while process.stdout.readline() != f"{when}\n".encode():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, b"")


def test_who_is_started_to_hear_no_ctrl_c_hears_none() -> None:
    """As a shell starts what stands before an `&`."""
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);" + BEGINNING.format(
        name="typer", imports_s=1, ends_s=0
    )
    command = [sys.executable, "-c", script, "--version"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and said.endswith(b"done\n")


ENDING = """
import signal, sys
from potluck.cli.edge import ended_by_signals
with ended_by_signals(trio_inside=False):
    try:
        print("started", flush=True)
        signal.pause()
    finally:
        print("ending", flush=True)
        sys.stdin.readline()
        print("ended", flush=True)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_second_signal_cuts_short_the_end_of_what_was_started(first: signal.Signals) -> None:
    """Ctrl-C pressed twice while a testnet starts, or a terminal that closes behind it."""
    command = [sys.executable, "-c", ENDING]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.send_signal(first)
        assert process.stdout.readline() == b"ending\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        said, _ = process.communicate(b"\n", timeout=30)
    assert said == b"ended\n" and process.returncode != 0


def test_a_full_disk_under_the_output_is_one_line() -> None:
    script = (
        "import sys; from potluck.cli.edge import report\n"
        "try:\n  print('x' * 200_000, flush=True)\n"
        "except OSError as error: sys.exit(report(ExceptionGroup('g', [error])))"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith(b"potluck: the output cannot be written (No space left")
    assert done.stderr.count(b"\n") == 1


def test_a_closed_output_is_nowhere_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `potluck status >&-` has it."""
    monkeypatch.setattr(sys, "stdout", None)
    say("lost")
    print_table(("A",), [("lost",)])


@pytest.mark.parametrize(
    "line, what",
    [
        (["node", "-m", "demo", "--threads", "100000"], "--threads"),
        (["demo", "-n", "5", "--kill-after", "12"], "give a larger --max-new-tokens"),
        (["demo", ""], "the prompt is empty"),
        (["chat", "-m", "demo", "--top-p", "5"], "top_p is 5.0; it must be above 0, at most 1"),
        (["chat", "-m", "demo", "--system", "caf\udce9"], "--system is not text"),
    ],
)
def test_what_can_be_known_before_is_said_before(
    line: list[str], what: str, one_line: Callable[[], str]
) -> None:
    """No process is started, no thread, nobody is dialled."""
    assert main(line) == 2
    assert what in one_line()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Uncovered:
    """A swarm that lacks a block."""

    name = "demo"
    context = 64

    def voice(self, model: str) -> Uncovered:
        return self

    @property
    def text(self) -> Uncovered:
        return self

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        return [1]

    def generate(self, *args: object, **options: object) -> Iterator[object]:
        raise MissingBlocks("demo", ((0, 4),))
        yield


def converse(monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO) -> None:
    @contextmanager
    def connect(*args: object, **options: object) -> Iterator[Uncovered]:
        yield Uncovered()

    monkeypatch.setattr(talking, "connect", connect)
    monkeypatch.setattr(sys, "stdin", stdin)
    talking.talk("demo", Habits(), system="", join=(), home=None, offline=True, quiet=True)


def test_a_conversation_by_a_script_fails_with_its_first_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(MissingBlocks):
        converse(monkeypatch, io.StringIO("one\ntwo\n"))
    with pytest.raises(UserError, match="the line is not text"):
        converse(monkeypatch, io.StringIO("caf\udce9\n"))


def test_a_conversation_by_a_person_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(monkeypatch, Terminal("one\ncaf\udce9\n/quit\n"))
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("potluck: ") for line in said] == [True, True]
