"""What all tests of one process share, and leave to the next as they found it.

Imported by both conftest.py. One thread of arithmetic: with one for each core, OpenMP's threads
spin at every barrier, and on a machine whose cores do other things as well each of the many tiny
products of a test waits for a thread that does not run.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
import zlib
from collections.abc import Iterator

import pytest
import structlog
import trio
from hypothesis import HealthCheck, settings
from trio.testing import MockClock

from potluck.node.leash import leash

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, which is later
os.environ.setdefault("POTLUCK_GUEST", "no")  # nodes of tests serve, however busy their machine
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# for CI the same examples of a test each time, so that it says the same of the same commit;
# whoever runs `make test` looks for new ones
settings.register_profile("repeatable", settings.get_profile("busy"), derandomize=True)
settings.load_profile("repeatable" if "CI" in os.environ else "busy")
THREAD_LOOK_S = 0.0002
MARK = "POTLUCK_TESTS"  # in the environment of every process that a test starts


@pytest.fixture(scope="session", autouse=True)
def leashed() -> Iterator[None]:
    """What tests have started ends with this process, though it be killed."""
    value, before = secrets.token_hex(8), os.environ.get(MARK)  # each conftest.py has one
    with leash(MARK, value):
        os.environ[MARK] = value
        yield
        if before is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = before


@pytest.fixture(autouse=True)
def dice(request: pytest.FixtureRequest) -> None:
    """A test draws the same numbers each time; new ones are Hypothesis's to look for."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command sets the level of the process's logs, which is other tests' process too."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def autojump_clock() -> MockClock:
    """pytest-trio's, but virtual time stands still while one of trio's threads works.

    trio's own takes a run whose tasks all wait for idle, whatever threads do meanwhile: on a busy
    machine a file was written, or a signature made, after every deadline of the test had passed.
    """
    clock = MockClock(autojump_threshold=0)
    jump = clock._autojump

    def jump_unless_a_thread_works() -> None:
        if trio.to_thread.current_default_thread_limiter().borrowed_tokens:
            time.sleep(THREAD_LOOK_S)  # else asking again and again would take the thread's core
        else:
            jump()

    clock._autojump = jump_unless_a_thread_works  # type: ignore[method-assign]
    return clock
