"""A model's files: its config, which file holds which tensor, and the digest that names it.

Only safetensors are read, never a pickle. A checkpoint is a directory or a model of the Hugging
Face hub; of the latter only what is asked for is downloaded. The digest is taken over what the
model computes with and over the sha256 of its weight files, so that two peers that announce the
same digest serve the same numbers.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import UserError
from .digests import FileFact
from .general import spec_of
from .hub import Directory, Hub, Span, Supply
from .quant.packing import refuse_extra_bias
from .quant.settings import packing_of
from .shards import DTYPES, Entry, Shard, broken
from .spec import ModelSpec
from .weight import Format, Weight

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_JSON_BYTES_MAX = 64 << 20  # the largest index and tokenizer files known are below 40 MiB


class Checkpoint:
    """An opened model: its spec, and its tensors on demand."""

    def __init__(self, name: str, source: Directory | Hub) -> None:
        self.name = name
        self._source = source
        config = self.json("config.json")
        if config is None:
            raise UserError(f"{name}: config.json is missing; give a model's directory or hub id")
        self.spec = spec_of(config)
        self._packing = packing_of(config)
        self.generation = self.json("generation_config.json") or {}
        self._file_of = self._read_index()
        if self._packing is None and any(one.endswith(".qweight") for one in self._file_of):
            raise UserError(
                f"{name}: is quantized, but config.json has no quantization_config;"
                " copy into it what quantize_config.json or quant_config.json says"
            )
        self._shards: dict[str, Shard] = {}

    def path(self, file: str) -> Path | None:
        """Where a file of the model lies, downloaded if need be; None when there is none."""
        return self._source.path(file)

    def json(self, file: str) -> dict[str, Any] | None:
        """A JSON object among the files; None when there is no such file."""
        path = self.path(file)
        return None if path is None else read_json(path)

    @property
    def names(self) -> frozenset[str]:
        """Every tensor of the checkpoint; a quantized matrix under its plain name."""
        if self._packing is None:
            return frozenset(self._file_of)
        found = (self._packing.whole(name) for name in self._file_of)
        return frozenset(name for name in found if name is not None)

    @property
    def stored_format(self) -> Format:
        """The format that its matrices are served in when nobody asks for another."""
        return "none" if self._packing is None else self._packing.format

    @property
    def verbatim(self) -> bool:
        """Whether its matrices are in that format as they are stored."""
        return self._packing is None or self._packing.verbatim

    def path_of(self, name: str) -> Path:
        """The file that holds a tensor, downloaded if need be. Raises UserError."""
        return self.file_of(self.stored_names(name)[0])

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The tensors of the files that make this one: itself, or a quantized matrix' parts."""
        parts = () if self._packing is None else self._packing.parts(self, name)
        return parts or (name,)

    def fetch(self, names: Iterable[str]) -> None:
        """Have these tensors here: the files that hold them, or what of them is needed. Raises
        UserError."""
        self._ready(part for name in names for part in self.stored_names(name))

    def fetch_all(self) -> None:
        """Have every tensor of the files here. Raises UserError."""
        self._ready(self._file_of)

    def _ready(self, names: Iterable[str]) -> None:
        """Have these tensors of the files on disk."""
        spans: dict[str, list[Span]] = {}
        for name in names:
            entry = self.entry(name)
            spans.setdefault(self._file(name), []).append((entry.start, entry.stop))
        for file, parts in spans.items():
            self._source.ready(file, parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from its file's header."""
        if self._packing is not None and self._packing.parts(self, name):
            return self._packing.shape(self, name)
        return self.entry(name).shape

    def require(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError unless all these tensors are there, of these shapes and a known dtype."""
        for name, shape in shapes.items():
            found = self.shape(name)
            if found != shape:
                raise UserError(
                    f"{self.path_of(name)}: tensor {name} has shape {list(found)},"
                    f" but config.json asks for {list(shape)}; they are of different models"
                )
            bias = name.removesuffix("weight") + "bias"
            if self.stored_names(name) != (name,):
                if bias not in shapes and self.stored(bias):
                    refuse_extra_bias(self, bias, self.read(bias))
            elif self.entry(name).dtype not in DTYPES:
                raise UserError(
                    f"{self.path_of(name)}: tensor {name} has dtype {self.entry(name).dtype};"
                    f" convert the checkpoint to one of {', '.join(DTYPES)}"
                )

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, mapped from disk: nothing is read until it is used.

        A quantized matrix is read, and returned as numbers.
        """
        of_file: dict[str, list[str]] = {}
        found: dict[str, Tensor] = {}
        for name in names:
            if self.stored_names(name) == (name,):
                of_file.setdefault(self._file(name), []).append(name)
            else:
                weight = self.weight(name)
                found[name] = weight.codes if weight.format == "none" else weight.dequantize()
        for file, wanted in of_file.items():
            self._ready(wanted)
            found |= self._shards[file].tensors(wanted)
        return found

    def weight(self, name: str) -> Weight:
        """A matrix as it is stored: mapped from disk, or what a quantized one stands for."""
        if self._packing is not None and self._packing.parts(self, name):
            return self._packing.weight(self, name)
        return Weight.plain(self.tensors([name])[name])

    def stored(self, name: str) -> bool:
        """Whether the files have a tensor of this name."""
        return name in self._file_of

    def entry(self, name: str) -> Entry:
        """Where a tensor of the files lies in its file."""
        return self._shard_of(name).entries[name]

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor of the files."""
        return self._shard_of(name).path

    def read(self, name: str) -> Tensor:
        """A tensor of the files, mapped from disk."""
        self._ready([name])
        return self._shard_of(name).tensors([name])[name]

    def digest(self) -> str:
        """The model's identity: sha256, hex, of its arithmetic and its weight files."""
        return digest_of(self.spec, self.facts())

    def weight_files(self) -> dict[str, list[str]]:
        """The weight files, each with its tensors."""
        found: dict[str, list[str]] = {}
        for name, file in self._file_of.items():
            found.setdefault(file, []).append(name)
        return found

    def facts(self) -> list[FileFact]:
        """Names, sizes and sha256 of the weight files. Raises UserError."""
        return self._source.facts(sorted(set(self._file_of.values())))

    def whole(self, file: str) -> Path | None:
        """A weight file that is here whole, in its own place; None for one that is not, or of which
        parts come."""
        return self._source.whole(file)

    def _file(self, name: str) -> str:
        file = self._file_of.get(name)
        if file is None:
            raise UserError(f"{self.name}: tensor {name} is missing; download the model again")
        return file

    def _shard_of(self, name: str) -> Shard:
        file = self._file(name)
        shard = self._shards.get(file)
        if shard is None:
            path = self.path(file)
            if path is None:
                raise UserError(f"{self.name}: {file} is missing; download the model again")
            shard = self._shards[file] = Shard.open(path)
        if name not in shard.entries:
            raise broken(shard.path, f"lacks the tensor {name} that the index promises")
        return shard

    def _read_index(self) -> dict[str, str]:
        index = self.json(_INDEX)
        if index is None:
            path = self.path(_SINGLE)
            if path is None:
                raise UserError(
                    f"{self.name}: neither {_SINGLE} nor {_INDEX} is there;"
                    " only safetensors checkpoints are served"
                )
            shard = Shard.open(path)
            return {name: _SINGLE for name in shard.entries}
        files = index.get("weight_map")
        if not isinstance(files, dict) or not files:
            raise UserError(f"{self.name}: {_INDEX} has no weight_map; download it again")
        for name, file in files.items():
            if not isinstance(file, str) or Path(file).name != file or file[:1] == ".":
                raise UserError(f"{self.name}: {_INDEX} puts {name} in {file!r}, not a file name")
            if not file.endswith(".safetensors"):
                raise UserError(f"{self.name}: {file} is not safetensors, and nothing else is read")
        return files


def open_checkpoint(
    ref: str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    home: Path | None = None,
    supply: Supply | None = None,
) -> Checkpoint:
    """Open a directory, or a hub model `org/name[@revision]`. Raises UserError.

    home: where digests of large files are remembered; None: they are computed anew each time.
    offline: use only what the hub's cache already holds.
    supply: brings parts of the hub's weight files; None: they are downloaded whole.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return Checkpoint(str(ref), Directory(path.resolve(), home))
    text = str(ref)
    if path.exists():
        raise UserError(f"{text}: is a file; give the directory that holds config.json")
    name, at, pinned = text.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{text}: no such directory, and no hub id such as org/name")
    if at and revision is not None and revision != pinned:
        raise UserError(f"{text}: the revision is given twice; leave one away")
    return Checkpoint(text, Hub(name, (pinned or None) if at else revision, offline, home, supply))


def digest_of(spec: ModelSpec, facts: Iterable[FileFact]) -> str:
    """The digest of a model with these weight files."""
    document = {
        "format": "potluck model 1",
        "spec": spec.canonical(),
        "files": sorted([fact.name, fact.size, fact.sha256] for fact in facts),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from disk. Raises UserError naming the file."""
    try:
        if path.stat().st_size > _JSON_BYTES_MAX:
            raise broken(path, f"is larger than {_JSON_BYTES_MAX} bytes")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check it") from error
    except (ValueError, RecursionError) as error:
        raise broken(path, "is not JSON") from error
    if not isinstance(value, dict):
        raise broken(path, "is not a JSON object")
    return value
