"""How long a peer may take for what it is to do; who takes longer has broken off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ...errors import TransportError


@contextmanager
def within(peer: str, seconds: float) -> Iterator[None]:
    """Raises TransportError when the body takes longer."""
    with trio.move_on_after(seconds) as deadline:
        yield
    if deadline.cancelled_caught:
        raise TransportError(f"{peer} says nothing, or too slowly")
