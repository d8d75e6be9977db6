"""What a run has come to, as tensors by name: taken from a model and its optimizer, and put back.

    weights/NAME           what is trained
    own/inner/KEY/NAME     what the optimizer keeps of it: Adam's exp_avg, exp_avg_sq, step
    outer/...              anchor and momentum, as the exchange calls them

A snapshot is a copy, so training goes on while it is written. Its bytes are those of the numbers,
little-endian, and so what is put back is equal to the bit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import LocalError, RemoteError, UserError
from ...swarm.chunk import CHUNK_BYTES, Chunk, cut, digest_of
from ...swarm.run.checkpoint import OWN, Counter, Entry, Manifest, Shapes
from .remote import RemoteModel
from .tensor import TAGS

DTYPES: Final = {**TAGS, "f64": torch.float64, "i64": torch.int64, "u8": torch.uint8}
_TAG_OF: Final = {dtype: tag for tag, dtype in DTYPES.items()}
WEIGHTS: Final = "weights/"
INNER: Final = f"{OWN}inner/"


@dataclass(frozen=True, slots=True)
class Trained:
    """What is trained, by names that do not depend on how it is divided. blocks: of the model, to
    which each belongs; whoever is not there belongs to all."""

    parameters: Mapping[str, nn.Parameter]
    blocks: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: RemoteModel) -> Trained:
        """Low-rank matrices have PEFT's names."""
        found = {
            name: one
            for name, one in (
                ("prompts", model.prompts),
                ("deep", model.deep),
                ("head", model.head),
            )
            if one is not None
        }
        blocks: dict[str, int] = {}
        places = () if model.lora is None else model.lora.places
        for number, place in enumerate(places):
            assert model.lora is not None
            for half, letter in enumerate("AB"):
                name = f"{place.module}.lora_{letter}"
                found[name] = model.lora.halves[2 * number + half]
                blocks[name] = place.block
        return cls(found, blocks)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """epoch: exchanges before it. step: inner steps since the last. counters: whatever else a run
    must know to go on; "own/..." for a peer's place in its data. blocks: as in `Trained`, by
    tensor."""

    run: bytes
    epoch: int
    step: int
    tensors: Mapping[str, Tensor]
    counters: Mapping[str, int] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)

    @property
    def shapes(self) -> Shapes:
        """What is shared of it, as `check_shapes` wants it of a state that shall take its place."""
        shared = (one for one in self.tensors.items() if not one[0].startswith(OWN))
        return {name: (_TAG_OF[one.dtype], tuple(one.shape)) for name, one in shared}


def take(
    run: bytes,
    epoch: int,
    step: int,
    trained: Trained,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    outer: Mapping[str, Tensor] | None = None,
    counters: Mapping[str, int] | None = None,
) -> Snapshot:
    """A copy of where a run stands. outer: by names that begin with "outer/"."""
    tensors: dict[str, Tensor] = {}
    blocks: dict[str, int] = {}
    for name, one in trained.parameters.items():
        own = {WEIGHTS + name: one.detach()}
        kept = {} if optimizer is None else optimizer.state.get(one, {})
        for key, value in kept.items():
            if not isinstance(value, Tensor):
                raise LocalError(f"an optimizer that keeps {type(value).__name__} as {key}")
            own[f"{INNER}{key}/{name}"] = value
        tensors |= own
        if name in trained.blocks:
            blocks |= dict.fromkeys(own, trained.blocks[name])
    tensors |= outer or {}
    copies = {name: one.detach().to("cpu", copy=True) for name, one in tensors.items()}
    return Snapshot(run, epoch, step, copies, dict(counters or {}), blocks)


def put_back(
    snapshot: Snapshot, trained: Trained, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Into a model and an optimizer of the same make. Raises UserError for other tensors, and then
    nothing was changed."""
    wanted = {WEIGHTS + name: tuple(one.shape) for name, one in trained.parameters.items()}
    told = {n: tuple(t.shape) for n, t in snapshot.tensors.items() if n.startswith(WEIGHTS)}
    if told != wanted:
        raise UserError("this checkpoint is of other tensors than are trained here")
    with torch.no_grad():
        for name, one in trained.parameters.items():
            one.copy_(snapshot.tensors[WEIGHTS + name])
    if optimizer is None:
        return
    for name, value in snapshot.tensors.items():
        if name.startswith(INNER):
            key, parameter = name.removeprefix(INNER).split("/", 1)
            optimizer.state[trained.parameters[parameter]][key] = value.clone()


def cut_up(
    snapshot: Snapshot, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Manifest, dict[Chunk, memoryview]]:
    """Its manifest, and the bytes of every chunk. Blocks: it hashes them."""
    found: dict[Chunk, memoryview] = {}
    entries = []
    for name, one in sorted(snapshot.tensors.items()):
        pieces = list(cut(_bytes(one), chunk_bytes))
        chunks = [Chunk(digest_of(piece), len(piece)) for piece in pieces]
        found.update(zip(chunks, pieces, strict=True))
        names = tuple(chunk.digest for chunk in chunks)
        block = snapshot.blocks.get(name)
        entries.append(Entry(name, block, _TAG_OF[one.dtype], tuple(one.shape), names))  # type: ignore[arg-type]
    counters = tuple(Counter(name, value) for name, value in sorted(snapshot.counters.items()))
    manifest = Manifest(
        snapshot.run, snapshot.epoch, snapshot.step, counters, chunk_bytes, tuple(entries)
    )
    return manifest, found


def put_together(manifest: Manifest, tensors: Iterable[tuple[Entry, Iterable[bytes]]]) -> Snapshot:
    """Of each tensor and its chunks. Raises RemoteError for numbers that are not finite."""
    found, blocks = {}, {}
    for entry, chunks in tensors:
        found[entry.name] = _tensor(entry, bytearray().join(chunks))
        if entry.block is not None:
            blocks[entry.name] = entry.block
    counters = {one.name: one.value for one in manifest.counters}
    return Snapshot(manifest.run, manifest.epoch, manifest.step, found, counters, blocks)


def _bytes(tensor: Tensor) -> memoryview:
    if sys.byteorder != "little":
        raise LocalError("checkpoints are little-endian, and so must this machine be")
    flat = tensor.contiguous().view(-1)
    raw: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return raw.data


def _tensor(entry: Entry, raw: bytearray) -> Tensor:
    dtype = DTYPES[entry.dtype]
    if len(raw) != entry.size:
        raise RemoteError(f"{len(raw)} bytes for {entry.name:.80}, which has {entry.size}")
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    if dtype.is_floating_point and not bool(flat.isfinite().all()):
        raise RemoteError(f"numbers that are not finite, in {entry.name:.80}")
    return flat.view(entry.shape)
