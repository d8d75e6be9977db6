"""Set-ups that are broken in earnest: the doctor names the fault of each, and what to do.

Each makes one thing wrong on a machine that is else well, and asks as a person does. What no test
may break for the process that it runs in (torch, the kernels, a full disk) is broken for one of its
own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import potluck
from potluck.cli.main import main
from potluck.crypto.keys import IdentityKey
from potluck.node import doctor
from potluck.node.diagnosis import diagnose
from potluck.node.doctor import look
from potluck.node.footing import Finding, Machine
from potluck.node.library import DEMO_FOLDER
from potluck.node.member import open_member
from potluck.node.net.clock import PROTOCOL
from potluck.node.net.nat import NatConfig
from potluck.node.net.stream import Stream

COMMAND_S = 100.0
ROOT = Path(potluck.__file__).parent


@dataclass
class Setup:
    """A home, and how the doctor is asked."""

    home: Path
    words: list[str] = field(default_factory=list)
    undone: ExitStack = field(default_factory=ExitStack)


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    monkeypatch.setenv("POTLUCK_JOIN", "")
    monkeypatch.setattr(doctor, "NEIGHBOURS_S", 0.0)
    monkeypatch.setattr(doctor, "SETTLE_S", 1.0)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with ExitStack() as undone:
        yield Setup(home, undone=undone)


Break = Callable[[Setup], None]


def taken_port(made: Setup) -> None:
    taken = made.undone.enter_context(socket.create_server(("0.0.0.0", 0)))
    made.words += ["--port", str(taken.getsockname()[1])]


def taken_port_of_the_file(made: Setup) -> None:
    taken = made.undone.enter_context(socket.create_server(("0.0.0.0", 0)))
    (made.home / "config.toml").write_text(f"[node]\nport = {taken.getsockname()[1]}\n")


def home_that_is_a_file(made: Setup) -> None:
    made.home.rmdir()
    made.home.write_text("")


def held_home(made: Setup) -> None:
    code = (
        "import pathlib, sys, time; from potluck.node.home import hold_home; "
        "held = hold_home(pathlib.Path(sys.argv[1])); held.__enter__(); print(flush=True); "
        "time.sleep(1e6)"
    )
    command = [sys.executable, "-P", "-c", code, str(made.home)]
    other = made.undone.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
    made.undone.callback(other.kill)
    assert other.stdout is not None and other.stdout.readline() == b"\n"


def open_key(made: Setup) -> None:
    key = made.home / "identity.key"
    key.write_bytes(bytes(32))
    key.chmod(0o644)


def misspelt_setting(made: Setup) -> None:
    (made.home / "config.toml").write_text('bann = ["203.0.113.0/24"]\n')


def truncated_checkpoint(made: Setup) -> None:
    model = made.home / "model"
    shutil.copytree(DEMO_FOLDER, model)
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    made.words += ["--model", str(model)]


def home_that_others_write(made: Setup) -> None:
    made.home.chmod(0o777)


ALONE: dict[str, tuple[Break, str, str, str]] = {  # what is bad, what is said, the remedy
    "taken port": (taken_port, "ports", "in use", "another --port"),
    "taken port of the file": (taken_port_of_the_file, "ports", "in use", "another --port"),
    "home that is a file": (home_that_is_a_file, "home", "no folder", "--home"),
    "home in use": (held_home, "home", "another process", "lsof"),
    "home that others write": (home_that_others_write, "home", "others may write", "chmod 700"),
    "key that others read": (open_key, "identity", "chmod 600", "as it says"),
    "misspelt setting": (misspelt_setting, "settings", "bann", "mend the line"),
    "truncated checkpoint": (truncated_checkpoint, "model", "download it again", "as it says"),
}


@pytest.mark.parametrize("what", ALONE)
def test_what_is_broken_on_this_machine_is_named_with_its_remedy(
    what: str, setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, about, told, remedy = ALONE[what]
    words = ["doctor", "--alone", "--home"]
    assert main([*words, str(setup.home)]) == 0, capsys.readouterr().out  # it is well before
    capsys.readouterr()
    spoil(setup)
    assert main([*words, str(setup.home), *setup.words]) == 1
    said = capsys.readouterr().out.splitlines()
    [bad] = [number for number, line in enumerate(said) if line.startswith("✗")]
    assert said[bad].split()[1] == about and told in said[bad]
    assert remedy in said[bad + 1] and said[bad + 1].startswith("   ")


# ---- what only others tell

MACHINE = Machine("0.1", "3.11", "Linux", "2.6", "", "cpu", 4, 8 << 30)
HERE = "/ip4/127.0.0.1/tcp/0"


def bad_of(found: list[Finding]) -> dict[str, Finding]:
    return {one.about: one for one in found if one.verdict == "bad"}


async def test_a_clock_that_is_off_is_told_by_peers(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nat = NatConfig(portmap=False, lan=False)

    async def say(stream: Stream) -> None:
        await stream.send(int(1000 * (time.time() + 120)).to_bytes(8))
        await stream.close()

    async with open_member(
        IdentityKey.from_bytes(b"a" * 32), listen=(HERE,), join=(), boot=1, serve=True, nat=nat
    ) as entry:
        entry.host.handle(PROTOCOL, say)
        facts = await look(setup.home, entry.host.addresses(), MACHINE)
    [(about, found)] = bad_of(diagnose(facts)).items()
    assert about == "clock" and "120" in found.told and "timedatectl" in found.remedy


async def test_an_entry_point_that_is_gone_is_named(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    peer = IdentityKey.from_bytes(b"z" * 32).peer_id
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        gone = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}/p2p/{peer}"
        facts = await look(setup.home, (gone,), MACHINE)
    bad = bad_of(diagnose(facts))
    assert set(bad) == {"join", "swarm"}
    assert peer in bad["join"].told and "check the address" in bad["join"].remedy


@pytest.mark.parametrize("needed", [True, False])
async def test_a_hub_that_cannot_be_reached_is_told_as_far_as_it_matters(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, needed: bool
) -> None:
    from potluck.node.compute.survey import look_at_model

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    wanted = look_at_model("nobody/has-this" if needed else "demo", setup.home)
    assert wanted.here != needed and not wanted.fault
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        facts = await look(setup.home, (), MACHINE, model=wanted)
    [hub] = [one for one in diagnose(facts) if one.about == "hub"]
    assert hub.verdict == ("bad" if needed else "warning")
    assert "refused" in hub.told and "proxy" in hub.remedy


# ---- what is broken for a process of its own


def examined(*command: str, **environment: str) -> dict[str, Finding]:
    """What `potluck doctor --alone --json` says there, by what it is of."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_S,
        env={**os.environ, "POTLUCK_JOIN": "", "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.stdout, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    found = {one["about"]: Finding(**one) for one in told}
    assert done.returncode == any(one.verdict == "bad" for one in found.values())
    return found


def doctor_of(home: Path) -> list[str]:
    command = [sys.executable, "-P", "-m", "potluck.cli"]
    return [*command, "doctor", "--alone", "--json", "--home", str(home)]


def test_a_torch_that_does_not_load_is_named(setup: Setup, tmp_path: Path) -> None:
    broken = tmp_path / "site" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open')\n")
    before = os.environ.get("PYTHONPATH", "")
    found = examined(*doctor_of(setup.home), PYTHONPATH=f"{broken.parent}:{before}")
    assert found["device"].verdict == "bad" and "libcudart.so.12" in found["device"].told
    assert "pip install" in found["device"].remedy


def without_library(folder: Path) -> Path:
    """A package as it is here, but with no compiled kernels: links, and one folder of its own."""
    real, here = ROOT, folder / "potluck"
    for down in ("node", "compute", "native"):
        here.mkdir()
        for one in real.iterdir():
            if one.name not in (down, "build") and one.name[0] != ".":
                (here / one.name).symlink_to(one)
        real, here = real / down, here / down
    shutil.copytree(real, here, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


def test_missing_kernels_are_told_with_the_compiler_that_makes_them(
    setup: Setup, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    folder = without_library(tmp_path / "site")
    found = examined(*doctor_of(setup.home), PYTHONPATH=str(folder), CC="", PATH="")
    assert found["kernels"].verdict == "warning" and "missing" in found["kernels"].told
    assert "C compiler" in found["kernels"].remedy and found["device"].verdict == "good"


FULL = 'mount -t tmpfs -o size=64k,mode=700 none "$0" && dd if=/dev/zero of="$0/all" bs=1k count=64'
READ_ONLY = 'mount -t tmpfs -o size=256m,mode=700,ro none "$0"'


@pytest.mark.parametrize(
    ("mount", "about", "told", "remedy"),
    [(FULL, "disk", "0 MiB free", "free the disk"), (READ_ONLY, "home", "be written", "--home")],
)
def test_a_disk_that_takes_nothing_is_named(
    setup: Setup, mount: str, about: str, told: str, remedy: str
) -> None:
    """In a mount namespace, with a file system of its own for the home."""
    space = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*space, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    script = f'{mount} 2>/dev/null; exec "$@"'
    found = examined(*space, "sh", "-c", script, str(setup.home), *doctor_of(setup.home))
    [bad] = [one for one in found.values() if one.verdict == "bad"]
    assert bad.about == about and told in bad.told and remedy in bad.remedy
