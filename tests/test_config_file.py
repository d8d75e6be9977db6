"""Options in the config file: judged as the command line's, and behind them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potluck.cli import serve
from potluck.cli.init import config_text
from potluck.cli.main import main
from potluck.node.config import NodeConfig, find_audit
from potluck.swarm.guest import Manners
from potluck.swarm.hours import parse_hours

pytestmark = pytest.mark.usefixtures("logs_as_before")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[NodeConfig]:
    """With what nodes would have been started."""
    found: list[NodeConfig] = []

    def start(run: object, config: NodeConfig, **_: Any) -> None:
        found.append(config)

    monkeypatch.setattr("potluck.cli.run.serve_until_stopped", start)
    assert hasattr(serve, "serve_until_stopped")
    return found


def write(home: Path, text: str) -> None:
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(text)


def test_a_node_takes_what_the_file_says_and_the_command_line_before_it(
    home: Path, started: list[NodeConfig]
) -> None:
    write(
        home,
        '[node]\nmodel = "demo"\nport = 4009\nthreads = 3\nfetch_ahead = false\n'
        'blocks = ["0:4"]\nmax_memory = 512\ndrain_s = 5\n',
    )
    assert main(["node", "--home", str(home), "--threads", "2"]) == 0
    (config,) = started
    assert config.model == "demo" and config.blocks == "0:4" and config.threads == 2
    assert config.listen == ("/ip4/127.0.0.1/tcp/4009",) and not config.fetch_ahead
    assert config.max_memory_mib == 512 and config.drain_s == 5.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[node]\nprot = 1\n", "[node] has no 'prot'; is 'port' meant?"),
        ("[node]\nport = 70000\n", "[node] port: "),
        ('[node]\nthreads = "many"\n', "[node] threads: "),
        ("[node]\nhome = '/x'\n", "[node] has no 'home'"),
        ("node = 3\n", "node must be a table"),
        ("[nodes]\n", "no setting 'nodes'"),
    ],
)
def test_what_is_wrong_in_the_file_is_told_by_its_place(
    home: Path, text: str, told: str, started: list[NodeConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    write(home, text)
    assert main(["node", "-m", "demo", f"--home={home}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"potluck: {home}/config.toml: ") and told in said
    assert said.count("\n") == 1 and not started


def test_what_is_wrong_on_the_command_line_is_not_blamed_on_the_file(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(home, "[node]\nport = 4009\n")
    assert main(["node", "-m", "demo", "--home", str(home), "--port", "70000"]) == 2
    assert "--port" in capsys.readouterr().err
    assert main(["node", "--home", str(home)]) == 2  # no model anywhere
    assert "--model" in capsys.readouterr().err


def test_init_writes_what_it_was_told_as_set_and_all_else_as_comments(
    home: Path, started: list[NodeConfig]
) -> None:
    asked = [
        "-m",
        "demo",
        "--port",
        "4009",
        "--no-fetch-ahead",
        "--blocks",
        "0:4",
        "--dtype",
        "fp32",
    ]
    assert main(["init", "--home", str(home), *asked]) == 0
    told = tomllib.loads((home / "config.toml").read_text())
    assert told == {
        "node": {
            "model": ["demo"], "port": 4009, "fetch_ahead": False, "blocks": ["0:4"],
            "dtype": "fp32",
        }
    }  # fmt: skip
    assert main(["node", "--home", str(home)]) == 0
    assert started[0].model == "demo" and started[0].dtype == "fp32"


def test_every_comment_of_init_is_a_setting_that_may_be_set(
    home: Path, started: list[NodeConfig]
) -> None:
    """But for the dots of an example, which stand for something."""
    text = config_text([])
    keys = re.findall(r"^# (\w+) = ", text, re.MULTILINE)
    assert {"model", "max_memory", "listen", "ban", "audit"} <= set(keys)
    lines = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    # of a list no entry, and nothing that needs a file of its own
    lines = re.sub(
        r"^(model|name|listen|blocks|join|ban|allow_only|pin|hours|rest_for) = .*$",
        "",
        lines,
        flags=re.M,
    )
    write(home, lines)
    assert main(["node", "-m", "demo", "--home", str(home)]) == 0
    assert find_audit(None, home)
    assert started[0] == NodeConfig(home=home, model="demo", spill_mib=0)


def test_manners_are_told_by_the_file_and_the_command_line(
    home: Path, started: list[NodeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POTLUCK_GUEST")
    assert main(["node", "-m", "demo", "--home", str(home)]) == 0
    assert started.pop().manners == Manners()  # BOINC's
    write(
        home,
        '[node]\nhours = ["22:00-07:00", "sat,sun 0:00-24:00"]\nrest_for = "Steam.exe"\n'
        'while_active = "no"\nidle_minutes = 10\nbusy_percent = 0\nmax_celsius = 80\n'
        "max_up = 2000\nmax_disk = 500\n",
    )
    words = ["node", "-m", "demo", "--home", str(home), "--on-battery", "--rest-for", "vlc"]
    assert main(words) == 0
    told = started.pop()
    assert told.manners == Manners(
        hours=(parse_hours("22:00-07:00"), parse_hours("sat,sun 0:00-24:00")),
        while_active=False, idle_s=600.0, on_battery=True, busy=0.0,
        programs=frozenset(("vlc",)), celsius=80.0,
    )  # fmt: skip
    assert (told.up_kib_s, told.down_kib_s, told.max_disk_mib) == (2000, 0, 500)
    assert main([*words, "--no-guest"]) == 0 and started.pop().manners is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--hours", "22:00"], "names no hours"),
        (["--rest-for", ""], "--rest-for names no program"),
        (["--max-down", "12"], "--max-down 12: connections do not live"),
        (["--busy-percent", "101"], "--busy-percent"),
        (["--while-active", "perhaps"], "--while-active"),
    ],
)
def test_manners_that_make_no_sense_are_refused(
    home: Path,
    started: list[NodeConfig],
    words: list[str],
    told: str,
    one_line: Callable[[], str],
) -> None:
    assert main(["node", "-m", "demo", "--home", str(home), *words]) == 2
    assert told in one_line() and not started


def test_init_leaves_a_file_that_is_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(home, "# mine\n")
    assert main(["init", "--home", str(home)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (home / "config.toml").read_text() == "# mine\n"
    assert main(["init", "--home", str(home), "--nonsense"]) == 2


def test_a_service_may_take_all_from_the_file(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTLUCK_HOME", str(home))
    assert main(["service", "install", "--print"]) == 2
    assert "--model" in capsys.readouterr().err
    write(home, '[node]\nmodel = "demo"\n')
    assert main(["service", "install", "--print"]) == 0
    assert str(home) in capsys.readouterr().out
