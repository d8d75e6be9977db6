"""Credit between real nodes: both sign, `potluck credit` tells it on both ends, and it outlives
kill -9.

Nodes and command lines are forked from one process that has imported everything: most of the time
of this test went to importing torch, three times for nodes.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from potluck.cli.credit import facts
from potluck.node.client import open_swarm
from potluck.node.credit.accounts import read_accounts
from potluck.node.library import DEMO_FOLDER

from .ground import READY_S
from .shell import Command, Shell, open_shell
from .waiting import until

TOKENS = 12
SIGNED_S = 20.0  # for a busy machine; the letters are on their way when the client ends


@dataclass
class Node:
    command: Command
    killed: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.command.out))

    @property
    def addresses(self) -> list[str]:
        return list(self.facts["addresses"])

    def kill(self) -> None:
        os.kill(self.command.pid, signal.SIGKILL)
        self.command.wait()
        self.killed = True


@contextmanager
def open_node(shell: Shell, home: Path, blocks: str, join: Sequence[str] = ()) -> Iterator[Node]:
    """A node of the demo model; whoever uses it may kill it."""
    home.mkdir(exist_ok=True)
    options = [part for address in join for part in ("--join", address)]
    command = shell.start(
        "node", "--model", str(DEMO_FOLDER), "--blocks", blocks, "--threads", "1",
        "--json", "--drain-s", "0", *options, home=home,
    )  # fmt: skip
    node = Node(command)
    try:
        try:
            until(lambda: command.out.endswith("\n"), READY_S)
        except TimeoutError as error:
            raise RuntimeError(f"the node did not start: {command.err}") from error
        yield node
    finally:
        if not node.killed:
            os.kill(command.pid, signal.SIGTERM)
            command.wait()


def credit(shell: Shell, home: Path) -> dict[str, Any]:
    done = shell.run("credit", "--json", home=home)
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def credit_once(home: Path, name: str, least: float) -> float:
    """A sum of this home, once it is above `least`."""
    deadline_s = time.monotonic() + SIGNED_S
    while True:
        peer, accounts = read_accounts(home, time.time()) or (None, [])
        found = float(facts(peer, accounts)["sum"][name])  # type: ignore[index]
        if found > least:
            return found
        assert time.monotonic() < deadline_s, accounts
        time.sleep(0.05)


async def ask(node: Node, home: Path, *, anonymous: bool = False) -> None:
    async with (
        open_swarm(
            node.addresses, home=home, offline=True, threads=1, anonymous=anonymous
        ) as swarm,
        swarm.generation(
            "demo", "The function returns", max_new_tokens=TOKENS, ignore_eos=True, wait_s=30.0,
            draft="off",  # guesses are paid for too, and how many there are depends on the clock
        ) as answer,
    ):  # fmt: skip
        async for _ in answer:
            pass


def test_what_one_home_takes_from_another_is_signed_and_outlives_kill_9(tmp_path: Path) -> None:
    """Each serves half of the model, so that a client of either takes the other's half from it. Its
    own half it takes from its own node, which is nobody's business."""
    one, two = tmp_path / "one", tmp_path / "two"
    with open_shell() as shell, open_node(shell, two, "4:8") as other:
        with open_node(shell, one, "0:4", other.addresses) as giver:
            trio.run(ask, giver, two)
            gave = credit_once(one, "gave", 0.0)
            assert credit_once(two, "took", 0.0) == pytest.approx(gave)
            (told,) = credit(shell, one)["peers"]
            assert told["peer"] == other.facts["peer"] and told["owed"] == pytest.approx(
                gave, rel=0.01
            )
            trio.run(ask, giver, tmp_path / "nobody")
            trio.run(lambda: ask(giver, two, anonymous=True))
            assert credit_once(one, "gave", 0.0) == credit_once(two, "took", 0.0) == gave
            giver.kill()
            assert credit(shell, one)["sum"] == pytest.approx(
                {"gave": gave, "took": 0.0, "owed": gave}, rel=0.01
            )
        with open_node(shell, one, "0:4", other.addresses) as giver:
            trio.run(ask, giver, two)
            assert credit_once(one, "gave", gave) == pytest.approx(2 * gave)
            trio.run(ask, giver, one)  # and back
            took = credit_once(one, "took", 0.0)
            assert credit_once(two, "gave", 0.0) == pytest.approx(took)
            (told,) = credit(shell, two)["peers"]
            assert told["owed"] == pytest.approx(took - 2 * gave, rel=0.01)
