"""The bars of F, training on the same swarm: how each is measured, and when it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

from .row import Row

APART_MAX = 1e-4
LOSSES_APART_MAX = 1e-3  # "coincide": AdamW makes of the last bits of a gradient near zero a step
STEPS, KILL_EVERY = 200, 20
PETALS_TOKENS_S = 639.0  # petals.md 5: tiny, two servers, four sequences of 64
TIMES_PETALS = 3.0


def f1_gradients() -> Iterator[Row]:
    from .training import measure

    found = measure(STEPS, KILL_EVERY)
    command = f"python -m integration.training --steps {STEPS} --kill-every {KILL_EVERY}"
    yield Row(
        "F1",
        f"gradients of soft prompts and LoRA over 3 stages apart from one process's: {APART_MAX:g}",
        f"{found['gradients_apart_max']:.2g} at most",
        found["gradients_apart_max"] <= APART_MAX,
        command,
    )
    yield Row(
        "F1",
        f"losses of {STEPS} steps, a node killed every {KILL_EVERY}: apart {LOSSES_APART_MAX:g}",
        f"{found['losses_apart_max']:.2g} at most, from {found['first_loss']:.3f} to "
        f"{found['last_loss']:.3f}; {found['killed']} killed, {found['pieces_resent']} pieces "
        "sent again",
        found["losses_apart_max"] <= LOSSES_APART_MAX,
        command,
    )


def f2_rate() -> Iterator[Row]:
    from potluck.node.bench.training import bench_train

    found = trio.run(bench_train)
    wanted = TIMES_PETALS * PETALS_TOKENS_S
    rate = float(str(found["tokens_per_s"]))
    yield Row(
        "F2",
        f"forward plus backward, tiny, 2 servers, 4 x 64: {wanted:.0f} tokens/s (Petals x 3)",
        f"{rate} tokens/s ({found['forward_ms_p50']} + {found['backward_ms_p50']} ms); with head "
        f"and loss {found['with_head_and_loss_tokens_per_s']}; {found['share_of_one_process']} of "
        "one process with one thread",
        rate >= wanted,
        "potluck bench train",
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {"F1": f1_gradients, "F2": f2_rate}
