"""Bit for bit: a session's rows, whoever shares the pass, however its prompt is cut.

    python -m integration.engine_exact

The shipped model, every class of a processor's numbers: the outputs of 640 positions, run alone at
once on one thread, against the same in chunks of 1, 7, 128 and 512, beside 15 other sessions of
other lengths, on one thread and on two. What counts is that no byte differs.

Ours in C promise all of that. The stages of torch, which serve where no compiler was and for models
of other families, do not: their class names the threads, and a server runs a session's steps by
themselves and replays them in their own sizes. So there each cut is compared with itself: alone,
with steps of 15 others in between, and replayed. How far two cuts are apart is told beside it.

In tiles (`--engine tiled`) torch promises as much as our C, for one number of threads.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.native.library import isas, use_isa
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.pages import Lease, Pages, Pool, pages_for
from potluck.node.compute.spill import Budget
from potluck.node.compute.stage import Stage
from potluck.node.compute.tiled_stage import TiledStage
from potluck.node.library import DEMO_FOLDER
from tests.test_general import save as save_general

TOKENS = 640
OTHERS = 15
CHUNKS = (1, 7, 128, 512, TOKENS)
TILED_CHUNKS = (7, 128, TOKENS)  # fewer: tiles of few rows take long on a processor
FORMATS = ("none", "int8", "nf4")
STEPS_MAX = 24  # of torch's stages, which take milliseconds for each
GENERAL = "gpt_neox"  # a family that transformers' own layers compute


class Run:
    """A stage that takes rows of many sessions in one pass."""

    def __init__(self, stage: NativeStage | TiledStage, pool: Pages) -> None:
        self.stage = stage
        self.pool = pool
        self.rows = _rows(stage.spec.hidden)

    @classmethod
    def native(cls, format: str, threads: int, *, byte_pages: bool = False) -> Run:
        """Our C, on so many threads."""
        checkpoint = open_checkpoint(DEMO_FOLDER)
        stage = NativeStage.load(
            checkpoint,
            0,
            checkpoint.spec.blocks,
            quantization=format,
            threads=threads,
            byte_pages=byte_pages,
        )
        return cls(stage, Pool(budget_bytes=1 << 30, page_bytes=stage.page_bytes))

    @classmethod
    def tiled(cls, format: str) -> Run:
        """torch, in tiles, on as many threads as it has."""
        checkpoint = open_checkpoint(DEMO_FOLDER)
        blocks = checkpoint.spec.blocks
        stage = TiledStage.of(Stage.load(checkpoint, 0, blocks, device="cpu", quantization=format))
        if isinstance(stage, str):
            raise RuntimeError(f"no tiles for {format}: {stage}")
        pages = (OTHERS + 1) * pages_for(TOKENS) * blocks
        return cls(stage, stage.pool(Budget(pages * stage.page_bytes)))

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
                pace = chunk if index == 0 else _pace(index)
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


class TorchRun:
    """A stage of torch, on as many threads as it has."""

    def __init__(self, checkpoint: Checkpoint, format: str) -> None:
        self.stage = Stage.load(
            checkpoint, 0, checkpoint.spec.blocks, device="cpu", quantization=format
        )
        self.rows = _rows(checkpoint.spec.hidden)

    def alone(self, chunk: int) -> torch.Tensor:
        cache = self._cache()
        return torch.cat([self._step(0, cache, at, n) for at, n in self._steps(chunk)])

    def among(self, chunk: int) -> torch.Tensor:
        """Between two steps some of the others have theirs."""
        mine, *others = (self._cache() for _ in range(OTHERS + 1))
        turn = itertools.cycle(enumerate(others, start=1))
        done = []
        for at, count in self._steps(chunk):
            for index, cache in itertools.islice(turn, min(OTHERS, 2 * chunk)):
                if pace := min(_pace(index), TOKENS - cache.length):
                    self._step(index, cache, cache.length, pace)
            done.append(self._step(0, mine, at, count))
        return torch.cat(done)

    def replayed(self, chunk: int) -> torch.Tensor:
        """As a server that takes over from another repeats what it did."""
        sizes = [count for _, count in self._steps(chunk)]
        return self.stage.forward_steps(self.rows[0, : sum(sizes)], self._cache(), 0, sizes)

    def _steps(self, chunk: int) -> list[tuple[int, int]]:
        places = range(0, TOKENS, chunk)[:STEPS_MAX]
        return [(at, min(chunk, TOKENS - at)) for at in places]

    def _step(self, index: int, cache: Any, at: int, count: int) -> torch.Tensor:
        return self.stage.forward(self.rows[index, at : at + count], cache, at)

    def _cache(self) -> Any:
        return self.stage.open_cache(0, self.stage.stop, TOKENS)


def _rows(width: int) -> torch.Tensor:
    dice = torch.Generator().manual_seed(1)
    return torch.randn(OTHERS + 1, TOKENS, width, generator=dice)


def _pace(index: int) -> int:
    """Of the others, rows a step."""
    return 1 + (index * 13) % 40


def _digest(rows: torch.Tensor) -> str:
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()


def _variants(format: str, byte_pages: bool) -> Iterator[tuple[str, str]]:
    for threads in (1, 2):
        run = Run.native(format, threads, byte_pages=byte_pages)
        for chunk in CHUNKS:
            yield f"alone, chunks of {chunk}, {threads} threads", run.alone(chunk)
        for chunk in (1, 7, 128, 512):
            yield f"with {OTHERS} others, {chunk} a pass, {threads} threads", run.among(chunk)
    best = isas()[0]
    for name in isas()[1:]:
        use_isa(name)
        yield f"alone, chunks of 128, {name}", run.alone(128)
    use_isa(best)


def measure() -> Iterator[tuple[str, dict[str, Any]]]:
    """For each class of ours, how many variants there were and which of them differ."""
    for format, byte_pages in itertools.product(FORMATS, (False, True)):
        found = dict(_variants(format, byte_pages))
        expected = next(iter(found.values()))
        different = [what for what, digest in found.items() if digest != expected]
        name = Run.native(format, 1, byte_pages=byte_pages).stage.numerics
        yield name, {"variants": len(found), "different": different, "sha256": expected}


def measure_tiled() -> Iterator[tuple[str, dict[str, Any]]]:
    """As `measure`, of torch in tiles; each number of threads is a class of its own."""
    threads_before = torch.get_num_threads()
    for format, threads in itertools.product(FORMATS, (1, 2)):
        torch.set_num_threads(threads)
        run = Run.tiled(format)
        found = {f"alone, chunks of {chunk}": run.alone(chunk) for chunk in TILED_CHUNKS}
        found[f"with {OTHERS} others, 128 a pass"] = run.among(128)
        expected = next(iter(found.values()))
        different = [what for what, digest in found.items() if digest != expected]
        name = run.stage.numerics
        yield name, {"variants": len(found), "different": different, "sha256": expected}
    torch.set_num_threads(threads_before)


def measure_torch() -> Iterator[tuple[str, dict[str, Any]]]:
    """For each class of torch's: of which cuts alone, among others and replayed differ, and how far
    two cuts or numbers of threads are apart (relative L2, the largest)."""
    threads_before = torch.get_num_threads()
    demo = open_checkpoint(DEMO_FOLDER)
    for format in FORMATS:
        yield f"torch {format}", _torch_class(demo, format)
    with tempfile.TemporaryDirectory(prefix="potluck-exact-") as folder:
        save_general(Path(folder), GENERAL, max_position_embeddings=TOKENS)
        general = open_checkpoint(Path(folder))
        yield f"transformers' layers ({GENERAL})", _torch_class(general, "none")
    torch.set_num_threads(threads_before)


def _torch_class(checkpoint: Checkpoint, format: str) -> dict[str, Any]:
    different, apart, variants = [], 0.0, 0
    whole = None
    for threads in (1, 2):
        torch.set_num_threads(threads)
        run = TorchRun(checkpoint, format)
        for chunk in CHUNKS:
            alone = run.alone(chunk)
            whole = run.alone(TOKENS) if whole is None else whole
            same = whole[: len(alone)]
            apart = max(apart, float((alone - same).norm() / same.norm()))
            for how, found in (("among", run.among(chunk)), ("replayed", run.replayed(chunk))):
                variants += 1
                if not torch.equal(found, alone):
                    different.append(f"{how}, chunks of {chunk}, {threads} threads")
    return {"variants": variants, "different": different, "cuts_apart": apart}


if __name__ == "__main__":
    print(json.dumps({"instruction_sets": isas()}))
    for name, told in itertools.chain(measure(), measure_tiled(), measure_torch()):
        print(json.dumps({name: told}), flush=True)
