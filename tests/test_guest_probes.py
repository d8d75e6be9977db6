"""What a guest sees of its host's machine, by files as the system writes them."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from potluck.node.guest import idle
from potluck.node.guest.disk import LEAST_FREE_BYTES, make_room, room_within
from potluck.node.guest.gpu import Cards
from potluck.node.guest.idle import (
    BUS_S,
    NO_BUS_S,
    Seldom,
    Terminals,
    logind_idle,
    mutter_idle,
    probe_of,
)
from potluck.node.guest.neighbours import Busy, Programs, is_ours
from potluck.node.guest.power import Battery, Heat
from potluck.swarm.guest import Signals

NOTHING = Signals(0)


def written(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    return folder


# ---- the battery: /sys/class/power_supply


def test_a_machine_without_a_battery_does_not_tell(tmp_path: Path) -> None:
    assert Battery(tmp_path / "none").feeds() is None
    written(tmp_path / "AC", type="Mains", online="1")
    assert Battery(tmp_path).feeds() is None
    written(tmp_path / "hid-mouse", type="Battery", scope="Device", status="Discharging")
    assert Battery(tmp_path).feeds() is None  # a mouse's


def test_a_laptop_is_on_battery_once_it_is_unplugged(tmp_path: Path) -> None:
    written(tmp_path / "AC", type="Mains", online="1")
    written(tmp_path / "BAT0", type="Battery", status="Charging", capacity="40")
    battery = Battery(tmp_path)
    assert battery.feeds() is False
    written(tmp_path / "AC", online="0")
    written(tmp_path / "BAT0", status="Discharging")
    assert battery(NOTHING).battery is True
    written(tmp_path / "BAT0", status="Not charging")  # some hold at 80 %
    assert battery.feeds() is False
    (tmp_path / "BAT0" / "status").unlink()
    assert battery.feeds() is False


# ---- heat: /sys/class/hwmon, /sys/class/thermal


def test_the_hottest_core_counts_and_no_disk(tmp_path: Path) -> None:
    written(tmp_path / "hwmon" / "hwmon0", name="nvme", temp1_input="90000")
    written(tmp_path / "hwmon" / "hwmon1", name="k10temp", temp1_input="61500", temp2_input="70250")
    assert Heat(on_gpu=False, folder=tmp_path)(NOTHING).celsius == 70.25
    written(tmp_path / "hwmon" / "hwmon1", temp2_input="damaged")
    assert Heat(on_gpu=False, folder=tmp_path)(NOTHING).celsius == 61.5
    assert Heat(on_gpu=True, folder=tmp_path)(NOTHING).celsius is None


def test_a_card_tells_its_power_too(tmp_path: Path) -> None:
    card = tmp_path / "hwmon" / "hwmon3"
    written(card, name="amdgpu", temp1_input="55000", power1_average="182000000")
    seen = Heat(on_gpu=True, folder=tmp_path)(NOTHING)
    assert (seen.celsius, seen.watts) == (55.0, 182.0)


def test_a_zone_tells_where_no_sensor_does(tmp_path: Path) -> None:
    written(tmp_path / "thermal" / "thermal_zone0", type="iwlwifi", temp="99000")
    written(tmp_path / "thermal" / "thermal_zone1", type="cpu-thermal", temp="48312")
    assert Heat(on_gpu=False, folder=tmp_path)(NOTHING).celsius == pytest.approx(48.312)


# ---- who is there


def test_whoever_typed_last_counts(tmp_path: Path) -> None:
    assert Terminals(tmp_path).idle() is None
    for name, read_s in (("tty1", 100.0), ("pts/0", 400.0), ("pts/7", 250.0), ("ttyS0", 999.0)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (read_s, 900.0))
    assert Terminals(tmp_path, lambda: 1000.0).idle() == 600.0
    os.utime(tmp_path / "tty1", (1005.0, 0.0))  # a clock that was set back
    assert Terminals(tmp_path, lambda: 1000.0).idle() == 0.0


@pytest.fixture
def busctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program of this name that says what is in a file."""
    said, program = tmp_path / "said", tmp_path / "bin" / "busctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncat "{said}" || exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    yield said


def test_logind_is_believed(busctl: Path) -> None:
    assert logind_idle() is None  # it says no
    since_us = int((time.time() - 500) * 1e6)
    busctl.write_text(f'{{"type":"b","data":true}}\n{{"type":"t","data":{since_us}}}\n')
    assert logind_idle() == pytest.approx(500, abs=30)
    busctl.write_text(f'{{"type":"b","data":false}}\n{{"type":"t","data":{since_us}}}\n')
    assert logind_idle() == 0.0
    for rubbish in ("", "{}\n{}\n", "no\n", '{"data":true}\n', "[]\n[]\n"):
        busctl.write_text(rubbish)
        assert logind_idle() is None


def test_mutter_is_believed(busctl: Path) -> None:
    busctl.write_text('{"type":"t","data":[61500]}\n')
    assert mutter_idle() == 61.5
    for rubbish in ("", "{}", '{"data":[]}', '{"data":["soon"]}', "[1]"):
        busctl.write_text(rubbish)
        assert mutter_idle() is None


