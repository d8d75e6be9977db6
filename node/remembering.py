"""A server's side of prompts that begin alike: what a session finds here, and what it leaves.

    Ask ─▶ the session's lease begins with the kept pages ─▶ Held
    Recall ─▶ rows from memory, signed for as any                 a step that need not be computed
    Step ─▶ computed as ever; each page that it fills is kept     prefix_cache.py

A page is kept under the names of all rows that this session sent up to its end, under the client's
own name or, where it shares on purpose, under nobody's. Rows are hashed as they are for receipts:
behind the answer, and on another thread where they are many.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ..errors import RemoteError
from ..swarm.prefix import GRAIN, NAMES_MAX, Chain, Scope
from ..swarm.receipt import Notary
from ..swarm.wire import Ask, Held, Output, Recall, Remember
from .compute.prefix_cache import PrefixCache, Seen
from .engine import Device
from .signing import ASIDE_BYTES, check_room


class Memory:
    """One session's. The caller owes: `heard` of every step behind its answer, before the next."""

    def __init__(
        self, prefixes: PrefixCache, device: Device, peer: str, asked: Remember, row_bytes: int
    ) -> None:
        self._prefixes, self._device = prefixes, device
        kind = prefixes.kind_of(asked.tokens)
        owner = "" if asked.shared else peer
        self._scope: Scope = (owner, asked.start, asked.stop, asked.dtype, kind)
        self._row_bytes = row_bytes
        self._took, self._gave = Chain(row_bytes), Chain(row_bytes)
        self._given = bytearray()  # that no page of what was given was made of yet
        self._given_before = b""  # of the last page
        self._gives = True  # all rows so far were wanted
        self._found: tuple[Seen, ...] = ()
        self._names: tuple[bytes, ...] = ()  # of those
        self._asked = self._lost = False

    async def answer(self, asked: Ask, cache: object, begun: bool, bytes_max: int) -> Held:
        """What is known here of this chain. Raises RemoteError where it comes too late."""
        if self._asked or begun:
            raise RemoteError("a second question for a prompt, or one inside it")
        self._asked = True
        self._found = await self._device.run(
            self._prefixes.find, self._scope, asked.names, cache, bytes_max
        )
        self._names = asked.names[: len(self._found)]
        gave = tuple(one.name for one in self._found)
        return Held(len(gave), gave if all(gave) else ())

    def recall(self, asked: Recall, length: int) -> tuple[list[bytes], memoryview]:
        """The leaves of the rows that went in, and the rows that are to be given out, in a session
        of this length. Raises RemoteError for what it was not told that it may ask."""
        tokens = sum(asked.sizes)
        first, stop = asked.at // GRAIN, (asked.at + tokens) // GRAIN
        if min(asked.sizes) < 1 or asked.at != length or asked.at % GRAIN or tokens % GRAIN:
            raise RemoteError(f"a recall of {tokens} positions at {asked.at} of {length}")
        pages = self._found[first:stop]
        if stop > len(self._found) or asked.rows not in (0, tokens):
            raise RemoteError(f"a recall of {asked.rows} rows up to page {stop}")
        if asked.rows and not all(one.name for one in pages):
            raise RemoteError("a recall of rows that were not kept")
        if self._took.length == asked.at and not self._lost:
            self._took.skip(self._names[first:stop])
            self._gives = self._gives and all(one.name for one in pages)
            self._gave.skip([one.name for one in pages])
        gave = b"".join(one.gave for one in pages) if asked.rows else b""
        return [leaf for one in pages for leaf in one.took], memoryview(gave)

    def forget(self, at: int) -> None:
        """Positions from `at` on were taken back, or are computed now."""
        self._found = self._found[: at // GRAIN]
        if at < self._took.length:
            pages = len(self._gave.names)
            whole = self._took.back(at) and (not self._gives or self._gave.back(at))
            self._lost = self._lost or not whole
            if pages > len(self._gave.names):
                self._given = bytearray(self._given_before)
            del self._given[max(0, at - GRAIN * len(self._gave.names)) * self._row_bytes :]

    async def heard(
        self, cache: object, at: int, took: memoryview, gave: memoryview, *, whole: bool
    ) -> None:
        """A step was computed. whole: all of its rows were given."""
        self.forget(at)
        self._found = ()  # what is not recalled by now will not be
        if self._lost or at != self._took.length or len(self._took.names) >= NAMES_MAX:
            self._lost = True
            return
        self._gives = self._gives and whole
        if len(took) + len(gave) > ASIDE_BYTES:
            pages = await trio.to_thread.run_sync(self._hash, took, gave)
        else:
            pages = self._hash(took, gave)
        first = len(self._took.names) - len(pages)
        for number, seen in enumerate(pages, start=first + 1):
            names = tuple(self._took.names[:number])
            self._device.post(self._prefixes.keep, self._scope, names, cache, seen)

    def _hash(self, took: memoryview, gave: memoryview) -> list[Seen]:
        """What of each page that this step fills is to be kept."""
        taken = self._took.add(took)
        if not self._gives:
            return [Seen(leaves) for leaves in taken]
        self._gave.add(gave)
        self._given += gave
        size = GRAIN * self._row_bytes
        pages = []
        for place, leaves in enumerate(taken):
            name = self._gave.names[len(self._gave.names) - len(taken) + place]
            pages.append(Seen(leaves, name, bytes(self._given[place * size : (place + 1) * size])))
        if pages:
            self._given_before = pages[-1].gave
        del self._given[: size * len(taken)]
        return pages


async def attend(
    memory: Memory | None,
    asked: Ask | Recall,
    cache: object,
    length: int,
    bytes_max: int,
    notary: Notary | None,
    answer: Callable[..., Awaitable[None]],
) -> int:
    """Answer what a session of this length asks of its prompt; by how much it is longer then.
    Raises RemoteError."""
    if isinstance(asked, Ask):
        held = Held(0, ())
        if memory is not None:
            held = await memory.answer(asked, cache, length > 0, bytes_max)
        await answer(held)
        return 0
    if memory is None:
        raise RemoteError("a recall where nothing is held")
    if notary is not None:
        check_room(notary)
    leaves, gave = memory.recall(asked, length)
    told = Output(asked.at, len(leaves), asked.rows, 0.0, 0.0, 0)
    await answer(told, memoryview(b"") if asked.known else gave)
    if notary is not None:
        notary.took_leaves(asked.at, leaves)
        notary.gave(gave)
    return len(leaves)
