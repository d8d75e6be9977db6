"""Real processes, one behind the other, and one killed in the middle: the words of the star."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

from potluck.node.client import Swarm, open_swarm
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet

TOKENS = 48
PROMPT = "class Node:\n    def __init__(self, name, parent):\n        self.name = name\n"
DRAWN: dict[str, Any] = {"temperature": 0.6, "top_k": 20, "seed": 11}


async def test_what_goes_from_hop_to_hop_is_what_goes_by_star() -> None:
    """Greedy and drawn, with guesses and receipts; and when the second of two stages is killed."""
    with tempfile.TemporaryDirectory(prefix="potluck-chain-") as folder:
        plan = Plan(
            home=Path(folder), source=str(DEMO_FOLDER), name="demo", blocks=8, nodes=4, replicas=2
        )
        with open_testnet(plan) as net:
            async with open_swarm(net.join, home=folder, threads=1) as swarm:
                for how in ({"draft": "off"}, DRAWN | {"receipts": True}):
                    star, pushed, _ = await answer(swarm, "off", **how)
                    assert pushed == 0
                    words, pushed, lost = await answer(swarm, "auto", **how)
                    assert (words, lost) == (star, 0)
                    assert pushed > 10
                star, _, _ = await answer(swarm, "off")
                words, pushed, lost = await answer(swarm, "auto", net=net)
                assert (words, lost) == (star, 1)
                assert pushed > 3


async def answer(
    swarm: Swarm, chain: str, *, net: LocalSwarm | None = None, **how: Any
) -> tuple[list[int], int, int]:
    """The tokens, how many steps were pushed, and hops lost. net: the server of the second stage is
    killed there, once some were."""
    async with swarm.generation(
        "demo", PROMPT, max_new_tokens=TOKENS, ignore_eos=True, chain=chain, **how
    ) as said:
        tokens = []
        async for piece in said:
            tokens.append(piece.token)
            if net is not None and said.chained > 3:
                name = next(seat.name for seat in net.seats if seat.peer == piece.route[1].peer)
                net.send(name, signal.SIGKILL)
                net = None
        return tokens, said.chained, len(said.recoveries)
