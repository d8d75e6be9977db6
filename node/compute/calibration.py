"""How far honest peers are apart: what an audit's limits are made from (`potluck calibrate`).

A server answers windows of held-out text in every way that it may come to do so: one prompt, a
prompt and then token by token, steps of odd sizes, beside other sessions, on one thread or two. An
auditor computes the same spans from the same rows, in the same steps or as one prompt. Each 32
tokens of each span are one audit, as swarm/audit.py judges it:

    error of a token   |gave - again| / |again - took|, as compute/compare.py has it
    limit of a pair    twice what 999 of 1000 honest audits need, for each length of span

Kinds are what limits are kept for (trust/limits.py): our C, and torch by its dtype, in one format
of weights. Between two formats nothing is compared: their difference is no honest peer's. Of a pair
whose every audit gave equal bits nothing is told: its limit is 0, as the rule has it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ...errors import UserError
from ...swarm.audit import judge, limit_from
from ...swarm.receipt import CHUNK_TOKENS
from ...swarm.tolerance import EXACT
from .checkpoint import Checkpoint
from .compare import apart
from .head import Ends
from .native.library import why_not
from .native_stage import KERNELS, NativeStage
from .numerics import WINDOW, inputs_of
from .pages import Lease, Pool
from .stage import Stage
from .tensor import TAGS

PROMPT = 64  # tokens of a window; the rest is decoded one by one
OTHERS = 3  # sessions that share a pass
POSITIONS = 4  # of a length of span, at which it is measured
FORMATS = ("none", "int8", "nf4")
DTYPES = {"none": ("fp32", "bf16", "fp16"), "int8": ("fp32", "bf16"), "nf4": ("fp32", "bf16")}
THREADS = (1, 2)
POOL_BYTES = 1 << 28

Spans = tuple[int, int]  # start, stop
Serve = Callable[[Tensor, int, int], Tensor]  # rows from position 0 on, through these blocks


class Ours:
    """Our C in one format: any steps, alone or among other sessions."""

    def __init__(
        self, checkpoint: Checkpoint, format: str, threads: int = 1, *, byte_pages: bool = False
    ) -> None:
        blocks = checkpoint.spec.blocks
        self.kind = f"{format} {KERNELS}{' kv8' if byte_pages else ''}"
        self._stage = NativeStage.load(
            checkpoint, 0, blocks, quantization=format, threads=threads, byte_pages=byte_pages
        )
        self._pool = Pool(budget_bytes=POOL_BYTES, page_bytes=self._stage.page_bytes)

    def run(
        self, hidden: Tensor, start: int, stop: int, sizes: Sequence[int], others: int = 0
    ) -> Tensor:
        """In steps of these sizes; `others` sessions with rows of their own go through beside."""
        leases = [self._lease(start, stop, len(hidden)) for _ in range(others + 1)]
        done, at = [], 0
        for size in sizes:
            rows = [hidden[at : at + size] * (1 + 0.1 * number) for number in range(others + 1)]
            out = self._stage.forward_rows(
                torch.cat(rows).float(), [(lease, at, size) for lease in leases]
            )
            done.append(out[:size])
            at += size
        for lease in leases:
            lease.release()
        return torch.cat(done)

    def _lease(self, start: int, stop: int, tokens: int) -> Lease:
        lease = self._pool.open(start, stop, tokens)
        lease.reserve(0, tokens)
        return lease


class Theirs:
    """Torch in one format and dtype, on so many threads."""

    def __init__(self, checkpoint: Checkpoint, format: str, dtype: str, threads: int = 1) -> None:
        self.kind = f"{format} torch {dtype}"
        self._threads = threads
        self._stage = Stage.load(
            checkpoint, 0, checkpoint.spec.blocks, device="cpu", dtype=dtype, quantization=format
        )

    def run(self, hidden: Tensor, start: int, stop: int, sizes: Sequence[int]) -> Tensor:
        cache = self._stage.open_cache(start, stop, len(hidden))
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return self._stage.forward_steps(hidden, cache, 0, sizes).float()
        finally:
            torch.set_num_threads(before)


def prompt_sizes(tokens: int) -> list[int]:
    return [tokens]


def decode_sizes(tokens: int) -> list[int]:
    return [PROMPT, *[1] * (tokens - PROMPT)]


def odd_sizes(tokens: int) -> list[int]:
    sizes: list[int] = []
    while sum(sizes) < tokens:
        sizes.append(min(1 + 7 * len(sizes) % 40, tokens - sum(sizes)))
    return sizes


def among_sizes(tokens: int) -> list[int]:
    return [PROMPT, *[4] * ((tokens - PROMPT) // 4)]


WAYS: dict[str, Callable[[int], list[int]]] = {
    "prompt": prompt_sizes,
    "decode": decode_sizes,
    "odd": odd_sizes,
}


def spans_of(blocks: int) -> list[Spans]:
    """Of 1, 2, 4, ... blocks and of all: of each length POSITIONS, from the first to the last."""
    lengths = {min(1 << power, blocks) for power in range(blocks.bit_length() + 1)}
    return sorted(
        {
            (start, start + length)
            for length in lengths
            for start in (
                place * (blocks - length) // (POSITIONS - 1) for place in range(POSITIONS)
            )
        }
    )


def chunks_of(took: Tensor, gave: Tensor, again: Tensor) -> Iterator[list[float]]:
    """The tokens' errors, a chunk at a time."""
    for part in torch.split(apart(took, gave, again), CHUNK_TOKENS):
        yield part.tolist()


