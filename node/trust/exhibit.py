"""What an accusation is about: the rows that went in, and what was signed of them.

Whoever accuses gives it out to all who want to compute the work again. It is named by its digest,
which the accusation holds, so nothing else can be shown later; and it must fit what the accused
signed: its rows are those under the roots of the account, from the first position to the chunk.

    "/potluck/exhibit/1"    name, 32 bytes ──▶ ◀── the exhibit's bytes, or none

    wrong digest           the road, or the accuser: nothing is known
    right, but no proof    the accuser signed for it: the accusation is refuted
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import trio

from ...crypto.codec import Range, Size, encode
from ...crypto.digest import DIGEST_BYTES, digest
from ...dht.allowance import Intake
from ...errors import Refused, RemoteError, TransportError
from ...swarm.evidence import KEEP_S
from ...swarm.wire import CHUNK_BYTES_MAX, OPENING_BYTES_MAX
from ..letters import receive_up_to
from ..net.host import Host
from ..net.stream import Stream

if TYPE_CHECKING:  # it brings numpy, and light nodes are without it
    from ...swarm.ledger import Work

PROTOCOL: Final = "/potluck/exhibit/1"
BYTES_MAX: Final = 32 * 1024 * 1024  # 2,000 positions of a model of width 4,096 in bf16, twice
KEPT_BYTES_MAX: Final = 2 * BYTES_MAX
FETCH_S: Final = 60.0  # guess: 32 MiB over 5 Mbit/s
FETCH_FIRST_S: Final = 10.0  # guess: until the first byte; then as FETCH_S allows for what has come
OF_EACH: Final = (0.05, 4.0)  # a second, and at once
OF_ALL: Final = (0.5, 8.0)
SHOWN_AT_ONCE: Final = 2
PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Exhibit:
    """account: as signed, up to the chunk. sizes, took: of all steps until there, whose rows lie
    one after the other. gave: the rows that the chunk gave out."""

    account: Annotated[
        tuple[Annotated[bytes, Size(max(OPENING_BYTES_MAX, CHUNK_BYTES_MAX))], ...], Size(4096, 2)
    ]
    sizes: Annotated[tuple[Annotated[int, Range(1, 1 << 24)], ...], Size(65_536, 1)]
    took: Annotated[bytes, Size(BYTES_MAX)]
    gave: Annotated[bytes, Size(BYTES_MAX)]


def name_of(raw: bytes) -> bytes:
    return digest("exhibit", raw)


def exhibit_of(work: Work) -> bytes:
    """Blocks for as long as copying the rows takes. Raises RemoteError when they are too many."""
    raw = encode(
        Exhibit(
            tuple(work.account.raw[: work.place + 2]),
            work.sizes,
            b"".join(work.took),
            bytes(work.gave),
        )
    )
    if len(raw) > BYTES_MAX:
        raise RemoteError(f"an exhibit of {len(raw)} bytes, where {BYTES_MAX} are allowed")
    return raw


class Exhibits:
    """Those of our own accusations, for as long as anybody may ask. A handler of the protocol."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()  # until when
        self._intake = Intake(OF_EACH, OF_ALL)
        self._showing = 0
        self._taken: set[bytes] = set()
        self._shown = trio.Event()

    def put(self, raw: bytes) -> bytes:
        """Its name. The oldest make room."""
        now, name = trio.current_time(), name_of(raw)
        self._kept[name] = (now + KEEP_S, raw)
        while sum(len(one) for _, one in self._kept.values()) > KEPT_BYTES_MAX:
            gone, _ = self._kept.popitem(last=False)
            self._taken.discard(gone)
        return name

    async def taken(self, name: bytes) -> None:
        """Until somebody has it."""
        while name not in self._taken:
            await self._shown.wait()

    async def serve(self, stream: Stream) -> None:
        """Raises Refused, RemoteError, TransportError."""
        now = trio.current_time()
        if self._showing >= SHOWN_AT_ONCE or not self._intake.takes(stream.peer, now):
            raise Refused("too many exhibits are asked for", retry_after_s=FETCH_S)
        self._showing += 1
        try:
            with trio.move_on_after(FETCH_S) as deadline:
                await self._show(stream)
        finally:
            self._showing -= 1
        if deadline.cancelled_caught:
            raise TransportError(f"an exhibit was not taken within {FETCH_S:.0f} s")

    async def _show(self, stream: Stream) -> None:
        name = await _receive_name(stream)
        until_s, raw = self._kept.get(name, (0.0, b""))
        if trio.current_time() < until_s:
            for at in range(0, len(raw), PIECE_BYTES):
                await stream.send(memoryview(raw)[at : at + PIECE_BYTES])
            self._taken.add(name)
            self._shown.set()
            self._shown = trio.Event()
        await stream.close()


async def fetch(host: Host, peer: str, name: bytes) -> bytes:
    """The exhibit of this name. Raises TransportError when the peer does not give it in time,
    RemoteError when it gives something else."""
    raw: bytes | None = None
    with trio.move_on_after(FETCH_FIRST_S) as deadline:
        stream = await host.open_stream(peer, PROTOCOL)
        try:
            await stream.send(name)
            raw = await _receive(stream, BYTES_MAX, deadline)
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()
    if not raw:
        why = "gave its exhibit too slowly" if raw is None else "has no such exhibit"
        raise TransportError(f"{peer} {why}")
    if await trio.to_thread.run_sync(name_of, raw) != name:
        raise RemoteError("another exhibit than was asked for")
    return raw


async def _receive(stream: Stream, most: int, deadline: trio.CancelScope) -> bytes:
    """All that comes until the end. RemoteError when it is more than that.

    A drip does not hold up those who wait behind it: each byte allows for as much time as it takes
    where all of them take FETCH_S."""
    found = bytearray()
    while len(piece := await stream.receive()):
        found += piece
        if len(found) > most:
            raise RemoteError(f"more than {most} bytes")
        deadline.deadline += len(piece) * (FETCH_S - FETCH_FIRST_S) / BYTES_MAX
    return bytes(found)


async def _receive_name(stream: Stream) -> bytes:
    """Whoever asks keeps its stream open. Raises RemoteError, TransportError."""
    found = await receive_up_to(stream, DIGEST_BYTES)
    if len(found) < DIGEST_BYTES:
        raise RemoteError("the stream ended inside a name")
    return found
