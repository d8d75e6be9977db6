"""Calls of libraries that block, made in a thread: only of UPnP's and multicast DNS's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import trio

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


async def aside(function: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
    """What the function returns. Cancelled, it runs to its end, and nobody hears of it."""
    result: Result = await trio.to_thread.run_sync(
        function,
        *arguments,
        abandon_on_cancel=True,  # type: ignore[call-arg]  # libp2p's stubs of trio are old
    )
    return result
