"""The two ends that a client keeps: tokens to hidden states, and a hidden state to logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .spec import ModelSpec

_EMBEDDING = "embed_tokens.weight"
_NORM = "norm.weight"
_HEAD = "lm_head.weight"


class Ends:
    """Embedding, final norm and head of a model, in fp32."""

    def __init__(self, spec: ModelSpec, embedding: Tensor, norm: Tensor, head: Tensor) -> None:
        """embedding and head: (vocab, hidden), as stored; they may be one tensor."""
        self.spec = spec
        self._embedding = embedding
        self._norm = norm.float() + spec.norm_offset
        self._head = head.float()

    @staticmethod
    def load(checkpoint: Checkpoint) -> "Ends":
        """Load the ends of a model and none of its blocks. Raises UserError."""
        spec = checkpoint.spec
        embedding, norm = spec.prefix + _EMBEDDING, spec.prefix + _NORM
        head = spec.prefix.removesuffix("model.") + _HEAD
        shapes = {embedding: (spec.vocab, spec.hidden), norm: (spec.hidden,)}
        if not spec.tied:
            shapes[head] = (spec.vocab, spec.hidden)
        checkpoint.require(shapes)
        found = checkpoint.tensors(shapes)
        return Ends(spec, found[embedding], found[norm], found[embedding if spec.tied else head])

    def embed(self, ids: Sequence[int]) -> Tensor:
        """(tokens, hidden), fp32; the ids are below the vocabulary's size."""
        with torch.inference_mode():
            rows = self._embedding[torch.tensor(ids, dtype=torch.int64)].float()
            return rows if self.spec.embed_scale == 1 else rows.mul_(self.spec.embed_scale)

    def logits(self, hidden: Tensor) -> Tensor:
        """(vocab,), fp32, of one row: (hidden,) or (1, hidden)."""
        with torch.inference_mode():
            row = hidden.to(device="cpu", dtype=torch.float32).reshape(1, self.spec.hidden)
            x = torch.rms_norm(row, (self.spec.hidden,), self._norm, self.spec.eps)
            logits = torch.nn.functional.linear(x, self._head)[0]
            cap = self.spec.logit_softcap
            return logits if cap is None else torch.tanh(logits / cap) * cap
