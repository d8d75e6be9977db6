"""Real processes, guesses, and a server killed in the middle of a step of them: the same words."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

from potluck.node.client import Swarm, open_swarm
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet

TOKENS = 64
PROMPT = "class Node:\n    def __init__(self, name, parent):\n        self.name = name\n"
DRAWN: dict[str, Any] = {"temperature": 0.6, "top_k": 20, "seed": 11}


async def test_a_server_killed_in_the_middle_of_guesses_changes_no_word() -> None:
    """Greedy, where the model repeats itself and most steps hold guesses, and sampled. Two stages
    of two peers; as soon as words of one step are there the next is on its way."""
    with tempfile.TemporaryDirectory(prefix="potluck-drafting-") as folder:
        plan = Plan(
            home=Path(folder), source=str(DEMO_FOLDER), name="demo", blocks=8, nodes=4, replicas=2
        )
        with open_testnet(plan) as net:
            async with open_swarm(net.join, home=folder, threads=1) as swarm:
                plain = [await answer(swarm, "off", **how) for how in ({}, DRAWN)]
                guessed = [await answer(swarm, "auto", **how) for how in ({}, DRAWN)]
                assert [words for words, _, _ in guessed] == [words for words, _, _ in plain]
                assert guessed[0][1] > TOKENS // 3, "accepted"
                words, accepted, lost = await answer(swarm, "auto", net=net)
                assert (words, lost) == (plain[0][0], 1)
                assert accepted > TOKENS // 3


async def answer(
    swarm: Swarm, draft: str, *, net: LocalSwarm | None = None, **how: Any
) -> tuple[list[int], int, int]:
    """The tokens, how many guesses were right, and hops lost. net: the server of the second stage
    is killed there, once guesses were right."""
    async with swarm.generation(
        "demo", PROMPT, max_new_tokens=TOKENS, ignore_eos=True, draft=draft, **how
    ) as said:
        tokens = []
        async for piece in said:
            tokens.append(piece.token)
            guessed = said.guessed
            if net is not None and guessed is not None and guessed.accepted > 8:
                name = next(seat.name for seat in net.seats if seat.peer == piece.route[1].peer)
                net.send(name, signal.SIGKILL)
                net = None
        accepted = 0 if said.guessed is None else said.guessed.accepted
        return tokens, accepted, len(said.recoveries)
