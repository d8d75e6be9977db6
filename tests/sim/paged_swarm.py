"""Servers of exact stages over memory roads, which remember prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from potluck.node.compute.engine import BatchEngine
from potluck.node.compute.prefix_cache import PrefixCache
from potluck.node.session import LiveSession, SessionPlan
from potluck.swarm.blocks import BlockRange
from potluck.swarm.prefix import Prompt, names_of
from potluck.swarm.wire import Step

from .memory_swarm import BLOCKS, MODEL, ROW_BYTES, Node, World
from .paged_stage import PRIME, WIDTH, PagedStage

CHUNK = 128


class PagedEngine(BatchEngine):
    """As InstantDevice wants it: a step in one call."""

    def __init__(self, start: int, stop: int, pages: int) -> None:
        stage = PagedStage(start, stop)
        self.pool = stage.pool(pages)
        super().__init__(stage, self.pool)
        self.prefixes = PrefixCache(self.pool)

    def step(self, cache: Any, payload: memoryview, step: Step, dtype: str) -> Any:
        work = self.begin(cache, payload, step, dtype)
        BatchEngine.run(self, [(work, len(work.hidden))])
        return work.answer(), 0.0


class _Steps:
    """An engine as InstantDevice calls it."""

    def __init__(self, engine: PagedEngine) -> None:
        self.whole = engine
        self.run = engine.step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


async def add(made: World, start: int, stop: int, *, pages: int = 2048, old: bool = False) -> Node:
    """A server of these blocks. old: it knows nothing of prompts."""
    engine = PagedEngine(start, stop, pages)
    return await made.add(
        start, stop, numerics="paged", cache_tokens=pages * 64, engine=_Steps(engine),
        prefixes=None if old else engine.prefixes,
    )  # fmt: skip


def words(seed: int, tokens: int) -> np.ndarray:
    """Rows of a prompt."""
    dice = np.random.default_rng(seed)
    return dice.integers(0, PRIME, (tokens, WIDTH)).astype(np.float32)


def plan_of(
    prompt: np.ndarray, *, tokens: int = 1024, shared: bool = False, receipts: bool = False
) -> SessionPlan:
    """A session that begins with these rows."""
    said = Prompt(names_of([prompt.tobytes()], ROW_BYTES), len(prompt), shared)
    return SessionPlan(
        MODEL, "paged", BLOCKS, WIDTH, tokens, receipts=receipts, prompt=said
    )  # fmt: skip


async def speak(session: LiveSession, prompt: np.ndarray) -> bytes:
    """Feed a prompt in chunks; the last row that comes of it."""
    last = b""
    for at in range(0, len(prompt), CHUNK):
        chunk = prompt[at : at + CHUNK]
        session.feed(chunk.tobytes(), len(chunk), int(at + CHUNK >= len(prompt)))
    for _ in range(0, len(prompt), CHUNK):
        last = bytes(await session.output())
    return last


def ran(nodes: Sequence[Node]) -> list[int]:
    """Tokens that each has computed so far."""
    return [sum(sum(step.sizes) for step in node.device.ran) for node in nodes]


def covers(node: Node, block: int) -> bool:
    blocks: BlockRange = node.engine.blocks
    return blocks.start <= block < blocks.stop
