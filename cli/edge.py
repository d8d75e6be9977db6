"""Where errors and signals become one line and an exit code.

0    done
1    it failed: nobody serves some blocks, everybody is full, the road broke
2    bad input: the line says what to do
70   our own fault, with a traceback (sysexits.h: an internal software error)
130  Ctrl-C; 143 SIGTERM (128 + the signal's number, as shells have it)
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from ..errors import LocalError, PotluckError, UserError

if TYPE_CHECKING:
    import trio

DONE, FAILED, BAD_INPUT, OUR_FAULT, INTERRUPTED = 0, 1, 2, 70, 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def leaves(error: BaseException) -> list[BaseException]:
    """The errors inside the groups that nurseries put around them."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def report(error: BaseException) -> int:
    """Tell the user what went wrong, on stderr; the exit code that says the same."""
    found = leaves(error)
    if any(isinstance(one, KeyboardInterrupt) for one in found):
        return INTERRUPTED
    if any(isinstance(one, OSError) for one in found) and _output_lost():
        return FAILED
    expected = [one for one in found if isinstance(one, PotluckError)]
    if len(expected) < len(found) or any(isinstance(one, LocalError) for one in found):
        traceback.print_exception(error)
        complain("this is a fault of potluck itself; please report the lines above")
        return OUR_FAULT
    # what the user can mend explains the rest
    told = next((one for one in expected if isinstance(one, UserError)), expected[0])
    complain(str(told) or type(told).__name__)
    return BAD_INPUT if isinstance(told, UserError) else FAILED


def complain(message: str) -> None:
    """One line on stderr, whatever is in the message."""
    line = " ".join(message.split())
    print(f"potluck: {line}", file=sys.stderr)


def _output_lost() -> bool:
    """Whether nothing more can be said on stdout: whoever read it went away (`| head`), or its disk
    is full."""
    try:
        print(flush=True)
    except OSError as error:
        # the interpreter flushes once more at its end, and would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            complain(f"the output cannot be written ({error.strerror}); send it elsewhere")
        return True
    return False


@contextmanager
def ended_by_signals(*, trio_inside: bool = True) -> Iterator[None]:
    """SIGTERM, or a terminal that closes, ends us by SystemExit, so that what was started is ended
    too; Ctrl-C by KeyboardInterrupt. No second signal cuts that short.

    trio_inside: Ctrl-C is trio's to handle.
    """
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.getsignal(number) for number in [*numbers, signal.SIGINT]}

    def leave(number: int, frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in numbers if trio_inside else before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class Interruption:
    """What a signal did: it cancels `scope`. number: of the signal; 0 while there was none."""

    scope: trio.CancelScope
    number: int = 0

    @property
    def exit_code(self) -> int:
        return 128 + self.number if self.number else DONE


@contextmanager
def until_signalled(*, with_children: bool = False) -> Iterator[Interruption]:
    """Inside trio: Ctrl-C or SIGTERM cancels what stands inside, which then ends in order.

    What blocks a thread (a model that is read) is waited for even then: a second signal ends the
    process where it stands. with_children: it may not, because processes that were started have to
    be ended; a second Ctrl-C is a KeyboardInterrupt, as soon as trio comes to it.
    """
    import trio  # a command has started: `--help` never comes here

    token = trio.lowlevel.current_trio_token()
    told = Interruption(trio.CancelScope())
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def stop(number: int, frame: FrameType | None) -> None:
        told.number = number
        after = before[signal.Signals(number)] if with_children else signal.SIG_DFL
        signal.signal(number, after)
        token.run_sync_soon(told.scope.cancel)  # a handler may do no more

    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        with told.scope:
            yield told
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number])


@contextmanager
def ended_by_second_ctrl_c() -> Iterator[None]:
    """Inside trio: after a first Ctrl-C, which is trio's, a second ends the process where it
    stands, whatever thread is waited for."""
    before = signal.getsignal(signal.SIGINT)

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if callable(before):
            before(number, frame)

    if callable(before):  # else it ends us already, or is not for us
        signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        if callable(before):
            signal.signal(signal.SIGINT, before)
