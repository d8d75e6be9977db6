"""Bad input, by the real command line: one line that says what and what to do, and nothing else.

Each case is a process of its own. What it exits with is not 0, what it leaves behind is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from potluck.node.compute.shapes import write_random

from .ground import Node, open_node
from .shell import Done, Shell, open_shell
from .spoil import (
    cut,
    edit_config,
    other_tokenizer,
    promise_much,
    rename_tensor,
    spoil_header,
    write_hole,
)

NAME = "tiny"
PEER = "12D3KooWMhw8hzWY5GXwZviQPA9K6zwkQQSoLxUwhbjnMVpCEPaL"
NOWHERE = f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"
BAD_INPUT, FAILED = 2, 1
WHOLE = {
    "boot",
    "credit.db",
    "digests.json",
    "identity.key",
    "lock",
}  # what a command may leave in its home


def _kept(file: Path) -> tuple[int, int, int, int]:
    """What of a file changes only when somebody writes it: reading it moves its access time."""
    now = file.lstat()
    return now.st_ino, now.st_mode, now.st_size, now.st_mtime_ns


@dataclass(frozen=True)
class Place:
    """A shell, a good model, and a node that serves its first half."""

    shell: Shell
    model: Path
    node: Node

    @property
    def join(self) -> tuple[str, str]:
        return "--join", self.node.addresses[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("bad")
    write_random(folder / NAME, "tiny")
    with (
        open_shell() as shell,
        open_node(folder / "node", folder / NAME, "--blocks", "0:4") as node,
    ):
        yield Place(shell, folder / NAME, node)


@pytest.fixture
def copy(place: Place, tmp_path: Path) -> Path:
    """The model's files, to be spoiled."""
    return Path(shutil.copytree(place.model, tmp_path / "model"))


def refused(done: Done, what: str, *, code: int = BAD_INPUT, home: Path | None = None) -> None:
    """One line on stderr that says `what`, nothing on stdout, nothing half-written."""
    assert done.code == code, done.err
    assert done.out == ""
    [line] = done.err.splitlines()
    assert line.startswith("potluck: ")
    assert re.search(what, line), line
    if home is not None and home.is_dir():
        assert {path.name for path in home.iterdir()} <= WHOLE
        if (home / "digests.json").exists():
            json.loads((home / "digests.json").read_bytes())


# ---- a node's own


