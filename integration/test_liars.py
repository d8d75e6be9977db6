"""A testnet's liars as real daemons: they answer falsely, say so in their logs, and nobody else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import trio

from potluck.node.client import open_swarm
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LOG, LocalSwarm, Plan, folder_of, open_testnet
from potluck.node.testnet.lies import parse_lies
from potluck.node.testnet.mischief import NAMES

from .waiting import until

NAMED_S = 60.0  # a machine that does other things as well
JUDGED_S = 90.0
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


async def test_a_false_accuser_is_banned_by_all_and_nobody_else_is(tmp_path: Path) -> None:
    """Of the others one floods views with peers that there are not, and one comes under four
    names; the work of both is right, and they compute it again as honest nodes do."""
    plan = Plan(
        tmp_path, str(DEMO_FOLDER), "demo", 8, nodes=4, replicas=4, offline=True,
        liars=parse_lies("false_accusation,flood_views,many_names"),
    )  # fmt: skip
    with open_testnet(plan) as net:
        honest, accuser, flooder, crowd = net.seats
        logs = [folder_of(tmp_path) / seat.name / LOG for seat in (honest, flooder, crowd)]
        told = f"banned={accuser.peer} grounds='false accusations'"
        until(lambda: all(told in log.read_text() for log in logs), JUDGED_S)
        async with open_swarm(net.join, home=tmp_path / "client", threads=1) as swarm:
            model = (await swarm.models())[0].model
            with trio.fail_after(NAMED_S):
                while len(await swarm.spans(model)) < len(net.seats) - 1 + NAMES:  # noqa: ASYNC110
                    await trio.sleep(0.2)  # what other processes do
        assert len(await words(net, tmp_path / "client"))
        bans = [line for log in logs for line in log.read_text().splitlines() if "banned=" in line]
        assert len(bans) == len(logs), bans
        assert "views flooded" in logs[1].read_text()


def test_who_shows_tallies_of_work_that_was_not_done_is_banned_for_good(
    tmp_path: Path,
) -> None:
    """Two of them contradict each other: whoever reads them knows, and needs to trust nobody."""
    plan = Plan(
        tmp_path, str(DEMO_FOLDER), "demo", 8, nodes=2, replicas=2, offline=True,
        liars=parse_lies("false_tally"),
    )  # fmt: skip
    with open_testnet(plan) as net:
        honest, liar = net.seats
        log = folder_of(tmp_path) / honest.name / LOG
        until(lambda: f"banned={liar.peer} grounds=contradiction" in log.read_text(), NAMED_S)
        until(lambda: any(tmp_path.rglob(f"bans/{liar.peer}")), NAMED_S)
        ban = next(tmp_path.rglob(f"bans/{liar.peer}"))
        shown = subprocess.run(
            [sys.executable, "-P", "-m", "potluck.cli", "verify", str(ban), "--json"],
            capture_output=True, check=False, timeout=NAMED_S,
        )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["convicted"] == liar.peer
