"""`potluck credit`: what the tallies on the disk say, with and without a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from receipts import key

from potluck.cli.main import main
from potluck.errors import UserError
from potluck.node.credit.tallies import open_tallies
from potluck.node.identity import load_or_create
from potluck.swarm.tally import accept, first_of, next_of, offer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a node has run: bob took 300 of it and gave 100, cat gave 50."""
    monkeypatch.setattr("time.time", lambda: 1000.0)
    me = load_or_create(tmp_path)
    tallies = open_tallies(tmp_path, me.peer_id)
    for name, gave, took in (("bob", 300.0, 100.0), ("cat", 0.0, 50.0)):
        other = key(name)
        tally = next_of(
            first_of(me.peer_id, other.peer_id), me.peer_id,
            boot=1, gave=gave, took=took, now=1000.0, since=bytes(32),
        )  # fmt: skip
        tallies.keep(accept(other, offer(me, tally)), tally)
    return tmp_path


def told(home: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["credit", "--home", str(home), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_it_tells_what_each_gave_and_took_and_the_sum(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(home, capsys)
    assert found["sum"] == {"gave": 300.0, "took": 150.0, "owed": 150.0}
    peers = found["peers"]
    assert isinstance(peers, list)
    assert [(one["peer"], one["owed"]) for one in peers] == [
        (key("bob").peer_id, 200.0),
        (key("cat").peer_id, -50.0),
    ]
    assert main(["credit", "--home", str(home)]) == 0
    said = capsys.readouterr().out
    assert key("bob").peer_id[-8:] in said and "300" in said and "all" in said


def test_what_is_owed_fades_and_what_was_given_does_not(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0 + 7 * 86_400)
    assert told(home, capsys)["sum"] == {
        "gave": 300.0,
        "took": 150.0,
        "owed": pytest.approx(75.0),
    }


def test_an_empty_home_is_told_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["credit", "--home", str(tmp_path)]) == 0
    assert "potluck node" in capsys.readouterr().out
    assert told(tmp_path, capsys)["peers"] == [] and not list(tmp_path.iterdir())
    load_or_create(tmp_path)
    assert main(["credit", "--home", str(tmp_path)]) == 0
    assert "Keep it running" in capsys.readouterr().out


@pytest.mark.parametrize("anonymous", [True, False])
@pytest.mark.parametrize("command", [["generate", "?"], ["chat"]])
def test_who_asks_on_no_account_says_so_to_the_swarm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str], anonymous: bool
) -> None:
    """In every command that asks, the option comes to where the purse is opened."""
    asked: list[object] = []

    def open_swarm(*args: object, **options: object) -> None:
        asked.append(options["anonymous"])
        raise UserError("enough")

    for module in ("potluck.cli.answer", "potluck.node.blocking"):
        monkeypatch.setattr(f"{module}.open_swarm", open_swarm)
    words = [*command, "-m", "demo", "--home", str(tmp_path), *["--anonymous"][: int(anonymous)]]
    assert main(words) == 2 and asked == [anonymous]