def test_a_port_in_use(place: Place, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = place.shell.run("node", "-m", str(place.model), "--port", str(port), home=tmp_path)
    refused(done, f"port {port} is in use; stop what uses it", home=tmp_path)


@pytest.mark.parametrize(
    "spoil, what",
    [
        (lambda key: key.write_bytes(bytes(32)) and key.chmod(0o644), "by others: chmod 600"),
        (lambda key: key.write_bytes(bytes(31)) and key.chmod(0o600), "is corrupt: restore it"),
        (lambda key: key.write_bytes(b"") or key.chmod(0o600), "is corrupt: restore it"),
        (lambda key: key.mkdir(mode=0o700), "is not a file: remove it"),
        (lambda key: os.mkfifo(key, 0o600), "is not a file: remove it"),
        (lambda key: key.symlink_to("elsewhere"), "cannot use .*identity.key"),
    ],
)
def test_a_key_that_is_no_secret_file(
    place: Place, tmp_path: Path, spoil: Callable[[Path], object], what: str
) -> None:
    key = tmp_path / "identity.key"
    spoil(key)
    before = _kept(key)
    refused(place.shell.run("node", "-m", str(place.model), home=tmp_path), what, home=tmp_path)
    assert _kept(key) == before


@pytest.mark.parametrize("blocks", ["6:12", "8:9", "4:4", "5:3", "-1:3", "x", "1:2:3", ""])
def test_a_block_range_outside_the_model(place: Place, tmp_path: Path, blocks: str) -> None:
    done = place.shell.run("node", "-m", str(place.model), "--blocks", blocks, home=tmp_path)
    refused(done, "give START:STOP within 0:8", home=tmp_path)


def test_two_models_under_one_name(place: Place, tmp_path: Path) -> None:
    write_random(tmp_path / "other" / NAME, "tiny", seed=1)
    home = tmp_path / "home"
    done = place.shell.run("node", "-m", str(tmp_path / "other" / NAME), *place.join, home=home)
    refused(done, f"already serves another model as {NAME} .* by --name", home=home)


def test_two_nodes_of_one_home(place: Place) -> None:
    done = place.shell.run("node", "-m", str(place.model), home=place.node.home)
    refused(done, "runs under .* already .* --home of its own")
    assert place.node.lives


def test_a_home_that_is_a_file(place: Place, tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("not a folder")
    refused(place.shell.run("node", "-m", str(place.model), home=home), "give another --home")
    refused(
        place.shell.run("node", "-m", str(place.model), home=home / "in"), "give another --home"
    )
    assert home.read_text() == "not a folder"


def test_more_cache_than_memory(place: Place, tmp_path: Path) -> None:
    mib = 4 * psutil.virtual_memory().total >> 20
    done = place.shell.run("node", "-m", str(place.model), "--cache-mib", str(mib), home=tmp_path)
    refused(done, f"--cache-mib {mib} is more than .* give less", home=tmp_path)


def test_a_model_larger_than_memory(place: Place, tmp_path: Path) -> None:
    """The file is a hole: it has its size, and takes no disk."""
    model = tmp_path / "model"
    shutil.copytree(place.model, model)
    ffn = 1 << 20
    blocks = 1 + 4 * psutil.virtual_memory().total // (3 * 256 * ffn * 4)
    edit_config(model, intermediate_size=ffn, num_hidden_layers=blocks)
    write_hole(model, ffn, blocks)
    home = tmp_path / "home"
    done = place.shell.run("node", "-m", str(model), "--blocks", ":", home=home)
    refused(done, r"needs \d+ MiB on cpu, but \d+ MiB are free; serve fewer blocks", home=home)


@pytest.mark.parametrize(
    "options, what",
    [
        (["--device", "toaster"], "use auto, cpu, cuda:N or mps"),
        (["--device", "cuda:99"], "use another or cpu"),
        (["--device", "cpu,cuda:7"], "use another or cpu"),
        (["--dtype", "int3"], "use one of fp32, bf16, fp16"),
        (["--listen", "example"], "give all, .* an IP address"),
        (["--listen", "192.0.2.7"], "choose an address of this machine"),
        (["--log-level", "loud"], "debug, info, warning, error"),
        (["--port", "99999"], "--port.* 65535"),
    ],
)
def test_a_setting_that_is_none(
    place: Place, tmp_path: Path, options: list[str], what: str
) -> None:
    refused(place.shell.run("node", "-m", str(place.model), *options, home=tmp_path), what)


# ---- a model's files


@pytest.mark.parametrize(
    "spoil, what",
    [
        (lambda model: cut(model / "model.safetensors", -1000), "its header describes .* again"),
        (lambda model: cut(model / "model.safetensors", 100), "is truncated .* download it again"),
        (lambda model: cut(model / "model.safetensors", 0), "is truncated .* download it again"),
        (lambda model: spoil_header(model / "model.safetensors"), "not JSON; .* download it again"),
        (lambda model: promise_much(model / "model.safetensors"), "is truncated .* again"),
        (lambda model: rename_tensor(model / "model.safetensors"), "up_proj.weight is missing;"),
        (lambda model: (model / "model.safetensors").unlink(), "only safetensors .* served"),
        (lambda model: edit_config(model, hidden_size=512), "has shape .* of different models"),
        (lambda model: edit_config(model, model_type="mamba"), "mamba"),
        (lambda model: cut(model / "config.json", 0), "config.json: is not JSON; .* again"),
        (lambda model: (model / "config.json").unlink(), "config.json is missing; give"),
    ],
)
def test_files_that_are_not_whole(
    place: Place, copy: Path, tmp_path: Path, spoil: Callable[[Path], object], what: str
) -> None:
    spoil(copy)
    before = {path: path.stat() for path in copy.iterdir()}
    home = tmp_path / "home"
    refused(place.shell.run("node", "-m", str(copy), home=home), what, home=home)
    after = {path: path.stat() for path in copy.iterdir()}
    assert [(p, s.st_mtime_ns, s.st_size) for p, s in after.items()] == [
        (p, s.st_mtime_ns, s.st_size) for p, s in before.items()
    ]


@pytest.mark.parametrize(
    "spoil, what",
    [
        (other_tokenizer, "token id 5000, but the model knows 2048 .* put back the model's own"),
        (lambda model: cut(model / "tokenizer.json", 100), "is not a tokenizer .* again"),
        (lambda model: cut(model / "tokenizer.json", 0), "is not a tokenizer .* again"),
        (lambda model: (model / "tokenizer.json").unlink(), "tokenizer.json is missing; save"),
    ],
)
def test_a_tokenizer_that_does_not_match(
    place: Place, copy: Path, tmp_path: Path, spoil: Callable[[Path], object], what: str
) -> None:
    spoil(copy)
    home = tmp_path / "home"
    done = place.shell.run("generate", "Hello", "-m", str(copy), *place.join, home=home)
    refused(done, what, home=home)


# ---- a client's own


@pytest.mark.parametrize("command", [("node",), ("generate", "Hello"), ("status",)])
def test_a_join_that_leads_nowhere(place: Place, tmp_path: Path, command: tuple[str, ...]) -> None:
    model = [] if command == ("status",) else ["-m", str(place.model)]
    done = place.shell.run(*command, *model, "--join", NOWHERE, home=tmp_path)
    what = "nobody answers: .* Connection refused; check that a node runs there"
    refused(done, what, home=tmp_path)


@pytest.mark.parametrize(
    "address, what",
    [
        ("127.0.0.1:4001", "cannot join by 127.0.0.1:4001: .* copy what a node prints"),
        ("/ip4/127.0.0.1/tcp/4001", "ends in no /p2p/ id; copy what a node prints"),
        ("/ip4/300.0.0.1/tcp/4001/p2p/" + PEER, "has no IP address; copy"),
        ("/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWx", "cannot join by .* copy what a node prints"),
        ("", "cannot join by"),
    ],
)
def test_a_join_that_is_no_address(place: Place, tmp_path: Path, address: str, what: str) -> None:
    asked = ("generate", "Hello", "-m", str(place.model), "--join", address)
    refused(place.shell.run(*asked, home=tmp_path), what, home=tmp_path)


def test_no_swarm_to_join(place: Place, tmp_path: Path) -> None:
    done = place.shell.run("generate", "Hello", "-m", str(place.model), home=tmp_path)
    refused(done, "no swarm to join: start one", home=tmp_path)


@pytest.mark.parametrize(
    "told, what",
    [("join = 3", "join must be a list"), ("join = [", "cannot be read .* mend or remove")],
)
def test_a_config_file_that_is_none(place: Place, tmp_path: Path, told: str, what: str) -> None:
    (tmp_path / "config.toml").write_text(told)
    refused(place.shell.run("status", home=tmp_path), what)


@pytest.mark.parametrize(
    "prompt, what",
    [
        ("", "the prompt is empty; give some text"),
        ("x" * 3000, "3000 tokens, but .* a context of 2048; shorten it"),
        ("x" * 2000, "context of .*, 2048; ask for at most 48 new tokens"),
    ],
)
def test_a_prompt_that_cannot_be_answered(
    place: Place, tmp_path: Path, prompt: str, what: str
) -> None:
    asked = ("generate", "-", "-m", str(place.model), *place.join)
    refused(place.shell.run(*asked, home=tmp_path, stdin=prompt), what, home=tmp_path)


@pytest.mark.parametrize(
    "options, what",
    [
        (["--temperature", "-1"], "--temperature"),
        (["--temperature", "nan"], "--temperature"),
        (["--temperature", "inf"], "temperature is inf; it must be"),
        (["--top-p", "0"], "top_p is 0.0; it must be above 0, at most 1"),
        (["--top-p", "1.5"], "top_p is 1.5; it must be"),
        (["--min-p", "-0.5"], "min_p is -0.5; it must be 0 to 1"),
        (["--top-k", "-1"], "--top-k"),
        (["--repetition-penalty", "0"], "repetition_penalty is 0.0; it must be"),
        (["--seed", "-3"], "--seed"),
        (["--seed", str(1 << 80)], "seed is .* it must be 0 to"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--stop", ""], "--stop is empty: give the text before which an answer ends"),
        (["--wait", "-1"], "--wait"),
    ],
)
def test_a_sampling_setting_that_makes_no_sense(
    place: Place, tmp_path: Path, options: list[str], what: str
) -> None:
    asked = ("generate", "Hello", "-m", str(place.model), *place.join, *options)
    refused(place.shell.run(*asked, home=tmp_path), what, home=tmp_path)


@pytest.mark.parametrize(
    "model, what",
    [
        ("nobody-has-this", "no such directory, no hub id .* give a folder"),
        ("nobody/has-this", "not in the hub's cache; run once without --offline"),
        ("./not/here", "no such directory"),
    ],
)
def test_an_unknown_model(place: Place, tmp_path: Path, model: str, what: str) -> None:
    for command in (("generate", "Hello", *place.join), ("node",)):
        done = place.shell.run(*command, "-m", model, "--offline", home=tmp_path)
        refused(done, what, home=tmp_path)


def test_blocks_that_nobody_serves(place: Place, tmp_path: Path) -> None:
    """The line names the model and the blocks. This is no bad input: it may do later."""
    done = place.shell.run("generate", "Hello", "-m", str(place.model), *place.join, home=tmp_path)
    what = f"no peer serves blocks 4:8 of .*{NAME}; start a node that does, or wait"
    refused(done, what, code=FAILED, home=tmp_path)


def test_the_shell_runs_what_a_person_runs(place: Place, tmp_path: Path) -> None:
    """The fork is not the thing itself: what it shows would be worth nothing if they differed."""
    command = [sys.executable, "-P", "-m", "potluck.cli", "node", "-m", "nobody-has-this"]
    home = {"POTLUCK_HOME": str(tmp_path)}
    real = subprocess.run(command, capture_output=True, text=True, env=os.environ | home)
    forked = place.shell.run("node", "-m", "nobody-has-this", home=tmp_path)
    assert (forked.code, forked.out, forked.err) == (real.returncode, real.stdout, real.stderr)
