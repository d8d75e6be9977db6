"""The sources for ARM: they compile, and their products have the bits that other machines compute.

ARM is emulated; where there is no compiler for it, or no emulator, nothing is tested here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from potluck.node.compute.native.build import FLAGS, FOLDER, LIBRARY
from potluck.node.compute.native.library import why_not

CROSS = shutil.which("aarch64-linux-gnu-gcc")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
HOST = shutil.which("cc")
PROGRAM = Path(__file__).parent / "products.c"
STAMP = '-DPOTLUCK_STAMP="test"'
# of products: what they need of the library, without attention and the rest of a block
SOURCES = ("cpu", "linear", "linear_neon", "linear_scalar", "pack", "pool", "quantize")
pytestmark = [
    pytest.mark.skipif(CROSS is None, reason="no compiler for ARM"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def test_every_source_compiles_for_arm() -> None:
    assert CROSS is not None
    sources = [str(path) for path in FOLDER.glob("*.c")]
    done = subprocess.run(
        [CROSS, *FLAGS, "-Werror", STAMP, "-fsyntax-only", *sources],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(EMULATOR is None or HOST is None, reason="no emulator of ARM")
def test_products_on_arm_have_the_bits_of_this_machine(tmp_path: Path) -> None:
    """neon and scalar there, whatever this machine has here: one hash for each format and batch."""
    assert CROSS is not None and EMULATOR is not None and HOST is not None
    there, here = tmp_path / "there", tmp_path / "here"
    sources = [str(FOLDER / f"{name}.c") for name in SOURCES]
    program = [f"-I{FOLDER}", str(PROGRAM)]
    subprocess.run(
        [CROSS, *FLAGS, STAMP, "-static", *program, *sources, "-lm", "-o", str(there)], check=True
    )
    subprocess.run([HOST, "-std=gnu11", *program, os.fspath(LIBRARY), "-o", str(here)], check=True)
    said = ""
    for command in ([EMULATOR, str(there)], [str(here)]):
        said += subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in said.splitlines()]
    assert {isa for _, _, isa, _ in lines} >= {"neon", "scalar"}
    bits: dict[tuple[str, str], set[str]] = {}
    for format, rows, _, found in lines:
        bits.setdefault((format, rows), set()).add(found)
    assert len(bits) == 25 and all(len(one) == 1 for one in bits.values())
