"""The command line, told what cannot be: one line that says why, and 2."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import save_random, save_tokenizer

from potluck.cli.main import main
from potluck.errors import UserError
from potluck.node.process import refuse_second

PEER = "12D3KooWMhw8hzWY5GXwZviQPA9K6zwkQQSoLxUwhbjnMVpCEPaL"
NOWHERE = f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"

pytestmark = pytest.mark.usefixtures("logs_as_before")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    save_random(folder, "llama", vocab_size=300)
    save_tokenizer(folder)
    return folder


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize(
    "options, told",
    [
        (["--blocks", "2:9"], "0:3"),
        (["--blocks", "2:2"], "0:3"),
        (["--blocks", "two"], "START:STOP"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "fp7"], "fp32"),
        (["--listen", "home"], "give all, for every interface"),
        (["--listen", "/ip4/127.0.0.1/udp/1"], "TCP"),
        (["--join", NOWHERE], "nobody answers"),
        (["--join", "over there"], "cannot join by over there"),
        (["--log-level", "shout"], "debug"),
        (["--ban", "somebody"], "--ban somebody: neither a peer id"),
        (["--ban", "10.0.0.1/8"], "10.0.0.0/8"),
        (["--allow-only", "./nosuch.txt"], "--allow-only ./nosuch.txt"),
        (["--join", NOWHERE, "--ban", PEER], "ban list"),
    ],
)
def test_a_node_that_cannot_be_says_why(
    options: list[str],
    told: str,
    checkpoint: Path,
    tmp_path: Path,
    one_line: Callable[[], str],
) -> None:
    assert main(["node", "-m", str(checkpoint), "--home", str(tmp_path), *options]) == 2
    assert told in one_line()
    assert not (tmp_path / "node.json").exists()


@pytest.mark.usefixtures("alarm")
def test_a_port_in_use_is_named(
    checkpoint: Path, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = ["node", "-m", str(checkpoint), "--home", str(tmp_path), "--port", port]
        assert main(line) == 2
    assert port in one_line()


@pytest.mark.usefixtures("alarm")
def test_a_key_that_others_can_read_is_refused(
    checkpoint: Path, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    key = tmp_path / "identity.key"
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    assert main(["node", "-m", str(checkpoint), "--home", str(tmp_path)]) == 2
    assert "chmod 600" in one_line()


@pytest.mark.parametrize(
    "line, told",
    [
        (["generate", "x", "-m", "demo"], "potluck testnet up"),
        (["generate", "x", "-m", "demo", "--join", NOWHERE], "nobody answers"),
        (["status"], "potluck testnet up"),
        (["models"], "potluck testnet up"),
        (["chat", "-m", "demo"], "potluck testnet up"),
        (["testnet", "up", "-m", "./nosuch"], "nosuch"),
        (["testnet", "up", "--nodes", "2", "--replicas", "3"], "--nodes 3"),
        (["testnet", "status"], "potluck testnet up"),
        (["testnet", "kill", "n1"], "potluck testnet up"),
        (["testnet", "logs", "n1"], "n1"),
    ],
)
def test_what_cannot_be_is_one_line_and_2(
    line: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_line: Callable[[], str],
) -> None:
    monkeypatch.delenv("POTLUCK_JOIN", raising=False)
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    assert main(line) == 2
    assert told in one_line()


def test_a_second_node_of_one_home_is_refused(tmp_path: Path) -> None:
    running = tmp_path / "node.json"
    running.write_text(json.dumps({"pid": os.getpid()}))
    with pytest.raises(UserError, match=str(os.getpid())):
        refuse_second(tmp_path)


def test_what_a_killed_node_left_behind_is_no_second_node(tmp_path: Path) -> None:
    """Its pid is another process's now: one that was born after the file was written."""
    running = tmp_path / "node.json"
    running.write_text(json.dumps({"pid": os.getpid()}))
    os.utime(running, (1e9, 1e9))
    refuse_second(tmp_path)
    assert not running.exists()
