"""What a step of training takes through several processes: forward and backward, tokens a second.

Petals' figure on the tiny shape, 4 sequences of 64 tokens through 2 servers, is 639 (petals.md 5);
it is of the blocks alone, and so is ours of that name.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import trio

from ..blocking import BlockingSwarm
from ..compute.checkpoint import open_checkpoint
from ..compute.rehearsal import Alone, Rehearsal, Took
from .road import bench_swarm

WARM_STEPS = 3
STEPS = 15


async def bench_train(
    *, shape: str = "tiny", servers: int = 2, batch: int = 4, tokens: int = 64
) -> dict[str, object]:
    """Medians of so many steps, beside one process with one thread."""
    async with (
        bench_swarm(shape, servers=servers) as (swarm, _, folder),
        trio.open_nursery() as nursery,
    ):
        client = BlockingSwarm(swarm, trio.lowlevel.current_trio_token(), nursery)
        rehearsal = await trio.to_thread.run_sync(
            lambda: Rehearsal(client, "bench", batch=batch, tokens=tokens)
        )
        blocks = await _steps(rehearsal.blocks)
        whole = await _steps(rehearsal.whole)
        checkpoint = open_checkpoint(folder)
        alone = await trio.to_thread.run_sync(lambda: Alone(checkpoint, batch=batch, tokens=tokens))
        by_itself = await _steps(alone.step)
    rate, beside = (_rate(one, batch * tokens) for one in (blocks, by_itself))
    return {
        "tokens_per_s": round(rate, 1),
        "forward_ms_p50": _ms([one.forward_s for one in blocks]),
        "backward_ms_p50": _ms([one.backward_s for one in blocks]),
        "slowest_step_ms": _ms([max(one.both_s for one in blocks)]),
        "with_head_and_loss_tokens_per_s": round(_rate(whole, batch * tokens), 1),
        "one_process_tokens_per_s": round(beside, 1),
        "share_of_one_process": round(rate / beside, 2),
        "shape": shape,
        "servers": servers,
        "batch": batch,
        "tokens": tokens,
    }


async def _steps(step: Callable[[], Took]) -> list[Took]:
    found = [await trio.to_thread.run_sync(step) for _ in range(WARM_STEPS + STEPS)]
    return found[WARM_STEPS:]


def _rate(steps: list[Took], tokens: int) -> float:
    return tokens / statistics.median(one.both_s for one in steps)


def _ms(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 3)
