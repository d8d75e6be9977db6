"""How far the classes of numbers differ: `potluck bench numerics`.

A numerics class is what decides the bits of an answer: the format of the weights and the code that
multiplies them. Inside one of ours the bits are equal; between two they differ by what is measured
here, on the texts that the shipped model never read. What is compared is one block's *update* to
the residual stream (what comes out less what went in), for each token from the same input: the
stream itself would hide it (kernels.md, section 3).

    own      the class's own format in our C is the reference: how honest peers differ, and what
             pages of 8 bits (kv8) lose
    none     fp32 in our C is the reference: what the format costs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .checkpoint import Checkpoint, open_checkpoint
from .demo.corpus import read_corpus
from .head import Ends
from .native.library import why_not
from .native_stage import NativeStage
from .pages import Pool
from .stage import Stage
from .text import Text

WINDOW = 256
BYTE_PAGES = "kv8"  # keys and values in 8 bits: a class of its own
CLASSES = (
    ("none", "native", ""),
    ("none", "native", BYTE_PAGES),
    ("none", "torch", "fp32"),
    ("none", "torch", "bf16"),
    ("none", "torch", "fp16"),
    ("int8", "native", ""),
    ("int8", "native", BYTE_PAGES),
    ("int8", "torch", "fp32"),
    ("nf4", "native", ""),
    ("nf4", "native", BYTE_PAGES),
    ("nf4", "torch", "fp32"),
)

Run = Callable[[Tensor, int, int], Tensor]  # rows from position 0 on, through blocks start..stop


@dataclass(frozen=True, slots=True)
class Difference:
    """One class against a reference. Relative L2 of a block's update, over tokens and blocks.

    logits: median of the logits' relative L2; agree: share of tokens with the same best next one.
    """

    of: str
    reference: str
    median: float
    p99: float
    logits: float
    agree: float


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured. perplexity: by class."""

    tokens: int
    differences: tuple[Difference, ...]
    perplexity: dict[str, float]


def measure(source: str, *, windows: int = 10) -> Found:
    """Every class that this machine has, on held-out text. Raises UserError."""
    checkpoint = open_checkpoint(source)
    ends = Ends.load(checkpoint)
    ids = held_out(checkpoint, windows * WINDOW)
    blocks = checkpoint.spec.blocks
    runs = dict(_classes(checkpoint))
    first = next(iter(runs))
    inputs = list(inputs_of(runs[first], ends, ids, blocks))
    updates = {name: _updates(run, inputs, blocks) for name, run in runs.items()}
    logits = {name: _logits(run, ends, ids, blocks) for name, run in runs.items()}
    found = []
    for name in runs:
        own = next(other for other in runs if other.split()[0] == name.split()[0])
        for reference in dict.fromkeys((own, first)):
            if reference != name:
                apart = _relative(updates[name], updates[reference])
                found.append(
                    Difference(
                        name,
                        reference,
                        float(apart.median()),
                        float(apart.quantile(0.99)),
                        float(_relative(logits[name], logits[reference]).median()),
                        float(
                            (logits[name].argmax(1) == logits[reference].argmax(1)).float().mean()
                        ),
                    )
                )
    told = {name: perplexity_of(rows, ids) for name, rows in logits.items()}
    return Found(len(ids), tuple(found), told)


def held_out(checkpoint: Checkpoint, tokens: int) -> list[int]:
    """So many tokens of prose that the shipped model was not trained on."""
    text = Text.load(checkpoint)
    ids: list[int] = []
    for document in read_corpus():
        if document.held_out and document.kind == "prose":
            ids += text.encode(document.text)
            if len(ids) >= tokens:
                break
    return ids[:tokens]


def _classes(checkpoint: Checkpoint) -> Iterator[tuple[str, Run]]:
    blocks = checkpoint.spec.blocks
    for format, kind, variant in CLASSES:
        if kind == "torch":
            stage = Stage.load(
                checkpoint, 0, blocks, device="cpu", dtype=variant, quantization=format
            )
            yield f"{format} torch {variant}", of_torch(stage)
        elif why_not() is None:
            native = NativeStage.load(
                checkpoint, 0, blocks, quantization=format, byte_pages=variant == BYTE_PAGES
            )
            yield f"{format} ours {variant}".rstrip(), _of_native(native)


def of_torch(stage: Stage) -> Run:
    def run(hidden: Tensor, start: int, stop: int) -> Tensor:
        cache = stage.open_cache(start, stop, len(hidden))
        return stage.forward(hidden, cache, 0).float()

    return run


def _of_native(stage: NativeStage) -> Run:
    pages = stage.stop * (-(-WINDOW // 64) + 1)
    pool = Pool(budget_bytes=pages * (stage.page_bytes + (1 << 16)), page_bytes=stage.page_bytes)

    def run(hidden: Tensor, start: int, stop: int) -> Tensor:
        lease = pool.open(start, stop, len(hidden))
        lease.reserve(0, len(hidden))
        try:
            return stage.forward_rows(hidden.float(), [(lease, 0, len(hidden))])
        finally:
            lease.release()

    return run


def inputs_of(run: Run, ends: Ends, ids: list[int], blocks: int) -> Iterator[list[Tensor]]:
    """For each window, what goes into each block."""
    for at in range(0, len(ids), WINDOW):
        hidden = [ends.embed(ids[at : at + WINDOW])]
        for block in range(blocks - 1):
            hidden.append(run(hidden[-1], block, block + 1))
        yield hidden


def _updates(run: Run, inputs: list[list[Tensor]], blocks: int) -> Tensor:
    """(tokens of all windows and blocks, hidden)."""
    return torch.cat(
        [
            run(hidden[block], block, block + 1) - hidden[block]
            for hidden in inputs
            for block in range(blocks)
        ]
    )


def _logits(run: Run, ends: Ends, ids: list[int], blocks: int) -> Tensor:
    """(tokens, vocab)."""
    return torch.stack(
        [
            ends.logits(row)
            for at in range(0, len(ids), WINDOW)
            for row in run(ends.embed(ids[at : at + WINDOW]), 0, blocks)
        ]
    )


def perplexity_of(logits: Tensor, ids: list[int]) -> float:
    """As quant/perplexity.py defines it, from logits that are there."""
    following = torch.tensor(ids[1:])
    losses = torch.nn.functional.cross_entropy(logits[:-1].double(), following, reduction="none")
    inside = torch.arange(1, len(ids)) % WINDOW != 0  # the first of a window is not foreseen
    return float(losses[inside].mean().exp())


def _relative(one: Tensor, other: Tensor) -> Tensor:
    """For each row |one - other| / |other|."""
    apart: Tensor = (one - other).norm(dim=1) / other.norm(dim=1)
    return apart
