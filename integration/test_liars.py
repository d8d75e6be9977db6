"""A testnet's liars as real daemons: they answer falsely, say so in their logs, and nobody else."""

from __future__ import annotations

import signal
from pathlib import Path

from potluck.node.client import open_swarm
from potluck.node.library import DEMO_FOLDER
from potluck.node.lies import parse_lies
from potluck.node.testnet import LOG, LocalSwarm, Plan, folder_of, open_testnet

PROMPT = "The function returns"
LOUD = "THIS NODE LIES"


async def words(net: LocalSwarm, home: Path) -> str:
    async with (
        open_swarm(net.join, home=home, threads=1) as swarm,
        swarm.generation("demo", PROMPT, max_new_tokens=24, ignore_eos=True) as answer,
    ):
        return "".join([piece.text async for piece in answer])


async def test_a_node_that_leaves_a_block_out_gives_other_words_and_says_that_it_lies(
    tmp_path: Path,
) -> None:
    """Both hold the whole model; each is asked while the other is dead."""
    plan = Plan(
        tmp_path, str(DEMO_FOLDER), "demo", 8, nodes=2, replicas=2, offline=True,
        liars=parse_lies("skip"),
    )  # fmt: skip
    with open_testnet(plan) as net:
        logs = {name: folder_of(tmp_path) / name / LOG for name in ("n1", "n2")}
        net.send("n2", signal.SIGKILL)
        true = await words(net, tmp_path / "client")
        net.restart("n2")
        net.send("n1", signal.SIGKILL)
        false = await words(net, tmp_path / "client")
        told = {name: log.read_text().count(LOUD) for name, log in logs.items()}
    assert told == {"n1": 0, "n2": 2}  # at each of its starts
    assert len(false) and false != true
