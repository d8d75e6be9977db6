"""A span that is trained through: hidden states forward, gradients back, nothing remembered.

    forward    hidden ──▶ block ─ ... ─ block ──▶ hidden
    backward   hidden ──▶ block ─ ... ─ block ──┐   once more, and what autograd needs is kept
               grad ◀──── block ◀ ... ◀ block ◀─┴─ grad

Backward starts from the same hidden states as forward did, so any peer that serves the blocks may
do it, and none need hold anything of a client's between two requests. Whoever has memory to spare
keeps what forward made (recall.py), and its backward has the same bits. A batch goes through in
slices, a few sequences through one block each: between two of them the device is free for others
(worker.py), and of a few sequences alone is computed anew what backward needs: all of it, or where
that is much each block's input, from which the block is computed a second time. Deep prompts are
added to the first positions of each block's input, as Petals' are.

Source: Petals, `rpc_backward` (Borzunov et al., 2023); T. Chen et al., 2016, for computing twice;
X. Liu et al., P-Tuning v2, for the prompts.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...crypto.digest import digest
from ...errors import RemoteError, UserError
from ...swarm.blocks import BlockRange
from ...swarm.microbatch import FP32_BYTES
from ...swarm.wire import Train
from .checkpoint import Checkpoint
from .frozen import FrozenBlock, Leaf
from .layout import layout_of
from .lesson import Dressed, Kept, Lesson, Passed, Shape, request_bytes, shape_of, wanted
from .loading import Loader, block_bytes
from .memory import require_memory
from .parts import pairs_of
from .quant.formats import choose
from .rope import Ropes
from .spec import ModelSpec
from .tensor import TAGS, pack, payload_bytes, unpack

SLICE_ROWS = 64  # guess: fewer turn weights back too often, more keep others waiting
GRAPH_BYTES_MAX = 64 << 20  # guess: beyond, blocks are computed twice
RECALLED = "train recall"  # domain of names: nothing but this process sees them
WIDENED = 2  # an adapter may come in half precision; its gradients are fp32


class Gradients:
    """Blocks start..stop, frozen."""

    def __init__(
        self, spec: ModelSpec, start: int, blocks: Sequence[FrozenBlock], device: torch.device
    ) -> None:
        self.blocks = BlockRange(start, start + len(blocks))
        self.width = spec.hidden
        self._spec = spec
        self._blocks = blocks
        self._device = device
        self._ropes = Ropes(spec)

    @staticmethod
    def load(
        checkpoint: Checkpoint,
        blocks: BlockRange,
        *,
        quantization: str | None = None,
        device: torch.device | None = None,
        cache_dir: Path | None = None,
    ) -> Gradients:
        """On a processor the weights stay in their files, mapped. Raises UserError."""
        spec, place = checkpoint.spec, device or torch.device("cpu")
        if spec.general is not None:
            raise UserError(f"models of {spec.family} are served here without gradients")
        coding = choose(quantization, checkpoint.stored_format)
        layouts = {index: layout_of(spec, index) for index in range(blocks.start, blocks.stop)}
        if place.type != "cpu":
            needed = sum(block_bytes(one, coding, torch.float32) for one in layouts.values())
            require_memory(needed, place, f"{checkpoint.name}: gradients of blocks {blocks}")
        loader = Loader(checkpoint, coding, cache_dir)
        found = [
            FrozenBlock(spec, index, layout, loader.block(index), place)
            for index, layout in layouts.items()
        ]
        return Gradients(spec, blocks.start, found, place)

    def dress(self, name: str, parts: Mapping[int, bytes]) -> Dressed:
        """An adapter's parts, in fp32. Raises RemoteError for what does not fit."""
        blocks: dict[int, dict[str, Leaf]] = {}
        size = 0
        for index, pair in pairs_of(self._spec, parts):
            down, up = (one.to(self._device, torch.float32) for one in (pair.down, pair.up))
            blocks.setdefault(index, {})[pair.module] = Leaf(down, up, pair.scale)
            size += down.nbytes + up.nbytes
        return Dressed(blocks, size)

    def bytes_of(self, asked: Train) -> int:
        """About what a request takes while it is computed, beside its payload."""
        span, hidden = asked.stop - asked.start, self._spec.hidden
        rows, slice_rows = asked.batch * asked.tokens, max(SLICE_ROWS, asked.tokens)
        graph = FP32_BYTES * slice_rows * self._row_numbers(asked.tokens)
        if asked.kind == "forward":
            return FP32_BYTES * 2 * rows * hidden + graph
        kept = graph * span if self._keeps_graphs(span, asked.tokens) else graph
        inputs = FP32_BYTES * slice_rows * hidden * span
        return FP32_BYTES * 3 * rows * hidden + kept + inputs + WIDENED * asked.size

    def _row_numbers(self, tokens: int) -> int:
        """About how many numbers autograd keeps of a row in one block."""
        spec = self._spec
        ffn = max(spec.ffn_of(one) * max(1, spec.experts_of(one) and spec.experts_per_token)
                  for one in range(self.blocks.start, self.blocks.stop))  # fmt: skip
        scores = 3 * spec.heads * tokens if spec.attn_softcap is not None else 0
        return 10 * spec.hidden + 8 * spec.heads * spec.head_dim + 5 * ffn + scores

    def _keeps_graphs(self, span: int, tokens: int) -> bool:
        rows = max(SLICE_ROWS, tokens)
        return FP32_BYTES * rows * self._row_numbers(tokens) * span <= GRAPH_BYTES_MAX

    def payload_bytes(self, asked: Train) -> int:
        """What follows a request. Raises RemoteError for an unknown dtype."""
        blocks = BlockRange(asked.start, asked.stop)
        return request_bytes(shape_of(asked), blocks, self.width, backward=asked.kind == "backward")

    def begin(
        self, payload: memoryview, asked: Train, worn: Dressed | None, *, keeps: bool = False
    ) -> Lesson:
        """What was asked for, ready to be run. keeps: a forward for its backward. Raises
        RemoteError."""
        shape, blocks = shape_of(asked), BlockRange(asked.start, asked.stop)
        if asked.kind == "forward":
            size = self.kept_bytes(asked) if keeps else 0
            lesson = self.forward(payload, shape, blocks, worn, kept_bytes=size)
        else:
            lesson = self.backward(payload, shape, blocks, worn)
        lesson.name = self._name(payload, asked)
        return lesson

    def kept_bytes(self, asked: Train) -> int:
        """About what its backward would need not compute anew."""
        numbers = self._row_numbers(asked.tokens) * (asked.stop - asked.start)
        return FP32_BYTES * asked.batch * asked.tokens * numbers + WIDENED * asked.size

    def _name(self, payload: memoryview, asked: Train) -> bytes:
        """Of what the hidden states in go through, and with what."""
        size = payload_bytes(asked.batch * asked.tokens, self.width, asked.dtype)
        behind = size if asked.kind == "forward" else 2 * size
        what = f"{asked.start} {asked.stop} {asked.batch} {asked.tokens} {asked.dtype}".encode()
        return digest(RECALLED, asked.adapter, what, payload[:size], payload[behind:])

    def forward(
        self,
        payload: memoryview,
        shape: Shape,
        blocks: BlockRange,
        worn: Dressed | None,
        *,
        kept_bytes: int = 0,
    ) -> Lesson:
        """payload: the hidden states, and the deep prompts in fp32 where there are any. The answer:
        hidden states. kept_bytes: what is kept for backward counts as so many; 0: nothing is.
        Raises RemoteError for what no honest client sends."""
        hidden, _, prompts = self._read(payload, shape, blocks, backward=False)
        whole, keeps = range(blocks.start, blocks.stop), kept_bytes > 0
        trained = worn.wanted(blocks) if keeps and worn is not None else worn

        def run(lesson: Lesson) -> Iterator[None]:
            outs, slices = [], []
            for part in torch.split(hidden, _sequences(shape)):
                passed: Passed | None = [] if keeps else None
                out = yield from self._go(part, whole, prompts, trained, passed, graphs=keeps)
                outs.append(out)
                slices.append(passed or [])
            lesson.answer = [_packed(torch.cat(outs).flatten(0, 1), shape.dtype)]
            lesson.kept = Kept(slices, trained, kept_bytes) if keeps else None

        return Lesson(run)

    def _go(
        self,
        out: Tensor,
        blocks: range,
        prompts: Mapping[int, Tensor],
        worn: Dressed | None,
        passed: Passed | None = None,
        *,
        graphs: bool = False,
    ) -> Generator[None, None, Tensor]:
        """Through these blocks, one a slice. passed: gets what backward needs."""
        for index in blocks:
            x = wanted(_prompted(out, prompts.get(index)))
            with torch.set_grad_enabled(graphs):
                out = self._block(index, x, worn)
            if passed is not None:
                passed.append((x, out if graphs else None))
            out = out.detach()
            yield
        return out

    def backward(
        self, payload: memoryview, shape: Shape, blocks: BlockRange, worn: Dressed | None
    ) -> Lesson:
        """payload: as of forward, with the gradient of its answer behind the hidden states. The
        answer: the gradient of the hidden states; in fp32 those of the deep prompts and of the
        adapter's matrices, each `down` before its `up`. Raises RemoteError."""
        hidden, grad, prompts = self._read(payload, shape, blocks, backward=True)
        assert grad is not None
        keeps = self._keeps_graphs(len(blocks), shape.tokens)
        trained = None if worn is None else worn.wanted(blocks)

        def run(lesson: Lesson) -> Iterator[None]:
            backs, size = [], _sequences(shape)
            found = _Found({}, {})
            known = lesson.kept
            leaves = trained if known is None else known.trained
            for at, (part, above) in enumerate(
                zip(torch.split(hidden, size), torch.split(grad, size), strict=True)
            ):
                passed: Passed = [] if known is None else known.slices[at]
                if known is None and keeps:
                    whole = range(blocks.start, blocks.stop)
                    yield from self._go(part, whole, prompts, leaves, passed, graphs=True)
                elif known is None:
                    last = blocks.stop - 1
                    before = range(blocks.start, last)
                    out = yield from self._go(part, before, prompts, leaves, passed)
                    passed.append((wanted(_prompted(out, prompts.get(last))), None))
                for index in range(blocks.stop - 1, blocks.start - 1, -1):
                    above = self._back(index, *passed.pop(), above, leaves, found)
                    if (prompt := prompts.get(index)) is not None:
                        found.add_prompt(index, above[:, : len(prompt)].sum(0))
                    yield
                backs.append(above)
            lesson.answer = [_packed(torch.cat(backs).flatten(0, 1), shape.dtype)]
            for index in sorted(found.prompts):
                lesson.answer.append(_packed(found.prompts[index], "f32"))
            for index, module in sorted(found.leaves):
                lesson.answer += [_packed(one, "f32") for one in found.leaves[index, module]]

        return Lesson(run)

    def _block(self, index: int, hidden: Tensor, worn: Dressed | None) -> Tensor:
        leaves = {} if worn is None else worn.blocks.get(index, {})
        return self._blocks[index - self.blocks.start].forward(hidden, self._ropes, leaves)

    def _back(
        self,
        index: int,
        hidden: Tensor,
        out: Tensor | None,
        above: Tensor,
        worn: Dressed | None,
        found: _Found,
    ) -> Tensor:
        """The gradient of a block's input; those of what is trained are added to `found`."""
        leaves = {} if worn is None else worn.blocks.get(index, {})
        wanted = [half for one in leaves.values() for half in (one.down, one.up)]
        if out is None:
            with torch.enable_grad():
                out = self._block(index, hidden, worn)
        below, *theirs = torch.autograd.grad(out, [hidden, *wanted], above)
        halves = iter(theirs)
        for module in leaves:
            found.add(index, module, next(halves), next(halves))
        return below

    def _read(
        self, payload: memoryview, shape: Shape, blocks: BlockRange, *, backward: bool
    ) -> tuple[Tensor, Tensor | None, dict[int, Tensor]]:
        """Hidden states, their gradient, and deep prompts by block. Raises RemoteError."""
        if not self.blocks.covers(blocks):
            raise RemoteError(f"blocks {blocks} asked, {self.blocks} served")
        if len(payload) != request_bytes(shape, blocks, self.width, backward=backward):
            raise RemoteError(f"a batch of {len(payload)} bytes, of another shape than was told")
        size, at = payload_bytes(shape.rows, self.width, shape.dtype), 0
        read: list[Tensor] = []
        for _ in range(2 if backward else 1):
            rows = unpack(payload[at : at + size], shape.rows, self.width, shape.dtype)
            placed = rows.to(self._device, torch.float32)
            read.append(placed.view(shape.batch, shape.tokens, self.width))
            at += size
        prompts: dict[int, Tensor] = {}
        if shape.prompts:
            rows = unpack(payload[at:], shape.prompts * len(blocks), self.width, "f32")
            each = torch.split(rows.to(self._device), shape.prompts)
            prompts = dict(zip(range(blocks.start, blocks.stop), each, strict=True))
        return read[0], read[1] if backward else None, prompts


