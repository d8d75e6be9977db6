"""Talkers on one node's engine, in one process and without the network.

A talker has a small vocabulary of its own making: a checksum of the last hidden state names the
next word, so that one wrong bit changes all words after it.
"""

from __future__ import annotations

import json
import random
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import trio

from potluck.node.compute.batch import Lane
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.choice import Opened, StageWish, open_stage
from potluck.node.compute.shapes import write_random
from potluck.node.compute.worker import Worker, open_worker
from potluck.swarm.admission import Admission, AdmissionConfig
from potluck.swarm.blocks import BlockRange
from potluck.swarm.rates import PassTimes
from potluck.swarm.wire import Step

CHUNK_TOKENS = 128
CONTEXT = 8192
VOCABULARY = 64


@dataclass(frozen=True)
class Script:
    """One conversation: what it says first, and how many words it waits for."""

    prompt: tuple[int, ...]
    words: int

    @property
    def tokens(self) -> int:
        return len(self.prompt) + self.words


def script(seed: int) -> Script:
    dice = random.Random(seed)
    length = dice.randint(24, 200) if dice.random() < 0.1 else dice.randint(1, 24)
    prompt = tuple(dice.randrange(VOCABULARY) for _ in range(length))
    return Script(prompt, dice.randint(24, 120))


@dataclass(frozen=True)
class Tally:
    """What was made in some seconds, of the clock and of processors."""

    words: int
    rows: int
    wall_s: float
    cpu_s: float

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.wall_s


@dataclass
class World:
    """One node's engine, and the words of its talkers."""

    worker: Worker
    stage: Opened
    admission: Admission
    lane: Lane
    vectors: np.ndarray = field(init=False)  # of the vocabulary
    words: int = 0  # of answers
    rows: int = 0  # computed for them and for prompts

    def __post_init__(self) -> None:
        shape = (VOCABULARY, self.stage.engine.width)
        self.vectors = np.random.default_rng(5).standard_normal(shape).astype("<f4")

    def count(self) -> Callable[[], Tally]:
        """Begin to count; what is returned says what was made since."""
        words, rows = self.words, self.rows
        began_s, used_s = time.perf_counter(), time.process_time()
        return lambda: Tally(
            self.words - words,
            self.rows - rows,
            time.perf_counter() - began_s,
            time.process_time() - used_s,
        )

    @asynccontextmanager
    async def session(self, peer: str, tokens: int) -> AsyncIterator[Talk]:
        """As the server opens and closes one."""
        key, blocks = object(), self.stage.engine.blocks
        self.admission.admit(key, peer, blocks, tokens, trio.current_time())
        cache = None
        try:
            cache = await self.worker.run(self.stage.engine.open_cache, blocks, tokens)
            yield Talk(self, peer, cache)
        finally:
            if cache is not None:
                self.worker.post(self.stage.engine.close_cache, cache)
            self.admission.release(key, trio.current_time())


@dataclass
class Talk:
    world: World
    peer: str
    cache: Any
    at: int = 0

    async def say(self, words: tuple[int, ...]) -> int:
        """Hand in words; the one that follows."""
        world = self.world
        rows = world.vectors[list(words)]
        payload = memoryview(bytearray(rows.tobytes()))
        step = Step(self.at, (len(words),), 1)
        answer, _ = await world.worker.step(
            self.cache, self.peer, payload, step, "f32", within_s=120.0
        )
        self.at += len(words)
        world.rows += len(words)
        return zlib.crc32(answer) % VOCABULARY

    async def converse(
        self,
        told: Script,
        said: list[int],
        hang_up_at: int = -1,
        word_s: list[float] | None = None,
    ) -> None:
        """Add every word of the answer to `said`, or those until one leaves; and their times."""
        word = 0
        for first in range(0, len(told.prompt), CHUNK_TOKENS):
            if hang_up_at == 0:
                return
            word = await self.say(told.prompt[first : first + CHUNK_TOKENS])
        for number in range(told.words):
            said.append(word)
            self.world.words += 1
            if number + 1 == hang_up_at:
                return
            began_s = time.perf_counter()
            word = await self.say((word,))
            if word_s is not None:
                word_s.append(time.perf_counter() - began_s)


@asynccontextmanager
async def world(folder: Path, wish: StageWish, shape: str) -> AsyncIterator[World]:
    model = folder / "model"
    write_random(model, shape)
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = CONTEXT
    (model / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(model)
    blocks = BlockRange(0, checkpoint.spec.blocks)
    async with open_worker(threads=wish.threads or None, queued_max=4096) as worker:
        stage = await worker.run(open_stage, checkpoint, blocks, wish)
        lane = Lane(stage.engine, PassTimes(len(blocks), *stage.rates))
        worker.serve(lane)
        admission = Admission(AdmissionConfig(stage.cache_tokens, stage.page_tokens))
        yield World(worker, stage, admission, lane)
