"""The bars of A, a swarm that answers: how each is measured, and when it holds."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from .row import Row

ROOT = Path(__file__).parent.parent


def a1_fresh_clone() -> Iterator[Row]:
    """A clone of HEAD, no virtual environment, the two commands of the README."""
    with tempfile.TemporaryDirectory(prefix="potluck-clone-") as folder:
        clone = Path(folder) / "potluck"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "MAKEFLAGS")}
        for target in ("demo", "test"):
            began_s = time.monotonic()
            done = subprocess.run(
                ["make", target], cwd=clone, env=environment, capture_output=True, text=True
            )
            spent_s = time.monotonic() - began_s
            tail = [line for line in done.stdout.splitlines() if line.strip()][-1:]
            found = re.findall(r"\d+ passed.*", done.stdout)
            said = (
                f"exit {done.returncode} in {spent_s:.0f} s: {(found or tail or ['nothing'])[-1]}"
            )
            limit_s = 15 * 60 if target == "test" else 10 * 60
            holds = done.returncode == 0 and spent_s < limit_s
            yield Row("A1", f"fresh clone: make {target}", said, holds, f"make {target}")


def a2_oracle() -> Iterator[Row]:
    from tests.test_block import MODELS, worst_difference

    worst: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="potluck-oracle-") as folder:
        for name in MODELS:
            worst[name] = worst_difference(name, Path(folder) / name)
    top = max(worst, key=lambda name: worst[name])
    yield Row(
        "A2",
        "greedy tokens equal transformers' over 64, logits within 1e-4, split 1, 2, N",
        f"{len(worst)} configurations, all tokens equal, worst logit {worst[top]:.1e} ({top})",
        worst[top] <= 1e-4,
        "pytest tests/test_block.py",
    )


def a3_failover() -> Iterator[Row]:
    from .failover import measure

    found = measure()
    command = "python -m integration.failover"
    yield Row(
        "A3",
        "SIGKILL at every token, stage, in prefill, two at once: identical text",
        f"{found['identical']} of {found['runs']} runs identical, {found['hops_lost']} hops lost",
        found["identical"] == found["runs"],
        command,
    )
    yield Row(
        "A3",
        "stall p95 at most 1 s at 64 tokens of context",
        f"p50 {found['stall_s_p50']} s, p95 {found['stall_s_p95']} s",
        found["stall_s_p95"] <= 1.0,
        command,
    )


def a4_soak() -> Iterator[Row]:
    from .soak import measure

    found = measure()
    growth = found["memory_growth_worst"]
    yield Row(
        "A4",
        "10,000 sessions by one client, 200 at once: no hang, no leaked stream",
        f"{found['sessions']} sessions, {found['at_once']} at once, "
        f"{found['streams_leaked']} streams left",
        found["sessions"] >= 10_000 and found["at_once"] >= 200 and not found["streams_leaked"],
        "python -m integration.soak",
    )
    yield Row(
        "A4",
        "server memory within 5 % of its value after the first 1,000",
        f"{100 * growth:+.1f} %",
        growth <= 0.05,
        "python -m integration.soak",
    )


def a5_records() -> Iterator[Row]:
    from .records import measure

    found = measure()
    yield Row(
        "A5",
        "forged, replayed, rolled back, far-ahead records refused by every reader",
        f"{found['hostile']} hostile records put, {found['taken']} taken",
        found["taken"] == 0 and found["hostile"] > 0,
        "python -m integration.records",
    )


def a6_speed() -> Iterator[Row]:
    from potluck.node.bench.road import bench_generate, bench_hop

    hop = trio.run(bench_hop)
    software_ms = float(str(hop["software_ms_p50"]))
    yield Row(
        "A6",
        "software time of a one-token, one-block hop: p50 at most 2.0 ms, aim 0.8",
        f"{software_ms} ms (whole hop {hop['whole_hop_ms_p50']} ms)",
        software_ms <= 2.0,
        "potluck bench hop",
    )
    answer: dict[str, Any] = trio.run(bench_generate)
    yield Row(
        "A6",
        "tiny shape over 2 servers: at least 80 tokens/s, aim 150",
        f"{answer['tokens_per_s']} tokens/s ({answer['share_of_one_process']} of one process, "
        f"{answer['one_process_tokens_per_s']})",
        answer["tokens_per_s"] >= 80,
        "potluck bench generate --shape tiny --servers 2",
    )


def a7_memory() -> Iterator[Row]:
    from .memory import measure

    found = measure()
    yield Row(
        "A7",
        "a node with half of the tiny shape: at most 320 MiB PSS, one process",
        f"{found['pss_mib']} MiB, {found['processes']} process",
        found["pss_mib"] <= 320 and found["processes"] == 1,
        "python -m integration.memory",
    )
    yield Row(
        "A7",
        "ready in at most 3 s",
        f"{found['ready_s']} s",
        found["ready_s"] <= 3.0,
        "python -m integration.memory",
    )


def a8_fuzz() -> Iterator[Row]:
    from .fuzz import measure

    found = measure()
    yield Row(
        "A8",
        "100,000 fuzzed frames and streams: the node lives and serves an honest client",
        f"{found['sent']} sent, alive {found['alive']}, {found['honest_answers']} honest answers, "
        f"{found['honest_failures']} failed",
        found["sent"] >= 100_000 and found["alive"] and not found["honest_failures"],
        "python -m integration.fuzz",
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {
    "A2": a2_oracle,
    "A3": a3_failover,
    "A4": a4_soak,
    "A5": a5_records,
    "A6": a6_speed,
    "A7": a7_memory,
    "A8": a8_fuzz,
    "A1": a1_fresh_clone,  # last: it takes longest
}
