"""Whom to join by after a restart: the peers that answered lately, and where they were.

Bounded: the last seen are kept, and whoever was not seen for a month is forgotten. To join, peers
of different networks come first (algorithms, 3.5), so that one landlord's tenants alone do not
choose the swarm that we wake up in.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from ..crypto.codec import Range, Size, decode, encode
from ..crypto.keys import PEER_ID_CHARS
from ..errors import RemoteError
from .network import diverse, networks_of

KNOWN_MAX: Final = 128  # half of it gone, the rest still spans a table of a thousand peers
AGE_MAX_S: Final = 30 * 86_400.0  # a guess: home addresses change within weeks
JOIN_MAX: Final = 16  # if nine of ten have left, one of 16 is there 4 times of 5
KNOWN_BYTES_MAX: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class Known:
    """A peer that answered. seen_s: unix seconds."""

    peer: Annotated[str, Size(PEER_ID_CHARS, least=PEER_ID_CHARS)]
    addresses: Annotated[tuple[Annotated[str, Size(256)], ...], Size(8)]
    seen_s: Annotated[float, Range(0, 1e11)]


@dataclass(frozen=True, slots=True)
class _Store:
    version: Annotated[int, Range(1, 1)]
    known: Annotated[tuple[Known, ...], Size(KNOWN_MAX)]


def merge(old: Iterable[Known], seen: Iterable[Known], now: float) -> tuple[Known, ...]:
    """The last word on each peer, the last seen first; `now` in unix seconds."""
    newest: dict[str, Known] = {}
    for known in (*old, *seen):
        before = newest.get(known.peer)
        if known.addresses and (before is None or before.seen_s <= known.seen_s):
            newest[known.peer] = known
    recent = [known for known in newest.values() if now - known.seen_s < AGE_MAX_S]
    recent.sort(key=lambda known: (-known.seen_s, known.peer))
    return tuple(recent[:KNOWN_MAX])


def to_join(known: Sequence[Known]) -> tuple[str, ...]:
    """Addresses of some of them, for `Directory.bootstrap`."""
    ranked = ((one, networks_of(one.addresses)) for one in known)
    chosen = diverse(ranked, JOIN_MAX)
    return tuple(address for one in chosen for address in one.addresses)


def to_bytes(known: tuple[Known, ...]) -> bytes:
    return encode(_Store(1, known))


def from_bytes(raw: bytes) -> tuple[Known, ...]:
    """Raises RemoteError when these bytes are no store, or name an address of another peer."""
    known: tuple[Known, ...] = decode(raw, _Store, max_bytes=KNOWN_BYTES_MAX).known
    for one in known:
        if not all(address.endswith(f"/p2p/{one.peer}") for address in one.addresses):
            raise RemoteError(f"addresses that are not those of {one.peer}")
    return known
