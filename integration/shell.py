"""Command lines, each in a process of its own: forked from one that has imported everything.

A command spends most of two seconds on importing torch; thirty of them would spend a minute. What
runs in the fork is the command's own `main`, with its own streams, folder and environment: the
first time to the interpreter's end, later to the end of its threads and exit functions, for to take
down torch's modules is 0.3 s more.

    with open_shell() as shell:
        done = shell.run("generate", "Hello", "-m", "demo", home=folder)
        done.code, done.out, done.err
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

WAIT_S = 40.0  # no command line of a test takes longer, whatever is wrong with it


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended. code: below zero, the signal that ended it."""

    code: int
    out: str
    err: str
    seconds: float


class Command:
    """A command that runs."""

    def __init__(self, shell: Shell, pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self._shell = shell
        self._out = out
        self._err = err
        self._began_s = time.monotonic()

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8", errors="replace")

    def wait(self, wait_s: float = WAIT_S) -> Done:
        code = self._shell.wait(self.pid, wait_s)
        return Done(code, self.out, self.err, time.monotonic() - self._began_s)


class Shell:
    """Starts commands. Made by `open_shell`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._count = 0

    def start(
        self, *args: str, home: Path, cwd: Path | None = None, stdin: str = "", **environment: str
    ) -> Command:
        self._count += 1
        out, err, into = (self._folder / f"{self._count}.{kind}" for kind in ("out", "err", "in"))
        into.write_text(stdin, encoding="utf-8")
        out.touch()  # so that one may look into it at once
        pid = self._ask(
            {
                "args": args,
                "streams": [str(into), str(out), str(err)],
                "cwd": str(cwd or self._folder),
                "environment": {"POTLUCK_HOME": str(home), "POTLUCK_JOIN": ""} | environment,
            }
        )
        return Command(self, pid, out, err)

    def run(self, *args: str, home: Path, wait_s: float = WAIT_S, **more: Any) -> Done:
        return self.start(*args, home=home, **more).wait(wait_s)

    def wait(self, pid: int, wait_s: float) -> int:
        return self._ask({"wait": pid, "seconds": wait_s})

    def _ask(self, question: dict[str, Any]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        return int(answer)


@contextmanager
def open_shell() -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="potluck-shell-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            yield Shell(process, Path(folder))
        finally:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.wait(10)
            process.stdout.close()


def _serve() -> None:
    """Fork a process for each command line that comes in; in the fork, run it and end."""
    from potluck.cli.loading import loading

    with loading():  # what a command would import
        import potluck.cli.answer
        import potluck.cli.commands
        import potluck.cli.picture
        import potluck.node.daemon  # noqa: F401
        from potluck.cli.main import main

    gc.freeze()  # else each fork copies all pages, in counting what will never be collected
    ended: set[str] = set()  # commands that were run to the interpreter's end
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    for line in os.fdopen(os.dup(0), "rb"):
        asked = json.loads(line)
        if "wait" in asked:
            answers.write(b"%d\n" % _wait(asked["wait"], asked["seconds"]))
            continue
        pid = os.fork()
        name = asked["args"][0]
        if pid:
            ended.add(name)
            answers.write(b"%d\n" % pid)
            continue
        os.setsid()
        os.environ.update(asked["environment"])
        os.chdir(asked["cwd"])
        for number, path in enumerate(asked["streams"]):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(path, flags, 0o600), number)
        code = main(asked["args"])
        if name in ended:
            _end(code)
        sys.exit(code)


def _end(code: int) -> NoReturn:
    """As the interpreter does, but for its modules."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(pid: int, seconds: float) -> int:
    deadline_s = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline_s:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -signal.SIGKILL
        time.sleep(0.01)


if __name__ == "__main__":
    _serve()
