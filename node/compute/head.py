"""The two ends that a client keeps: tokens to hidden states, and a hidden state to logits."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...errors import UserError
from .checkpoint import Checkpoint
from .layers import GeneralEnds
from .spec import ModelSpec

_EMBEDDING = "embed_tokens.weight"
_NORM = "norm.weight"
_HEAD = "lm_head.weight"


class Finish(Protocol):
    """What is done at the two ends, in fp32 on the CPU."""

    def embed(self, ids: Tensor) -> Tensor:
        """(tokens,) to (tokens, hidden)."""
        ...

    def logits(self, row: Tensor) -> Tensor:
        """(1, hidden) to (vocab,)."""
        ...


class Tables:
    """Embedding, final norm and head of the families that our own block serves."""

    def __init__(self, spec: ModelSpec, embedding: Tensor, norm: Tensor, head: Tensor) -> None:
        """embedding and head: (vocab, hidden), as stored; they may be one tensor."""
        self._spec = spec
        self._embedding = embedding
        self._norm = norm.float() + spec.norm_offset
        self.head = head.float()  # (vocab, hidden)

    @staticmethod
    def load(checkpoint: Checkpoint) -> "Tables":
        spec = checkpoint.spec
        embedding, norm = spec.prefix + _EMBEDDING, spec.prefix + _NORM
        head = spec.prefix.removesuffix("model.") + _HEAD
        shapes = {embedding: (spec.vocab, spec.hidden), norm: (spec.hidden,)}
        if not spec.tied:
            shapes[head] = (spec.vocab, spec.hidden)
        checkpoint.require(shapes)
        found = checkpoint.tensors(shapes)
        return Tables(spec, found[embedding], found[norm], found[embedding if spec.tied else head])

    def embed(self, ids: Tensor) -> Tensor:
        rows = self._embedding[ids].float()
        return rows if self._spec.embed_scale == 1 else rows.mul_(self._spec.embed_scale)

    def logits(self, row: Tensor) -> Tensor:
        return self.project(row, self.head)[0]

    def project(self, rows: Tensor, head: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab), by `head` or another of its shape; gradients go through."""
        x = torch.rms_norm(rows, (self._spec.hidden,), self._norm, self._spec.eps)
        logits = torch.nn.functional.linear(x, head)
        cap = self._spec.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap


class Ends:
    """The two ends of a model."""

    def __init__(self, spec: ModelSpec, finish: Finish) -> None:
        self.spec = spec
        self._finish = finish

    @staticmethod
    def load(checkpoint: Checkpoint) -> "Ends":
        """Load the ends of a model and none of its blocks. Raises UserError."""
        if checkpoint.spec.general is not None:
            return Ends(checkpoint.spec, GeneralEnds.load(checkpoint))
        return Ends(checkpoint.spec, Tables.load(checkpoint))

    @property
    def tables(self) -> Tables:
        """The ends of our own block's families. Raises UserError for other models."""
        if not isinstance(self._finish, Tables):
            raise UserError(
                f"models of {self.spec.family} run in transformers' own code, and are served"
                " without gradients: train another model"
            )
        return self._finish

    def embed(self, ids: Sequence[int]) -> Tensor:
        """(tokens, hidden), fp32; the ids are below the vocabulary's size."""
        with torch.inference_mode():
            return self._finish.embed(torch.tensor(ids, dtype=torch.int64))

    def logits(self, hidden: Tensor) -> Tensor:
        """(vocab,), fp32, of one row: (hidden,) or (1, hidden)."""
        with torch.inference_mode():
            row = hidden.to(device="cpu", dtype=torch.float32).reshape(1, self.spec.hidden)
            return self._finish.logits(row)
