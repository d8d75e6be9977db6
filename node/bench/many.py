"""Many answers at once over a wide area, beside what the slowest stage can do.

`potluck bench wan --sessions 16`, in the laboratory of laboratory.py:

    capacity    tokens a second of each stage while all stages at once are asked, each by so many
                sessions whose next step is always there: no road holds anything up, and the
                processors are shared as they are then. The slowest one's counts
    single      the same of one session, whose steps share no pass: the formula's 1 / max t(1)
    together    plain answers, so many at once, through all stages: those that came while all were
                at it
    formula     what swarm/wan.py allows so many: fewer than the capacity where the road is long and
                a pass of one row takes hardly less than one of all

    bar 6       16 sessions over 4 hops at 60 ms: 90 % of the slowest stage's capacity
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import trio

from ...errors import PotluckError, UserError
from ...swarm.wan import Shape, rate_together
from ...swarm.wire import PROTOCOL, Open, Opened, Output, Step
from ..compute.voice import DTYPE
from ..frames import FrameStream
from ..testnet.roster import Seat
from .drafts import Reader, tasks_of
from .laboratory import PROBED_AT, Laboratory, Wanted, open_laboratory
from .road import PROMPT_TOKENS

AHEAD: Final = 32  # steps of a session on the way: more than come back in any round trip
STEPS: Final = 192  # of each session of a stage that is measured
KIND: Final = "none"  # of the answers (drafts.py): what they say does not matter


async def bench_many(wanted: Wanted, sessions: int) -> dict[str, object]:
    """All figures of one run, by `ways`. Raises UserError for what cannot be had here."""
    ways: dict[Shape, dict[str, object]] = {}
    async with open_laboratory(wanted) as lab:
        capacity_per_s = await _capacity(lab, sessions)
        single_per_s = await _capacity(lab, 1)
        for shape in wanted.shapes:
            reader = Reader(lab.host, lab.swarm, lab.worker, lab.voice, chain=shape == "chain")
            alone = await _together(reader, 1, wanted.tokens)
            per_s = await _together(reader, sessions, wanted.tokens)
            formula_per_s = rate_together(replace(lab.way, shape=shape), sessions)
            ways[shape] = {
                "per_s": round(per_s, 2),
                "formula_per_s": round(formula_per_s, 2),
                "of_formula": round(per_s / formula_per_s, 3),
                "of_capacity": round(per_s / capacity_per_s, 3),
                "of_single": round(per_s / single_per_s, 3),
                "alone_per_s": round(alone, 2),
            }
    way = lab.way
    return {
        **wanted.told(),
        "sessions": sessions,
        "roads": lab.roads,
        "solo_per_s": round(lab.solo_per_s, 1),
        "pass_ms": [[(n, round(s * 1e3, 2)) for n, s in stage.times] for stage in way.stages],
        "overhead_ms": round(way.overhead_s * 1e3, 2),
        "client_ms": round(way.client_s * 1e3, 2),
        "capacity_per_s": round(capacity_per_s, 2),
        "single_per_s": round(single_per_s, 2),
        "ways": ways,
        "bar_6": bar_6(wanted, sessions, ways),
    }


def bar_6(wanted: Wanted, sessions: int, ways: dict[Shape, dict[str, object]]) -> bool | None:
    """Whether it holds by the better way; None where the run is not the one it is about."""
    if (wanted.hops, wanted.rtt_s, sessions) != (4, 0.06, 16):
        return None
    return max(cast(float, one["of_capacity"]) for one in ways.values()) >= 0.9


def while_all(times: Iterable[Sequence[float]]) -> tuple[float, float]:
    """From when all had their first token until one had its last. times: of each, in seconds.
    Raises UserError."""
    ends = [(one[0], one[-1]) for one in times]
    begun_s, ended_s = max(first for first, _ in ends), min(last for _, last in ends)
    if ended_s <= begun_s:
        raise UserError("one had ended before another had begun: ask for more --tokens")
    return begun_s, ended_s


def rate_in(times: Iterable[Sequence[float]], begun_s: float, ended_s: float) -> float:
    """Tokens a second that came between the two."""
    came = sum(begun_s < at_s <= ended_s for one in times for at_s in one)
    return came / (ended_s - begun_s)


async def _together(reader: Reader, sessions: int, tokens: int) -> float:
    task = next(one for one in tasks_of(reader.voice, tokens) if one.kind == KIND)
    times = list[Sequence[float]]()

    async def one() -> None:
        times.append((await reader.recite(task, tokens)).times)

    async with trio.open_nursery() as nursery:
        for _ in range(sessions):
            nursery.start_soon(one)
    return rate_in(times, *while_all(times))


async def _capacity(lab: Laboratory, sessions: int) -> float:
    """Tokens a second of the slowest stage, while all are at it."""
    opened: dict[str, list[FrameStream]] = {seat.peer: [] for seat in lab.net.seats}
    times: dict[str, list[list[float]]] = {seat.peer: [] for seat in lab.net.seats}
    async with trio.open_nursery() as nursery:
        for seat in lab.net.seats:
            for _ in range(sessions):
                nursery.start_soon(_open, lab, seat, opened[seat.peer])
    async with trio.open_nursery() as nursery:
        for peer, streams in opened.items():
            for frames in streams:
                times[peer].append(came := list[float]())
                nursery.start_soon(_drive, lab, frames, came)
    window = while_all(one for stage in times.values() for one in stage)
    return min(rate_in(stage, *window) for stage in times.values())


async def _open(lab: Laboratory, seat: Seat, opened: list[FrameStream]) -> None:
    """One session with one stage, which has read its prompt."""
    tokens, row = PROBED_AT + STEPS, bytes(lab.voice.embed([PROMPT_TOKENS]))
    frames = FrameStream(await lab.host.open_stream(seat.peer, PROTOCOL))
    await frames.send(Open(bytes(16), lab.voice.digest, seat.start, seat.stop, tokens, DTYPE))
    await _heard(frames, Opened)
    await frames.send(Step(0, (PROBED_AT,), 1), row * PROBED_AT)
    await _heard(frames, Output)
    opened.append(frames)


async def _drive(lab: Laboratory, frames: FrameStream, came: list[float]) -> None:
    """Its stage never waits for a step of it. came: when the answers did."""
    row = bytes(lab.voice.embed([PROMPT_TOKENS]))
    for number in range(STEPS + AHEAD):
        if number < STEPS:
            await frames.send(Step(PROBED_AT + number, (1,), 1), row)
        if number >= AHEAD:
            await _heard(frames, Output)
            came.append(trio.current_time())
    await frames.close()


async def _heard(frames: FrameStream, what: type[Opened] | type[Output]) -> None:
    received = await frames.receive()
    if received is None or not isinstance(received[0], what):
        raise PotluckError(f"a stage said {received and received[0]!r} for {what.__name__}")


def many_rows(found: dict[str, object]) -> list[Sequence[str]]:
    """The ways as lines of a table."""
    ways = cast("dict[str, dict[str, Any]]", found["ways"])
    return [
        (
            shape,
            str(found["sessions"]),
            str(one["per_s"]),
            str(one["formula_per_s"]),
            str(found["capacity_per_s"]),
            f"{one['of_capacity']:.0%}",
            str(one["alone_per_s"]),
        )
        for shape, one in ways.items()
    ]
