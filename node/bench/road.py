"""What the road costs: one hop beyond its block's own time, and one answer from end to end.

Real daemons as processes of their own on loopback, one thread each, and a client in this process;
random weights of a known shape. Figures are medians over many steps of one run; what is compared
is measured in the same run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from ...swarm.wire import PROTOCOL, Open, Opened, Output, Step
from ..client import Swarm, open_swarm
from ..compute.checkpoint import open_checkpoint
from ..compute.local import local_seconds
from ..compute.shapes import write_random
from ..compute.voice import DTYPE
from ..frames import FrameStream
from ..net.identify import PING
from ..testnet.launcher import LocalSwarm, Plan, open_testnet

WARM_STEPS = 50
HOP_STEPS = 1000
RUNS = 5
QUIET_TOKENS = 2048  # as the bar has it
PAUSE_S = 0.002  # between two pings: they must not be the load
PROMPT_TOKENS = 8  # as petals.md 5 has it


async def bench_hop() -> dict[str, object]:
    """One token through one block at another process, over and above the block's own time."""
    async with bench_swarm("tiny", servers=1) as (swarm, net, _):
        voice = await swarm.voice("bench")
        stream = await swarm.member.host.open_stream(net.seats[0].peer, PROTOCOL)
        frames = FrameStream(stream)
        tokens = PROMPT_TOKENS + WARM_STEPS + HOP_STEPS
        await frames.send(Open(bytes(16), voice.digest, 0, 1, tokens, DTYPE))
        received = await frames.receive()
        assert received is not None and isinstance(received[0], Opened)
        payload = voice.embed([5])
        elapsed_s: list[float] = []
        software_s: list[float] = []
        for at in range(WARM_STEPS + HOP_STEPS):
            began_s = time.perf_counter()
            await frames.send(Step(at, (1,), 1), payload)
            received = await frames.receive()
            spent_s = time.perf_counter() - began_s
            assert received is not None and isinstance(received[0], Output)
            if at >= WARM_STEPS:
                elapsed_s.append(spent_s)
                software_s.append(spent_s - received[0].compute_s)
        await frames.close()
    return {
        "software_ms_p50": _ms(software_s, 0.5),
        "software_ms_p95": _ms(software_s, 0.95),
        "whole_hop_ms_p50": _ms(elapsed_s, 0.5),
        "block_ms_p50": _ms([a - b for a, b in zip(elapsed_s, software_s, strict=True)], 0.5),
        "steps": HOP_STEPS,
    }


async def bench_quiet(*, shape: str = "small", tokens: int = QUIET_TOKENS) -> dict[str, object]:
    """How long others wait while a node computes one step of so many tokens: a ping, and the
    opening of a session, each again and again; before it, and meanwhile."""
    async with bench_swarm(shape, servers=1) as (swarm, net, _):
        voice = await swarm.voice("bench")
        peer, host = net.seats[0].peer, swarm.member.host

        async def ping_s() -> float:
            began_s = time.perf_counter()
            await pings.send(bytes(32))
            received = 0
            while received < 32:
                received += len(await pings.receive(32))
            return time.perf_counter() - began_s

        async def open_s() -> float:
            frames = FrameStream(await host.open_stream(peer, PROTOCOL))
            began_s = time.perf_counter()
            await frames.send(Open(bytes(16), voice.digest, 0, 1, 64, DTYPE))
            await frames.receive()
            spent_s = time.perf_counter() - began_s
            await frames.close()
            return spent_s

        pings = await host.open_stream(peer, PING)
        idle_s = [await ping_s() for _ in range(WARM_STEPS)]
        busy_s: list[float] = []
        opens_s: list[float] = []
        whole = FrameStream(await host.open_stream(peer, PROTOCOL))
        await whole.send(Open(bytes(16), voice.digest, 0, voice.blocks, tokens, DTYPE))
        await whole.receive()
        payload = bytes(voice.embed([5])) * tokens
        began_s = time.perf_counter()
        await whole.send(Step(0, (tokens,), 1), payload)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_repeat, ping_s, busy_s)
            nursery.start_soon(_repeat, open_s, opens_s)
            await whole.receive()
            nursery.cancel_scope.cancel()
        spent_s = time.perf_counter() - began_s
    return {
        "step_s": round(spent_s, 3),
        "step_tokens": tokens,
        "ping_ms_idle_p50": _ms(idle_s, 0.5),
        "ping_ms_p50": _ms(busy_s, 0.5),
        "ping_ms_p99": _ms(busy_s, 0.99),
        "ping_ms_max": _ms(busy_s, 1.0),
        "open_ms_p50": _ms(opens_s, 0.5),
        "open_ms_max": _ms(opens_s, 1.0),
        "pings": len(busy_s),
        "opens": len(opens_s),
        "shape": shape,
    }


