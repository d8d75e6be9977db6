"""What a system is told of our node: read again by its own readers, and by what installs it."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.cli.main import main
from potluck.node.autostart import LABEL, UNIT, Service, grants_namespaces, place_of, written

HOME = Path("/home/a b")
ASKED = ["-m", "demo", "--listen", "all", "--port", "4001"]
WORDS = st.text(
    st.characters(exclude_categories=["C", "Z"], include_characters=" "), min_size=1, max_size=20
)


def service(*words: str, closed: bool = True) -> Service:
    command = (sys.executable, "-m", "potluck.cli", "node", *words)
    return Service(command, Path("/tmp"), HOME, (Path("/hub"),), (("HF_HOME", "/h 1"),), closed)


def unit_of(made: Service) -> dict[str, list[str]]:
    """The settings of its unit, each with all of its values."""
    found: dict[str, list[str]] = {}
    for line in written("systemd", made).decode().splitlines():
        name, sign, value = line.partition("=")
        if sign:
            found.setdefault(name, []).append(value)
    return found


@given(st.lists(WORDS, max_size=4))
def test_a_units_command_is_the_words_that_were_given(words: list[str]) -> None:
    """Quotes, backslashes, dollars and per cents too (systemd.service(5), COMMAND LINES)."""
    (line,) = unit_of(service(*words))["ExecStart"]
    quoted = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
    found = [re.sub(r"\\(.)", r"\1", one).replace("%%", "%").replace("$$", "$") for one in quoted]
    assert found[4:] == words and len(quoted) == 4 + len(words)
    assert not re.search(r"(?<!%)(?:%%)*%(?!%)", line)  # no specifier is left


def test_a_node_sees_sessions_off_and_comes_back_only_where_that_helps() -> None:
    told = unit_of(service())
    assert told["KillSignal"] == ["SIGINT"] and int(told["TimeoutStopSec"][0]) > 30
    assert told["Restart"] == ["on-failure"] and told["RestartPreventExitStatus"] == ["2"]
    assert told["Nice"] == ["10"] and told["IOSchedulingClass"] == ["idle"]
    assert told["Environment"] == ['"HF_HOME=/h 1"']


def test_it_writes_to_its_home_and_the_hubs_cache_alone() -> None:
    told = unit_of(service())
    assert told["ProtectSystem"] == ["strict"] and told["PrivateUsers"] == ["yes"]
    assert [shlex.split(one)[0] for one in told["ReadWritePaths"]] == [f"-{HOME}", "-/hub"]
    open_ = unit_of(service(closed=False))
    assert not {"ProtectSystem", "PrivateUsers", "ReadWritePaths"} & set(open_)
    assert open_["NoNewPrivileges"] == ["yes"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not there")
@pytest.mark.parametrize("closed", [True, False])
def test_systemd_finds_nothing_wrong_with_the_unit(closed: bool, tmp_path: Path) -> None:
    path = tmp_path / UNIT
    path.write_bytes(written("systemd", service(*ASKED, closed=closed)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(path)], capture_output=True, text=True,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and UNIT not in done.stderr, done.stderr


def test_an_agent_is_a_property_list_and_comes_back_after_a_crash() -> None:
    told = plistlib.loads(written("launchd", service(*ASKED)))
    assert told["ProgramArguments"][1:] == ["-m", "potluck.cli", "node", *ASKED]
    assert told["Label"] == LABEL and told["KeepAlive"] == {"SuccessfulExit": False}


def test_a_task_is_a_document_that_runs_the_words() -> None:
    raw = written("schtasks", service("-m", "a & b"))
    root = ElementTree.fromstring(raw.decode("utf-16"))
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    told = root.findtext(f".//{space}Arguments") or ""
    assert 'set "HF_HOME=/h 1"&& ' in told and told.endswith('-m "a & b""')


def test_each_system_has_a_place_of_its_own() -> None:
    places = {place_of(one, Path("/u"), Path("/c")) for one in ("systemd", "launchd", "schtasks")}
    assert len(places) == 3 and Path("/c/systemd/user") / UNIT in places


def test_namespaces_are_asked_for_and_not_supposed() -> None:
    assert grants_namespaces((sys.executable, "-c", ""))
    assert not grants_namespaces((sys.executable, "-c", "raise SystemExit(1)"))
    assert not grants_namespaces(("no such program",))


# ---- what installs it


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that writes down what it was asked, and fails once its file says so."""
    if sys.platform != "linux":
        pytest.skip("systemd is Linux's")
    asked, fails = tmp_path / "asked", tmp_path / "fails"
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\n[ -e {fails} ] && echo no bus >&2 && exit 1\nexit 0\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return tmp_path


def test_install_writes_the_unit_and_has_it_run(systemctl: Path) -> None:
    home = systemctl / "home"
    assert main(["service", "install", *ASKED, "--home", str(home)]) == 0
    unit = (systemctl / "config/systemd/user" / UNIT).read_text()
    assert '"node" "-m" "demo" "--listen" "all" "--port" "4001"' in unit
    assert unit.count(str(home)) >= 1 and home.is_dir()
    asked = (systemctl / "asked").read_text().split("\n")
    assert asked[:3] == [
        "--user daemon-reload", f"--user enable {UNIT}", f"--user restart {UNIT}"
    ]  # fmt: skip
    assert main(["service", "uninstall"]) == 0
    assert (systemctl / "asked").read_text().split("\n")[3] == f"--user disable --now {UNIT}"
    assert not (systemctl / "config/systemd/user" / UNIT).exists() and home.is_dir()


@pytest.mark.parametrize("words", [["--port", "70000"], ["--nonsense"], ["-m", "a\nb"], []])
def test_words_that_no_node_takes_install_nothing(
    words: list[str], systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["service", "install", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (systemctl / "config").exists() and not (systemctl / "asked").exists()


def test_print_touches_nothing(systemctl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "install", "--print", *ASKED]) == 0
    assert capsys.readouterr().out.startswith("[Unit]")
    assert not (systemctl / "config").exists() and not (systemctl / "asked").exists()


def test_a_system_that_refuses_is_told_with_its_own_words(
    systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (systemctl / "fails").touch()
    assert main(["service", "install", *ASKED, "--home", str(systemctl / "home")]) == 1
    assert capsys.readouterr().err == "potluck: systemctl --user daemon-reload: no bus\n"


def test_what_is_not_installed_cannot_be_removed(
    systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["service", "uninstall"]) == 2
    assert "no node was installed" in capsys.readouterr().err
    assert not (systemctl / "asked").exists()
