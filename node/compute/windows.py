"""Texts as they are trained on: token ids, cut into windows of one length.

    document ── ids, then the end ──┐
    document ── ids, then the end ──┴─▶ one row of ids a file ─▶ window │ window │ ... │ rest

Nothing is padded, and no window reaches over two files. What a file is, to a run, is the digest of
its ids: the same text in another form of file is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...crypto.digest import digest
from ...errors import UserError
from .text import Text


@dataclass(frozen=True, slots=True)
class Windows:
    """ids: (windows, tokens), int32. files: digests, in order."""

    ids: Tensor
    files: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, chosen: Sequence[int]) -> Tensor:
        """(chosen, tokens), as models take them."""
        return self.ids[list(chosen)].long()


def cut(text: Text, files: Iterable[tuple[str, Iterable[str]]], tokens: int) -> Windows:
    """files: each with its name and its documents. Blocks. Raises UserError when a file has no
    whole window, or all together have fewer than two."""
    end = sorted(text.eos)[:1]
    found: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = []
    names: list[bytes] = []
    for name, documents in files:
        ids = [one for document in documents for one in (*text.encode(document), *end)]
        row = np.array(ids, dtype="<i4")
        names.append(digest("run data", row.tobytes()))
        if len(row) < tokens:
            raise UserError(
                f"{name}: has {len(row)} tokens, fewer than the {tokens} of one sequence; give"
                " more text, or a smaller data.tokens"
            )
        found.append(row[: len(row) // tokens * tokens])
    ids_all = torch.from_numpy(np.concatenate(found)).view(-1, tokens)
    if len(ids_all) < 2:
        raise UserError("the data have one sequence; give more text, or a smaller data.tokens")
    return Windows(ids_all, tuple(names))
