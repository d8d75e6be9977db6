"""Real nodes at the end of long roads: nothing comes sooner than the roads allow, and the codec of
the wire changes what it may and no more, whoever is killed."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

from potluck.crypto.keys import IdentityKey
from potluck.node.bench.laboratory import Wanted
from potluck.node.bench.wan import bench_wan
from potluck.node.client import Swarm, open_swarm
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet
from potluck.swarm.proof import check_proof

TOKENS = 24
PROMPT = "def total(rows):\n    result = 0\n    for row in rows:\n"


async def test_answers_over_long_roads_stand_beside_what_the_formula_allows() -> None:
    """Two hops, 40 ms to each and back: a token takes 80 ms at least over the client, and 60 from
    hop to hop, however fast the machine."""
    found = await bench_wan(Wanted(hops=2, rtt_s=0.04, tokens=12, prompt=200, way="both"))
    ways = found["ways"]
    assert isinstance(ways, dict) and set(ways) == {"star", "chain"}
    for shape, least_s in (("star", 0.08), ("chain", 0.06)):
        kinds, first = ways[shape]["kinds"], ways[shape]["first_token"]
        assert set(kinds) == {"code edit", "summarise", "chat", "none"}
        for one in kinds.values():
            assert one["same"], "with guesses and without"
            assert 0 < one["plain_per_s"] <= 1 / least_s
            assert one["plain_formula_per_s"] <= 1 / least_s
            assert (one["pushed"] > 0) == (shape == "chain")
        assert first["ms"] >= least_s * 1e3
        assert first["stored_and_forwarded_ms"] >= least_s * 1e3


async def test_rows_in_groups_go_through_real_nodes_and_a_death_changes_no_word() -> None:
    with tempfile.TemporaryDirectory(prefix="potluck-wire-") as folder:
        plan = Plan(
            home=Path(folder), source=str(DEMO_FOLDER), name="demo", blocks=8, nodes=4, replicas=2
        )
        with open_testnet(plan) as net:
            async with open_swarm(net.join, home=folder, threads=1) as swarm:
                undisturbed = await answer(swarm, "int8")
                assert await answer(swarm, "int8", net) == undisturbed
                assert await answer(swarm, "auto") == await answer(swarm, "f32")


async def answer(swarm: Swarm, wire: str, net: LocalSwarm | None = None) -> list[int]:
    """net: the server of the second stage is killed there, in mid-answer. What was signed for is
    right, whatever the codec."""
    async with swarm.generation(
        "demo", PROMPT, max_new_tokens=TOKENS, ignore_eos=True, wire=wire, receipts=True
    ) as said:
        tokens = []
        async for piece in said:
            tokens.append(piece.token)
            if net is not None and len(tokens) == TOKENS // 2:
                name = next(seat.name for seat in net.seats if seat.peer == piece.route[1].peer)
                net.send(name, signal.SIGKILL)
                net = None
        assert check_proof(await said.proof(IdentityKey.generate())).good
        return tokens
