"""Bit for bit: a session's rows, whoever shares the pass, however its prompt is cut.

    python -m integration.engine_exact

The shipped model, every format of our C: the outputs of 640 positions, run alone at once on one
thread, against the same in chunks of 1, 7, 128 and 512, beside 15 other sessions of other lengths
in the same passes, on one thread and on two. What counts is that no byte differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch

from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.native.library import isas, use_isa
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.pages import Lease, Pool
from potluck.node.library import DEMO_FOLDER

TOKENS = 640
OTHERS = 15
CHUNKS = (1, 7, 128, 512, TOKENS)
FORMATS = ("none", "int8", "nf4")


class Run:
    """A stage of one format and so many threads."""

    def __init__(self, format: str, threads: int) -> None:
        checkpoint = open_checkpoint(DEMO_FOLDER)
        self.stage = NativeStage.load(
            checkpoint, 0, checkpoint.spec.blocks, quantization=format, threads=threads
        )
        self.pool = Pool(budget_bytes=1 << 30, page_bytes=self.stage.page_bytes)
        dice = torch.Generator().manual_seed(1)
        width = checkpoint.spec.hidden
        self.rows = torch.randn(OTHERS + 1, TOKENS, width, generator=dice)

    def alone(self, chunk: int) -> str:
        lease = self._lease()
        done = [
            self.stage.forward_rows(
                self.rows[0, at : at + chunk], [(lease, at, min(chunk, TOKENS - at))]
            )
            for at in range(0, TOKENS, chunk)
        ]
        lease.release()
        return _digest(torch.cat(done))

    def among(self, chunk: int) -> str:
        """Beside others, who are at other places and go on at other paces."""
        leases = [self._lease() for _ in range(OTHERS + 1)]
        places = [0] * (OTHERS + 1)
        done = []
        while places[0] < TOKENS:
            steps = []
            for index, lease in enumerate(leases):
                pace = chunk if index == 0 else 1 + (index * 13) % 40
                count = min(pace, TOKENS - places[index])
                if count:
                    steps.append((index, lease, places[index], count))
                    places[index] += count
            mine = next(count for index, _, _, count in steps if index == 0)
            steps = steps[1:] + steps[:1]  # nobody is always first
            rows = torch.cat([self.rows[i, at : at + count] for i, _, at, count in steps])
            out = self.stage.forward_rows(rows, [(lease, at, n) for _, lease, at, n in steps])
            done.append(out[len(out) - mine :])
        for lease in leases:
            lease.release()
        return _digest(torch.cat(done))

    def _lease(self) -> Lease:
        lease = self.pool.open(0, self.stage.stop, TOKENS)
        lease.reserve(0, TOKENS)
        return lease


def _digest(rows: torch.Tensor) -> str:
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()


def _variants(format: str) -> Iterator[tuple[str, str]]:
    for threads in (1, 2):
        run = Run(format, threads)
        for chunk in CHUNKS:
            yield f"alone, chunks of {chunk}, {threads} threads", run.alone(chunk)
        for chunk in (1, 7, 128):
            yield f"with {OTHERS} others, {chunk} a pass, {threads} threads", run.among(chunk)


def measure() -> dict[str, Any]:
    """For each format, how many variants there were and which of them differ."""
    told: dict[str, Any] = {"instruction_sets": list(isas())}
    for format in FORMATS:
        found = dict(_variants(format))
        best = isas()[0]
        for name in isas()[1:]:
            use_isa(name)
            found[f"alone, chunks of 128, {name}"] = Run(format, 1).alone(128)
        use_isa(best)
        expected = next(iter(found.values()))
        different = [what for what, digest in found.items() if digest != expected]
        told[format] = {"variants": len(found), "different": different, "sha256": expected}
    return told


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
