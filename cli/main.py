"""What runs first: Ctrl-C is heard before anything else is imported.

To parse a command line takes 0.1 s of imports, on a busy machine more. Ctrl-C meanwhile, and once a
command is done, ends the process with 130 and not with the traceback of whatever was imported.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130  # as in edge.py, which is imported later


def main(args: list[str] | None = None) -> int:
    """Run one command line, by default that of the process. Returns its exit code (edge.py)."""
    if args is not None or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        from .commands import run

        return run(args)
    signal.signal(signal.SIGINT, _leave)
    from .commands import run

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run(args)
        signal.signal(signal.SIGINT, _leave)
    except KeyboardInterrupt:  # just before the command began, or just after its end
        code = INTERRUPTED
    return code


def _leave(number: int, frame: object) -> None:
    """Nothing is open yet, or any more."""
    os._exit(INTERRUPTED)
