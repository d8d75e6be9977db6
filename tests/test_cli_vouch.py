"""`potluck pin` and `potluck vouch`: what they write, say and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from receipts import key

from potluck.cli.main import main
from potluck.errors import UserError
from potluck.node.config import find_pins
from potluck.node.identity import load_or_create
from potluck.node.pins import Pin
from potluck.node.trust.vouched import STEP_S, load_vouched, take_back, vouch_for
from potluck.swarm.vouch import DAY_S, check_vouch, newer
from potluck.swarm.vouching import STATEMENTS_MAX

FRIEND, OTHER = key("friend").peer_id, key("other").peer_id
AT = "/ip4/203.0.113.7/tcp/4001"
NOW = 1_790_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)


def told(capsys: pytest.CaptureFixture[str], home: Path, *words: str) -> Any:
    assert main([*words, "--home", str(home), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_pins_are_added_listed_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, tmp_path, "pin", "ls") == []
    assert told(capsys, tmp_path, "pin", "add", FRIEND, OTHER) == [
        {"peer": FRIEND, "address": None},
        {"peer": OTHER, "address": None},
    ]
    told(capsys, tmp_path, "pin", "add", f"{FRIEND}@{AT}")  # where it is now
    assert set(find_pins(tmp_path)) == {Pin(FRIEND, AT), Pin(OTHER)}
    assert told(capsys, tmp_path, "pin", "rm", OTHER) == [{"peer": FRIEND, "address": AT}]
    assert main(["pin", "ls", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{FRIEND}@{AT}\n"
    for words in (["rm", OTHER], ["add", "nobody"]):
        assert main(["pin", *words, "--home", str(tmp_path)]) == 2
    assert find_pins(tmp_path) == (Pin(FRIEND, AT),)


def test_a_vouch_is_given_listed_and_taken_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    me = load_or_create(tmp_path).peer_id
    said = told(capsys, tmp_path, "vouch", "add", FRIEND, "--days", "30")
    assert said == {"peer": FRIEND, "by": me, "until_s": NOW + 30 * DAY_S}
    assert told(capsys, tmp_path, "vouch", "ls") == [{"peer": FRIEND, "until_s": NOW + 30 * DAY_S}]
    (given,) = load_vouched(tmp_path)
    assert check_vouch(given.raw, NOW) == given and given.voucher == me
    monkeypatch.setattr("time.time", lambda: NOW + 31 * DAY_S)
    assert main(["vouch", "ls", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{FRIEND}  until 2026-10-21  over\n"
    assert told(capsys, tmp_path, "vouch", "rm", FRIEND)["by"] == me
    assert told(capsys, tmp_path, "vouch", "ls") == []
    assert main(["vouch", "rm", FRIEND, "--home", str(tmp_path)]) == 2  # twice


@pytest.mark.parametrize(
    "words",
    [["nobody"], [FRIEND, "--days", "91"], [FRIEND, "--days", "0"], [FRIEND, "--days", "nan"]],
)
def test_what_nobody_would_count_is_not_said(tmp_path: Path, words: list[str]) -> None:
    assert main(["vouch", "add", *words, "--home", str(tmp_path)]) == 2
    me = load_or_create(tmp_path).peer_id
    assert main(["vouch", "add", me, "--home", str(tmp_path)]) == 2
    assert load_vouched(tmp_path) == ()


def test_no_more_are_said_than_others_keep_but_each_may_be_said_anew(tmp_path: Path) -> None:
    mine = load_or_create(tmp_path)
    for number in range(STATEMENTS_MAX):
        vouch_for(tmp_path, mine, key(f"p {number}").peer_id, NOW, days=9)
    with pytest.raises(UserError, match="32 peers"):
        vouch_for(tmp_path, mine, FRIEND, NOW, days=9)
    vouch_for(tmp_path, mine, key("p 3").peer_id, NOW + 1, days=9)
    vouch_for(tmp_path, mine, FRIEND, NOW + 10 * DAY_S, days=9)  # the others are over


def test_a_later_word_is_later_though_the_clock_was_set_back(tmp_path: Path) -> None:
    """And where a home's disk is an old one: what it says then is newer than what it forgot."""
    mine = load_or_create(tmp_path)
    first = vouch_for(tmp_path, mine, FRIEND, NOW, days=9)
    back = take_back(tmp_path, mine, FRIEND, NOW - 9999)
    assert back.told.issued_s == pytest.approx(NOW + STEP_S) and newer(first, back) is back
    (tmp_path / "vouched" / FRIEND).write_bytes(first.raw)  # restored from an old snapshot
    again = take_back(tmp_path, mine, FRIEND, NOW + 60)
    assert newer(back, again) is again


def test_what_cannot_be_read_is_passed_over_and_a_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = load_or_create(tmp_path)
    good = vouch_for(tmp_path, mine, FRIEND, NOW, days=9)
    (tmp_path / "vouched" / OTHER).write_bytes(good.raw)  # not about whom its name says
    (tmp_path / "vouched" / "rubbish").write_bytes(b"x" * 9999)
    assert load_vouched(tmp_path) == (good,)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("potluck.node.trust.vouched.replace_file", full)
    with pytest.raises(UserError, match=r"No space left on device.*free the disk"):
        take_back(tmp_path, mine, FRIEND, NOW)
    assert load_vouched(tmp_path) == (good,)