async def _repeat(measure: Callable[[], Awaitable[float]], found: list[float]) -> None:
    while True:
        found.append(await measure())
        await trio.sleep(PAUSE_S)


async def bench_generate(
    *, shape: str = "tiny", servers: int = 2, tokens: int = 128
) -> dict[str, object]:
    """Tokens a second of one answer through `servers` processes, beside one process alone.

    A run is `tokens` new tokens after a prompt of 8; its rate leaves out the time to the first.
    """
    async with bench_swarm(shape, servers=servers) as (swarm, _, folder):
        rates: list[float] = []
        firsts_s: list[float] = []
        steps_s: list[float] = []
        hops = 0
        for run in range(RUNS + 1):
            seconds, hops = await _one_answer(swarm, tokens)
            if run == 0:
                continue  # warms both ends
            rates.append((len(seconds) - 1) / sum(seconds[1:]))
            firsts_s.append(seconds[0])
            steps_s += seconds[1:]
        checkpoint = open_checkpoint(folder)
        prompt = range(3, 3 + PROMPT_TOKENS)
        alone = [
            await trio.to_thread.run_sync(local_seconds, checkpoint, list(prompt), tokens)
            for _ in range(RUNS)
        ]
    alone_rate = statistics.median((len(one) - 1) / sum(one[1:]) for one in alone)
    rate = statistics.median(rates)
    return {
        "tokens_per_s": round(rate, 1),
        "tokens_per_s_of_each_run": [round(one, 1) for one in rates],
        "ms_per_token_p50": _ms(steps_s, 0.5),
        "ms_per_token_p95": _ms(steps_s, 0.95),
        "first_token_ms_p50": _ms(firsts_s, 0.5),
        "hops": hops,
        "one_process_tokens_per_s": round(alone_rate, 1),
        "share_of_one_process": round(rate / alone_rate, 2),
        "shape": shape,
        "servers": servers,
        "new_tokens": tokens,
    }


async def _one_answer(swarm: Swarm, tokens: int) -> tuple[list[float], int]:
    prompt = list(range(3, 3 + PROMPT_TOKENS))
    seconds: list[float] = []
    hops = 0
    async with swarm.generation(
        "bench", prompt, max_new_tokens=tokens, ignore_eos=True, draft="off"
    ) as answer:
        async for piece in answer:
            seconds.append(piece.seconds)
            hops = len(piece.route)
    return seconds, hops


@asynccontextmanager
async def bench_swarm(shape: str, *, servers: int) -> AsyncIterator[tuple[Swarm, LocalSwarm, Path]]:
    """A testnet of random weights in a folder that goes with it, and a client joined to it."""
    with tempfile.TemporaryDirectory(prefix="potluck-bench-") as folder:
        home = Path(folder)
        model = home / "model"
        await trio.to_thread.run_sync(write_random, model, shape)
        blocks = open_checkpoint(model).spec.blocks
        plan = Plan(home=home, source=str(model), name="bench", blocks=blocks, nodes=servers)
        async with joined(plan) as (swarm, net):
            yield swarm, net, model


@asynccontextmanager
async def joined(plan: Plan) -> AsyncIterator[tuple[Swarm, LocalSwarm]]:
    """A testnet, and a client joined to it."""
    opening = open_testnet(plan)
    net = await trio.to_thread.run_sync(opening.__enter__)
    try:
        async with open_swarm(net.join, home=plan.home, threads=1) as swarm:
            yield swarm, net
    finally:
        leave = partial(opening.__exit__, None, None, None)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(leave)


def _ms(seconds: Sequence[float], share: float) -> float:
    """A quantile, in milliseconds."""
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
