"""Thirty-two sessions that join and leave at random share one device: what each of them sees.

One node's engine in this process, without the network: stage, pages, admission, worker. A session
is a talker with a small vocabulary of its own making: the next word is the one whose vector fits
the last hidden state best, so that one wrong bit changes all words after it. Measured:

    words     of every session, against those of its solo run on an idle device
    pages     used and promised at the end: none
    share     words a second while they come and go, over that of 32 which stay
    flood     p99 of the time per word of one talker beside prompts of 4,096 words without end, over
              that of the same talker alone; and how long the event loop was silent meanwhile

    python -m integration.churn32                     ten minutes
    python -m integration.churn32 --seconds 20 --shape small --quantization int8
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import trio

from potluck.errors import Refused
from potluck.node.compute.batch import Lane
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.choice import Opened, StageWish, open_stage
from potluck.node.compute.shapes import write_random
from potluck.node.compute.worker import Worker, open_worker
from potluck.swarm.admission import Admission, AdmissionConfig
from potluck.swarm.blocks import BlockRange
from potluck.swarm.rates import PassTimes
from potluck.swarm.wire import Step

SESSIONS = 32
PEERS = 8
SCRIPTS = 96  # different conversations; each has one solo run
CHUNK_TOKENS = 128
CONTEXT = 8192
FLOOD_TOKENS = 4096
FLOODERS = 4
TALKER_WORDS = 380  # that one talker says beside a flood, again and again
VOCABULARY = 64
HANGUPS = 0.15  # of the sessions, somewhere in the middle
MIB = 1 << 20


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


@dataclass
class World:
    """One node's engine, and the words of its talkers."""

    worker: Worker
    stage: Opened
    admission: Admission
    lane: Lane
    words: np.ndarray = field(init=False)
    made: int = 0  # words
    rows: int = 0
    word_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (VOCABULARY, self.stage.engine.width)
        self.words = np.random.default_rng(5).standard_normal(shape).astype("<f4")

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
        rows = world.words[list(words)]
        payload = memoryview(bytearray(rows.tobytes()))
        step = Step(self.at, (len(words),), 1)
        answer, _ = await world.worker.step(
            self.cache, self.peer, payload, step, "f32", within_s=120.0
        )
        self.at += len(words)
        world.rows += len(words)
        return int(np.argmax(world.words @ np.frombuffer(answer, "<f4")))

    async def converse(self, told: Script, hang_up_at: int = -1) -> list[int]:
        """Every word of the answer, or those until one leaves."""
        word, said = 0, []
        for first in range(0, len(told.prompt), CHUNK_TOKENS):
            if hang_up_at == 0:
                return said
            word = await self.say(told.prompt[first : first + CHUNK_TOKENS])
        for number in range(told.words):
            said.append(word)
            self.world.made += 1
            if number + 1 == hang_up_at:
                return said
            began_s = time.perf_counter()
            word = await self.say((word,))
            self.world.word_s.append(time.perf_counter() - began_s)
        return said


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


async def solo(made: World, scripts: int) -> list[list[int]]:
    """The words of every script, one after another on an idle device."""
    answers = []
    for seed in range(scripts):
        async with made.session("solo", script(seed).tokens) as talk:
            answers.append(await talk.converse(script(seed)))
    return answers


async def stay(made: World, seconds: float) -> tuple[float, float]:
    """Words a second, and for each of the processor's, of sessions that are all there from the
    start to the end. On a machine that is busy with others the second alone says something."""
    talking = SESSIONS
    begun = trio.Event()

    async def talk_on(number: int) -> None:
        nonlocal talking
        told = script(number)
        async with made.session(f"p{number % PEERS}", told.tokens) as talk:
            word = await talk.say(told.prompt)
            talking -= 1
            if not talking:
                begun.set()
            await begun.wait()
            while True:
                if talk.at == told.tokens:
                    talk.at = len(told.prompt)  # and on from there: as long as the others' are
                word = await talk.say((word,))
                made.made += 1

    async with trio.open_nursery() as nursery:
        for number in range(SESSIONS):
            nursery.start_soon(talk_on, number)
        await begun.wait()
        words, began_s, used_s = made.made, time.perf_counter(), time.process_time()
        await trio.sleep(seconds)
        words = made.made - words
        rates = words / (time.perf_counter() - began_s), words / (time.process_time() - used_s)
        nursery.cancel_scope.cancel()
    return rates


