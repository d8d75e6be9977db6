"""Has a peer compute a signed chunk of work again, from the same bytes, and sign for it.

It is asked as any client asks, in the order and the sizes in which the work was done, since the
bits of a product may depend on its shape; of all rows only those are wanted that the chunk gave
out. It signs where the other did, so that a proof can show both accounts beside each other
(swarm/proof.py).

    Open(receipts) ──▶ ◀── Opened(opening)
    Step(at, sizes, rows=0), Sign ──▶ ◀── Output, Receipts      once a chunk before it
    Step(at, sizes, rows), Sign ──▶ ◀── Output + rows, Receipts
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from ...errors import Refused, RemoteError, TransportError
from ...swarm.journal import SIZES_MAX
from ...swarm.ledger import Ledger, Work
from ...swarm.receipt import Account
from ...swarm.routing import Hop
from ...swarm.session_events import SendStep
from ...swarm.wire import (
    PROTOCOL,
    Busy,
    Fault,
    Leaving,
    Message,
    Open,
    Opened,
    Output,
    Receipts,
    Sign,
    Step,
)
from ..compute.tensor import check_hidden, payload_bytes
from ..frames import FrameStream
from ..net.host import Host
from ..session import GROUP_BYTES

M = TypeVar("M", bound=Message)
_LINK = 0  # there is one


@dataclass(frozen=True, slots=True)
class Again:
    """What one peer makes of a chunk. gave: the rows; the last chunk of `account` is for them."""

    peer: str
    account: Account
    gave: memoryview

    @property
    def numerics(self) -> str:
        return self.account.opening.numerics


@dataclass(frozen=True, slots=True)
class Part:
    """Steps number `first` to `stop` of the work, in one frame. rows: wanted, the last of them.
    signed: it ends a chunk."""

    first: int
    stop: int
    at: int
    rows: int
    signed: bool


def is_whole(work: Work) -> bool:
    """Whether the steps that we hold are those of the chunk, and it gave anything to compare."""
    chunk = work.account.chunks[work.place]
    edges = {0, *accumulate(work.sizes)}
    whole = sum(work.sizes) == chunk.stop and chunk.at in edges
    return whole and 0 < work.rows <= chunk.tokens


def took_last(work: Work) -> bytes:
    """What went in for the rows that were given out."""
    rest = work.rows * _row_bytes(work)
    found: list[bytes] = []
    for payload in reversed(work.took):
        found.append(bytes(payload[max(0, len(payload) - rest) :]))
        rest -= len(found[-1])
        if not rest:
            break
    return b"".join(reversed(found))


def parts_of(work: Work) -> Iterator[Part]:
    """The frames to send, cut where the account is cut."""
    row_bytes = _row_bytes(work)
    cuts = {chunk.stop for chunk in work.account.chunks[: work.place + 1]}
    given = sum(work.sizes) - work.rows  # from this position on rows are wanted
    first = at = tokens = 0
    for number, size in enumerate(work.sizes):
        tokens += size
        last = number + 1 == len(work.sizes)
        cut = last or at + tokens in cuts
        full = number + 1 - first == SIZES_MAX
        if cut or full or (tokens + work.sizes[number + 1]) * row_bytes > GROUP_BYTES:
            rows = max(0, min(tokens, at + tokens - given))
            yield Part(first, number + 1, at, rows, cut)
            first, at, tokens = number + 1, at + tokens, 0


async def compute_again(host: Host, peer: str, work: Work) -> Again:
    """Raises TransportError or Refused when the peer is not to be had, RemoteError when it says
    what no honest peer says."""
    frames = FrameStream(await host.open_stream(peer, PROTOCOL))
    done = False
    try:
        again = await _converse(frames, peer, work)
        done = True
    finally:
        await (frames.close() if done else frames.reset())
    return again


async def _converse(frames: FrameStream, peer: str, work: Work) -> Again:
    told, blocks, tokens = work.account.opening, work.blocks, sum(work.sizes)
    session, model = secrets.token_bytes(16), told.model.hex()
    ledger = Ledger(session, model, blocks, told.width, work.dtype, _row_bytes(work))
    await frames.send(
        Open(session, model, blocks.start, blocks.stop, tokens, work.dtype, receipts=True)
    )
    opened, _ = await _expect(frames, Opened)
    ledger.opened(_LINK, Hop(peer, blocks), opened.opening, opened.numerics)
    ledger.counted(_LINK, 0, tokens)
    gave: list[memoryview] = []
    for part in parts_of(work):
        sizes, payloads = work.sizes[part.first : part.stop], work.took[part.first : part.stop]
        ledger.sent(SendStep(_LINK, part.at, sizes, part.rows, payloads))
        await frames.send(Step(part.at, sizes, part.rows), *payloads)
        if part.signed:
            await frames.send(Sign())
        output, rows = await _expect(frames, Output)
        if (output.at, output.rows) != (part.at, part.rows):
            raise RemoteError("an answer to another step")
        if part.rows:
            check_hidden(rows, part.rows, told.width, work.dtype)
            gave.append(rows)
        ledger.got(_LINK, rows)
        if part.signed:
            receipts, _ = await _expect(frames, Receipts)
            ledger.signed(_LINK, receipts.chunks)
    accounts, _ = ledger.told()
    return Again(peer, accounts[0], gave[0] if len(gave) == 1 else memoryview(b"".join(gave)))


async def _expect(frames: FrameStream, kind: type[M]) -> tuple[M, memoryview]:
    """The next message of this kind, and its payload. Raises Refused, RemoteError or
    TransportError for what comes instead."""
    while (received := await frames.receive()) is not None:
        message, payload = received
        match message:
            case Leaving():
                continue  # it serves on for a while
            case Busy(reason, retry_after_s):
                raise Refused(reason, retry_after_s=retry_after_s)
            case Fault(reason):
                raise RemoteError(f"the peer says: {reason}")
        if not isinstance(message, kind):
            raise RemoteError(f"{type(message).__name__} in place of {kind.__name__}")
        return message, payload
    raise TransportError("the stream was closed")


def _row_bytes(work: Work) -> int:
    return payload_bytes(1, work.account.opening.width, work.dtype)
