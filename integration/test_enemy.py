"""Bad days: what dies, stops, fills up or stays silent, on real processes.

The kills of the failover sweep and the bytes of the fuzz are elsewhere; here is the rest.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from potluck.errors import PotluckError
from potluck.node.client import open_swarm
from potluck.node.compute.shapes import write_random
from potluck.node.net.host import HostConfig, open_host
from potluck.node.net.identify import PING

from .ground import Node, open_node
from .shell import WAIT_S, Shell, open_shell
from .waiting import until

PEER = "12D3KooWMhw8hzWY5GXwZviQPA9K6zwkQQSoLxUwhbjnMVpCEPaL"
PROMPT = (5, 6, 7, 8)
TOKENS = 40
SOON_S = 10.0  # what happens at once, on a machine that does other things as well


@dataclass
class Ground:
    """Where nodes are started, and ended when the test ends."""

    folder: Path
    model: Path
    nodes: ExitStack = field(default_factory=ExitStack)

    def node(self, name: str, *options: str, join: Node | None = None) -> Node:
        joined = join.addresses if join else ()
        opened = open_node(self.folder / name, self.model, *options, join=joined)
        return self.nodes.enter_context(opened)


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with open_shell() as opened:
        yield opened


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("enemy") / "tiny"
    write_random(folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def node(model: Path) -> Iterator[Node]:
    """One that serves the whole model, and outlives what is done to it."""
    with open_node(model.parent / "node", model) as opened:
        yield opened
        assert opened.lives


@pytest.fixture
def ground(tmp_path: Path, model: Path) -> Iterator[Ground]:
    made = Ground(tmp_path, model)
    with made.nodes:
        yield made


def until_sessions(node: Node, count: int) -> float:
    """Seconds until a node has so many sessions."""
    return until(lambda: node.counts()["sessions"] == count, SOON_S)


async def answer(
    join: list[str], model: Path, *, kill: Node | None = None, wait_s: float = 0.0
) -> list[int]:
    """The tokens of one answer; `kill` dies at the tenth."""
    tokens: list[int] = []
    async with (
        open_swarm(join, home=model.parent, threads=1) as swarm,
        swarm.generation(
            str(model), PROMPT, max_new_tokens=TOKENS, ignore_eos=True, wait_s=wait_s
        ) as pieces,
    ):
        async for piece in pieces:
            tokens.append(piece.token)
            if len(tokens) == 10 and kill is not None:
                kill.process.kill()
    return tokens


def test_however_a_client_leaves_its_cache_is_free_at_once(
    shell: Shell, node: Node, model: Path, tmp_path: Path
) -> None:
    idle = node.counts()["free_tokens"]
    asked = ("generate", "Hello", "-m", str(model), "-n", "2000")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        client = shell.start(*asked, "--join", node.addresses[0], home=tmp_path)
        until_sessions(node, 1)
        assert node.counts()["free_tokens"] < idle
        os.kill(client.pid, number)
        assert until_sessions(node, 0) < 2.0
        done = client.wait()
        assert done.code == (-number if number == signal.SIGKILL else 128 + number)
        assert "Traceback" not in done.err
    assert node.counts()["free_tokens"] == idle


def test_four_clients_at_once_get_the_same_words(
    shell: Shell, node: Node, model: Path, tmp_path: Path
) -> None:
    asked = ("generate", "Hello", "-m", str(model), "-n", "60", "--json")
    sampled = ("--temperature", "1", "--seed", "3", "--join", node.addresses[0])
    clients = [shell.start(*asked, *sampled, home=tmp_path / f"c{n}") for n in range(4)]
    told = [json.loads(client.wait().out) for client in clients]
    assert {one["finish"] for one in told} == {"length"}
    assert all(one["tokens"] == told[0]["tokens"] for one in told)


async def test_the_swarm_outlives_the_node_that_all_joined_by(ground: Ground) -> None:
    """It dies in mid-answer; the answer goes on, and newcomers join by another."""
    first = await trio.to_thread.run_sync(ground.node, "first", "--blocks", "0:4")
    for options in (("second", "--blocks", "4:8"), ("third", "--blocks", "0:4")):
        last = await trio.to_thread.run_sync(partial(ground.node, *options, join=first))
    expected = await answer(first.addresses, ground.model)
    assert await answer(first.addresses, ground.model, kill=first) == expected
    assert await answer(last.addresses, ground.model) == expected


async def test_an_answer_waits_for_the_only_server_to_come_back(ground: Ground) -> None:
    """Killed in mid-answer and started anew under its old key and another port."""
    first = await trio.to_thread.run_sync(ground.node, "first", "--blocks", "0:4")
    start_second = partial(ground.node, "second", "--blocks", "4:8", join=first)
    second = await trio.to_thread.run_sync(start_second)
    expected = await answer(first.addresses, ground.model)
    got: list[int] = []

    async def ask() -> None:
        got.extend(await answer(first.addresses, ground.model, kill=second, wait_s=60))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.to_thread.run_sync(second.process.wait)
        await trio.to_thread.run_sync(start_second)
    assert got == expected


def test_a_silent_end_of_the_line_holds_nobody(shell: Shell, tmp_path: Path, model: Path) -> None:
    """A signal ends what waits for a peer that took the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(WAIT_S)
        join = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{PEER}"
        for command in (("node",), ("generate", "Hello")):
            waiting = shell.start(*command, "-m", str(model), "--join", join, home=tmp_path)
            with silent.accept()[0]:
                began_s = time.monotonic()
                os.kill(waiting.pid, signal.SIGTERM)
                done = waiting.wait()
            assert done.code in (-signal.SIGTERM, 128 + signal.SIGTERM)
            assert time.monotonic() - began_s < 5.0
            assert done.err == ""


