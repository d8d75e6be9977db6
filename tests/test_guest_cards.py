"""Who else computes on a GPU, by a driver's library that a test has compiled and sets."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from potluck.node.guest.gpu import GAME_PERCENT, Cards
from potluck.swarm.guest import Signals

NOTHING = Signals(0)
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@pytest.fixture
def driver(tmp_path: Path) -> ctypes.CDLL:
    """A library of its own for each test: what is set in one is not seen by another."""
    library = tmp_path / "libnvidia-ml.so.1"
    source = Path(__file__).parent / "nvml.c"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture
def other() -> Iterator[int]:
    """Somebody's process: `sleep`."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def put(driver: ctypes.CDLL, **values: int) -> None:
    for name, value in values.items():
        ctypes.c_uint.in_dll(driver, name).value = value


def list_pids(driver: ctypes.CDLL, name: str, *pids: int) -> None:
    (ctypes.c_uint * 8).in_dll(driver, name)[: len(pids)] = pids
    put(driver, **{f"{name}_count": len(pids)})


def cards(driver: ctypes.CDLL, *, holds: bool = True) -> Cards:
    found = Cards(lambda: holds, driver._name)
    assert found.there
    return found


def test_heat_and_power_are_told(driver: ctypes.CDLL) -> None:
    put(driver, celsius=71, milliwatts=182500)
    seen = cards(driver)(NOTHING)
    assert (seen.celsius, seen.watts, seen.foreign) == (71.0, 182.5, ())


def test_whoever_computes_beside_us_is_named_and_a_desktop_is_not(
    driver: ctypes.CDLL, other: int
) -> None:
    look = cards(driver)
    list_pids(driver, "computing", os.getpid())
    assert look(NOTHING).foreign == ()
    list_pids(driver, "computing", os.getpid(), other)
    assert look(NOTHING).foreign == ("sleep",)
    list_pids(driver, "drawing", other)  # a browser does both
    assert look(NOTHING).foreign == ()
    list_pids(driver, "computing", os.getpid(), 1 << 30)  # it went meanwhile
    assert look(NOTHING).foreign == (f"process {1 << 30}",)


def test_a_game_is_named_by_what_it_takes(driver: ctypes.CDLL, other: int) -> None:
    look = cards(driver)
    list_pids(driver, "computing", os.getpid())
    list_pids(driver, "drawing", other)
    put(driver, busy_pid=other, busy_percent=GAME_PERCENT - 1)
    assert look(NOTHING).foreign == ()
    put(driver, busy_percent=GAME_PERCENT)
    assert look(NOTHING).foreign == ()  # of that time it was told already
    ctypes.c_ulonglong.in_dll(driver, "busy_at_us").value = 2000
    assert look(NOTHING).foreign == ("sleep",)
    assert look(NOTHING).foreign == ()
    ctypes.c_ulonglong.in_dll(driver, "busy_at_us").value = 3000
    put(driver, busy_pid=os.getpid(), busy_percent=100)  # that is us
    assert look(NOTHING).foreign == ()


def test_cards_on_which_we_do_not_compute_are_no_concern_of_ours(
    driver: ctypes.CDLL, other: int
) -> None:
    """We are on the first of two; once seen there, also while we rest and hold nothing."""
    put(driver, cards=2)
    look = cards(driver, holds=False)
    list_pids(driver, "computing", other)
    assert look(NOTHING).foreign == ("sleep",)
    list_pids(driver, "computing", os.getpid())
    assert look(NOTHING).foreign == ()
    list_pids(driver, "computing", other)
    assert look(NOTHING).foreign == ("sleep",)


def test_where_the_driver_has_other_names_for_processes_nothing_is_told(
    driver: ctypes.CDLL, other: int
) -> None:
    """A container: we hold memory, and are not among those that it names."""
    list_pids(driver, "computing", other)
    assert cards(driver, holds=True)(NOTHING).foreign == ()
