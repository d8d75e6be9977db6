"""Compile the C of this folder into one shared library: plain C, no headers of Python or torch.

It runs before the package can be imported (`setup.py` loads it by its path) and after (a checkout
whose sources changed), so it knows the standard library alone. By hand:
`python -m potluck.node.compute.native.build`.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "_native.so"
STAMPED = "cpu.c"  # the file that holds the stamp
# No -ffast-math and no contraction: the same operations in the same order on every machine.
FLAGS = (
    *("-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-fvisibility=hidden", "-fPIC", "-pthread", "-Wall", "-Wextra"),
)


class BuildError(Exception):
    """There is no library, and this is why."""


def sources() -> list[Path]:
    """Everything that the library is built of; empty where only the library was installed."""
    return sorted(path for pattern in ("*.c", "*.h", "*.inc") for path in FOLDER.glob(pattern))


def stamp() -> str:
    """A hash of the sources and the flags; compiled in, it tells a stale library."""
    return _hash(sources())


def is_current(library: Path = LIBRARY) -> bool:
    """Whether a library stands there, built of these very sources (if they are here)."""
    if not library.exists():
        return False
    return not sources() or f"potluck-stamp:{stamp()}\0".encode() in library.read_bytes()


def objects_folder() -> Path:
    """Where a checkout keeps its objects, so that a change compiles what it touched."""
    kept = FOLDER.parents[2] / "build" / "native"
    kept.mkdir(parents=True, exist_ok=True)
    return kept


def build(library: Path = LIBRARY) -> None:
    """Compile; the library appears whole, or not at all.

    Raises:
        BuildError: no compiler, or it failed.
    """
    files = [path for path in sources() if path.suffix == ".c"]
    if not files:
        raise BuildError("the C sources are not here; install from a checkout or a source package")
    command = _compiler()
    library.parent.mkdir(parents=True, exist_ok=True)
    kept = objects_folder()
    near = kept if library == LIBRARY else library.parent  # on one disk, so that it can be moved
    with tempfile.TemporaryDirectory(dir=near) as folder:
        room = Path(folder)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda path: _object(command, path, kept, room), files))
        made = room / library.name
        _run([*command, "-shared", "-pthread", *map(str, objects), "-o", str(made), "-lm"])
        made.replace(library)
    for path in set(kept.glob("*.o")) - set(objects):
        path.unlink(missing_ok=True)


def _object(command: list[str], source: Path, kept: Path, room: Path) -> Path:
    """The object of a source, compiled unless it is at hand."""
    flags = [f'-DPOTLUCK_STAMP="{stamp()}"'] if source.name == STAMPED else []
    shared = [path for path in sources() if path.suffix != ".c"]
    made = kept / f"{source.stem}-{_hash([source, *shared], [*command, *flags])}.o"
    if not made.exists():
        part = room / made.name
        _run([*command, *FLAGS, *flags, "-c", str(source), "-o", str(part)])
        shutil.move(part, made)
    return made


def _compiler() -> list[str]:
    """The command of a C compiler: what CC names, or the first of the usual ones."""
    named = os.environ.get("CC")
    if named:
        return shlex.split(named)
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise BuildError("there is no C compiler; install gcc or clang, or set CC")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} does not start: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")


def _hash(paths: Iterable[Path], words: Iterable[str] = ()) -> str:
    digest = hashlib.sha256(" ".join((*FLAGS, *words)).encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    try:
        build()
    except BuildError as error:
        sys.exit(str(error))
