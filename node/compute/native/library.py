"""The compiled kernels, loaded: one shared library, called through ctypes with the GIL released.

An installed package brings it, or says why not. In a checkout it is compiled anew as soon as a
source changed: a stamp in the library tells.
"""

from __future__ import annotations

import ctypes
import functools
import os

from filelock import FileLock

from ....errors import UserError
from . import build

ISAS = ("avx512vnni", "avx512", "avx2", "neon", "scalar")


@functools.cache
def _loaded() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if not build.is_current():
        if not build.sources():
            return "the compiled kernels are missing: install a C compiler, then potluck anew"
        try:
            with FileLock(build.objects_folder() / "lock"):
                if not build.is_current():
                    build.build()
        except (build.BuildError, OSError) as error:
            return f"the compiled kernels are missing: {error}"
    try:
        found = ctypes.CDLL(os.fspath(build.LIBRARY))
    except OSError as error:
        return f"the compiled kernels do not load: {error}"
    found.potluck_isa.restype = ctypes.c_char_p
    found.potluck_use_isa.argtypes = [ctypes.c_char_p]
    found.potluck_has_isa.argtypes = [ctypes.c_char_p]
    found.potluck_read_bandwidth.restype = ctypes.c_double
    found.potluck_read_bandwidth.argtypes = [ctypes.c_int32, ctypes.c_size_t]
    return found


def library() -> ctypes.CDLL:
    """Raises UserError where there is none; its line says why and what to do."""
    found = _loaded()
    if isinstance(found, str):
        raise UserError(f"{found}; or compute with torch: --engine torch")
    return found


def why_not() -> str | None:
    """Why there are no compiled kernels here, or None: there are."""
    found = _loaded()
    return found if isinstance(found, str) else None


def is_available() -> bool:
    return why_not() is None


def isa() -> str:
    """The instruction set in use."""
    name: bytes = library().potluck_isa()
    return name.decode()


def isas() -> tuple[str, ...]:
    """Those that this CPU can use, best first."""
    return tuple(name for name in ISAS if library().potluck_has_isa(name.encode()))


def use_isa(name: str) -> None:
    """Compute with this one from now on; the numbers stay the same. Not while a product runs."""
    if library().potluck_use_isa(name.encode()) != 0:
        raise UserError(f"{name} is not to be had here; there is {', '.join(isas())}")


def read_bandwidth(threads: int, size_bytes: int = 256 * 2**20) -> float:
    """Bytes a second that so many threads read from memory: the best of some passes."""
    rate: float = library().potluck_read_bandwidth(threads, size_bytes)
    return rate