async def churn(made: World, expected: list[list[int]], seconds: float) -> dict[str, Any]:
    """Sessions come and go, SESSIONS at a time; some leave in the middle, some are cut off."""
    wrong: list[int] = []
    counts = {"sessions": 0, "left early": 0, "cut off": 0, "refused": 0}
    dice = random.Random(7)
    until_s = trio.current_time() + seconds

    async def slot(number: int) -> None:
        while trio.current_time() < until_s:
            seed = dice.randrange(len(expected))
            told = script(seed)
            how = dice.random()
            leave = dice.randint(0, told.words) if how < HANGUPS else -1
            cut_s = dice.uniform(0, 0.5) if how > 1 - HANGUPS else float("inf")
            said: list[int] = []
            try:
                with trio.move_on_after(cut_s) as scope:
                    async with made.session(f"p{number % PEERS}", told.tokens) as talk:
                        said = await talk.converse(told, leave)
            except Refused as refusal:
                counts["refused"] += 1
                await trio.sleep(refusal.retry_after_s)
                continue
            counts["sessions"] += 1
            counts["left early"] += leave >= 0
            counts["cut off"] += scope.cancelled_caught
            whole = leave < 0 and not scope.cancelled_caught
            if said != expected[seed][: len(said)] or (whole and len(said) != told.words):
                wrong.append(seed)

    began_s, used_s = time.perf_counter(), time.process_time()
    words, rows = made.made, made.rows
    async with trio.open_nursery() as nursery:
        for number in range(SESSIONS):
            nursery.start_soon(slot, number)
        await trio.sleep_until(until_s)
        spent_s, used_s = time.perf_counter() - began_s, time.process_time() - used_s
        rates = {
            "words_per_cpu_s": round((made.made - words) / used_s, 1),
            "rows_per_cpu_s": round((made.rows - rows) / used_s, 1),
            "words_per_s": round((made.made - words) / spent_s, 1),
            "rows_per_s": round((made.rows - rows) / spent_s, 1),
        }
    return counts | {"wrong": wrong} | rates


async def flood(
    made: World, seconds: float, *, flooders: int, talker_words: int
) -> dict[str, float]:
    """One talker's time per word beside so many sessions that fill long prompts without end."""
    gaps: list[float] = []
    filled = 0

    async def tick() -> None:
        while True:
            began_s = time.perf_counter()
            await trio.sleep(0.001)
            gaps.append(time.perf_counter() - began_s)

    async def fill(number: int) -> None:
        nonlocal filled
        prompt = tuple(random.Random(number).randrange(VOCABULARY) for _ in range(FLOOD_TOKENS))
        while True:
            async with made.session(f"flood{number % 2}", FLOOD_TOKENS) as talk:
                for first in range(0, FLOOD_TOKENS, CHUNK_TOKENS):
                    await talk.say(prompt[first : first + CHUNK_TOKENS])
                    filled += CHUNK_TOKENS

    made.word_s.clear()
    began_s = trio.current_time()
    until_s = began_s + seconds
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        for number in range(flooders):
            nursery.start_soon(fill, number)
        while trio.current_time() < until_s:
            told = Script(script(1).prompt[:16], talker_words)
            async with made.session("talker", told.tokens) as talk:
                await talk.converse(told)
        spent_s = trio.current_time() - began_s
        nursery.cancel_scope.cancel()
    ordered = sorted(made.word_s)
    return {
        "words": len(ordered),
        "p50_ms": round(1000 * ordered[len(ordered) // 2], 2),
        "p99_ms": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 2),
        "prompt_rows_per_s": round(filled / spent_s, 1),
        "loop_silent_ms_p99": round(1000 * sorted(gaps)[int(0.99 * (len(gaps) - 1))], 2),
        "loop_silent_ms_max": round(1000 * max(gaps), 1),
    }


async def run(
    wish: StageWish, shape: str, seconds: float, scripts: int, talker_words: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="potluck-churn-") as folder:
        async with world(Path(folder), wish, shape) as made:
            expected = await solo(made, scripts)
            fixed, fixed_cpu = await stay(made, max(2.0, seconds / 10))
            found = await churn(made, expected, seconds)
            flood_on = partial(flood, made, max(2.0, seconds / 20), talker_words=talker_words)
            idle = await flood_on(flooders=0)
            flooded = await flood_on(flooders=FLOODERS)
            await made.worker.run(int)  # what was posted before is done
            pool = made.stage.pool
            return {
                "numerics": made.stage.engine.numerics,
                "shape": shape,
                **found,
                "fixed_words_per_s": round(fixed, 1),
                "share_of_fixed": round(found["words_per_s"] / fixed, 3),
                "share_of_fixed_by_cpu": round(found["words_per_cpu_s"] / fixed_cpu, 3),
                "rows_share_of_fixed_by_cpu": round(found["rows_per_cpu_s"] / fixed_cpu, 3),
                "idle": idle,
                "flooded": flooded,
                "p99_over_idle": round(flooded["p99_ms"] / idle["p99_ms"], 2),
                "p99_over_idle_p50": round(flooded["p99_ms"] / idle["p50_ms"], 2),
                "pages_used_at_the_end": pool.used_pages if pool else 0,
                "pages_promised_at_the_end": pool.pages - pool.free_pages if pool else 0,
                "leases_at_the_end": made.admission.sessions,
                "rows_in_a_pass_max": made.lane.served.rows_max,
                "pass_ms_max": round(1000 * made.lane.served.pass_s_max, 1),
            }


def measure(
    *,
    seconds: float = 600.0,
    scripts: int = SCRIPTS,
    shape: str = "tiny",
    engine: str = "auto",
    quantization: str = "auto",
    threads: int = 1,
    talker_words: int = TALKER_WORDS,
) -> dict[str, Any]:
    wish = StageWish(
        device="cpu",
        engine=engine,
        quantization=quantization,
        threads=threads,
        cache_bytes=2048 * MIB,
    )
    return trio.run(run, wish, shape, seconds, scripts, talker_words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--scripts", type=int, default=SCRIPTS)
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    print(json.dumps(measure(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
