"""How long a step would wait at each of some peers: asked just before a session is bound to them.

What answers tell of queues is known to whoever had answers; a client that begins knows nothing, and
all who begin would go to whoever claims to be the fastest. So it asks whom it planned for and some
others, all at once, and takes the cheapest of those that answer (swarm/routing.py). Who is not
there answers nothing: so much less does a session meet the dead whose records live on.

Whoever is asked expects that the asker comes, with a step of usual size: in the part of the cases
in which askers came when they were told as much before, and until it would be there. The next who
asks is told of that, too, or all who ask at once would go to one (swarm/foresight.py). Nothing that
an asker says is needed for it, and who asks again and again is expected once.

    asker ─────── opens the stream ───────▶ asked       a protocol for each model
          ◀── a letter: microseconds, u32 ──
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from ..errors import RemoteError, TransportError
from ..swarm.foresight import Promises
from ..swarm.view import RTT_UNKNOWN_S
from .letters import receive_letter, send_letter
from .log import get_logger
from .net.host import Host
from .net.stream import Stream

log = get_logger()

QUEUE_BYTES: Final = 4
QUEUE_MAX_S: Final = 3600.0
ASK_S: Final = 1.0  # guess: a dial over a bad road
GRACE_S: Final = 0.02  # guess: a pause of a busy process


COME_ROUNDS: Final = 2  # round trips from our answer to a first step: to open, and the step
COME_S: Final = 2.0  # guess: who opens no stream within comes no more, or for another reason
ASKERS_MAX: Final = 1024


class Told:
    """Who was told of which queue of one model, and who came then."""

    def __init__(self, queue_s: Callable[[], float], step_s: Callable[[], float]) -> None:
        """queue_s: how long a step would wait now. step_s: how long one of usual size computes."""
        self._queue_s, self._step_s = queue_s, step_s
        self._promises = Promises()
        self._askers: dict[str, tuple[float, float]] = {}  # when each was told, and of what

    def asked(self, peer: str, rtt_s: float | None, now: float) -> float:
        """What this peer is told, who may come now."""
        told_s = self._queue_s() + self._promises.seconds(now)
        if not self._is_awaited(peer, now):
            until_s = now + COME_ROUNDS * (RTT_UNKNOWN_S if rtt_s is None else rtt_s) + GRACE_S
            self._promises.asked(self._step_s(), told_s, now, until_s)
            self._askers.pop(peer, None)
            self._askers[peer] = now, told_s
            if len(self._askers) > ASKERS_MAX:
                del self._askers[next(iter(self._askers))]
        return told_s

    def came(self, peer: str, now: float) -> None:
        """This peer opens a session."""
        if self._is_awaited(peer, now):
            self._promises.came(self._askers.pop(peer)[1])

    def _is_awaited(self, peer: str, now: float) -> bool:
        asked = self._askers.get(peer)
        return asked is not None and now - asked[0] < COME_S


def queues_of(model: str) -> str:
    """The protocol in which those who serve this model tell their queues."""
    return f"/potluck/queue/1/{model[:16]}"


def tell_queue(
    host: Host,
    model: str,
    queue_s: Callable[[], float],
    step_s: Callable[[], float] = lambda: 0.0,
) -> Told:
    """Tell whoever asks how long a step of this model would wait here."""
    told = Told(queue_s, step_s)

    async def say(stream: Stream) -> None:
        told_s = told.asked(stream.peer, host.rtt_s(stream.peer), trio.current_time())
        told_us = round(1e6 * min(told_s, QUEUE_MAX_S))
        await send_letter(stream, told_us.to_bytes(QUEUE_BYTES))
        await stream.close()

    host.handle(queues_of(model), say)
    return told


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
