"""What a server says to `Open`: the client's end of it."""

from __future__ import annotations

from ..errors import RemoteError, TransportError
from ..swarm.adapter import Bundle
from ..swarm.blocks import BlockRange
from ..swarm.wire import Busy, Fault, Lacking, Opened
from .adapters import bring
from .frames import FrameStream


async def hear_opened(
    frames: FrameStream, width: int, blocks: BlockRange, worn: Bundle | None
) -> Opened | Busy:
    """Its answer, once it has what it lacks of the adapter that is worn. Raises RemoteError for
    anything else, TransportError when the stream ends."""
    received = await frames.receive()
    if worn is not None and received is not None and isinstance(received[0], Lacking):
        await bring(frames, worn, blocks)
        received = await frames.receive()
    match received:
        case (Opened() as opened, _) if opened.width == width:
            return opened
        case (Busy() as busy, _):
            return busy
        case (Fault(reason), _):
            raise RemoteError(f"refused to open: {reason}")
        case None:
            raise TransportError("closed on opening")
    raise RemoteError("answered Open with something else")
