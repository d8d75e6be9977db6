"""The names under which records are kept.

A *place* is a point of the key space, 32 bytes: the digest of what is asked for. A *slot* is one
record's home: a place and the peer that signed the record. The signer's id is part of the name, so
a record proves its own right to its slot (self-certifying), and nobody can fill another's.

    spans_of(model)   who serves which blocks of this model      one record per peer
    MODELS            which models the swarm serves at all       one record per peer
    chunk_of(digest)  who has this chunk of weights              one record per peer
    peer_point(id)    where a peer itself stands in the space

One place holds the records of all peers that serve a model: the index of the model and its span
records are read in one look-up.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ..crypto.digest import DIGEST_BYTES, digest
from ..errors import RemoteError

PLACE_BYTES: Final = DIGEST_BYTES
MODEL_CHARS: Final = 2 * DIGEST_BYTES  # a model digest, in lower-case hex


@dataclass(frozen=True, slots=True)
class Slot:
    """The home of one record: whoever signs as `peer` may fill it, and nobody else."""

    place: bytes
    peer: str


def spans_of(model: str) -> bytes:
    """The place of the span records of a model. Raises RemoteError unless it is a digest in hex."""
    return digest("potluck spans", model_bytes(model))


MODELS: Final = digest("potluck models")


def chunk_of(chunk: bytes) -> bytes:
    """The place of those who have the bytes with this digest."""
    return digest("potluck chunk", chunk)


@lru_cache(maxsize=8192)
def peer_point(peer: str) -> bytes:
    """Where a peer stands: a digest of its id, so that nobody sits closer to a place for free."""
    return digest("potluck peer", peer.encode())


def distance(one: bytes, other: bytes) -> int:
    """Kademlia's metric (Maymounkov and Mazières, 2002): exclusive or, as a number."""
    return int.from_bytes(one) ^ int.from_bytes(other)


def shared_bits(one: bytes, other: bytes) -> int:
    """How long a prefix two points have in common: two neighbours' is long."""
    return PLACE_BYTES * 8 - distance(one, other).bit_length()


def model_bytes(model: str) -> bytes:
    """A model digest as bytes. Raises RemoteError unless it is 64 lower-case hex digits."""
    try:
        raw = bytes.fromhex(model)
    except ValueError:
        raise RemoteError(f"{model!r:.80} is not a digest in hex") from None
    if raw.hex() != model or len(raw) != DIGEST_BYTES:
        raise RemoteError(f"{model!r:.80} is not a digest in hex")
    return raw