@dataclass(frozen=True, slots=True)
class _Found:
    """Gradients, added up over the slices."""

    leaves: dict[tuple[int, str], tuple[Tensor, Tensor]]
    prompts: dict[int, Tensor]

    def add(self, index: int, module: str, down: Tensor, up: Tensor) -> None:
        before = self.leaves.get((index, module))
        if before is not None:
            down, up = before[0] + down, before[1] + up
        self.leaves[index, module] = down, up

    def add_prompt(self, index: int, prompt: Tensor) -> None:
        before = self.prompts.get(index)
        self.prompts[index] = prompt if before is None else before + prompt


def _prompted(hidden: Tensor, prompt: Tensor | None) -> Tensor:
    """With the prompt added to the first positions of each sequence."""
    if prompt is None:
        return hidden
    first = hidden[:, : len(prompt)] + prompt
    return torch.cat([first, hidden[:, len(prompt) :]], 1)


def _sequences(shape: Shape) -> int:
    """Of how many a slice is."""
    return max(1, SLICE_ROWS // shape.tokens)


def _packed(rows: Tensor, dtype: str) -> memoryview:
    """Raises UserError unless all are finite, in the dtype in which they are sent."""
    told = rows.to(TAGS[dtype])
    if not bool(told.isfinite().all()):
        raise UserError(f"the numbers of this batch grow beyond {dtype}: scale the loss down")
    return pack(told)
