"""Bits that follow from a seed alone, the same on every machine and in every version.

ChaCha20's keystream (RFC 8439) under the seed as its key: a standard with test vectors, computed by
the cipher library at a gigabyte a second, of which any part can be made without what is before it.
The generators of numerical libraries promise none of this across versions and devices.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

SEED_BYTES: Final = 32
BLOCK_BYTES: Final = 64
STREAM_BYTES_MAX: Final = BLOCK_BYTES << 32  # then the block counter would begin anew


def stream(seed: bytes, size: int, first_block: int = 0) -> bytes:
    """So many bytes of the seed's stream, from the start of a block of 64 on."""
    if first_block * BLOCK_BYTES + size > STREAM_BYTES_MAX:
        raise ValueError(f"{size} bytes behind block {first_block} are more than a stream has")
    nonce = first_block.to_bytes(4, "little") + bytes(12)
    return Cipher(ChaCha20(seed, nonce), mode=None).encryptor().update(bytes(size))