async def test_silent_sockets_and_hoarded_streams_keep_no_newcomer_out(
    node: Node, model: Path
) -> None:
    """More of either than a node takes in all: once, this held everybody out for 10 s or more."""
    expected = await answer(node.addresses, model)
    port = int(node.addresses[0].split("/")[4])

    async def hoard(task_status: Any) -> None:
        async with open_host(HostConfig(seed=secrets.token_bytes(32), listen=())) as host:
            peer = await host.connect(node.addresses)
            for _ in range(1000):
                stream = await host.open_stream(peer, PING)
                try:
                    await stream.send(b"half a ping")
                except PotluckError:
                    break  # the node has taken it back
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(9):
            await nursery.start(hoard)
        sockets = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(100)]
        with trio.fail_after(SOON_S):
            assert await answer(node.addresses, model) == expected
        for one in sockets:
            await one.aclose()
        nursery.cancel_scope.cancel()


def test_a_full_disk_is_told_of_and_nothing_is_half_written(
    shell: Shell, tmp_path: Path, model: Path
) -> None:
    """A home of four pages, with room for less and less of what a node writes."""
    home = tmp_path / "small"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(home)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may make a small disk")
    try:
        for pages_left in range(3):
            for path in home.iterdir():
                path.unlink()
            (home / "filler").write_bytes(bytes((4 - pages_left) * 4096))
            done = shell.run("node", "-m", str(model), home=home)
            assert done.code == 2
            *log, line = done.err.splitlines()  # what it did until then, and what is wrong
            assert line.startswith("potluck: ") and "No space left on device" in line
            assert not any("Traceback" in one or one.startswith("potluck: ") for one in log)
            written = {path.name: path.stat().st_size for path in home.iterdir()}
            assert written.keys() <= {"filler", "lock", "boot", "digests.json", "identity.key"}
            assert written.get("identity.key", 32) == 32
            assert all(written[name] for name in written.keys() - {"lock"})
    finally:
        subprocess.run(["umount", str(home)], check=True)
