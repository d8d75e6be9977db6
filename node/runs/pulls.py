"""One pull over a stream of its own: asked, told by whom it is signed, taken, checked.

Pull ─▶ Told(statement) ─▶ is it wanted? ─▶ Part, Part ... ─▶ the bytes that were signed for
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ...errors import RemoteError, TransportError
from ...swarm.run.statement import (
    ANSWERS,
    LETTER_BYTES_MAX,
    PROTOCOL,
    Absent,
    Part,
    Pull,
    Said,
    Told,
    check_weights,
    read_statement,
)
from ..gossip.talks import Talk
from ..net.host import Host


class Behind(TransportError):
    """Whoever was asked is at this epoch, and has no weights that near."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"it is at epoch {epoch}")
        self.epoch = epoch


async def fetch(
    host: Host, peer: str, asked: Pull, size: int, offered: Callable[[Said], None] | None
) -> tuple[Said, bytearray]:
    """What the peer signed, and its weights of `size` bytes. offered: hears of it first, and may
    cancel the rest. Raises Behind, TransportError; RemoteError for what no honest peer sends."""
    stream = await host.open_stream(peer, PROTOCOL)
    done = False
    try:
        talk = Talk(stream, ANSWERS, LETTER_BYTES_MAX)
        await talk.send(asked)
        answer = await talk.receive()
        if isinstance(answer, Absent):
            raise Behind(answer.epoch)
        if not isinstance(answer, Told):
            raise TransportError(f"{peer} has nothing for us")
        said = read_statement(answer.statement, asked.run)
        if said.peer != peer or said.statement.size != size:
            raise RemoteError("weights of another peer, or of another size than the run's")
        if offered is not None:
            offered(said)
            await trio.lowlevel.checkpoint_if_cancelled()  # it was not taken
        raw = await _parts(talk, size)
        await trio.to_thread.run_sync(check_weights, said, raw)
        done = True
    finally:
        with trio.CancelScope(shield=True):
            await (stream.close() if done else stream.reset())
    return said, raw


async def _parts(talk: Talk, size: int) -> bytearray:
    raw = bytearray()
    while len(raw) < size:
        part = await talk.receive()
        if part is None:
            raise TransportError(f"{talk.peer} has left")
        if not isinstance(part, Part) or len(raw) + len(part.raw) > size:
            raise RemoteError("parts of other weights than were told")
        raw += part.raw
    return raw
