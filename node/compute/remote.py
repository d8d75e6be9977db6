"""A model whose blocks compute elsewhere, as a module of plain PyTorch.

    with potluck.connect(join=[...]) as swarm:
        model = potluck.RemoteModel(swarm, "org/name", prompts=16, lora=potluck.LoRA(rank=8))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for ids in batches:
            logits = model(ids)                       # over the swarm
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()                           # over the swarm, and back
            optimizer.step(); optimizer.zero_grad()   # here

Embedding and head are here; what is trained are ordinary parameters, whose gradients come back from
the servers: soft prompts before the text, deep prompts added in every block, low-rank matrices
(lora.py), a head. A batch is cut into microbatches that go at the same time, so that the stages
compute side by side. Sequences of a batch are of one length: what is shorter is padded on the
right, and its padding left out of the loss; no earlier position sees it.

Source: Petals, `RemoteSequential` and `ptune.py` (Borzunov et al., 2023).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...errors import UserError
from ...swarm.blocks import BlockRange
from ...swarm.microbatch import Brought, Microbatch
from .lora import LoRA, LowRank
from .parts import write_peft
from .tensor import pack, unpack
from .voice import Voice

DTYPE = "f32"  # lossless on the wire
MICRO_ROWS = 64  # guess: fewer turn weights back too often
MICRO_COUNT = 8  # guess: of a batch, where it has rows enough: as many as stages may be


class Network(Protocol):
    """Takes batches over the swarm and back (node/blocking.py). Every call blocks."""

    def forward(self, batches: Sequence[Microbatch]) -> list[tuple[int, memoryview]]:
        """Of each its number, and the hidden states that come out."""

    def backward(self, grads: Sequence[tuple[int, memoryview]]) -> list[Brought]:
        """By numbers, with the gradients of what came out."""

    def drop(self, numbers: Sequence[int]) -> None:
        """These go back no more. Does not block."""


class Connected(Protocol):
    """A client of a swarm (node/blocking.py)."""

    def voice(self, model: str) -> Voice: ...

    def training(self, model: str) -> Network: ...


class RemoteModel(nn.Module):
    """It stays on the processor, in fp32. Raises UserError; its calls MissingBlocks, RemoteError,
    TransportError or Refused besides."""

    def __init__(
        self,
        swarm: Connected,
        model: str,
        *,
        prompts: int = 0,
        deep: bool = False,
        lora: LoRA | str | Path | None = None,
        head: bool = False,
        microbatch: int | None = None,
    ) -> None:
        """prompts: trained positions before the text; deep: in every block, too. lora: what is to
        be trained, or a folder that PEFT saved, to go on from. head: is trained. microbatch: how
        many sequences go together; None: as many as give the stages something to do each."""
        super().__init__()
        voice = swarm.voice(model)
        self._tables = voice.ends.tables
        spec = voice.ends.spec
        if not 0 <= prompts < voice.context or (deep and not prompts):
            raise UserError(
                f"{prompts} prompts: choose fewer than the {voice.context} positions of"
                f" {voice.name}" + (", and at least one for deep prompts" if deep else "")
            )
        if microbatch is not None and microbatch < 1:
            raise UserError(f"microbatches of {microbatch} sequences: choose 1 or more")
        self.context = voice.context
        self._vocabulary = spec.vocab
        self._microbatch = microbatch
        self.prompts: nn.Parameter | None = None
        self.deep: nn.Parameter | None = None
        self.head: nn.Parameter | None = None
        self.lora: LowRank | None = None
        if prompts:
            drawn = torch.randint(spec.vocab, (prompts,))  # as words begin, and no larger
            self.prompts = nn.Parameter(self._embedded(drawn).clone())
        if deep:
            self.deep = nn.Parameter(torch.zeros(spec.blocks, prompts, spec.hidden))
        if lora is not None:
            self.lora = (
                LowRank.new(spec, lora)
                if isinstance(lora, LoRA)
                else LowRank.read(spec, Path(lora))
            )
        if head:
            self.head = nn.Parameter(self._tables.head.clone())
        self._model = voice.digest
        self._network = swarm.training(model)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (batch, tokens); returns logits (batch, tokens, vocabulary), of the text alone."""
        hidden = self.hidden(ids)
        head = self._tables.head if self.head is None else self.head
        return self._tables.project(hidden.flatten(0, 1), head).view(*ids.shape, -1)

    def hidden(self, ids: Tensor) -> Tensor:
        """What comes out of the last block: (batch, tokens, hidden)."""
        batch, tokens = self._check(ids)
        hidden = self._embedded(ids.flatten()).view(batch, tokens, -1)
        before = 0 if self.prompts is None else len(self.prompts)
        if self.prompts is not None:
            hidden = torch.cat([self.prompts.expand(batch, -1, -1), hidden], 1)
        halves = () if self.lora is None else tuple(self.lora.halves)
        wants = torch.is_grad_enabled() and any(
            one is not None and one.requires_grad for one in (hidden, self.deep, *halves)
        )
        sequences = self._microbatch or max(
            1, -(-MICRO_ROWS // hidden.shape[1]), -(-batch // MICRO_COUNT)
        )
        way = _Way(self._network, self._model, self.lora, sequences, wants)
        found: Tensor = _Remote.apply(way, hidden, self.deep, *halves)  # type: ignore[no-untyped-call]
        return found[:, before:]

    def save_adapter(self, folder: str | Path) -> None:
        """Write the low-rank matrices as PEFT reads them. Raises UserError."""
        if self.lora is None:
            raise UserError("this model has no LoRA to save: make it with lora=potluck.LoRA()")
        write_peft(self.lora.bundle(self._model, list(self.lora.halves)), Path(folder))

    def _check(self, ids: Tensor) -> tuple[int, int]:
        if ids.ndim != 2 or 0 in ids.shape or ids.dtype.is_floating_point:
            raise UserError(
                f"token ids of shape {list(ids.shape)} and {ids.dtype}: give (batch, tokens), whole"
                " numbers, at least one of each"
            )
        batch, tokens = ids.shape
        prompts = 0 if self.prompts is None else len(self.prompts)
        if prompts + tokens > self.context:
            raise UserError(
                f"{tokens} tokens and {prompts} prompts: the model has {self.context} positions"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self._vocabulary:
            raise UserError(f"a token id is outside the vocabulary 0..{self._vocabulary - 1}")
        return batch, tokens

    def _embedded(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self._tables.embed(ids.cpu())


@dataclass(frozen=True, slots=True)
class _Way:
    """Over the blocks: how, and whether it will be gone back."""

    network: Network
    model: str
    lora: LowRank | None
    sequences: int
    returns: bool

    def cut(
        self, hidden: Tensor, deep: Tensor | None, halves: Sequence[Tensor]
    ) -> Iterator[Microbatch]:
        """A batch, as it is sent."""
        worn = None if self.lora is None else self.lora.bundle(self.model, halves)
        trained = {} if self.lora is None else self.lora.trained()
        told = memoryview(b"") if deep is None else pack(_finite(deep, "a deep prompt"))
        prompts = 0 if deep is None else deep.shape[1]
        tokens, width = hidden.shape[1:]
        for piece in torch.split(_finite(hidden, "a prompt"), self.sequences):
            yield Microbatch(
                pack(piece), len(piece), tokens, width, DTYPE, prompts, told, worn, trained
            )


class _Open:
    """Microbatches that may go back; those that never do are let go with the graph."""

    def __init__(self, network: Network, numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self.close = weakref.finalize(self, network.drop, numbers)
        self.close.atexit = False


class _Remote(torch.autograd.Function):
    """All blocks, as one function of what goes in and of what is trained."""

    @staticmethod
    def forward(
        ctx: Any, way: _Way, hidden: Tensor, deep: Tensor | None, *halves: Tensor
    ) -> Tensor:
        answers = way.network.forward(list(way.cut(hidden, deep, halves)))
        numbers = [number for number, _ in answers]
        if way.returns:
            ctx.way, ctx.open = way, _Open(way.network, numbers)
            ctx.shapes = [None if one is None else one.shape for one in (deep, *halves)]
        else:
            way.network.drop(numbers)
        width = hidden.shape[2]
        rows = [unpack(raw, len(raw) // (4 * width), width, DTYPE) for _, raw in answers]
        return torch.cat(rows).view(hidden.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        way: _Way = ctx.way
        pieces = torch.split(_finite(grad, "the loss's gradient"), way.sequences)
        numbers = ctx.open.numbers
        ctx.open.close.detach()  # whatever comes of it, they are not open any more
        brought = way.network.backward(
            [(number, pack(piece)) for number, piece in zip(numbers, pieces, strict=True)]
        )
        width = grad.shape[2]
        rows = [unpack(one.grad, len(one.grad) // (4 * width), width, DTYPE) for one in brought]
        sums = [None if one is None else torch.zeros(one) for one in ctx.shapes]
        for one in brought:
            for blocks, raw in one.pieces:
                _add(sums, raw, blocks, way.lora)
        return None, torch.cat(rows).view(grad.shape), *sums


def _add(
    sums: list[Tensor | None], raw: memoryview, blocks: BlockRange, lora: LowRank | None
) -> None:
    """Add what one piece of the way brought: of deep prompts, then of the low-rank matrices."""
    numbers = torch.frombuffer(bytearray(raw) or bytearray(4), dtype=torch.float32)
    at = 0
    deep = sums[0]
    if deep is not None:
        its = deep[blocks.start : blocks.stop]
        its += numbers[: its.numel()].view_as(its)
        at = its.numel()
    for index in () if lora is None else lora.indices(blocks):
        half = sums[1 + index]
        assert half is not None
        half += numbers[at : at + half.numel()].view_as(half)
        at += half.numel()


def _finite(numbers: Tensor, what: str) -> Tensor:
    """In fp32, on the processor. Raises UserError."""
    plain = numbers.detach().to("cpu", torch.float32).contiguous()
    if not bool(plain.isfinite().all()):
        raise UserError(
            f"{what} has a number that is infinite or none, and nothing was sent: lower the"
            " learning rate, or clip gradients"
        )
    return plain
