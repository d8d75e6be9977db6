"""The two ends that a client keeps: tokens to hidden states, and a hidden state to logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .spec import ModelSpec

_EMBEDDING = "model.embed_tokens.weight"
_NORM = "model.norm.weight"
_HEAD = "lm_head.weight"


class Ends:
    """Embedding, final norm and head of a model, in fp32."""

    def __init__(self, spec: ModelSpec, embedding: Tensor, norm: Tensor, head: Tensor) -> None:
        """embedding and head: (vocab, hidden), as stored; they may be one tensor."""
        self.spec = spec
        self._embedding = embedding
        self._norm = norm.float()
        self._head = head.float()

    @staticmethod
    def load(checkpoint: Checkpoint) -> "Ends":
        """Load the ends of a model and none of its blocks. Raises UserError."""
        spec = checkpoint.spec
        shapes = {_EMBEDDING: (spec.vocab, spec.hidden), _NORM: (spec.hidden,)}
        if not spec.tied:
            shapes[_HEAD] = (spec.vocab, spec.hidden)
        checkpoint.require(shapes)
        found = checkpoint.tensors(shapes)
        embedding = found[_EMBEDDING]
        return Ends(spec, embedding, found[_NORM], found.get(_HEAD, embedding))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """(tokens, hidden), fp32; the ids are below the vocabulary's size."""
        with torch.inference_mode():
            return self._embedding[torch.tensor(ids, dtype=torch.int64)].float()

    def logits(self, hidden: Tensor) -> Tensor:
        """(vocab,), fp32, of one row: (hidden,) or (1, hidden)."""
        with torch.inference_mode():
            row = hidden.to(device="cpu", dtype=torch.float32).reshape(1, self.spec.hidden)
            x = torch.rms_norm(row, (self.spec.hidden,), self._norm, self.spec.eps)
            return torch.nn.functional.linear(x, self._head)[0]