def test_where_no_bus_is_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert logind_idle() is None and mutter_idle() is None
    monkeypatch.delenv("DISPLAY", raising=False)
    assert idle.screen_idle() is None


def test_the_least_word_counts() -> None:
    assert probe_of([lambda: None, lambda: 30.0, lambda: 20.0])(NOTHING).idle_s == 20.0
    assert probe_of([lambda: None])(NOTHING).idle_s is None


def test_a_real_x_server_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (shutil.which("Xvfb") and ctypes.util.find_library("Xss")):
        pytest.skip("no X server here")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "64x64x8", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        with os.fdopen(reading) as told:
            monkeypatch.setenv("DISPLAY", f":{told.readline().strip()}")
        first = idle.screen_idle()
        assert first is not None and 0 <= first < 30
        server.terminate()
    assert idle.screen_idle() is None


def test_a_bus_is_asked_seldom_and_the_time_goes_on_in_between() -> None:
    now, asked, told = 0.0, list[float](), [100.0]

    def way() -> float | None:
        asked.append(now)
        return told[0] if told else None

    seldom = Seldom(way, lambda: now)
    assert seldom() == 100.0
    now = BUS_S - 1
    assert seldom() == 100.0 + BUS_S - 1
    now, told[0] = BUS_S, 0.5
    assert seldom() == 0.5
    now, told = 2 * BUS_S, []
    assert seldom() is None
    now += BUS_S
    assert seldom() is None and asked == [0.0, BUS_S, 2 * BUS_S]
    now += NO_BUS_S
    assert seldom() is None and len(asked) == 4


# ---- who else computes


def test_named_programs_are_found_whatever_their_letters(tmp_path: Path) -> None:
    game = tmp_path / "MyGame-long-name-of-all"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", game)
    probe = Programs(frozenset((game.name.lower(), "steam")))
    assert probe(NOTHING).programs == frozenset()
    with subprocess.Popen([str(game), "60"]) as running:
        assert probe(NOTHING).programs == {game.name.lower()}
        running.kill()
    assert probe(NOTHING).programs == frozenset()


def test_a_potluck_is_ours_and_nobody_else() -> None:
    assert is_ours(os.getpid()) and not is_ours(1 << 30)
    wait = "import sys; print(flush=True); sys.stdin.read()"
    for words, ours in (([], False), (["/usr/bin/potluck"], True), (["potluck.cli"], True)):
        with subprocess.Popen(
            [sys.executable, "-c", wait, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            assert is_ours(other.pid) == ours
            other.kill()


def test_what_others_use_of_the_processors_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a /proc/stat in hundredths of seconds: 4 s pass on two processors, 5 s are worked."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))

    def stat(user: int, system: int, resting: int) -> None:
        (tmp_path / "stat").write_text(f"cpu  {user} 0 {system} {resting} 0 0 0 0 0 0\n")

    ours = {1: 10.0, 2: 5.0}
    probe = Busy(lambda: dict(ours), lambda: 0.0)
    ticks = os.sysconf("SC_CLK_TCK")
    stat(100 * ticks, 50 * ticks, 1000 * ticks)
    assert probe(NOTHING).busy is None
    stat(104 * ticks, 51 * ticks, 1003 * ticks)
    ours |= {1: 12.0, 3: 100.0}  # a new one of ours was counted from its first look on
    assert probe(NOTHING).busy == pytest.approx(3 / 8)
    stat(104 * ticks, 51 * ticks, 1003 * ticks)
    assert probe(NOTHING).busy is None  # nothing has passed: nothing is known


def test_without_a_driver_cards_tell_nothing() -> None:
    cards = Cards(lambda: True, "libno-such-driver.so.1")
    assert not cards.there and cards(NOTHING) is NOTHING


# ---- the disk


def aged(path: Path, size: int, used_s: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used_s, used_s))
    return path


def test_the_longest_unused_goes_when_there_is_too_much(tmp_path: Path) -> None:
    old = aged(tmp_path / "quantized" / "m" / "0000.block", 100, 10.0)
    new = aged(tmp_path / "quantized" / "m" / "0001.block", 100, 30.0)
    worn = [aged(tmp_path / "adapters" / "ab" / name, 50, 20.0) for name in ("0", "manifest")]
    key = aged(tmp_path / "identity.key", 1000, 1.0)

    def roomy(home: Path) -> int:
        return LEAST_FREE_BYTES

    assert make_room(tmp_path, 0, roomy) == 0 and make_room(tmp_path, 300, roomy) == 0
    assert make_room(tmp_path, 250, roomy) == 100 and not old.exists()
    assert room_within(tmp_path, 1 << 40)(tmp_path) and not room_within(tmp_path, 200)(tmp_path)
    assert make_room(tmp_path, 150, roomy) == 100 and not worn[0].parent.exists()
    assert new.exists() and key.exists()
    assert make_room(tmp_path, 0, lambda home: 0) == 100  # a full disk takes what is left of it
    assert key.exists() and json.dumps(sorted(one.name for one in tmp_path.iterdir()))
