"""Nodes that hold blocks of two models each: both answer, rest together, and come back together."""

from __future__ import annotations

from pathlib import Path

import trio

from potluck.node.client import open_swarm
from potluck.node.compute.shapes import write_random
from potluck.node.library import DEMO_FOLDER

from .ground import Node, open_node, potluck

WORDS = {"demo": "The function returns", "tiny": "abc"}


async def say(node: Node, home: Path, model: str) -> tuple[list[int], set[str]]:
    """Eight tokens, and the peers that they came through."""
    async with (
        open_swarm(node.addresses, home=home, offline=True, threads=1) as swarm,
        swarm.generation(
            model, WORDS[model], max_new_tokens=8, ignore_eos=True, wait_s=30.0
        ) as answer,
    ):
        tokens = [piece.token async for piece in answer]
        return tokens, {hop.peer for hop in answer.route}


def test_two_nodes_hold_half_of_two_models_each_and_rest_with_both(tmp_path: Path) -> None:
    write_random(tmp_path / "tiny", "tiny")
    both = ("--model", str(tmp_path / "tiny"), "--name", "demo", "--name", "tiny")
    with (
        open_node(
            tmp_path / "one", DEMO_FOLDER, *both, "--blocks", "0:4", "--blocks", "4:8"
        ) as one,
        open_node(
            tmp_path / "two", DEMO_FOLDER, *both, "--blocks", "4:8", "--blocks", "0:4",
            join=one.addresses,
        ) as two,
    ):  # fmt: skip
        assert [held["blocks"] for held in (two.facts, *two.facts["others"])] == [[4, 8], [0, 4]]
        before = {name: trio.run(say, one, tmp_path / "one", name) for name in WORDS}
        assert [peers for _, peers in before.values()] == [{one.peer, two.peer}] * 2
        told = potluck("pause", "--home", str(two.home))
        assert told["state"] == "resting" and two.counts()["leases"] == 0
        missing = {
            model["name"]: model["missing"]
            for model in potluck("status", "--home", str(one.home))["models"]
        }
        assert missing == {"demo": [[4, 8]], "tiny": [[0, 4]]}
        potluck("resume", "--home", str(two.home))
        assert {name: trio.run(say, one, tmp_path / "one", name) for name in WORDS} == before
        with open_node(tmp_path / "three", "auto", join=one.addresses) as three:
            assert three.facts["name"] == "demo", "the files of the other are not here"
            _, peers = trio.run(say, three, tmp_path / "three", "demo")
            assert peers <= {one.peer, two.peer, three.peer}
        assert two.end() == 0
