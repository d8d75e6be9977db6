"""Real nodes that choose their blocks, move into a hole, and rest: no reader's words change."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from potluck.node.client import Swarm, open_swarm
from potluck.node.library import DEMO_FOLDER

from .ground import POTLUCK, Node, open_node, potluck

AUTO = ("--epoch-s", "2", "--max-memory", "8", "--cache-mib", "4", "--drain-s", "20")
COVERED_S = 90.0  # epochs of 2 s, on a busy machine
PROMPT = "The function returns"


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def wait_covered(home: Path, peers: int) -> dict[str, Any]:
    """Until every block is served by these few peers."""
    deadline_s = time.monotonic() + COVERED_S
    while True:
        [model] = potluck("status", "--home", str(home))["models"]
        spans = [span for span in model["spans"] if span["state"] == "online"]
        if len(spans) == peers and not model["missing"]:
            return dict(model)
        assert time.monotonic() < deadline_s, model


async def say(join: list[str], home: Path, tokens: int, wait_s: float) -> list[int]:
    async with (
        open_swarm(join, home=home, offline=True, threads=1) as swarm,
        swarm.generation(
            "demo", PROMPT, max_new_tokens=tokens, ignore_eos=True, seed=3, wait_s=wait_s,
            temperature=0.7,
        ) as answer,
    ):  # fmt: skip
        return [piece.token async for piece in answer]


@pytest.mark.slow
def test_auto_nodes_move_into_the_hole_that_others_left(tmp_path: Path, opened: ExitStack) -> None:
    """Two nodes are told to serve 4:8, two choose for themselves; then the first two go."""

    def start(name: str, *options: str, join: list[str]) -> Node:
        context = open_node(tmp_path / name, DEMO_FOLDER, "--name", "demo", *options, join=join)
        return opened.enter_context(context)

    first = start("d1", "--blocks", "4:8", join=[])
    second = start("d2", "--blocks", "4:8", join=first.addresses)
    one = start("a1", *AUTO, join=first.addresses)
    assert one.facts["blocks"][0] == 0, "it fills the hole"
    other = start("a2", *AUTO, join=first.addresses)
    expected = trio.run(say, one.addresses, tmp_path / "client", 32, 0.0)
    first.end()
    second.end()
    model = wait_covered(tmp_path / "a1", 2)
    assert trio.run(say, one.addresses, tmp_path / "client", 32, 60.0) == expected
    whence = {node.peer: node.facts["blocks"] for node in (one, other)}
    moved = [span for span in model["spans"] if whence[span["peer"]] != span["blocks"]]
    if sorted(whence.values()) == [[0, 5], [0, 5]]:
        assert len(moved) == 1
        assert any(" moved " in node.log and "why=elected" in node.log for node in (one, other))


@pytest.mark.slow
def test_a_node_that_is_ended_while_it_joins_leaves_no_record(
    tmp_path: Path, opened: ExitStack
) -> None:
    """Else others would choose other blocks for 90 s, because of somebody who never comes."""
    one = opened.enter_context(open_node(tmp_path / "one", DEMO_FOLDER, "--name", "demo"))
    command = [*POTLUCK, "node", "--home", str(tmp_path / "two"), "--model", str(DEMO_FOLDER)]
    command += ["--name", "demo", "--threads", "1", "--join", one.addresses[0]]

    async def states(swarm: Swarm) -> list[str]:
        found = await swarm.router.announcements(one.facts["model"], within_s=0)
        return [told.state for told in found if told.peer != one.peer]

    async def end_it() -> None:
        async with open_swarm(
            one.addresses, home=tmp_path / "client", offline=True, threads=1
        ) as swarm:
            with trio.fail_after(COVERED_S):
                while await states(swarm) != ["joining"]:  # noqa: ASYNC110  # another process does it
                    await trio.sleep(0.02)
            process.terminate()
            assert await trio.to_thread.run_sync(process.wait, COVERED_S) == -signal.SIGTERM
            assert await states(swarm) == []

    process = opened.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    opened.callback(process.kill)
    trio.run(end_it)


@pytest.mark.slow
def test_a_node_rests_and_resumes_while_a_reader_reads_on(
    tmp_path: Path, opened: ExitStack
) -> None:
    names = ("one", "two")
    nodes: list[Node] = []
    for name in names:
        options = ("--name", "demo", "--drain-s", "30")
        join = nodes[0].addresses if nodes else []
        nodes.append(
            opened.enter_context(open_node(tmp_path / name, DEMO_FOLDER, *options, join=join))
        )
    expected = trio.run(say, nodes[0].addresses, tmp_path / "client", 200, 0.0)
    found: list[list[int]] = []
    lost: list[int] = []

    async def read() -> None:
        async with open_swarm(
            nodes[1].addresses, home=tmp_path / "client", offline=True, threads=1
        ) as swarm:
            async with swarm.generation(
                "demo", PROMPT, max_new_tokens=200, ignore_eos=True, seed=3, temperature=0.7
            ) as answer:
                tokens = []
                async for piece in answer:
                    tokens.append(piece.token)
                    if len(tokens) == 20:
                        peer = piece.route[0].peer
                        resting = next(node for node in nodes if node.peer == peer)
                        await trio.to_thread.run_sync(
                            potluck, "pause", "1h", "--home", str(resting.home)
                        )
                        assert resting.counts()["sessions"] == 0
                found.append(tokens)
                lost.append(len(answer.recoveries))
                assert piece.route[0].peer != peer
            told = await trio.to_thread.run_sync(potluck, "resume", "--home", str(resting.home))
            assert told["state"] == "serving" and told["blocks"] == [0, 8]

    trio.run(read)
    assert found == [expected] and lost == [0]