@dataclass(slots=True)
class Pair:
    """Two kinds of one format, and the chunks that were compared, by the span's length. wire: the
    dtype to which what they gave was rounded on its way."""

    one: str
    other: str
    wire: str = "f32"
    chunks: dict[int, list[list[float]]] = field(default_factory=lambda: defaultdict(list))

    def spreads(self) -> list[Spread]:
        """Of each length, the shortest first."""
        return [self._spread(blocks) for blocks in sorted(self.chunks)]

    def _spread(self, blocks: int) -> Spread:
        chunks = self.chunks[blocks]
        told = [judge(chunk, EXACT) for chunk in chunks]
        medians = sorted(one.median for one in told)
        worst, middle = max(one.worst for one in told), medians[len(medians) // 2]
        return Spread(
            self.one, self.other, blocks, len(told), middle, medians[-1], worst, limit_from(chunks)
        )


@dataclass(frozen=True, slots=True)
class Spread:
    """How far a pair was apart in so many audits of so many blocks. median, most: of the audits'
    medians; worst: of all tokens."""

    one: str
    other: str
    blocks: int
    audits: int
    median: float
    most: float
    worst: float
    limit: float


def calibrate(
    checkpoint: Checkpoint,
    ids: Sequence[int],
    *,
    formats: Sequence[str] = FORMATS,
    wire: str = "f32",
    tell: Callable[[str], None] = lambda kind: None,
) -> list[Spread]:
    """Every pair of kinds that this machine has, on the whole windows of these tokens; of each a
    spread for each length of span.

    wire: in which dtype rows go to and fro. tell: takes each kind before it is run. Blocks for
    minutes. Raises UserError.
    """
    ids = list(ids[: len(ids) // WINDOW * WINDOW])
    if checkpoint.spec.context < WINDOW or not ids:
        raise UserError(
            f"{checkpoint.name} reads {checkpoint.spec.context} tokens, and calibrating takes "
            f"{WINDOW} and a text of as many: have it audited by peers of its own class"
        )
    blocks = checkpoint.spec.blocks
    found: list[Spread] = []
    rows = list(inputs_of(_reference(checkpoint), Ends.load(checkpoint), ids, blocks))
    for format in formats:
        given: dict[str, list[Given]] = {}
        for kind, serve in _served(checkpoint, format):
            tell(kind)
            given.setdefault(kind, []).append(serve(rows, spans_of(blocks)))
        for index, one in enumerate(given):
            for other in list(given)[index:]:
                pair = Pair(one, other, wire)
                _compare(pair, given[one], given[other], rows)
                found += pair.spreads()
    return found


Given = dict[tuple[str, int, Spans], Tensor]  # by way, window and span


def _reference(checkpoint: Checkpoint) -> Serve:
    """Which rows go into each block: of any engine, as each audit begins from the rows it has."""
    if why_not() is None:
        ours = Ours(checkpoint, "none")
        return lambda hidden, start, stop: ours.run(hidden, start, stop, [len(hidden)])
    theirs = Theirs(checkpoint, "none", "fp32")
    return lambda hidden, start, stop: theirs.run(hidden, start, stop, [len(hidden)])


def _served(
    checkpoint: Checkpoint, format: str
) -> Iterator[tuple[str, Callable[[list[list[Tensor]], list[Spans]], Given]]]:
    """Each kind and number of threads, loaded when it is its turn."""
    if why_not() is None:
        for byte_pages in (False, True):
            for threads in THREADS:
                ours = Ours(checkpoint, format, threads, byte_pages=byte_pages)
                yield ours.kind, partial(_serve_ours, ours)
    for dtype in DTYPES[format]:
        for threads in THREADS:
            theirs = Theirs(checkpoint, format, dtype, threads)
            yield theirs.kind, partial(_serve, theirs.run)


def _serve(
    run: Callable[[Tensor, int, int, list[int]], Tensor],
    rows: list[list[Tensor]],
    spans: list[Spans],
) -> Given:
    return {
        (way, window, span): run(hidden[span[0]], *span, sizes(len(hidden[0])))
        for window, hidden in enumerate(rows)
        for span in spans
        for way, sizes in WAYS.items()
    }


def _serve_ours(ours: Ours, rows: list[list[Tensor]], spans: list[Spans]) -> Given:
    """And beside other sessions, which torch's engines never do in one product."""
    among = {
        ("among", window, span): ours.run(
            hidden[span[0]], *span, among_sizes(len(hidden[0])), OTHERS
        )
        for window, hidden in enumerate(rows)
        for span in spans
    }
    return _serve(ours.run, rows, spans) | among


def _compare(pair: Pair, one: list[Given], other: list[Given], rows: list[list[Tensor]]) -> None:
    """Each answer of the one against each of the other: in the same steps, or as one prompt."""
    turns = [(one, other)] if pair.one == pair.other else [(one, other), (other, one)]
    for servers, auditors in turns:
        for served in servers:
            for (way, window, span), gave in served.items():
                for audited in auditors:
                    for again_way in {way, "prompt"} & {key[0] for key in audited}:
                        if served is audited and way == again_way:
                            continue
                        took, again = rows[window][span[0]], audited[again_way, window, span]
                        lay = (one.to(TAGS[pair.wire]).float() for one in (took, gave, again))
                        pair.chunks[span[1] - span[0]] += chunks_of(*lay)
