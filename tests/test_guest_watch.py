"""Who looks after a guest's manners: probes in their time, one decision, told to whoever waits."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from potluck.cli.here import resting
from potluck.node.guest.watch import FREE, Probe, Watch, probes_for
from potluck.node.rest import Rest, ask_rest, end_rest
from potluck.swarm.guest import URGENT_S, Manners, Signals
from potluck.swarm.hours import parse_hours

NOW_S = 1_800_000_000.0


class Fake:
    """A probe whose word a test sets."""

    def __init__(self) -> None:
        self.told: dict[str, object] = {}
        self.looks = 0
        self.error: OSError | None = None

    def __call__(self, seen: Signals) -> Signals:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return replace(seen, **self.told)  # type: ignore[arg-type]


def watching(home: Path, manners: Manners, *fakes: Fake, every_s: float = 1.0) -> Watch:
    probes = [Probe(str(number), fake, every_s) for number, fake in enumerate(fakes)]
    return Watch(
        home, manners, probes, on_gpu=True, local=time.gmtime,
        wall=lambda: NOW_S + trio.current_time(),
    )  # fmt: skip


async def test_somebody_who_comes_back_has_the_machine_within_two_seconds(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    fake, told = Fake(), list[str]()
    watch = watching(tmp_path, Manners(), fake)
    watch.on_change = lambda: told.append((watch.facts() or {}).get("why", "serves"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        fake.told = {"idle_s": 1000.0}
        await trio.sleep(10)
        assert watch.rest() is None and watch.facts() is None
        fake.told = {"idle_s": 2.0}
        began_s = trio.current_time()
        while (rest := watch.rest()) is None:
            await watch.changed()
        assert trio.current_time() - began_s <= 2.0
        assert rest.within_s == URGENT_S and rest.why == "somebody uses this machine"
        facts = watch.facts()
        assert facts is not None and facts["rules"] == ["user"]
        assert facts["until_s"] == pytest.approx(NOW_S + trio.current_time() + 178, abs=1)
        fake.told = {"idle_s": 181.0}
        await trio.sleep(2)
        assert watch.rest() is None
        nursery.cancel_scope.cancel()
    assert told == ["somebody uses this machine", "serves"]


async def test_what_the_owner_asks_for_is_told_with_why_and_until_when(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    watch = watching(tmp_path, FREE)
    await watch.look()
    assert watch.rest() is None
    ask_rest(tmp_path, Rest(NOW_S + 100, "a film"))
    await watch.look()
    rest = watch.rest()
    assert rest is not None and rest.why == "a film" and math.isinf(rest.within_s)
    assert watch.facts() == {"why": "a film", "rules": ["asked"], "until_s": NOW_S + 100}
    await trio.sleep(100)
    await watch.look()
    assert watch.rest() is None
    ask_rest(tmp_path, Rest(math.inf))
    await watch.look()
    assert watch.facts() == {"why": "asked to", "rules": ["asked"], "until_s": None}
    end_rest(tmp_path)
    await watch.look()
    assert watch.rest() is None


async def test_a_probe_looks_in_its_time_and_one_that_fails_hinders_no_other(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    broken, well = Fake(), Fake()
    broken.error, well.told = OSError("gone"), {"battery": True}
    watch = watching(tmp_path, Manners(), broken, well, every_s=5.0)
    for _ in range(21):
        await watch.look()
        await trio.sleep(0.5)
    assert broken.looks == well.looks == 3
    assert (watch.facts() or {})["rules"] == ["battery"]


async def test_hours_are_those_of_the_local_clock(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """1,800,000,000 s is Friday 8:00 of UTC."""
    closed = watching(tmp_path, Manners(hours=(parse_hours("9:00-17:00"),)))
    await closed.look()
    facts = closed.facts()
    assert facts is not None and facts["rules"] == ["hours"]
    assert facts["until_s"] == NOW_S + 3600
    for hours in ("fri 8:00-9:00", "thu 22:00-8:01"):
        watch = watching(tmp_path, Manners(hours=(parse_hours(hours),)))
        await watch.look()
        assert watch.rest() is None, hours


@pytest.mark.parametrize(
    ("manners", "on_gpu", "names"),
    [
        (FREE, True, []),
        (Manners(), False, ["user", "battery", "processors"]),
        (Manners(), True, ["user", "battery", "processors", "cards"]),
        (Manners(busy=0.0), False, ["battery"]),
        (Manners(busy=0.0, on_battery=True, while_active=False), False, ["user"]),
        (replace(FREE, programs=frozenset(("steam",))), False, ["programs"]),
        (replace(FREE, celsius=80.0), False, ["heat"]),
        (replace(FREE, watts=80.0), True, ["heat", "cards"]),
    ],
)
def test_nobody_looks_where_no_rule_asks(manners: Manners, on_gpu: bool, names: list[str]) -> None:
    found = probes_for(manners, on_gpu=on_gpu, holds=lambda: False)
    assert [one.name for one in found] == names


def test_this_machine_can_be_looked_at() -> None:
    """Whatever it has or lacks: every probe of this system runs, and says something or nothing."""
    seen = Signals(0)
    strict = Manners(programs=frozenset(("no-such-program",)), celsius=1000.0)
    for probe in probes_for(strict, on_gpu=True, holds=lambda: False):
        seen = probe.look(seen)
    assert seen.programs == frozenset()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"state": "serving", "rest": None}, ""),
        ({"state": "resting", "rest": {"why": "on battery", "until_s": None}}, "rests: on battery"),
        ({"state": "draining", "rest": {"why": "a film"}}, "draining: a film"),
        ({"state": "resting", "trouble": "the disk is gone", "rest": None},
         "rests: the disk is gone"),
        ({"state": None, "rest": None}, ""),
    ],
)  # fmt: skip
def test_status_says_why_a_node_rests(told: dict[str, object], said: str) -> None:
    assert resting(told, 0.0) == said


def test_status_says_until_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    told = {"state": "resting", "rest": {"why": "a film", "until_s": NOW_S + 3600}}
    assert resting(told, NOW_S) == "rests: a film; until 09:00"
    assert resting(told, NOW_S - 86400) == "rests: a film; until Fri 15 Jan 09:00"
    monkeypatch.undo()
    time.tzset()
