"""How long a step would wait at each of some peers: asked just before a session is bound to them.

What answers tell of queues is known to whoever had answers; a client that begins knows nothing, and
all who begin would go to whoever claims to be the fastest. So it asks whom it planned for and some
others, all at once, and takes the cheapest of those that answer (swarm/routing.py). Who is not
there answers nothing: so much less does a session meet the dead whose records live on.

    asker ─────── opens the stream ───────▶ asked       a protocol for each model
          ◀── a letter: microseconds, u32 ──
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from ..errors import RemoteError, TransportError
from .letters import receive_letter, send_letter
from .log import get_logger
from .net.host import Host
from .net.stream import Stream

log = get_logger()

QUEUE_BYTES: Final = 4
QUEUE_MAX_S: Final = 3600.0
ASK_S: Final = 1.0  # guess: a dial over a bad road
GRACE_S: Final = 0.02  # guess: a pause of a busy process


def queues_of(model: str) -> str:
    """The protocol in which those who serve this model tell their queues."""
    return f"/potluck/queue/1/{model[:16]}"


def tell_queue(host: Host, model: str, queue_s: Callable[[], float]) -> None:
    """Tell whoever asks how long a step of this model would wait here now."""

    async def say(stream: Stream) -> None:
        told_us = round(1e6 * min(queue_s(), QUEUE_MAX_S))
        await send_letter(stream, told_us.to_bytes(QUEUE_BYTES))
        await stream.close()

    host.handle(queues_of(model), say)


async def ask_queues(host: Host, model: str, peers: Sequence[str]) -> dict[str, float]:
    """What these peers tell, in seconds; all are asked at once.

    Once half of those that can be asked have answered, the others have as long again.
    """
    told: dict[str, float] = {}
    failed = 0
    began_s = trio.current_time()

    async def ask(peer: str) -> None:
        nonlocal failed
        try:
            told[peer] = await _ask(host, peer, model)
        except (TransportError, RemoteError) as error:
            failed += 1
            log.debug("does not tell its queue", peer=peer, reason=str(error))
        if 2 * len(told) >= len(peers) - failed:
            now = trio.current_time()
            scope.deadline = min(scope.deadline, now + max(GRACE_S, now - began_s))

    with trio.move_on_after(ASK_S) as scope:
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask, peer)
    return told


async def _ask(host: Host, peer: str, model: str) -> float:
    """Raises TransportError, RemoteError."""
    stream = await host.open_stream(peer, queues_of(model))
    try:
        told = await receive_letter(stream, QUEUE_BYTES)
    finally:
        await stream.close()
    if told is None:
        raise TransportError("the stream ended early")
    return int.from_bytes(told) / 1e6
