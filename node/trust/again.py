"""Has a peer compute a signed chunk of work again, from the same bytes, and sign for it.

It is asked as any client asks, in the order and the sizes in which the work was done, since the
bits of a product may depend on its shape; of all rows only those are wanted that the chunk gave
out, and earlier chunks of the same account that are to be compared too: those cost nothing more. It
signs where the other did, so that a proof can show both accounts beside each other
(swarm/proof.py).

    Open(receipts) ──▶ ◀── Opened(opening)                      or Wear: what the work wore
    Step(at, sizes, rows=0), Sign ──▶ ◀── Output, Receipts      once a chunk before it
    Step(at, sizes, rows), Sign ──▶ ◀── Output + rows, Receipts
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from ...errors import Refused, RemoteError, TransportError
from ...swarm.adapter import Bundle
from ...swarm.blocks import BlockRange
from ...swarm.journal import SIZES_MAX
from ...swarm.ledger import Ledger, Work
from ...swarm.receipt import Account
from ...swarm.routing import Hop
from ...swarm.session_events import SendStep
from ...swarm.wire import (
    Busy,
    Fault,
    Lacking,
    Leaving,
    Message,
    Open,
    Opened,
    Output,
    Receipts,
    Sign,
    Step,
    protocol_of,
)
from ..adapters import bring, question
from ..compute.tensor import check_hidden, payload_bytes
from ..frames import FrameStream
from ..net.host import Host
from ..session_plan import GROUP_BYTES

M = TypeVar("M", bound=Message)
_LINK = 0  # there is one
RETRY_S = 60.0  # guess: whoever holds the adapter may ask again


@dataclass(frozen=True, slots=True)
class Again:
    """What one peer makes of a chunk. gave: the rows; place: of the chunk that it signed for them,
    in `account`, by default the last. earlier: the rows of the chunks before it that were asked
    for, in their order."""

    peer: str
    account: Account
    gave: memoryview
    place: int | None = None
    earlier: tuple[memoryview, ...] = ()

    @property
    def number(self) -> int:
        return len(self.account.chunks) - 1 if self.place is None else self.place

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


def parts_of(work: Work, earlier: Sequence[Work] = ()) -> Iterator[Part]:
    """The frames to send, cut where the account is cut."""
    row_bytes = _row_bytes(work)
    cuts = {chunk.stop for chunk in work.account.chunks[: work.place + 1]}
    wanted = [(sum(one.sizes) - one.rows, sum(one.sizes)) for one in (*earlier, work)]
    first = at = tokens = 0
    for number, size in enumerate(work.sizes):
        tokens += size
        last = number + 1 == len(work.sizes)
        cut = last or at + tokens in cuts
        full = number + 1 - first == SIZES_MAX
        if cut or full or (tokens + work.sizes[number + 1]) * row_bytes > GROUP_BYTES:
            stop = at + tokens
            rows = max(max(0, stop - max(at, since)) for since, end in wanted if stop <= end)
            yield Part(first, number + 1, at, rows, cut)
            first, at, tokens = number + 1, at + tokens, 0


async def compute_again(
    host: Host,
    peer: str,
    work: Work,
    earlier: Sequence[Work] = (),
    *,
    bundle_of: Callable[[bytes], Bundle | None] = lambda name: None,
) -> Again:
    """earlier: chunks of the same account before this one, in order, that it is told of as well.
    bundle_of: the adapter of a digest, to be brought to a peer that lacks what the work wore.

    Raises TransportError or Refused when the peer is not to be had, RemoteError when it says what
    no honest peer says."""
    worn = bundle_of(work.adapter) if work.adapter else None
    if work.adapter and worn is None:
        raise Refused("the adapter of this work is not here", retry_after_s=RETRY_S)
    blocks, tokens = work.blocks, sum(work.sizes)
    asked = question(
        worn, secrets.token_bytes(16), work.account.opening.model.hex(), blocks, tokens,
        work.dtype, True,
    )  # fmt: skip
    frames = FrameStream(await host.open_stream(peer, protocol_of(asked)))
    done = False
    try:
        opened = await _open(frames, asked, blocks, worn)
        again = await _converse(frames, peer, work, earlier, asked, opened)
        done = True
    finally:
        await (frames.close() if done else frames.reset())
    return again


async def _open(
    frames: FrameStream, asked: Open, blocks: BlockRange, worn: Bundle | None
) -> Opened:
    await frames.send(asked)
    if worn is not None:
        told, _ = await _expect(frames, Opened, Lacking)
        if isinstance(told, Opened):
            return told
        await bring(frames, worn, blocks)
    return (await _expect(frames, Opened))[0]


async def _converse(
    frames: FrameStream,
    peer: str,
    work: Work,
    earlier: Sequence[Work],
    asked: Open,
    opened: Opened,
) -> Again:
    told, blocks = work.account.opening, work.blocks
    ledger = Ledger(
        asked.session, asked.model, blocks, told.width, work.dtype, _row_bytes(work),
        adapter=work.adapter,
    )  # fmt: skip
    ledger.opened(_LINK, Hop(peer, blocks), opened.opening, opened.numerics)
    ledger.counted(_LINK, 0, asked.tokens)
    gave: list[memoryview] = []
    for part in parts_of(work, earlier):
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
    whole, at = gave[0] if len(gave) == 1 else memoryview(b"".join(gave)), 0
    shown: list[memoryview] = []
    for one in (*earlier, work):
        size = one.rows * _row_bytes(work)  # not what it gave: it may be a question of ours
        shown.append(whole[at : at + size])
        at += size
    return Again(peer, accounts[0], shown[-1], earlier=tuple(shown[:-1]))


async def _expect(frames: FrameStream, *kinds: type[M]) -> tuple[M, memoryview]:
    """The next message of these kinds, and its payload. Raises Refused, RemoteError or
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
        if not isinstance(message, kinds):
            raise RemoteError(f"{type(message).__name__} in place of {kinds[0].__name__}")
        return message, payload
    raise TransportError("the stream was closed")


def _row_bytes(work: Work) -> int:
    return payload_bytes(1, work.account.opening.width, work.dtype)
