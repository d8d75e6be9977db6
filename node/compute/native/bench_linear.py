"""How fast matrix products are, beside torch's, and as a share of the memory's read bandwidth.

    python -m potluck.node.compute.native.bench_linear --shapes 2048x2048 --isas avx2 --threads 2

Every call reads another copy of the matrix, together more than any cache holds; the time is the
least of all calls, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import library
from .linear import Packed, Pool

COPIES_BYTES = 128 * 2**20
CALLS = {1: 300, 4: 200, 8: 120, 16: 80, 32: 60}
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENGINES = ("torch", "fbgemm")


def least_s(calls: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> float:
    """Seconds of the fastest call, in turn."""
    best = float("inf")
    for i in range(CALLS.get(len(x), 24)):
        call = calls[i % len(calls)]
        start = time.perf_counter()
        call(x)
        best = min(best, time.perf_counter() - start)
    return best


def packed(kind: str, n: int, k: int, pool: Pool) -> Packed:
    if kind == "int8":
        codes = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        return Packed("int8", codes, torch.rand(n) + 0.5, pool=pool)
    if kind == "nf4":
        codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
        return Packed("nf4", codes, torch.rand(n, k // 64) + 0.5, pool=pool)
    return Packed("none", torch.randn(n, k).to(STORED[kind]), pool=pool)


def calls_of(kind: str, n: int, k: int, pool: Pool) -> tuple[list[Callable[[Tensor], Tensor]], int]:
    """Calls over copies of one matrix, and the bytes of a copy."""
    if kind == "torch":
        size = 4 * n * k
        weights = [torch.randn(n, k) for _ in range(max(2, COPIES_BYTES // size))]
        return [lambda x, w=w: torch.nn.functional.linear(x, w) for w in weights], size  # type: ignore[misc]
    if kind == "fbgemm":
        size = n * k
        weight = torch.quantize_per_tensor(torch.randn(n, k), 0.02, 0, torch.qint8)
        pack, multiply = torch.ops.quantized.linear_prepack, torch.ops.quantized.linear_dynamic
        packs = [pack(weight, None) for _ in range(max(2, COPIES_BYTES // size))]
        return [lambda x, w=w: multiply(x, w) for w in packs], size  # type: ignore[misc]
    first = packed(kind, n, k, pool)
    more = max(1, COPIES_BYTES // first.nbytes - 1)
    matrices = [first, *(packed(kind, n, k, pool) for _ in range(more))]
    return [lambda x, m=m: m.multiply(x, pool) for m in matrices], first.nbytes  # type: ignore[misc]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--shapes", nargs="+", default=["2048x2048", "4096x4096", "5632x2048"])
    options.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 16, 32, 128])
    options.add_argument("--kinds", nargs="+", default=["int8", "nf4", "bf16", "fp32", *ENGINES])
    options.add_argument("--isas", nargs="+", default=[library.isa()])
    options.add_argument("--threads", type=int, default=2)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    pool = Pool(asked.threads)
    bandwidth = library.read_bandwidth(asked.threads)
    print(f"{asked.threads} threads, reading at {bandwidth / 1e9:.1f} GB/s")
    print("shape kind isa | us, share of bandwidth, products a second (10^9), times batch 1")
    for shape in asked.shapes:
        n, k = map(int, shape.split("x"))
        for kind in asked.kinds:
            calls, size = calls_of(kind, n, k, pool)
            for isa in [kind] if kind in ENGINES else asked.isas:
                if kind not in ENGINES:
                    library.use_isa(isa)
                line, first = [], 0.0
                for batch in asked.batches:
                    taken = least_s(calls, torch.randn(batch, k))
                    first = first or taken / batch
                    line.append(
                        f"b{batch}: {taken * 1e6:.0f} us {size / taken / bandwidth:.0%} "
                        f"{batch * n * k / taken / 1e9:.0f} x{first * batch / taken:.1f}"
                    )
                print(f"{shape} {kind} {isa} |", " | ".join(line), flush=True)


if __name__ == "__main__":
    main()
