"""Answers over a wide area, beside what the formula allows: `potluck bench wan`.

In the laboratory (laboratory.py) stages, hops and the client are measured apart. Then answers as
`potluck bench draft` has them, plain and guessed, and the first token of a long prompt, over the
client (star) or from hop to hop (chain), or one after the other; beside each what swarm/wan.py
makes of what was measured.

    bar 1    plain decoding keeps 80 % of 1 / R(1)
    bar 2    at 60 ms and 4 hops guesses make chat 2.0 times as fast, code edits 2.5, nothing slower
             than 0.98, and all within 15 % of the formula
    bar 4    two hops at 20 ms: 17 tokens a second plain and 25 guessed, by a model that alone makes
             77 (or fewer)
    bar 5    the first token of a prompt comes within 1.3 times the cut-through formula

What cut-through brings is measured, too: the same prompt in one step, which each hop has whole
before the next one has any of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import trio

from ...errors import UserError
from ...swarm.wan import Shape, Way, first_token_s, rate_of, step_s
from ..generation import GREEDY
from ..session import SessionPlan, open_session
from .drafts import Reader, Recited, Task, tasks_of
from .laboratory import Wanted, open_laboratory

MEASURED: Final = ("code edit", "summarise", "chat", "none")
FIRSTS: Final = 7  # runs of the long prompt, after one over roads that have carried little yet


@dataclass(frozen=True, slots=True)
class Measured:
    """What the formula is told, and where it is from."""

    way: Way
    solo_per_s: float


async def bench_wan(wanted: Wanted) -> dict[str, object]:
    """All figures of one run, by `ways`. Raises UserError for what cannot be had here."""
    if wanted.draft == "off":
        raise UserError("--draft off: each answer is plain once as it is, give auto or a model")
    ways: dict[Shape, dict[str, object]] = {}
    async with open_laboratory(wanted) as lab:
        for shape in wanted.shapes:
            way = replace(lab.way, shape=shape)
            reader = Reader(lab.host, lab.swarm, lab.worker, lab.voice, chain=shape == "chain")
            found = await _answers(reader, wanted)
            ways[shape] = told(found, Measured(way, lab.solo_per_s), wanted)
        way = lab.way
    return {
        **wanted.told(),
        "roads": lab.roads,
        "solo_per_s": round(lab.solo_per_s, 1),
        "pass_ms": [[(n, round(s * 1e3, 2)) for n, s in stage.times] for stage in way.stages],
        "overhead_ms": round(way.overhead_s * 1e3, 2),
        "client_ms": round(way.client_s * 1e3, 2),
        "ways": ways,
    }


@dataclass(frozen=True, slots=True)
class Answered:
    """Plain and guessed, of one kind."""

    plain: Recited
    guessing: Recited

    def predicted(self, way: Way) -> float:
        """Tokens a second of the guessed one, by the formula: of as many guesses a step, right as
        often, made in the same time."""
        guessed = self.guessing.guessed
        assert guessed is not None
        guess_s = guessed.making_s / max(guessed.sent, 1)
        return rate_of(way, guessed.chance, guessed.widths or {0: 1}, guess_s)


@dataclass(frozen=True, slots=True)
class Answers:
    """Of each kind; and of the long prompt: seconds to its first token, its chunk, and the same
    seconds where it is stored and forwarded. cold_s: those of the first one, while TCP finds out
    what its roads carry."""

    kinds: dict[str, Answered]
    first_s: float | None
    chunk: int
    stored_s: float | None = None
    cold_s: float = 0.0


async def _answers(reader: Reader, wanted: Wanted) -> Answers:
    tasks = {task.kind: task for task in tasks_of(reader.voice, wanted.tokens)}
    warm = Task("warm", tasks["chat"].prompt)  # connections are made, histories begun
    await reader.recite(warm, 2)
    drafts = await reader.swarm.drafts(reader.voice, wanted.draft)
    kinds = {}
    for kind in MEASURED:
        plain = await reader.recite(tasks[kind], wanted.tokens)
        kinds[kind] = Answered(plain, await reader.recite(tasks[kind], wanted.tokens, drafts))
    if not wanted.prompt:
        return Answers(kinds, None, 0)
    vocabulary = reader.voice.ends.spec.vocab
    ids = tuple(3 + (number * 7) % (vocabulary - 3) for number in range(wanted.prompt))
    cold, *firsts = [await reader.recite(Task("long", ids), 1) for _ in range(1 + FIRSTS)]
    spent_s = statistics.median(one.seconds[0] for one in firsts)
    stored = [await _stored_s(reader, ids) for _ in range(FIRSTS)]
    stored_s = statistics.median(stored)
    return Answers(kinds, spent_s, firsts[-1].chunk, stored_s, cold.seconds[0])


async def _stored_s(reader: Reader, ids: tuple[int, ...]) -> float:
    """To the first token of this prompt, sent as one step: each hop has it whole before the next
    one has any of it."""
    voice, began_s = reader.voice, trio.current_time()
    plan = SessionPlan(
        voice.digest, voice.name, voice.blocks, voice.width, len(ids) + 1, voice.wire,
        chain=reader.chain,
    )  # fmt: skip
    async with open_session(reader.host, reader.swarm.router, plan) as session:
        session.feed(await reader.worker.run(voice.embed, ids), len(ids), 1, 0)
        hidden = await session.output()
        await reader.worker.run(voice.next_token, hidden, GREEDY, len(ids), list(ids))
        return trio.current_time() - began_s


def told(found: Answers, measured: Measured, wanted: Wanted) -> dict[str, object]:
    """Figures beside the formula's, and which bars hold. Seconds as milliseconds."""
    way = measured.way
    bound_per_s = 1 / step_s(way)
    kinds = {}
    for kind, one in found.kinds.items():
        guessed = one.guessing.guessed
        assert guessed is not None
        predicted = one.predicted(way)
        kinds[kind] = {
            "tokens": len(one.plain.said),
            "plain_per_s": round(one.plain.per_s, 2),
            "plain_formula_per_s": round(bound_per_s, 2),
            "of_formula": round(one.plain.per_s / bound_per_s, 3),
            "guessed_per_s": round(one.guessing.per_s, 2),
            "guessed_formula_per_s": round(predicted, 2),
            "guessed_of_formula": round(one.guessing.per_s / predicted, 3),
            "times": round(one.guessing.per_s / one.plain.per_s, 3),
            "acceptance": None if guessed.share is None else round(guessed.share, 3),
            "chance": round(guessed.chance, 3),
            "guesses_a_step": round(guessed.sent / max(guessed.steps, 1), 2),
            "first_ms": round(one.plain.seconds[0] * 1e3, 1),
            "same": one.plain.said == one.guessing.said,
            "pushed": one.plain.pushed + one.guessing.pushed,
        }
    first = None
    if found.first_s is not None:
        formula_s = first_token_s(way, wanted.prompt, found.chunk)
        stored_s = first_token_s(way, wanted.prompt, found.chunk, cut_through=False)
        first = {
            "prompt": wanted.prompt,
            "chunk": found.chunk,
            "ms": round(found.first_s * 1e3, 1),
            "cold_ms": round(found.cold_s * 1e3, 1),
            "formula_ms": round(formula_s * 1e3, 1),
            "of_formula": round(found.first_s / formula_s, 3),
            "stored_and_forwarded_formula_ms": round(stored_s * 1e3, 1),
        }
        if found.stored_s is not None:
            first["stored_and_forwarded_ms"] = round(found.stored_s * 1e3, 1)
            first["times"] = round(found.stored_s / found.first_s, 2)
    return {
        "kinds": kinds,
        "first_token": first,
        "bars": bars(found, measured, wanted),
    }


