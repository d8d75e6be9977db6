"""Credit between real nodes: both sign, `potluck credit` tells it on both ends, and it outlives
kill -9."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from potluck.cli.credit import facts, read_accounts
from potluck.node.client import open_swarm
from potluck.node.library import DEMO_FOLDER

from .ground import ENVIRONMENT, POTLUCK, Node, open_node

TOKENS = 12
SIGNED_S = 20.0  # for a busy machine; the letters are on their way when the client ends


def credit(home: Path) -> dict[str, Any]:
    done = subprocess.run(
        [*POTLUCK, "credit", "--json", "--home", str(home)],
        capture_output=True, text=True, timeout=60, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


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
            "demo", "The function returns", max_new_tokens=TOKENS, ignore_eos=True, wait_s=30.0
        ) as answer,
    ):
        async for _ in answer:
            pass


def test_what_one_home_takes_from_another_is_signed_and_outlives_kill_9(tmp_path: Path) -> None:
    """Each serves half of the model, so that a client of either takes the other's half from it. Its
    own half it takes from its own node, which is nobody's business."""
    one, two = tmp_path / "one", tmp_path / "two"
    with open_node(two, DEMO_FOLDER, "--blocks", "4:8") as other:
        with open_node(one, DEMO_FOLDER, "--blocks", "0:4", join=other.addresses) as giver:
            trio.run(ask, giver, two)
            gave = credit_once(one, "gave", 0.0)
            assert credit_once(two, "took", 0.0) == pytest.approx(gave)
            (told,) = credit(one)["peers"]
            assert told["peer"] == other.peer and told["owed"] == pytest.approx(gave, rel=0.01)
            trio.run(ask, giver, tmp_path / "nobody")
            trio.run(lambda: ask(giver, two, anonymous=True))
            assert credit_once(one, "gave", 0.0) == credit_once(two, "took", 0.0) == gave
            giver.process.kill()
            giver.process.wait()
            assert credit(one)["sum"] == pytest.approx(
                {"gave": gave, "took": 0.0, "owed": gave}, rel=0.01
            )
        with open_node(one, DEMO_FOLDER, "--blocks", "0:4", join=other.addresses) as giver:
            trio.run(ask, giver, two)
            assert credit_once(one, "gave", gave) == pytest.approx(2 * gave)
            trio.run(ask, giver, one)  # and back
            took = credit_once(one, "took", 0.0)
            assert credit_once(two, "gave", 0.0) == pytest.approx(took)
            (told,) = credit(two)["peers"]
            assert told["owed"] == pytest.approx(took - 2 * gave, rel=0.01)
