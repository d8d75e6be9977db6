"""Runs by one byte a step end alike in any weather: equal bits, no hang, nobody past the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trio
from scalar_storm import Weather, one_schedule, storm
from trio.testing import MockClock

END_S = 900.0  # virtual
ROUGH = Weather(lost=0.3, delay_s=2.0)
SLOW = Weather(slow=(3,), measure_s=3.0)
SLOW_AND_LOST = Weather(lost=0.4, delay_s=4.0, slow=(1, 2))
KILLS = Weather(lost=0.1, kills=1)
AWAY = Weather(lost=0.1, kills=1, back_s=200.0)
TWO_AWAY = Weather(lost=0.1, kills=2, back_s=60.0)
SPLIT = Weather(lost=0.2, cut=(2, 3), cut_s=(8.0, 60.0), rounds=60)


@pytest.mark.parametrize(
    ("weather", "seed"),
    [
        (Weather(), 0),
        (ROUGH, 0),
        (SLOW, 0),  # spoke past the end
        (SLOW, 1),  # said what others had folded
        (SLOW_AND_LOST, 0),  # left before it knew what others knew
        (SLOW_AND_LOST, 3),
        (KILLS, 0),
        (AWAY, 0),
        (AWAY, 3),
        (TWO_AWAY, 0),
        (SPLIT, 0),  # each half took the other's snapshot
    ],
)
async def test_all_who_end_a_run_have_equal_weights(
    autojump_clock: MockClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weather: Weather,
    seed: int,
) -> None:
    with one_schedule(monkeypatch, seed) as dice:
        async with storm(tmp_path, 4, dice, weather) as made:
            with trio.fail_after(END_S):
                await made.all_go(weather.rounds, (0, 1, 2, 3))
            runs = [member.run for member in made.made.members.values()]
            assert {run.round for run in runs} == {weather.rounds}
            assert len({run.hearing.log.floor for run in runs}) == 1
            assert all(run.hearing.log.convicted == () for run in runs) and not made.made.blamed
            first, *others = made.at_end.values()
            assert all(torch.equal(first, other) for other in others) and len(others) == 3
