"""What chaos looks at when it ends: whether nodes rest, and what they told of themselves."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import trio
from trio.testing import MockClock

from potluck.errors import PotluckError, UserError
from potluck.node.testnet.breaker import Breaker
from potluck.node.testnet.chaos import (
    FREED_S,
    REST_EPOCHS,
    Outcome,
    _settle,
    see_rest,
)
from potluck.node.testnet.logs import broke, log_bytes, logged
from potluck.swarm.blocks import BlockRange
from potluck.swarm.chaos import (
    Fault,
)

EPOCH_S = 60.0
LAST = 29_394_000  # the epoch in which the last fault was undone


def moved(epoch: int) -> str:
    """As a node logs it."""
    return f"2026-11-21T23:00:00Z [info     ] moved  epoch={epoch} new=3:8 old=0:5 rate=2131\n"


@pytest.mark.parametrize(
    "elected, after, rests",
    [
        ([], [0, 0, 0, 0, 0, 0], True),
        ([-5, 0, 1, 1, 3], [2, 0, 1, 0, 0, 0], True),
        ([1, 4], [1, 0, 0, 1, 0, 0], False),
        ([6], [0, 0, 0, 0, 0, 1], False),
    ],
)
async def test_who_still_moves_three_epochs_after_the_last_fault_breaks_a_rule(
    elected: list[int],
    after: list[int],
    rests: bool,
    tmp_path: Path,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """elected: epochs, counted from the last fault's end. What was logged before chaos is not its
    doing, and who did not move in the end has not moved."""
    before = moved(LAST - 9) + moved(LAST + 5)
    (tmp_path / "n1").mkdir()
    log = tmp_path / "n1" / "log"
    log.write_text(before)
    said = {"n1": log_bytes(tmp_path, "n1")}
    moving = "[info     ] not moved   epoch=29394005 why='it would help no more'\n"
    log.write_text(before + moving + "".join(moved(LAST + one) for one in elected))
    mended_s = (LAST + 0.5) * EPOCH_S
    began_s = trio.current_time()
    monkeypatch.setattr(time, "time", lambda: mended_s + trio.current_time() - began_s)
    roster = SimpleNamespace(folder=tmp_path, epoch_s=EPOCH_S)
    net = cast("Any", SimpleNamespace(roster=roster, seats=[SimpleNamespace(name="n1")]))
    outcome, failures = Outcome(), list[str]()
    await see_rest(net, said, outcome, mended_s, lambda line: None, failures.append)
    assert outcome.moves == len(elected) and outcome.moves_after == after
    assert bool(failures) != rests
    assert trio.current_time() - began_s == pytest.approx((REST_EPOCHS + 3 + 0.5) * EPOCH_S)


# ---- nodes that break by themselves


def test_a_node_that_told_of_a_fault_of_its_own_is_found_also_when_it_left(tmp_path: Path) -> None:
    """What it told before chaos is not its doing; x1 came and left."""
    told = "  + Exception Group Traceback (most recent call last):\n"
    for name in ("n1", "n2", "x1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log").write_text("[info     ] stopping   signal=SIGTERM\n")
    for name in ("n1", "x1"):
        with (tmp_path / name / "log").open("a") as log:
            log.write(told)
    said = {"n1": log_bytes(tmp_path, "n1")}
    assert logged(tmp_path) == ["n1", "n2", "x1"]
    assert [name for name in logged(tmp_path) if broke(tmp_path, name, said.get(name, 0))] == ["x1"]


class Dying:
    """A seat whose process was there when it was looked for first."""

    name, pid, state = "n1", 7, "dead"

    def __init__(self) -> None:
        self._looked = 0

    @property
    def process(self) -> object | None:
        self._looked += 1
        return self if self._looked == 1 else None


async def test_a_node_that_dies_before_it_tells_what_is_open_holds_nobody_up(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    def send(name: str, number: int) -> None:
        raise UserError(f"{name} is dead already")

    seat, failures = Dying(), list[str]()
    roster = SimpleNamespace(folder=tmp_path)
    net = SimpleNamespace(roster=roster, seats=[seat], seat=lambda name: seat, send=send)
    began_s = time.monotonic()
    await _settle(cast("Any", net), failures.append)
    assert time.monotonic() - began_s < FREED_S / 3
    assert failures == ["n1 is dead at the end"]


async def test_a_node_that_dies_while_it_is_slowed_down_is_told_of_in_a_line(
    autojump_clock: MockClock,
) -> None:
    seat = SimpleNamespace(name="n1", process=psutil.Process())

    def suspend() -> None:
        raise psutil.NoSuchProcess(7)

    seat.process.suspend = suspend
    net = SimpleNamespace(seats=[seat], seat=lambda name: seat)
    breaker = Breaker(cast("Any", net), lambda line: None, uncover=True)
    with pytest.raises(PotluckError, match="n1 died by itself"):
        await breaker.perform(Fault(0.0, "slow", "n1", BlockRange(0, 4), 1.0), lambda: None)
