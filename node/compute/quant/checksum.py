"""A sum of bytes at the speed of memory: it finds damage in what is kept, not malice.

Words of 8 bytes are multiplied by odd constants and added modulo 2^64, 4096 to a line, and the
lines' sums are hashed. Any changed word changes its line's sum.
"""

import ctypes
import hashlib
import sys
from typing import Any

import numpy as np

from ..native.library import is_available, library
from ..native.linear import Pool

Words = np.ndarray[Any, np.dtype[np.uint64]]

_LINE_WORDS = 4096

# Odd, so that each has an inverse: no change of one word can hide.
_FACTORS = np.random.default_rng(20240229).integers(0, 1 << 63, _LINE_WORDS, np.uint64) * 2 + 1


def checksum(data: memoryview, pool: Pool | None = None) -> str:
    """The sum of a buffer, hex; pool: whose threads share the reading."""
    lines = len(data) // (8 * _LINE_WORDS)
    words = np.frombuffer(data, dtype="<u8", count=lines * _LINE_WORDS)
    hasher = hashlib.blake2b(len(data).to_bytes(8, "little"), digest_size=16)
    hasher.update(_line_sums(words.reshape(lines, _LINE_WORDS), pool).astype("<u8").tobytes())
    hasher.update(data[words.nbytes :])
    return hasher.hexdigest()


def _line_sums(words: Words, pool: Pool | None) -> Words:
    """Each line's sum of its words times their factors, modulo 2^64."""
    if not is_available() or sys.byteorder != "little":
        return np.asarray(np.dot(words, _FACTORS))
    sums = np.empty(len(words), np.uint64)
    at = [ctypes.c_void_p(one.ctypes.data) for one in (words, _FACTORS, sums)]
    shape = [ctypes.c_int64(size) for size in words.shape]
    handle = ctypes.c_void_p(None if pool is None else pool.handle)
    library().potluck_line_sums(handle, at[0], *shape, at[1], at[2])
    return sums
