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
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "_native.so"
SOURCE_PATTERNS = ("*.c", "*.h", "*.inc")
# No -ffast-math and no contraction: the same operations in the same order on every machine.
FLAGS = (
    "-O3 -std=gnu11 -ffp-contract=off -fno-math-errno -fno-trapping-math "
    "-fvisibility=hidden -fPIC -shared -pthread -Wall -Wextra"
).split()


class BuildError(Exception):
    """There is no library, and this is why."""


def sources() -> list[Path]:
    """Everything that the library is built of; empty where only the library was installed."""
    return sorted(path for pattern in SOURCE_PATTERNS for path in FOLDER.glob(pattern))


def stamp() -> str:
    """A hash of the sources and the flags; compiled in, it tells a stale library."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def compiler() -> list[str]:
    """The command of a C compiler: what CC names, or the first of the usual ones."""
    named = os.environ.get("CC")
    if named:
        return shlex.split(named)
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise BuildError("there is no C compiler; install gcc or clang, or set CC")


def build(library: Path = LIBRARY) -> None:
    """Compile; the library appears whole, or not at all.

    Raises:
        BuildError: no compiler, or it failed.
    """
    files = [str(path) for path in sources() if path.suffix == ".c"]
    if not files:
        raise BuildError("the C sources are not here; install from a checkout or a source package")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [*compiler(), *FLAGS, f'-DPOTLUCK_STAMP="{stamp()}"', *files]
        command += ["-o", str(made), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"{command[0]} does not start: {error}") from error
        if done.returncode != 0:
            raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
        made.replace(library)


if __name__ == "__main__":
    try:
        build()
    except BuildError as error:
        sys.exit(str(error))
