"""Joins a run late: asks several peers which state it has reached, and fetches it from all of them.

    ask ─▶ claims, signed ─▶ what most say (swarm/run/claims.py) ─▶ manifest ─▶ is it the run's?
                                                                       └─▶ chunks, from all who
                                                                           say they have it

What was fetched in vain stays on disk, so whoever begins again fetches only the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

import trio

from ...crypto.codec import decode, encode
from ...crypto.keys import IdentityKey
from ...dht.allowance import Intake
from ...errors import Refused, RemoteError, TransportError
from ...swarm.blocks import BlockRange
from ...swarm.chunk import Chunk
from ...swarm.run.checkpoint import Manifest, Shapes, check_shapes
from ...swarm.run.claims import (
    CLAIMS_MAX,
    LEAST,
    LETTER_BYTES_MAX,
    PROTOCOL,
    Claim,
    States,
    Which,
    agreed,
    holders,
    read_states,
    sign_claim,
)
from ..chunks.deadline import within
from ..chunks.fetch import Blame, Fetcher, Host
from ..letters import receive_letter, send_letter
from ..net.stream import Stream
from .store import Checkpoints, Mark

ASK_S: Final = 10.0  # guess: a dial across the world, and one answer
OF_EACH: Final = (2.0, 16.0)  # guess: questions a second, and at once: each reads our disk
OF_ALL: Final = (64.0, 256.0)
ASKED_MAX: Final = 16  # guess: more tell a newcomer nothing new


class Marked(Protocol):
    """What is needed of Checkpoints, to tell others of them."""

    def marks(self) -> list[Mark]:
        """The newest first. Blocks."""


class StateServer:
    """`serve` is the handler of swarm/run/claims.py's protocol."""

    def __init__(self, key: IdentityKey, find: Callable[[bytes], Marked | None]) -> None:
        """find: the checkpoints of a run, if they are here. Blocks."""
        self._key = key
        self._find = find
        self._intake = Intake(OF_EACH, OF_ALL)

    async def serve(self, stream: Stream) -> None:
        """One question. Raises Refused, RemoteError, TransportError."""
        if not self._intake.takes(stream.peer, trio.current_time()):
            raise Refused("too many questions", retry_after_s=1.0)
        with within(stream.peer, ASK_S):
            raw = await receive_letter(stream, LETTER_BYTES_MAX)
            if raw is None:
                raise TransportError(f"{stream.peer} opened a stream and asked nothing")
            asked = decode(raw, Which, max_bytes=LETTER_BYTES_MAX)
            claims = await trio.to_thread.run_sync(self._claims, asked.run)
            await send_letter(stream, encode(States(claims)))
        await stream.close()

    def _claims(self, run: bytes) -> tuple[bytes, ...]:
        kept = self._find(run)
        marks = [] if kept is None else kept.marks()[:CLAIMS_MAX]
        return tuple(
            sign_claim(
                self._key,
                Claim(run, mark.epoch, mark.step, mark.shared.digest, mark.shared.size),
            )
            for mark in marks
        )


async def ask_states(
    host: Host, peers: Iterable[str], run: bytes, blame: Blame, *, grace_s: float = math.inf
) -> dict[str, tuple[Claim, ...]]:
    """What each says that answers in time, and honestly as far as can be seen. grace_s: for how
    long others are waited for, once one has said something."""
    found: dict[str, tuple[Claim, ...]] = {}

    async def ask(peer: str) -> None:
        try:
            with within(peer, ASK_S):
                found[peer] = await _ask(host, peer, run)
            if found[peer]:
                until_s = trio.current_time() + grace_s
                nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, until_s)
        except RemoteError as error:
            blame(peer, error)
        except (TransportError, Refused):
            return  # it has no voice

    async with trio.open_nursery() as nursery:
        for peer in list(dict.fromkeys(peers))[:ASKED_MAX]:
            nursery.start_soon(ask, peer)
    return found


async def _ask(host: Host, peer: str, run: bytes) -> tuple[Claim, ...]:
    stream = await host.open_stream(peer, PROTOCOL)
    try:
        await send_letter(stream, encode(Which(run)))
        raw = await receive_letter(stream, LETTER_BYTES_MAX)
        if raw is None:
            raise TransportError(f"{peer} has left")
        return read_states(raw, peer, run)
    finally:
        with trio.CancelScope(shield=True):
            await stream.close()


async def join(
    host: Host,
    fetcher: Fetcher,
    kept: Checkpoints,
    peers: Iterable[str],
    shapes: Shapes,
    blame: Blame,
    *,
    blocks: BlockRange | None = None,
    least: int = LEAST,
) -> Mark:
    """The newest state on which most of these peers agree is among our checkpoints when it returns.

    shapes: of what the run shares, of these blocks and what belongs to none. fetcher: into
    `kept.chunks`. Raises TransportError when too few answer, no majority agrees, or a part is with
    nobody: ask again, and others; RemoteError for the state of something else; UserError for our
    disk.
    """
    answers = await ask_states(host, peers, kept.run, blame)
    claim = agreed(answers, least)
    if claim is None:
        raise TransportError(_why(answers, least))
    return await take(fetcher, kept, claim, holders(answers, claim), shapes, blocks)


async def take(
    fetcher: Fetcher,
    kept: Checkpoints,
    claim: Claim,
    having: Sequence[str],
    shapes: Shapes,
    blocks: BlockRange | None = None,
) -> Mark:
    """This state is among our checkpoints when it returns. having: who says it has it. Raises as
    `join`."""
    await fetch_state(fetcher, kept.manifest, claim, having, shapes, blocks)
    return await trio.to_thread.run_sync(kept.adopt, claim.chunk, blocks)


async def fetch_state(
    fetcher: Fetcher,
    manifest_of: Callable[[Chunk], Manifest | None],
    claim: Claim,
    having: Sequence[str],
    shapes: Shapes,
    blocks: BlockRange | None = None,
) -> Manifest:
    """All of this state is where the fetcher keeps chunks when it returns. manifest_of: reads one
    there; blocks. Raises as `join`; RemoteError for what is wrong with the claim itself."""
    top = claim.chunk
    await fetcher.fetch([top], {peer: [top.digest] for peer in having})
    manifest = await trio.to_thread.run_sync(manifest_of, top)
    if manifest is None or (manifest.epoch, manifest.step) != claim.moment:
        raise RemoteError("peers agree on a state that is none of this run's")
    entries = manifest.of(blocks)
    check_shapes(entries, shapes)
    chunks = manifest.chunks(entries)
    names = [one.digest for one in chunks]
    await fetcher.fetch(chunks, {peer: names for peer in having})
    return manifest


def _why(answers: Mapping[str, tuple[Claim, ...]], least: int) -> str:
    if len(answers) < least:
        return f"{len(answers)} peers of the run answered, where {least} are needed"
    return f"of {len(answers)} peers no majority has the same state"
