"""How a server signs for a session that asks for receipts: hashed where it hinders nobody.

Small steps are hashed together before they are signed for (receipt.py, `Notary`). What is large is
hashed when its answer is on the way, while the client and the next hop work, and on another thread,
so that no other peer waits for it: the network may stand still for 50 ms, and a frame of 32 MiB
takes about 60.

    answer ─▶ note(took, gave)  ...  Sign ─▶ signed ─▶ Receipts
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

import trio

from ..crypto.keys import IdentityKey
from ..errors import RemoteError
from ..swarm.receipt import NOTED_BYTES_MAX, Notary, Opening, WearingOpening
from ..swarm.wire import Open, Opened, Receipts, Wear
from .engine import DTYPE_BYTES

ASIDE_BYTES: Final = NOTED_BYTES_MAX  # a thread's turn costs about as much as to hash it
ASIDE_TOKENS: Final = 512  # of a signature: two digests a token, 2 ms


class Notaries:
    """One server's. wall: unix seconds."""

    def __init__(self, key: IdentityKey, wall: Callable[[], float] = time.time) -> None:
        self._key = key
        self._wall = wall

    def open(self, asked: Open, answer: Opened) -> Notary:
        """For a session that begins now, with this answer."""
        said = (
            asked.session,
            secrets.token_bytes(16),
            self._wall(),
            bytes.fromhex(asked.model),
            answer.numerics,
            asked.start,
            asked.stop,
            answer.width,
            asked.dtype,
        )
        opening = (
            WearingOpening(*said, asked.adapter) if isinstance(asked, Wear) else Opening(*said)
        )
        return Notary(self._key, opening, answer.width * DTYPE_BYTES[asked.dtype])


def check_room(notary: Notary) -> None:
    """Raises RemoteError when no further step may come before a `Sign`."""
    if notary.full:
        raise RemoteError(f"{notary.pending} tokens wait for a signature that is not asked for")


async def note(notary: Notary, at: int, took: memoryview, gave: memoryview) -> None:
    """A step was computed, and its answer sent. Neither of its payloads may change from now on."""
    if len(took) + len(gave) > ASIDE_BYTES:
        await trio.to_thread.run_sync(notary.note, at, took, gave)
    else:
        notary.note(at, took, gave)


async def signed(notary: Notary | None) -> Receipts:
    """For all that is pending. Raises RemoteError where `Open` did not ask for receipts."""
    if notary is None:
        raise RemoteError("Sign in a session that was opened without receipts")
    if notary.pending > ASIDE_TOKENS:
        return Receipts(await trio.to_thread.run_sync(notary.sign))
    return Receipts(notary.sign())