def bars(found: Answers, measured: Measured, wanted: Wanted) -> dict[str, bool | None]:
    """Which hold; None where the run is not the one that a bar is about."""
    way = measured.way
    plain = [one.plain.per_s for one in found.kinds.values()]
    return {
        "1": min(plain) * step_s(way) >= 0.8,
        "2": _bar_2(found, way) if (wanted.hops, wanted.rtt_s) == (4, 0.06) else None,
        "4": _bar_4(found) if _is_bar_4(measured, wanted) else None,
        "5": None
        if found.first_s is None
        else found.first_s <= 1.3 * first_token_s(way, wanted.prompt, found.chunk),
    }


def _bar_2(found: Answers, way: Way) -> bool:
    least = {"chat": 2.0, "code edit": 2.5, "none": 0.98}
    for kind, one in found.kinds.items():
        if one.guessing.per_s < least.get(kind, 0.0) * one.plain.per_s:
            return False
        if abs(one.guessing.per_s / one.predicted(way) - 1) > 0.15:
            return False
    return True


def _is_bar_4(measured: Measured, wanted: Wanted) -> bool:
    """77 tokens a second alone, or as near as a run measures it."""
    return (wanted.hops, wanted.rtt_s) == (2, 0.02) and measured.solo_per_s <= 77 * 1.1


def _bar_4(found: Answers) -> bool:
    plain, guessing = found.kinds["chat"].plain, found.kinds["chat"].guessing
    return plain.per_s >= 17 and guessing.per_s >= 25


def rows_of(found: dict[str, object]) -> list[Sequence[str]]:
    """The kinds as lines of a table, those of one kind beneath each other."""
    ways = cast("dict[str, dict[str, Any]]", found["ways"])
    kinds = next(iter(ways.values()))["kinds"]
    return [
        _row_of(kind, shape, way["kinds"][kind]) for kind in kinds for shape, way in ways.items()
    ]


def _row_of(kind: str, shape: str, one: dict[str, Any]) -> Sequence[str]:
    accepted = "-" if one["acceptance"] is None else f"{one['acceptance']:.0%}"
    figures = ("plain_per_s", "plain_formula_per_s", "guessed_per_s", "guessed_formula_per_s")
    told = [str(one[figure]) for figure in figures]
    return kind, shape, *told, str(one["times"]), accepted, str(one["first_ms"])
