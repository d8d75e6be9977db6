"""From a command line and a file to a job in the store, or to one line that says what is wrong."""

from __future__ import annotations

import importlib.util
import os
import secrets
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..errors import UserError
from ..node.config import find_join
from ..node.jobs.finetune import RunSpec
from ..node.jobs.lines import SEED_BITS, BatchSpec, read_file, split_lines
from ..node.jobs.results import check_out
from ..node.jobs.store import Jobs
from ..node.library import find_model

FINETUNE: Final = ("-m", "potluck.cli", "finetune")
FILE_BYTES_MAX: Final = 512 << 20  # OpenAI's are 200 MB
AS_IS: Final[dict[str, object]] = {
    "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "stop": [],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says of a batch. options: in the API's words."""

    file: Path
    model: str
    out: Path | None
    force: bool
    at_once: int
    seed: int | None
    adapter: str | None
    join: tuple[str, ...]
    anonymous: bool
    offline: bool
    options: dict[str, Any]


def add_batch(store: Jobs, home: Path, wanted: Wanted) -> int:
    """The number of the new job. Raises UserError: then there is none."""
    out = "" if wanted.out is None else str(wanted.out.absolute())
    if wanted.out is not None:
        check_out(Path(out), replace=wanted.force)
    if wanted.model:
        _find(home, wanted.model)
    options = {name: value for name, value in wanted.options.items() if AS_IS.get(name) != value}
    spec = BatchSpec(
        model=wanted.model,
        options=options,
        seed=secrets.randbits(SEED_BITS) if wanted.seed is None else wanted.seed,
        adapter=_adapter(wanted.adapter),
        at_once=wanted.at_once,
        # what the home says may be another tomorrow; what was said here holds
        join=find_join(wanted.join, home) if wanted.join or os.environ.get("POTLUCK_JOIN") else (),
        offline=wanted.offline,
        anonymous=wanted.anonymous,
        out=out,
        replace=wanted.force,
    )
    try:
        with wanted.file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_size > FILE_BYTES_MAX:
                raise UserError(f"{wanted.file} is above {FILE_BYTES_MAX >> 20} MiB: split it")
            # read before the store is written: others write it too
            lines = list(
                read_file(
                    split_lines(opened), str(wanted.file), spec.defaults, partial(_find, home)
                )
            )
    except OSError as error:
        raise UserError(f"{wanted.file}: cannot be read ({error.strerror})") from error
    return store.add("batch", wanted.file.name, spec.facts(), lines, time.time())


def add_run(store: Jobs, home: Path, file: Path, join: tuple[str, ...], *, offline: bool) -> int:
    """The number of the new job. Raises UserError: then there is none."""
    if importlib.util.find_spec("potluck.cli.finetune") is None:
        raise UserError(
            f"{file}: this potluck has no finetune command, so no run file can be submitted; "
            "give a .jsonl file of prompts, or a newer potluck"
        )
    spec = RunSpec.of(file, _join(home, join), offline=offline)
    return store.add("finetune", file.name, spec.facts(), (), time.time())


def _find(home: Path, model: str) -> None:
    """Raises UserError for what is neither a model nor one with an adapter on, BASE:DIGEST."""
    base, _, _ = model.rpartition(":")
    try:
        find_model(model, home)
    except UserError:
        if not base:
            raise
        find_model(base, home)


def _join(home: Path, given: tuple[str, ...]) -> tuple[str, ...]:
    """What was said here holds, for the worker's environment is another's; what the home says may
    be another tomorrow, and is asked for then."""
    return find_join(given, home) if given or os.environ.get("POTLUCK_JOIN") else ()


def _adapter(given: str | None) -> str:
    """A folder's place, wherever the worker stands; a digest as it is."""
    if not given:
        return ""
    path = Path(given).expanduser()
    return str(path.absolute()) if path.exists() else given
