"""What it brings that hops push to hops: tokens a second by star and by chain, and the formula's.

Real daemons and the shipped model. All roads are equally long, from the client to each hop (far.py)
and from hop to hop (testnet/far_peers.py); what a token takes where none is long at all is measured
first, by star, in the same run. With P hops and a round trip of r on each road (algorithms.md 9):

    R0       of a token without a road: compute, and what the software costs
    star     R0 + P r                       twice over each of P roads
    chain    R0 + (P + 1) r / 2             P + 1 roads, once

Star and chain take turns, so that both meet the same machine.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Final, cast

import trio

from ..client import Swarm
from ..compute.sampling import Settings
from ..compute.voice import Voice
from ..compute.worker import Worker, open_worker
from ..drafting import Drafts
from ..generation import Request, open_generation
from ..library import DEMO_FOLDER
from ..net.host import Host
from ..testnet.launcher import Plan
from .far import FarHost
from .road import joined

PROMPT: Final = "The function returns"
WARM_TOKENS: Final = 8  # of each answer: until hops are introduced, steps go by star
RUNS: Final = 3


async def bench_chain(
    *,
    hops: int = 4,
    rtt_ms: float = 60.0,
    tokens: int = 48,
    sampled: bool = False,
    drafts: bool = False,
    receipts: bool = False,
) -> dict[str, object]:
    """Tokens a second behind the first eight, by star and by chain; of what the formula allows.

    drafts: with guesses, of which the formula says nothing. receipts: the servers sign.
    """
    settings = Settings(0.7, seed=1) if sampled else Settings()
    near: list[float] = []
    far: dict[bool, list[float]] = {False: [], True: []}
    said: set[tuple[int, ...]] = set()
    pushed = 0
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as folder:
        plan = Plan(
            home=Path(folder), source=str(DEMO_FOLDER), name="demo", blocks=8, nodes=hops,
            peer_roads=str(rtt_ms),
        )  # fmt: skip
        async with (
            joined(plan) as (swarm, _),
            open_worker(threads=1) as worker,
            trio.open_nursery() as nursery,
        ):
            voice = await swarm.voice("demo")
            host = swarm.member.host
            away = cast(Host, FarHost(host, rtt_ms / 2e3, nursery))

            async def one(over: Host, chain: bool) -> float:
                nonlocal pushed
                seconds, words, steps = await _answer(
                    swarm, worker, over, voice, tokens, settings,
                    chain=chain, drafts=drafts, receipts=receipts,
                )  # fmt: skip
                said.add(words)
                pushed = max(pushed, steps)
                return seconds

            await one(host, False)  # warms both ends
            for _ in range(RUNS):
                near.append(await one(host, False))
                for chain in (False, True):
                    far[chain].append(await one(away, chain))
            nursery.cancel_scope.cancel()
    alone_s, rtt_s = statistics.median(near), rtt_ms / 1e3
    found: dict[str, object] = {
        "hops": hops,
        "rtt_ms": rtt_ms,
        "near_per_s": round(1 / alone_s, 2),
        "pushed": pushed,
        "same": len(said) == 1,
    }
    rates = {}
    for name, chain, roads_s in (
        ("star", False, hops * rtt_s),
        ("chain", True, (hops + 1) * rtt_s / 2),
    ):
        rates[name] = 1 / statistics.median(far[chain])
        bound = 1 / (alone_s + roads_s)
        found[name] = {
            "per_s": round(rates[name], 2),
            "per_s_of_each_run": [round(1 / one, 2) for one in far[chain]],
            "formula_per_s": round(bound, 2),
            "of_formula": round(rates[name] / bound, 3),
        }
    found["times"] = round(rates["chain"] / rates["star"], 2)
    return found


async def _answer(
    swarm: Swarm,
    worker: Worker,
    host: Host,
    voice: Voice,
    tokens: int,
    settings: Settings,
    *,
    chain: bool,
    drafts: bool,
    receipts: bool,
) -> tuple[float, tuple[int, ...], int]:
    """Seconds a token behind the first few, the tokens, and how many steps were pushed."""
    request = Request(
        voice,
        tuple(voice.text.encode(PROMPT)),
        settings,
        max_new_tokens=WARM_TOKENS + tokens,
        ignore_eos=True,
        receipts=receipts,
        drafts=Drafts() if drafts else None,
        chain=chain,
    )
    said, seconds = list[int](), list[float]()
    async with open_generation(host, swarm.router, worker, request) as answer:
        async for piece in answer:
            said.append(piece.token)
            seconds.append(piece.seconds)
        return sum(seconds[WARM_TOKENS:]) / tokens, tuple(said), answer.chained
