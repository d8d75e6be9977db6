"""What bytes are, in 32: BLAKE2b with a domain, so that one kind of digest is never another.

BLAKE2b (RFC 7693) is faster than SHA-256 without its instructions and takes the domain as its
`person` field. Model digests, file digests and session hashes (algorithms: h_k = BLAKE2b(...)).
"""

from collections.abc import Iterable
from functools import cache
from hashlib import blake2b

DIGEST_BYTES = 32
DOMAIN_BYTES_MAX = 16  # BLAKE2b's person


def digest(domain: str, *parts: bytes | bytearray | memoryview) -> bytes:
    """The digest of the parts, one after another, in this domain (at most 16 ASCII characters)."""
    return digest_stream(domain, parts)


def digest_stream(domain: str, parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """As `digest`, for what is too large to hold at once."""
    hasher = _begun(domain).copy()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


@cache  # domains are few; with a copy a short digest takes 0.4 us, begun anew 0.6
def _begun(domain: str) -> blake2b:
    return blake2b(digest_size=DIGEST_BYTES, person=domain.encode("ascii"))
