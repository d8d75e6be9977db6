"""Whatever ends us, nobody is left whom we started on a leash."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from potluck.node.process import end, marked

MARK = "POTLUCK_LEASH_TEST"
# The one that is started is started by a thread that ends at once, in a session of its own.
SCRIPT = f"""
import os, subprocess, sys, threading
from potluck.node.leash import leash
with leash({MARK!r}, sys.argv[1]):
    environment = {{**os.environ, {MARK!r}: sys.argv[1]}}
    def start():
        global child
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", "import time; time.sleep(600)"],
            env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
        )
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    print(child.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def value() -> Iterator[str]:
    value = secrets.token_hex(8)
    yield value
    end(marked(MARK, value), grace_s=0)


def begun(value: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """A process, and the one that it has started."""
    pipe = subprocess.PIPE
    starter = subprocess.Popen([sys.executable, "-c", SCRIPT, value], stdin=pipe, stdout=pipe)
    assert starter.stdout is not None
    return starter, psutil.Process(int(starter.stdout.readline()))


def test_who_was_started_ends_with_a_starter_that_is_killed(value: str) -> None:
    starter, child = begun(value)
    with starter:
        starter.kill()
    assert psutil.wait_procs([child], timeout=30)[1] == []


def test_an_end_in_order_ends_nobody(value: str) -> None:
    """That is for the starter to do, which has waited for its keeper too."""
    starter, child = begun(value)
    with starter:
        starter.communicate(b"", timeout=30)
    assert starter.returncode == 0
    assert [one.pid for one in marked(MARK, value)] == [child.pid]


def test_what_this_test_starts_is_on_a_leash() -> None:
    assert os.environ["POTLUCK_TESTS"]
