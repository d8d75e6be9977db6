"""Where a model's files come from: a directory, or the Hugging Face hub and its cache.

A node of a few blocks must not download the rest: single files are fetched when asked for, and
the sha256 of the others is taken from the hub, which keeps it for every large file. The hub's own
package loads what it needs (an HTTP client, ...) at the first use: a model of this disk needs none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub

from ...errors import UserError
from .digests import FileFact, hash_files, recall, remember


class Directory:
    """A model whose files are all here."""

    def __init__(self, root: Path, home: Path | None) -> None:
        self._root = root
        self._home = home

    def path(self, file: str) -> Path | None:
        found = self._root / file
        return found if found.is_file() else None

    def facts(self, files: Sequence[str]) -> list[FileFact]:
        """Names, sizes and sha256 of these files. Raises UserError when one is missing."""
        return hash_files([self._root / file for file in files], self._home)


class Hub:
    """A model of the hub at one revision; files come into the hub's own cache."""

    def __init__(self, model: str, revision: str | None, offline: bool, home: Path | None) -> None:
        self._model = model
        self._revision = revision or "main"
        self._offline = offline or huggingface_hub.constants.HF_HUB_OFFLINE
        self._home = home
        self._pinned = False
        config = self.path("config.json")
        if config is None:
            where = f"{model}@{self._revision}"
            if self._offline:
                raise UserError(f"{where}: is not in the hub's cache; run once without --offline")
            raise UserError(f"{where}: has no config.json; check the id")
        self._commit = config.parent.name  # snapshots/<commit>/config.json
        self._revision = self._commit  # every later file comes from the same commit
        self._pinned = True

    def path(self, file: str) -> Path | None:
        if self._pinned:  # then what the cache knows stays true, absence included
            cached = huggingface_hub.try_to_load_from_cache(
                self._model, file, revision=self._revision
            )
            if isinstance(cached, str):
                return Path(cached)
            if cached is not None:  # the cache knows that the commit has no such file
                return None
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

    def facts(self, files: Sequence[str]) -> list[FileFact]:
        """Names, sizes and sha256 of these files, most of which may never have been downloaded."""
        key = f"hub\0{self._model}\0{self._commit}"
        known = recall(self._home)
        facts = _facts_of(known.get(key), files)
        if facts is not None:
            return facts
        if self._offline:
            return self._facts_of_cache(files)
        try:
            info = huggingface_hub.HfApi().model_info(
                self._model, revision=self._commit, files_metadata=True
            )
        except (huggingface_hub.errors.HfHubHTTPError, OSError) as error:
            raise self._unreachable(error) from error
        listed = {
            one.rfilename: [one.size, one.lfs.sha256] for one in info.siblings or () if one.lfs
        }
        known[key] = {file: listed[file] for file in files if file in listed}
        facts = _facts_of(known[key], files)
        if facts is None:  # a small file that the hub keeps without a sha256
            return self._facts_of_cache(files)
        remember(self._home, known)
        return facts

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


def _facts_of(known: Any, files: Sequence[str]) -> list[FileFact] | None:
    if not isinstance(known, dict) or any(file not in known for file in files):
        return None
    return [FileFact(file, int(known[file][0]), str(known[file][1])) for file in files]
