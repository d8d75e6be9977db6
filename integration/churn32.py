"""Thirty-two sessions that join and leave at random share one device: what each of them sees.

One node's engine in this process, without the network: stage, pages, admission, worker. Sessions
are talkers, each of whose words hangs on every bit before it (talkers.py). Measured:

    words     of every session, against those of its solo run on an idle device
    pages     used and promised at the end: none
    share     tokens a second, of prompts and of answers, while they come and go, over that of 32
              which stay; `words`: of answers alone, though those that come have prompts to fill
    flood     p99 of the time per word of one talker beside prompts of 4,096 words without end, over
              that of the same talker alone; and how long the event loop was silent meanwhile

What is compared is measured in turns, in rounds of seconds: another hour is another machine,
and so is another minute of one that has neighbours.

    python -m integration.churn32                     ten minutes
    python -m integration.churn32 --seconds 20 --shape small --quantization int8
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from potluck.errors import Refused
from potluck.node.compute.choice import StageWish

from .ground import load, quantile_ms
from .talkers import CHUNK_TOKENS, VOCABULARY, Script, Tally, World, script, world

SESSIONS = 32
PEERS = 8
SCRIPTS = 96  # different conversations; each has one solo run
FLOOD_TOKENS = 4096
FLOODERS = 4
TALKER_WORDS = 380  # that one talker says beside a flood, again and again
ROUND_S = 20.0
COUNTED = ("sessions", "left early", "cut off", "refused")
HANGUPS = 0.15  # of the sessions, somewhere in the middle
MIB = 1 << 20


async def solo(made: World, scripts: int) -> list[list[int]]:
    """The words of every script, one after another on an idle device."""
    answers: list[list[int]] = [[] for _ in range(scripts)]
    for seed, said in enumerate(answers):
        async with made.session("solo", script(seed).tokens) as talk:
            await talk.converse(script(seed), said)
    return answers


async def stay(made: World, seconds: float) -> Tally:
    """Of sessions that are all there from the start to the end."""
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
                made.words += 1

    async with trio.open_nursery() as nursery:
        for number in range(SESSIONS):
            nursery.start_soon(talk_on, number)
        await begun.wait()
        count = made.count()
        await trio.sleep(seconds)
        tally = count()
        nursery.cancel_scope.cancel()
    return tally


@dataclass
class Churn:
    """Sessions that come and go, SESSIONS at a time; some leave in the middle, some are cut off."""

    made: World
    expected: list[list[int]]
    dice: random.Random
    wrong: list[int] = field(default_factory=list)  # scripts
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTED, 0)))

    async def run(self, seconds: float) -> Tally:
        until_s = trio.current_time() + seconds
        count = self.made.count()
        async with trio.open_nursery() as nursery:
            for number in range(SESSIONS):
                nursery.start_soon(self._slot, number, until_s)
            await trio.sleep_until(until_s)
            return count()

    async def _slot(self, number: int, until_s: float) -> None:
        while trio.current_time() < until_s:
            seed = self.dice.randrange(len(self.expected))
            told = script(seed)
            how = self.dice.random()
            leave = self.dice.randint(0, told.words) if how < HANGUPS else -1
            cut_s = self.dice.uniform(0, 0.5) if how > 1 - HANGUPS else float("inf")
            said: list[int] = []
            try:
                with trio.move_on_after(cut_s) as scope:
                    async with self.made.session(f"p{number % PEERS}", told.tokens) as talk:
                        await talk.converse(told, said, leave)
            except Refused as refusal:
                self.counts["refused"] += 1
                await trio.sleep(refusal.retry_after_s)
                continue
            self.counts["sessions"] += 1
            self.counts["left early"] += leave >= 0
            self.counts["cut off"] += scope.cancelled_caught
            whole = leave < 0 and not scope.cancelled_caught
            if said != self.expected[seed][: len(said)] or (whole and len(said) != told.words):
                self.wrong.append(seed)


@dataclass
class Flood:
    """What one talker sees, beside so many sessions that fill long prompts without end."""

    made: World
    flooders: int
    talker_words: int
    word_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)  # between two turns of the event loop
    filled: int = 0
    spent_s: float = 0.0

    async def run(self, seconds: float) -> None:
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            for number in range(self.flooders):
                nursery.start_soon(self._fill, number)
            while trio.current_time() < began_s + seconds:
                told = Script(script(1).prompt[:16], self.talker_words)
                async with self.made.session("talker", told.tokens) as talk:
                    await talk.converse(told, [], word_s=self.word_s)
            self.spent_s += trio.current_time() - began_s
            nursery.cancel_scope.cancel()

    async def _tick(self) -> None:
        while True:
            began_s = time.perf_counter()
            await trio.sleep(0.001)
            self.gaps_s.append(time.perf_counter() - began_s)

    async def _fill(self, number: int) -> None:
        prompt = tuple(random.Random(number).randrange(VOCABULARY) for _ in range(FLOOD_TOKENS))
        while True:
            async with self.made.session(f"flood{number % 2}", FLOOD_TOKENS) as talk:
                for first in range(0, FLOOD_TOKENS, CHUNK_TOKENS):
                    await talk.say(prompt[first : first + CHUNK_TOKENS])
                    self.filled += CHUNK_TOKENS

    def told(self) -> dict[str, float]:
        return {
            "words": len(self.word_s),
            "p50_ms": quantile_ms(self.word_s, 0.5),
            "p99_ms": quantile_ms(self.word_s, 0.99),
            "prompt_rows_per_s": round(self.filled / self.spent_s, 1),
            "loop_silent_ms_p99": quantile_ms(self.gaps_s, 0.99),
            "loop_silent_ms_max": quantile_ms(self.gaps_s, 1.0),
        }


async def run(
    wish: StageWish, shape: str, seconds: float, scripts: int, talker_words: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="potluck-churn-") as folder:
        async with world(Path(folder), wish, shape) as made:
            churn = Churn(made, await solo(made, scripts), random.Random(7))
            rounds = max(1, round(seconds / ROUND_S))
            fixed, coming = [], []
            for _ in range(rounds):
                fixed.append(await stay(made, max(2.0, seconds / rounds / 10)))
                coming.append(await churn.run(seconds / rounds))
            idle, flooded = (Flood(made, one, talker_words) for one in (0, FLOODERS))
            floods = max(1, rounds // 3)  # a talker has its say, however long that takes
            for _ in range(floods):
                for flood in (idle, flooded):
                    await flood.run(max(2.0, seconds / floods / 20))
            await made.worker.run(int)  # what was posted before is done
            return {
                "numerics": made.stage.engine.numerics,
                "shape": shape,
                "rounds": rounds,
                **churn.counts,
                "wrong": churn.wrong,
                **shares(fixed, coming),
                "idle": idle.told(),
                "flooded": flooded.told(),
                "p99_over_idle": round(flooded.told()["p99_ms"] / idle.told()["p99_ms"], 2),
                "p99_over_idle_p50": round(flooded.told()["p99_ms"] / idle.told()["p50_ms"], 2),
                **left_over(made),
                "load": load(),
            }


def shares(fixed: list[Tally], coming: list[Tally]) -> dict[str, float]:
    """Of the fixed batch's rates, the medians over rounds; and the rates themselves."""

    def share(rate: Callable[[Tally], float]) -> float:
        pairs = zip(coming, fixed, strict=True)
        return round(statistics.median(rate(one) / rate(other) for one, other in pairs), 3)

    return {
        "fixed_tokens_per_s": round(statistics.median(one.rows_per_s for one in fixed), 1),
        "tokens_per_s": round(statistics.median(one.rows_per_s for one in coming), 1),
        "share_of_fixed": share(lambda one: one.rows_per_s),
        "share_of_fixed_by_cpu": share(lambda one: one.rows / one.cpu_s),
        "words_share_of_fixed": share(lambda one: one.words / one.wall_s),
    }


def left_over(made: World) -> dict[str, float]:
    """What is still held once all have gone, and how large passes became."""
    pool = made.stage.pool
    return {
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
