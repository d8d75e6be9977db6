"""The bars of C, an engine at the speed of memory: how each is measured, and when it holds."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .row import Row

SPEED = "python -m integration.engine_speed --llama PYTHON"
CHURN_S = 600.0


def c1_speed() -> Iterator[Row]:
    """Bars 1 and 2: they share their run. POTLUCK_WORK names a folder that keeps the weights."""
    from .engine_speed import THEIRS, measure, open_work

    llama = os.environ.get("POTLUCK_LLAMA")
    with open_work(os.environ.get("POTLUCK_WORK")) as work:
        found = measure(llama, work)
    goals = {"decode_int8": 1.25, "decode_nf4": 1.25, "decode8_int8": 1.5, "prefill_int8": 1.5}
    for name, goal in goals.items():
        row = found[name]
        what, quantization = name.split("_")
        text = f"{row['ours']} tokens/s; llama.cpp not measured (POTLUCK_LLAMA names no Python)"
        if llama is not None:
            text = f"{row['ratio']:.2f} ({row['ours']} against {row['llama']} tokens/s)"
        yield Row(
            "C1",
            f"{quantization}, {what}: at least {goal} times llama.cpp's {THEIRS[quantization]}",
            text,
            row.get("ratio", 0.0) >= goal,
            f"{SPEED} --rows {name}",
        )
    one = found["decode_int8"]
    yield Row(
        "C2",
        "int8 decodes at 70 % of read bandwidth or more, batch 1",
        f"{one['weights_read_share']:.0%} of {one['read_GB_s']} GB/s",
        one["weights_read_share"] >= 0.7,
        SPEED,
    )
    many = {name: found[f"decode16_{name}"]["over_batch1"] for name in THEIRS}
    yield Row(
        "C2",
        "batch 16 gives at least 4 times the tokens/s of batch 1",
        f"int8 {many['int8']}, nf4 {many['nf4']}",
        min(many.values()) >= 4,
        SPEED,
    )


def c3_gpu() -> Iterator[Row]:
    """On the first GPU; without one nothing is measured."""
    import torch

    from potluck.node.compute.cards import measure

    goals = {"none": 0.80, "int8": 0.65, "nf4": 0.65}
    card = measure() if torch.cuda.is_available() else None
    by = {one.format: one for one in card.formats if one.tiled or not card.tiles} if card else {}
    missing, command = "not measured: no GPU", "potluck bench gpu"
    for format, goal in goals.items():
        one = by.get(format)
        yield Row(
            "C3",
            f"{'bf16' if format == 'none' else format}: blocks decode at batch 1 at {goal:.0%} of "
            "weights over copy bandwidth",
            f"{one.of_copy:.0%}, bitsandbytes' layers {one.theirs_of_copy:.0%}" if one else missing,
            one.of_copy >= goal if one else None,
            command,
        )
    plain = by.get("none")
    yield Row(
        "C3",
        "prefill at 60 % of the device's matrix rate in bf16",
        f"{plain.of_matrix:.0%} of {card.matrix_tflops:.0f} TFLOP/s" if plain and card else missing,
        plain.of_matrix >= 0.6 if plain else None,
        command,
    )
    yield Row(
        "C3",
        "at most 5 us a block and step outside kernels",
        ", ".join(f"{one.format} {one.outside_us:.0f} us" for one in by.values()) or missing,
        max(one.outside_us for one in by.values()) <= 5 if by else None,
        command,
    )


def c4_oracle() -> Iterator[Row]:
    from potluck.node.compute.numerics import measure
    from potluck.node.library import DEMO_FOLDER
    from tests.test_native_stage import WHOLE, worst_logit

    with tempfile.TemporaryDirectory(prefix="potluck-oracle-") as folder:
        worst = {name: worst_logit(name, Path(folder) / name) for name in WHOLE}
    top = max(worst, key=lambda name: worst[name])
    yield Row(
        "C4",
        "logits within 1e-4 of transformers in fp32, each family",
        f"{len(worst)} configurations, worst {worst[top]:.1e} ({top})",
        worst[top] <= 1e-4,
        "pytest tests/test_native_stage.py -k transformers",
    )
    found = measure(str(DEMO_FOLDER))
    for one in found.differences:
        format = one.of.split()[0]
        exact = (f"{format} torch fp32", f"{format} ours")
        if format != "none" and (one.of, one.reference) == exact:
            yield Row(
                "C4",
                f"{format} within 1e-3 of dequantize-then-multiply in fp32",
                f"median {one.median:.1e}, p99 {one.p99:.1e} of a block's update",
                one.p99 <= 1e-3,
                "potluck bench numerics",
            )
    told = ", ".join(f"{name} {value:.3f}" for name, value in found.perplexity.items())
    yield Row(
        "C4", "perplexity of the shipped model, reported", told, True, "potluck bench numerics"
    )


def c5_exact() -> Iterator[Row]:
    from .engine_exact import measure, measure_tiled, measure_torch

    command = "python -m integration.engine_exact"
    ours = ((measure(), ", on 1 and 2 threads"), (measure_tiled(), ""))
    for name, one, how in ((*each, how) for found, how in ours for each in found):
        yield Row(
            "C5",
            f"{name}: the same bits alone, with 15 others, in chunks{how}",
            f"{one['variants']} variants, {len(one['different'])} differ",
            not one["different"],
            command,
        )
    for name, one in measure_torch():
        yield Row(
            "C5",
            f"{name}: the same bits for the same steps: alone, with 15 others, replayed",
            f"{one['variants']} variants, {len(one['different'])} differ; other cuts and threads "
            f"are other classes, {one['cuts_apart']:.0e} apart",
            not one["different"],
            command,
        )


def c6_churn() -> Iterator[Row]:
    from .churn32 import measure

    found: dict[str, Any] = measure(seconds=CHURN_S, shape="small", quantization="int8")
    command = "python -m integration.churn32 --shape small --quantization int8"
    left = sum(found[f"{what}_at_the_end"] for what in ("pages_used", "pages_promised", "leases"))
    yield Row(
        "C6",
        "32 sessions come and go for ten minutes: each text equals its solo run, no page leaks",
        f"{found['sessions']} sessions, {len(found['wrong'])} wrong, {left} pages left",
        not found["wrong"] and not left,
        command,
    )
    yield Row(
        "C6",
        "tokens/s, of prompts and answers, at least 85 % of those of 32 that stay",
        f"{found['share_of_fixed']:.0%} ({found['tokens_per_s']} tokens/s; by a CPU second "
        f"{found['share_of_fixed_by_cpu']:.0%}; answers alone {found['words_share_of_fixed']:.0%})",
        found["share_of_fixed"] >= 0.85,
        command,
    )
    yield Row(
        "C6",
        "p99 per token under a flood of 4,096-token prompts at most 3 times idle",
        f"{found['p99_over_idle']:.2f} ({found['flooded']['p99_ms']} ms; "
        f"{found['p99_over_idle_p50']:.2f} times the idle median)",
        found["p99_over_idle"] <= 3,
        command,
    )


def c7_load() -> Iterator[Row]:
    from .engine_load import measure

    found = measure()
    command = "python -m integration.engine_load"
    yield Row(
        "C7",
        "1 GiB of bf16 served as nf4 within 1.5 times reading and quantizing",
        f"{found['load_ratio']:.2f} ({found['load_s']:.2f} s)",
        found["load_ratio"] <= 1.5,
        command,
    )
    yield Row(
        "C7",
        "peak extra memory of one block (88 MiB in bf16)",
        f"{found['beside_mib']:.0f} MiB",
        found["beside_mib"] <= 88,
        command,
    )
    yield Row(
        "C7",
        "from the disk cache in at most 1.2 times reading it",
        f"{found['kept_ratio']:.2f} ({found['kept_s'] * 1e3:.0f} ms for {found['range_mib']} MiB)",
        found["kept_ratio"] <= 1.2,
        command,
    )


def c8_overhead() -> Iterator[Row]:
    """A whole step, products and Python included: below the bar for what is outside them."""
    import torch

    from potluck.node.compute.checkpoint import open_checkpoint
    from potluck.node.compute.native_stage import NativeStage
    from potluck.node.compute.pages import Pool
    from potluck.node.compute.shapes import write_random

    with tempfile.TemporaryDirectory(prefix="potluck-step-") as name:
        write_random(Path(name), "tiny")
        checkpoint = open_checkpoint(Path(name))
        told = {}
        for quantization in ("none", "int8", "nf4"):
            stage = NativeStage.load(checkpoint, 0, 4, quantization=quantization, threads=1)
            pool = Pool(budget_bytes=64 << 20, page_bytes=stage.page_bytes)
            lease = pool.open(0, 4, 128)
            lease.reserve(0, 128)
            stage.forward_rows(torch.randn(64, checkpoint.spec.hidden), [(lease, 0, 64)])
            row = torch.randn(1, checkpoint.spec.hidden)
            spent = []
            for _ in range(400):
                began_s = time.thread_time()
                stage.forward_rows(row, [(lease, 64, 1)])
                spent.append(time.thread_time() - began_s)
            told[quantization] = sorted(spent)[len(spent) // 2] * 1e3
            width = checkpoint.spec.hidden
    yield Row(
        "C8",
        "a one-token step through four blocks at hidden 256: at most 0.6 ms of CPU beside products",
        f"hidden {width}: "
        + ", ".join(f"{name} {ms:.3f} ms" for name, ms in told.items())
        + ", products and Python included",
        max(told.values()) <= 0.6,
        "python -m integration.bars --only C8",
    )


def c9_quiet() -> Iterator[Row]:
    """Not among the numbered bars, but a figure of what the engine must do."""
    import trio

    from potluck.node.bench.road import bench_quiet

    found: dict[str, Any] = trio.run(bench_quiet)
    longest = max(found["ping_ms_max"], found["open_ms_max"])
    yield Row(
        "C9",
        "heartbeats and others' streams within 50 ms while a 2,048-token prefill runs",
        f"{found['pings']} pings: p99 {found['ping_ms_p99']:.1f} ms, longest "
        f"{found['ping_ms_max']:.1f}; {found['opens']} sessions opened, longest "
        f"{found['open_ms_max']:.1f}; the prefill took {found['step_s']:.1f} s",
        longest <= 50,
        "potluck bench quiet",
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {
    "C1": c1_speed,
    "C3": c3_gpu,
    "C4": c4_oracle,
    "C5": c5_exact,
    "C6": c6_churn,
    "C7": c7_load,
    "C8": c8_overhead,
    "C9": c9_quiet,
}
