"""What a server computes with: an engine that knows the blocks, and the one thread that runs it.

Ports: node/compute has the engines and the worker, tests have others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ..swarm.blocks import BlockRange
from ..swarm.wire import Step


class Worn(Protocol):
    """What `open_cache` is given, so that the rows of its sessions go through an adapter."""

    bytes: int


class Engine(Protocol):
    """What computes: blocks on a device. Every call may block; it runs on the worker's thread."""

    blocks: BlockRange
    width: int
    context: int  # positions that a session may have
    numerics: str

    def open_cache(self, blocks: BlockRange, tokens: int, adapter: Any = None) -> Any: ...

    def dress(self, name: str, parts: Mapping[int, bytes]) -> Worn:
        """An adapter's parts as caches wear them; on any thread, beside a pass. Raises RemoteError
        for what does not fit."""

    def close_cache(self, cache: Any) -> None: ...

    def truncate(self, cache: Any, at: int) -> None: ...


class Device(Protocol):
    """The one thread that touches the device."""

    @property
    def waiting(self) -> int: ...

    async def run(self, function: Any, *args: Any) -> Any: ...

    async def spare(self, slices: Iterator[None]) -> None:
        """Each `next` of these in what time is to spare, until there is none."""

    def post(self, function: Any, *args: Any) -> None:
        """Have it run before whatever is handed over later."""

    async def step(
        self,
        cache: Any,
        peer: str,
        payload: memoryview,
        step: Step,
        dtype: str,
        *,
        within_s: float,
    ) -> tuple[memoryview, float]:
        """The answer's payload, and the seconds it took. RemoteError when the input is rubbish."""
