"""Processes that outlive whoever started them: known by their birth, ended, and what they said."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

from potluck.node.process import ProcessId, end, find, last_lines, process_id, start

from .test_testnet import until


def test_a_process_is_known_again_by_its_birth() -> None:
    mine = process_id()
    assert mine.pid == os.getpid() and find(mine) is not None
    assert find(ProcessId(mine.pid, mine.created_s - 60)) is None


def test_a_zombie_has_ended(tmp_path: Path) -> None:
    child = start(
        [sys.executable, "-S", "-c", ""], mark=("M", "1"), environment={}, log=tmp_path / "l"
    )
    process = psutil.Process(child.pid)
    until(lambda: process.status() == psutil.STATUS_ZOMBIE)
    began_s = time.monotonic()
    end([process], grace_s=10)
    assert time.monotonic() - began_s < 5


def test_the_last_lines_of_a_log_are_those_that_say_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log, 3) == []
    log.write_bytes(b"one\n\xff two\n\n  \nthree\n")
    assert last_lines(log, 2) == ["\ufffd two", "three"]
