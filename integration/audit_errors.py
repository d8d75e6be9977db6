"""How far honest peers are apart, and how far cheats are: what an audit's limit can be.

    python -m integration.audit_errors [--model demo|tiny] [--windows 8] [--plot errors.png]

A server answers windows of 256 held-out tokens; an auditor computes the same spans again from the
same rows, as one prompt. For each chunk of 32 tokens and each span there is one audit: the median
over tokens of |gave - again| / |again - took|, as swarm/audit.py judges it.

    same     the server's own class. Ours: in steps of one token behind a prompt, or of odd sizes,
             beside other sessions, on one and two threads, on each instruction set: exactly 0
    torch    a class of torch's against itself: token by token against one prompt
    other    the auditor is of another class, of the same format
    cheats   what the server did instead: nf4 or int8 weights for what it says, a block of its
             span left out, random rows of the right size, the answer to another chunk

Limits are twice what 99.9 % of the honest chunks need (audit.limit_from), for each format, pair of
classes and length of span: of the first half of the windows, so that false convictions are counted
on chunks that no limit was made from. A cheat is caught where the rule says wrong.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potluck.node.compute.calibration import (
    FORMATS,
    OTHERS,
    Ours,
    Theirs,
    among_sizes,
    chunks_of,
    decode_sizes,
    odd_sizes,
    prompt_sizes,
    spans_of,
)
from potluck.node.compute.checkpoint import Checkpoint, open_checkpoint
from potluck.node.compute.demo.corpus import read_corpus
from potluck.node.compute.head import Ends
from potluck.node.compute.native.library import isas, use_isa
from potluck.node.compute.shapes import write_random
from potluck.node.compute.text import Text
from potluck.node.library import DEMO_FOLDER
from potluck.swarm.audit import judge, limit_from
from potluck.swarm.receipt import CHUNK_TOKENS
from potluck.swarm.tolerance import EXACT, Tolerance

WINDOW = 256
CHEATS = ("nf4 weights", "int8 weights", "a block left out", "random rows", "another chunk's rows")

Run = Callable[[Tensor, int, int], Tensor]  # rows from position 0 on, through blocks start..stop


def of_torch(checkpoint: Checkpoint, format: str, dtype: str, *, decode: bool) -> Run:
    stage = Theirs(checkpoint, format, dtype)
    return serving(stage.run, decode_sizes if decode else prompt_sizes)


def serving(
    run: Callable[[Tensor, int, int, list[int]], Tensor], sizes: Callable[[int], list[int]]
) -> Run:
    """In steps of these sizes."""
    return lambda hidden, start, stop: run(hidden, start, stop, sizes(len(hidden)))


@dataclass
class Pile:
    """Chunks of one kind: their medians and worst tokens, and the errors for the rule."""

    chunks: list[list[float]] = field(default_factory=list)

    def add(self, took: Tensor, gave: Tensor, again: Tensor) -> None:
        self.chunks += chunks_of(took, gave, again)

    @property
    def medians(self) -> list[float]:
        return [judge(chunk, EXACT).median for chunk in self.chunks]

    def limit(self) -> float:
        """Of its first half: the chunks lie in the order of the windows."""
        return limit_from(self.chunks[: len(self.chunks) // 2])

    def wrong(self, limit: float, first: int = 0) -> int:
        """How many, from chunk number `first` on, the rule calls wrong."""
        tolerance = Tolerance(limit)
        return sum(judge(chunk, tolerance).verdict == "wrong" for chunk in self.chunks[first:])


def windows_of(checkpoint: Checkpoint, count: int, model: str) -> list[list[int]]:
    """Held-out prose; of a random model, random tokens."""
    if model == "tiny":
        dice = torch.Generator().manual_seed(1)
        ids = torch.randint(3, checkpoint.spec.vocab, (count, WINDOW), generator=dice)
        return [row.tolist() for row in ids]
    text = Text.load(checkpoint)
    held_out = [one.text for one in read_corpus() if one.held_out and one.kind == "prose"]
    found: list[int] = []
    for document in held_out:
        found += text.encode(document)
    assert len(found) >= count * WINDOW, f"{len(found) // WINDOW} windows are there"
    return [found[at : at + WINDOW] for at in range(0, count * WINDOW, WINDOW)]


Kind = tuple[str, str, int]  # format, what, blocks of the span


def measure_exact(checkpoint: Checkpoint, windows: list[list[int]]) -> dict[Kind, Pile]:
    """Ours against ours: every way of serving against one prompt on one thread."""
    piles: dict[Kind, Pile] = defaultdict(Pile)
    ends = Ends.load(checkpoint)
    best = isas()[0]
    for format in FORMATS:
        one, two = Ours(checkpoint, format), Ours(checkpoint, format, 2)
        prompt = serving(one.run, prompt_sizes)
        ways: list[tuple[str, Run]] = [
            ("decoded", serving(one.run, decode_sizes)),
            ("odd steps", serving(one.run, odd_sizes)),
            ("among others, 2 threads", serving(partial(two.run, others=OTHERS), among_sizes)),
        ]
        for ids in windows:
            for (start, stop), took in _inputs(prompt, ends, ids, checkpoint.spec.blocks):
                again = prompt(took, start, stop)
                for what, run in ways:
                    piles[format, f"same: {what}", stop - start].add(
                        took, run(took, start, stop), again
                    )
        for name in isas()[1:]:
            use_isa(name)
            decode = serving(Ours(checkpoint, format).run, decode_sizes)
            given = {
                (index, span): decode(took, *span)
                for index, ids in enumerate(windows[:1])
                for span, took in _inputs(prompt, ends, ids, checkpoint.spec.blocks)
            }
            use_isa(best)
            for index, ids in enumerate(windows[:1]):
                for span, took in _inputs(prompt, ends, ids, checkpoint.spec.blocks):
                    piles[format, f"same: {name}", span[1] - span[0]].add(
                        took, given[index, span], prompt(took, *span)
                    )
    return piles


def measure_apart(checkpoint: Checkpoint, windows: list[list[int]]) -> dict[Kind, Pile]:
    """Between classes, and cheats."""
    piles: dict[Kind, Pile] = defaultdict(Pile)
    ends = Ends.load(checkpoint)
    blocks = checkpoint.spec.blocks
    ours = {format: serving(Ours(checkpoint, format).run, prompt_sizes) for format in FORMATS}
    dice = torch.Generator().manual_seed(2)
    for format in FORMATS:
        mine = ours[format]
        dtypes = ("fp32", "bf16", "fp16") if format == "none" else ("fp32", "bf16")
        prompts = {kind: of_torch(checkpoint, format, kind, decode=False) for kind in dtypes}
        decodes = {kind: of_torch(checkpoint, format, kind, decode=True) for kind in dtypes}
        for ids in windows:
            last: Tensor | None = None
            for (start, stop), took in _inputs(mine, ends, ids, blocks):
                length = stop - start
                again = mine(took, start, stop)
                for kind in dtypes:
                    there = prompts[kind](took, start, stop)
                    piles[format, f"other: torch {kind}", length].add(took, there, again)
                    piles[format, f"torch {kind} itself", length].add(
                        took, decodes[kind](took, start, stop), there
                    )
                for what, gave in _cheats(ours, format, took, start, stop, last, dice):
                    piles[format, f"cheat: {what}", length].add(took, gave, again)
                last = again if length == 1 else last
    return piles


def _cheats(
    ours: dict[str, Run], format: str, took: Tensor, start: int, stop: int,
    last: Tensor | None, dice: torch.Generator,
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """What the server gave instead. last: what it gave for another span of this window."""
    honest = ours[format](took, start, stop)
    for other in ("nf4", "int8"):
        if other != format and not (format == "nf4" and other == "int8"):
            yield f"{other} weights", ours[other](took, start, stop)
    left_out = (start + stop) // 2
    before = ours[format](took, start, left_out) if left_out > start else took
    after = ours[format](before, left_out + 1, stop) if left_out + 1 < stop else before
    yield "a block left out", after
    noise = torch.randn(honest.shape, generator=dice)
    yield "random rows", noise * honest.std()
    yield "another chunk's rows", honest.roll(CHUNK_TOKENS, 0)


def _inputs(
    run: Run, ends: Ends, ids: list[int], blocks: int
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Each span, and what goes into it."""
    hidden = [ends.embed(ids)]
    for block in range(blocks - 1):
        hidden.append(run(hidden[-1], block, block + 1))
    for start, stop in spans_of(blocks):
        yield (start, stop), hidden[start]


