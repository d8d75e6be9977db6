"""Calls of libraries that block, made in a thread: only of UPnP's and multicast DNS's.

Their threads are counted apart: a router or a neighbour that lets us wait shall not hold those in
which names are looked up and models are opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple, Unpack

import trio

AT_ONCE_MAX: Final = 16  # threads

_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("aside")
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


async def aside(function: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
    """What the function returns. Cancelled, it runs to its end, and nobody hears of it."""
    result: Result = await trio.to_thread.run_sync(
        function,
        *arguments,
        limiter=_room(),
        abandon_on_cancel=True,  # type: ignore[call-arg]  # libp2p's stubs of trio are old
    )
    return result


def _room() -> trio.CapacityLimiter:
    """The limiter of this trio run."""
    try:
        return _limiter.get()
    except LookupError:
        _limiter.set(made := trio.CapacityLimiter(AT_ONCE_MAX))
        return made
