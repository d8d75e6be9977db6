"""What every test with real processes has in common."""

from __future__ import annotations

import signal

from one_process import autojump_clock as autojump_clock
from one_process import dice as dice
from one_process import leashed as leashed
from one_process import logs_as_before as logs_as_before

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # we were started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
