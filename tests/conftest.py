"""What the tests of the command line share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest
from one_process import autojump_clock as autojump_clock
from one_process import dice as dice
from one_process import leashed as leashed
from one_process import logs_as_before as logs_as_before

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # we were started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was said on stderr, which has to be one line of ours."""

    def read() -> str:
        said = capsys.readouterr().err
        assert said.startswith("potluck: ") and said.count("\n") == 1, said
        return said

    return read


@pytest.fixture
def alarm() -> Iterator[None]:
    """A node that was to refuse, but serves, would go on for ever."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError("it was not refused")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(30)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
