"""Sessions that one stage serves, many at a time, and another computes again from the same bytes.

The stages are a node's (choice.open_stage), the passes its device's (batch.Lane); there are no
streams and no signatures. Chunks are cut as receipts are: each step of a prompt, each 32 tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from potluck.node.compute.batch import Lane, Order
from potluck.node.compute.compare import errors_of
from potluck.node.compute.engine import Engine
from potluck.node.compute.native.library import isas, use_isa
from potluck.node.compute.tensor import pack, payload_bytes
from potluck.swarm.blocks import BlockRange
from potluck.swarm.rates import PassTimes
from potluck.swarm.receipt import CHUNK_TOKENS
from potluck.swarm.wire import Step

UNMEASURED = PassTimes(1, 1e4, 1e5)  # how long a pass takes decides here about nothing
PATIENCE_S = 3600.0  # no step expires
NOUGHT = [0.0] * 256  # errors of a chunk without any: there are a hundred thousand such


@dataclass(frozen=True, slots=True)
class Peer:
    """A stage, and how it is run."""

    engine: Engine
    kind: str  # "ours" or "torch fp32", ...
    format: str
    threads: int
    isa: str

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """What belongs to the process while it runs: it stands for a machine of its own."""
        use_isa(self.isa)
        torch.set_num_threads(self.threads if self.kind != "ours" else 1)
        yield
        torch.set_num_threads(1)
        use_isa(isas()[0])


@dataclass(slots=True)
class Session:
    """One session's steps, what went in, and what came out of each."""

    blocks: BlockRange
    sizes: list[int]
    dtype: str
    rows: Tensor  # all that goes in
    gave: list[bytes] = field(default_factory=list)

    def took(self, first: int, stop: int) -> memoryview:
        return pack(self.rows[first:stop], self.dtype)

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        """As receipts are cut: (from, to, whether they are of a prompt)."""
        at = since = 0
        for size in self.sizes:
            if size > 1:
                if at > since:
                    yield since, at, False
                yield at, at + size, True
                since = at + size
            at += size
            if at - since == CHUNK_TOKENS:
                yield since, at, False
                since = at
        if at > since:
            yield since, at, False


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose step it is. Nobody takes one back here."""

    number: int

    def claim(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def given_up(self) -> bool:
        return False


def serve(peer: Peer, sessions: Sequence[Session]) -> None:
    """All of them at once: each sends its next step when the one before is answered."""
    with peer.at_work():
        lane = Lane(peer.engine, UNMEASURED)
        caches = [peer.engine.open_cache(one.blocks, len(one.rows)) for one in sessions]
        places = [0] * len(sessions)

        def send(number: int) -> None:
            session = sessions[number]
            at, size = places[number], session.sizes[len(session.gave)]
            payload, step = session.took(at, at + size), Step(at, (size,), size)
            peer_name, until_s = f"peer {number}", time.monotonic() + PATIENCE_S
            order = Order(
                caches[number], peer_name, payload, step, session.dtype, until_s, Owner(number)
            )
            assert not lane.add(order)

        for number in range(len(sessions)):
            send(number)
        while lane.waiting:
            for order, result in lane.turn():
                assert result is not None
                number = order.owner.number
                session = sessions[number]
                session.gave.append(bytes(result.unwrap()[0]))
                places[number] += sum(order.step.sizes)
                if len(session.gave) < len(session.sizes):
                    send(number)
        for cache in caches:
            peer.engine.close_cache(cache)


def again(peer: Peer, session: Session) -> bytes:
    """All its rows, computed again from what went in, in the sizes of the steps."""
    total = len(session.rows)
    with peer.at_work():
        cache = peer.engine.open_cache(session.blocks, total)
        step = Step(0, tuple(session.sizes), total)
        work = peer.engine.begin(cache, session.took(0, total), step, session.dtype)
        peer.engine.run([(work, total)])
        given = bytes(work.answer())
        peer.engine.close_cache(cache)
    return given


def compared(session: Session, repeated: bytes) -> Iterator[tuple[bool, list[float]]]:
    """Of each chunk: whether it is of a prompt, and its tokens' errors."""
    width = session.rows.shape[1]
    gave, row = b"".join(session.gave), payload_bytes(1, width, session.dtype)
    for first, stop, prompt in session.chunks():
        part = slice(first * row, stop * row)
        took, rows = session.took(first, stop), stop - first
        errors = errors_of(took, gave[part], repeated[part], rows, width, session.dtype)
        yield prompt, errors if any(errors) else NOUGHT[:rows]
