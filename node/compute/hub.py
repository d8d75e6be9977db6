"""Where a model's files come from: a directory, or the Hugging Face hub and its cache.

A node of a few blocks must not download the rest: single files are fetched when asked for, and
the sha256 of the others is taken from the hub, which keeps it for every large file. The hub's own
package loads what it needs (an HTTP client, ...) at the first use: a model of this disk needs none.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors  # it loads neither by itself

from ...errors import UserError
from .digests import FileFact, hash_files, recall, remember

WEIGHTS = ".safetensors"
PULLED = "weights"  # in the home, a folder of each file that came in parts, by its sha256:
DATA, ABOUT = "data", "about"
_LENGTH_BYTES = 8  # of the header's length: shards.py
Span = tuple[int, int]  # bytes of a file, half-open


class Supply(Protocol):
    """Brings parts of weight files here, from whoever has them (node/weights)."""

    def open(self, model: str, commit: str, fact: FileFact) -> Path:
        """Where the file lies, as long as it will be; nothing of it need be there. Raises
        UserError."""
        ...

    def ready(self, model: str, commit: str, fact: FileFact, spans: Iterable[Span]) -> None:
        """Have these bytes there, checked. Blocks for as long as it takes. Raises UserError."""
        ...


class Directory:
    """A model whose files are all here."""

    def __init__(self, root: Path, home: Path | None) -> None:
        self._root = root
        self._home = home

    def path(self, file: str) -> Path | None:
        found = self._root / file
        return found if found.is_file() else None

    def ready(self, file: str, spans: Iterable[Span]) -> None:
        """Nothing is to be fetched."""

    def whole(self, file: str) -> Path | None:
        """A weight file that is here whole."""
        return self.path(file)

    def facts(self, files: Sequence[str]) -> list[FileFact]:
        """Names, sizes and sha256 of these files. Raises UserError when one is missing."""
        return hash_files([self._root / file for file in files], self._home)


class Hub:
    """A model of the hub at one revision; files come into the hub's own cache. Of weight files that
    are not in it, where there is a supply, only the parts that are needed come, and elsewhere."""

    def __init__(
        self,
        model: str,
        revision: str | None,
        offline: bool,
        home: Path | None,
        supply: Supply | None = None,
    ) -> None:
        self._supply = supply
        self._model = model
        self._revision = revision or "main"
        self._offline = offline or huggingface_hub.constants.HF_HUB_OFFLINE
        self._home = home
        self._pinned = False
        self._parts: dict[str, FileFact | None] = {}  # weight files that come in parts
        config = self.path("config.json")
        if config is None:
            where = f"{model}@{self._revision}"
            if self._offline:
                raise UserError(f"{where}: is not in the hub's cache; run once without --offline")
            raise UserError(f"{where}: has no config.json; check the id")
        self._commit = config.parent.name  # snapshots/<commit>/config.json
        self._key = f"hub\0{model}\0{self._commit}"  # of its facts, in the home's memory
        self._revision = self._commit  # every later file comes from the same commit
        self._pinned = True

    def path(self, file: str) -> Path | None:
        if self._pinned and self._supply is not None and file.endswith(WEIGHTS):
            fact = self._supplied(file)
            if fact is not None:
                where = self._supply.open(self._model, self._commit, fact)
                self._supply.ready(self._model, self._commit, fact, [(0, _LENGTH_BYTES)])
                with where.open("rb") as opened:
                    length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
                head = min(fact.size, _LENGTH_BYTES + length)
                self._supply.ready(self._model, self._commit, fact, [(0, head)])
                return where
        if self._pinned:  # then what the cache knows stays true, absence included
            cached = huggingface_hub.try_to_load_from_cache(
                self._model, file, revision=self._revision
            )
            if isinstance(cached, str):
                return Path(cached)
            if cached is not None:  # the cache knows that the commit has no such file
                return None
            if file.endswith(WEIGHTS) and (pulled := self._pulled(file)) is not None:
                return pulled
        try:
            found = huggingface_hub.hf_hub_download(
                self._model, file, revision=self._revision, local_files_only=self._offline
            )
        except huggingface_hub.errors.LocalEntryNotFoundError as error:
            if not self._offline:
                raise self._unreachable(error) from error
            return None
        except huggingface_hub.errors.RemoteEntryNotFoundError:
            return None
        except huggingface_hub.errors.HFValidationError as error:
            raise UserError(
                f"{self._model!r}: is no id of the hub (org/name); check it, or give a folder"
            ) from error
        except (
            huggingface_hub.errors.RepositoryNotFoundError,
            huggingface_hub.errors.RevisionNotFoundError,
        ) as error:
            raise UserError(
                f"{self._model}@{self._revision}: the hub has no such model or revision, or it is"
                " private; check the id, or log in with `hf auth login`"
            ) from error
        except (huggingface_hub.errors.HfHubHTTPError, OSError) as error:
            raise self._unreachable(error) from error
        return Path(found)

    def ready(self, file: str, spans: Iterable[Span]) -> None:
        """Have these bytes of a weight file here. Raises UserError."""
        fact = self._supplied(file) if self._supply is not None else None
        if fact is not None and self._supply is not None:
            self._supply.ready(self._model, self._commit, fact, spans)

    def whole(self, file: str) -> Path | None:
        """A weight file that the cache holds; None: it does not."""
        cached = huggingface_hub.try_to_load_from_cache(self._model, file, revision=self._revision)
        return Path(cached) if isinstance(cached, str) else None

    def _pulled(self, file: str) -> Path | None:
        """A weight file that came in parts, and is whole by now (node/weights/parts.py)."""
        told = recall(self._home).get(self._key)
        if self._home is None or not isinstance(told, dict) or file not in told:
            return None
        folder = self._home / PULLED / str(told[file][1])
        try:
            about = json.loads((folder / ABOUT).read_bytes())
        except (OSError, ValueError):
            return None
        whole = isinstance(about, dict) and about.get("whole") and not about.get("elsewhere")
        return folder / DATA if whole and (folder / DATA).is_file() else None

    def _supplied(self, file: str) -> FileFact | None:
        """The fact of a weight file that comes in parts; None for one that is in the cache, or of
        which the hub keeps no sha256."""
        if file in self._parts:
            return self._parts[file]
        found = self._listed().get(file) if self.whole(file) is None else None
        self._parts[file] = found
        return found

    def _listed(self) -> dict[str, FileFact]:
        """What the hub tells of its weight files, from memory where it can be. Raises UserError."""
        known = recall(self._home)
        told = known.get(self._key)
        if not isinstance(told, dict):
            if self._offline:
                return {}
            told = known[self._key] = self._ask_hub()
            remember(self._home, known)
        return {file: FileFact(file, int(one[0]), str(one[1])) for file, one in told.items()}

    def _ask_hub(self) -> dict[str, list[Any]]:
        try:
            info = huggingface_hub.HfApi().model_info(
                self._model, revision=self._commit, files_metadata=True
            )
        except (huggingface_hub.errors.HfHubHTTPError, OSError) as error:
            raise self._unreachable(error) from error
        return {
            one.rfilename: [one.size, one.lfs.sha256]
            for one in info.siblings or ()
            if one.lfs and one.rfilename.endswith(WEIGHTS)
        }

    def facts(self, files: Sequence[str]) -> list[FileFact]:
        """Names, sizes and sha256 of these files, most of which may never have been downloaded."""
        listed = self._listed()
        if all(file in listed for file in files):
            return [listed[file] for file in files]
        return self._facts_of_cache(files)  # of a small file the hub keeps no sha256

    def _facts_of_cache(self, files: Sequence[str]) -> list[FileFact]:
        paths = []
        for file in files:
            path = self.path(file)
            if path is None:
                raise UserError(
                    f"{self._model}: {file} is not in the cache; run once without --offline"
                )
            paths.append(path)
        return hash_files(paths, self._home)

    def _unreachable(self, error: Exception) -> UserError:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        return UserError(
            f"{self._model}: the hub cannot be reached ({why[:120]});"
            " check the network, or use --offline for what is cached"
        )
