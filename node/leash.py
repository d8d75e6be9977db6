"""A leash: processes that end with whoever started them, though that one be killed.

What stands in a `finally` nobody does for a process that is killed. So another process, the keeper,
does nothing but wait for its end:

    we ── a pipe ──▶ keeper    a word, and the pipe's end: all is in order, it ends
                               the end alone: it ends every process that bears the mark

Not Linux's PR_SET_PDEATHSIG: that tells of the end of the thread that started a process, and ours
are started by threads that end long before.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from .process import end, marked

# nothing is imported before it is needed; -P: no folder that we stand in may shadow a module
KEEPER: Final = """
import sys
if not sys.stdin.buffer.read():
    from potluck.node.leash import end_marked
    end_marked(*sys.argv[1:])
"""


@contextmanager
def leash(variable: str, value: str) -> Iterator[None]:
    """Whoever bears this mark is ended when this process ends inside, in whatever way."""
    reading, writing = os.pipe()
    nowhere = subprocess.DEVNULL
    keeper = subprocess.Popen(
        [sys.executable, "-P", "-c", KEEPER, variable, value],
        stdin=reading,
        stdout=nowhere,
        stderr=nowhere,
        env={name: value for name, value in os.environ.items() if name != variable},
        start_new_session=True,  # Ctrl-C in the terminal is not for it
    )
    os.close(reading)
    try:
        yield
    finally:
        with suppress(BrokenPipeError):  # somebody has ended it
            os.write(writing, b".")
        os.close(writing)
        keeper.wait()


def end_marked(variable: str, value: str) -> None:
    """End whoever bears this mark, and whoever they started meanwhile."""
    while found := marked(variable, value):
        end(found, grace_s=0)
