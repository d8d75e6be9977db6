"""An adapter's parts: what is for one block, in the one form of bytes that its digest is over.

    4 bytes: n │ n bytes: the head, by the one codec │ for each module: A, then B, as stored

and PEFT's folder to parts and back, so that what others trained is worn here, and the other way
round. A folder may hold a publisher's signature; then what it holds must be what was signed for.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...crypto.codec import Range, Size, decode, encode
from ...crypto.keys import IdentityKey
from ...errors import RemoteError, UserError
from ...swarm.adapter import RANK_MAX, Bundle, make_bundle, publish, publisher_of
from ...swarm.wire import WORN_BYTES_MAX
from .adapter import CONFIG, TENSORS, Adapter, Pair, misfit, read_pairs, takes, updates_of
from .folders import replaced, standing
from .layout import layout_of
from .shards import DTYPES, broken
from .spec import ModelSpec

SIGNED: Final = "potluck.signed"  # beside PEFT's files: the manifest, signed by who gave it out
MIB: Final = 1 << 20
SIZE_MAX: Final = WORN_BYTES_MAX - (8 << 20)  # of tensors; the rest is for the heads
_HEAD_SIZE: Final = 4
_NAME_OF: Final = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Module:
    """Where one pair belongs, and how it lies in the part."""

    name: Annotated[str, Size(256, 1)]
    rank: Annotated[int, Range(1, RANK_MAX)]
    inputs: Annotated[int, Range(1, 1 << 24)]
    outputs: Annotated[int, Range(1, 1 << 24)]
    dtype: Literal["F32", "F16", "BF16"]
    scale: float


@dataclass(frozen=True, slots=True)
class Head:
    modules: Annotated[tuple[Module, ...], Size(64, 1)]


def read_bundle(folder: Path, spec: ModelSpec, model: str) -> Bundle:
    """An adapter as PEFT saves it, for the model of this digest. Raises UserError."""
    folder = standing(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that holds {CONFIG}")
    of_block: dict[int, list[Pair]] = {}
    for index, pair in read_pairs(folder, spec, 0, spec.blocks):
        of_block.setdefault(index, []).append(pair)
    if not of_block:
        raise broken(folder / TENSORS, "has no tensors")
    pairs = [pair for found in of_block.values() for pair in found]
    size = sum(one.down.nbytes + one.up.nbytes for one in pairs)
    if size > SIZE_MAX:
        raise UserError(
            f"{folder}: has {size / MIB:.0f} MiB of tensors, of which {SIZE_MAX // MIB} are sent:"
            " give one of a smaller rank or in bfloat16, or a model into which it was merged"
        )
    bundle = bundle_of(of_block, model)
    _check_signature(folder, bundle)
    return bundle


def bundle_of(of_block: Mapping[int, Sequence[Pair]], model: str) -> Bundle:
    """Pairs by block, as they are named and sent. Blocks: it hashes them."""
    pairs = [pair for found in of_block.values() for pair in found]
    return make_bundle(
        bytes.fromhex(model),
        max(len(pair.down) for pair in pairs),
        {pair.module.rpartition(".")[2] for pair in pairs},
        {index: _part(found) for index, found in of_block.items()},
    )


def wear(spec: ModelSpec, name: str, parts: Mapping[int, bytes]) -> Adapter:
    """Parts as a stage takes them. Raises RemoteError for what does not fit its blocks."""
    return Adapter(name, updates_of(spec, pairs_of(spec, parts)))


def pairs_of(spec: ModelSpec, parts: Mapping[int, bytes]) -> list[tuple[int, Pair]]:
    """What parts hold, by block. Raises RemoteError for what does not fit the blocks."""
    if spec.general is not None:
        raise RemoteError(f"models of {spec.family} are served here without adapters")
    pairs = [(index, pair) for index, raw in parts.items() for pair in _pairs(raw)]
    for index, pair in pairs:
        if not 0 <= index < spec.blocks:
            raise RemoteError(f"an adapter for block {index} of {spec.blocks}")
        layout = layout_of(spec, index)
        if f"{pair.module}.weight" not in layout.shapes or not takes(layout, pair.module):
            raise RemoteError(f"an adapter that adds to {pair.module}, in block {index}")
        if why := misfit(layout, pair):
            raise RemoteError(f"an adapter that {why}")
    return pairs


def write_peft(bundle: Bundle, folder: Path, key: IdentityKey | None = None) -> None:
    """The files that PEFT reads, all at once: until then those stay that were there, and what else
    is in the folder stays. key: of who gives it out, to sign for it. Raises UserError."""
    pairs = [pair for index in sorted(bundle.parts) for pair in _pairs(bundle.parts[index])]
    tensors: dict[str, Tensor] = {}
    for pair in pairs:
        for half, matrix in (("A", pair.down), ("B", pair.up)):
            tensors[f"base_model.model.{pair.module}.lora_{half}.weight"] = matrix.contiguous()
    try:
        with replaced(folder, keeping=(TENSORS, CONFIG, SIGNED)) as made:
            save_file(tensors, made / TENSORS, metadata={"format": "pt"})
            (made / CONFIG).write_text(json.dumps(_config(pairs), indent=1, sort_keys=True))
            if key is not None:
                (made / SIGNED).write_bytes(publish(key, bundle))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); free the disk") from error


def publisher(folder: Path, bundle: Bundle) -> str | None:
    """The peer id of who signed for the adapter in this folder. Raises UserError when what was
    signed for is not what is there."""
    try:
        raw = (folder / SIGNED).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{folder / SIGNED}: cannot be read ({error.strerror})") from error
    try:
        return publisher_of(raw, bundle)
    except RemoteError as error:
        raise UserError(
            f"{folder / SIGNED}: {error}: it was signed for other files, or for another base"
            " model; remove it to use the adapter as it is"
        ) from error


def _check_signature(folder: Path, bundle: Bundle) -> None:
    publisher(folder, bundle)


def _part(pairs: Sequence[Pair]) -> bytes:
    modules, rows = [], []
    for pair in sorted(pairs, key=lambda one: one.module):
        down, up = pair.down, pair.up
        if down.dtype != up.dtype:
            down, up = down.float(), up.float()
        modules.append(
            Module(pair.module, len(down), down.shape[1], len(up), _NAME_OF[down.dtype], pair.scale)  # type: ignore[arg-type]
        )
        rows += [_bytes_of(down), _bytes_of(up)]
    head = encode(Head(tuple(modules)))
    return b"".join((len(head).to_bytes(_HEAD_SIZE), head, *rows))


def _bytes_of(matrix: Tensor) -> bytes:
    return matrix.contiguous().view(torch.uint8).numpy().tobytes()


def _pairs(raw: bytes) -> Iterator[Pair]:
    """Raises RemoteError for bytes that are no part."""
    at = _HEAD_SIZE + int.from_bytes(raw[:_HEAD_SIZE])
    head = decode(raw[_HEAD_SIZE:at], Head)
    names = [module.name for module in head.modules]
    if names != sorted(set(names)):
        raise RemoteError("an adapter's part whose modules are not in order")
    numbers = memoryview(bytearray(raw[at:]))  # torch warns of memory that it may not write
    at = 0
    for module in head.modules:
        dtype = DTYPES[module.dtype]
        shapes = (module.rank, module.inputs), (module.outputs, module.rank)
        halves: list[Tensor] = []
        for rows, columns in shapes:
            size = rows * columns * dtype.itemsize
            if at + size > len(numbers):
                raise RemoteError("an adapter's part that is cut off")
            flat = torch.frombuffer(numbers, dtype=dtype, count=rows * columns, offset=at)
            halves.append(flat.view(rows, columns))
            at += size
        down, up = halves
        yield Pair(module.name, down, up, module.scale)
    if at != len(numbers):
        raise RemoteError("an adapter's part with bytes behind it")


def _config(pairs: list[Pair]) -> dict[str, Any]:
    """LoraConfig: what most modules have, and for each other its own."""
    ranks = {pair.module: len(pair.down) for pair in pairs}
    alphas = {pair.module: _alpha(pair.scale, len(pair.down)) for pair in pairs}
    rank, alpha = (Counter(one.values()).most_common(1)[0][0] for one in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: one for name, one in ranks.items() if one != rank},
        "alpha_pattern": {name: one for name, one in alphas.items() if one != alpha},
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _alpha(scale: float, rank: int) -> float:
    """That which by the rank gives this very scale, if there is one; so as people write it."""
    near = scale * rank
    tries = (round(near), near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    return next((one for one in tries if one / rank == scale), near)