def told(piles: dict[Kind, Pile]) -> list[dict[str, Any]]:
    """A row for each pile; limits are of the honest pair named with them."""
    limits: dict[tuple[str, int, str], float] = {}
    for (format, what, length), pile in piles.items():
        if what.startswith(("other: ", "torch ")):
            limits[format, length, what] = pile.limit()
    rows = []
    for (format, what, length), pile in sorted(piles.items()):
        medians = sorted(pile.medians)
        worst = max(max(chunk) for chunk in pile.chunks)
        row: dict[str, Any] = {
            "format": format,
            "what": what,
            "blocks": length,
            "audits": len(medians),
            "least": medians[0],
            "median": medians[len(medians) // 2],
            "most": medians[-1],
            "worst_token": worst,
        }
        if what.startswith("cheat: "):
            row["caught"] = {"own class": pile.wrong(0.0) / len(medians)}
            for (of, blocks, pair), limit in limits.items():
                if (of, blocks) == (format, length):
                    row["caught"][pair] = pile.wrong(limit) / len(medians)
        else:
            limit = limits.get((format, length, what))
            tested = 0 if limit is None else len(medians) // 2
            row["limit"] = limit or 0.0
            row["tested"] = len(medians) - tested
            row["falsely_convicted"] = pile.wrong(limit or 0.0, tested)
        rows.append(row)
    return rows


def plot(piles: dict[Kind, Pile], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(FORMATS), 1, figsize=(12, 9), sharex=True, layout="constrained"
    )
    kinds = sorted({_kind(what) for _, what, _ in piles})
    colours = {kind: f"C{number}" for number, kind in enumerate(kinds)}
    bins = torch.logspace(-8, 1, 91).tolist()
    for format, axis in zip(FORMATS, axes, strict=True):
        merged: dict[str, list[float]] = defaultdict(list)
        for (of, what, _), pile in piles.items():
            if of == format:
                merged[_kind(what)] += pile.medians
        for kind, medians in sorted(merged.items()):
            shown = [max(median, 1.1e-8) for median in medians]
            axis.hist(
                shown,
                bins=bins,
                weights=[1 / len(shown)] * len(shown),
                label=kind,
                color=colours[kind],
                histtype="stepfilled" if kind.startswith("cheat") else "step",
                alpha=0.6,
            )
        axis.set_xscale("log")
        axis.set_ylabel(f"{format}: share of audits")
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1].set_xlabel("median over 32 tokens of |gave - again| / |again - took|; 0 at the left")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _kind(what: str) -> str:
    return "same class, ours" if what.startswith("same") else what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("demo", "tiny"), default="demo")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--part", choices=("all", "exact", "apart"), default="all")
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = str(DEMO_FOLDER)
        if asked.model == "tiny":
            source = folder
            write_random(Path(folder), "tiny")
        checkpoint = open_checkpoint(source)
        windows = windows_of(checkpoint, asked.windows, asked.model)
        piles: dict[Kind, Pile] = {}
        if asked.part != "apart":
            piles |= measure_exact(checkpoint, windows)
        if asked.part != "exact":
            piles |= measure_apart(checkpoint, windows)
    print(json.dumps(told(piles), indent=1))
    if asked.plot is not None:
        plot(piles, asked.plot, f"{asked.model}, {asked.windows} windows of {WINDOW} tokens")


if __name__ == "__main__":
    main()
