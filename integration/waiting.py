"""Waiting for what another process does: nothing tells when it is done, so one looks again."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

LOOK_EVERY_S = 0.05
SOON_S = 30.0  # what takes a moment, on a machine that does other things as well


def until(
    holds: Callable[[], object], within_s: float = SOON_S, *, every_s: float = LOOK_EVERY_S
) -> float:
    """Seconds until it held. Raises TimeoutError. every_s: longer where to look is work."""
    began_s = time.monotonic()
    while not holds():
        if time.monotonic() > began_s + within_s:
            raise TimeoutError(f"not within {within_s:.0f} s")
        time.sleep(every_s)
    return time.monotonic() - began_s


async def comes_true(
    holds: Callable[[], object], within_s: float = SOON_S, *, blocks: bool = False
) -> float:
    """The same for a task. blocks: `holds` waits for another process, so that a thread asks."""
    began_s = time.monotonic()
    while not (await trio.to_thread.run_sync(holds) if blocks else holds()):
        if time.monotonic() > began_s + within_s:
            raise TimeoutError(f"not within {within_s:.0f} s")
        await trio.sleep(LOOK_EVERY_S)
    return time.monotonic() - began_s
