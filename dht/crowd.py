"""Whether a place is besieged: far more peers stand around it than chance would put there.

A peer's point is a digest of its id, so points are spread evenly; whoever wants to own one place
tries ids until twenty are closer to it than any honest peer's. That cannot be hidden, because the
twenty stand too densely (Sridhar et al., 2024, on IPFS): how dense peers stand elsewhere we see
at places that we draw ourselves. At a besieged place the look-up goes on to the honest peers of the
region that would hold twenty of the swarm's. Everybody there knows the besiegers only, when asked
for the place itself; so the region's other quarters are asked for.

    region   p . . . .          the prefix of log2(peers / 20) bits
    quarters p 0 0 .  p 0 1 .  p 1 0 .  p 1 1 .      the place's own, and three siblings
"""

import math
from collections.abc import Sequence
from typing import Final

from .keyspace import PLACE_BYTES, distance, peer_point
from .message import CONTACTS_MAX, Contact

SPACE: Final = 2 ** (8 * PLACE_BYTES)
TOO_DENSE: Final = 3.0  # by chance once in a million look-ups (Gamma(20) below a third of its mean)
NEIGHBOURS_MIN: Final = (
    8  # too few to say how dense the swarm is: then it is small, and all are asked
)


def size_seen(place: bytes, near: Sequence[Contact]) -> float | None:
    """How many peers there are, if all of them stand as densely as the nearest to this place.

    The k-th nearest of n points is k / (n + 1) of the space away, in the mean. None when there are
    too few to tell.
    """
    if len(near) < NEIGHBOURS_MIN:
        return None
    far = max(distance(peer_point(contact.peer), place) for contact in near)
    return float((len(near) - 1) * SPACE / max(far, 1))


def is_besieged(place: bytes, near: Sequence[Contact], size: float) -> bool:
    """Whether those nearest to a place stand denser than a swarm of this size would."""
    seen = size_seen(place, near)
    return seen is not None and seen > TOO_DENSE * max(size, CONTACTS_MAX)


def siblings(place: bytes, size: float) -> tuple[bytes, ...]:
    """A point in each other quarter of the place's region."""
    bits = max(0, round(math.log2(max(size, CONTACTS_MAX) / CONTACTS_MAX)))
    one, other = (1 << (8 * PLACE_BYTES - 1 - bits - more) for more in (0, 1))
    at = int.from_bytes(place)
    return tuple((at ^ mask).to_bytes(PLACE_BYTES) for mask in (one, other, one | other))
