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
from .hub import Directory, Hub
from .shards import DTYPES, Shard, broken
from .spec import ModelSpec

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
        self.spec = ModelSpec.from_config(config)
        self.generation = self.json("generation_config.json") or {}
        self._file_of = self._read_index()
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
        """Every tensor of the checkpoint."""
        return frozenset(self._file_of)

    def path_of(self, name: str) -> Path:
        """The file that holds a tensor, downloaded if need be. Raises UserError."""
        return self._shard_of(name).path

    def fetch(self, names: Iterable[str]) -> None:
        """Download and check the files that hold these tensors. Raises UserError."""
        for name in names:
            self._shard_of(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from its file's header."""
        return self._shard_of(name).entries[name].shape

    def require(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError unless all these tensors are there, of these shapes and a known dtype."""
        for name, shape in shapes.items():
            shard = self._shard_of(name)
            entry = shard.entries[name]
            if entry.shape != shape:
                raise UserError(
                    f"{shard.path}: tensor {name} has shape {list(entry.shape)},"
                    f" but config.json asks for {list(shape)}; they are of different models"
                )
            if entry.dtype not in DTYPES:
                raise UserError(
                    f"{shard.path}: tensor {name} has dtype {entry.dtype};"
                    f" convert the checkpoint to one of {', '.join(DTYPES)}"
                )

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, mapped from disk: nothing is read until it is used."""
        of_file: dict[str, list[str]] = {}
        for name in names:
            of_file.setdefault(self._file(name), []).append(name)
        found: dict[str, Tensor] = {}
        for file, wanted in of_file.items():
            for name in wanted:
                self._shard_of(name)
            found |= self._shards[file].tensors(wanted)
        return found

    def digest(self) -> str:
        """The model's identity: sha256, hex, of its arithmetic and its weight files."""
        facts = self._source.facts(sorted(set(self._file_of.values())))
        return digest_of(self.spec, facts)

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
    ref: str | Path, *, revision: str | None = None, offline: bool = False, home: Path | None = None
) -> Checkpoint:
    """Open a directory, or a hub model `org/name[@revision]`. Raises UserError.

    home: where digests of large files are remembered; None: they are computed anew each time.
    offline: use only what the hub's cache already holds.
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
    return Checkpoint(text, Hub(name, (pinned or None) if at else revision, offline, home))


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
