"""What there is, divided between all who claim it at once: never more of it than there is.

The one step of every bounded flow here, of credit (credit.py) and of vouches (vouching.py): what
one peer can pass on is divided between those that it passes it to, in proportion to their claims.
So whatever number of names stands behind a peer, together they get what came to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DUST: Final = 1e-9


def divide(room: float, claims: Mapping[str, float]) -> dict[str, float]:
    """What each gets: what it claims, or its part of `room` where all claims are more."""
    wanted = sum(claims.values())
    share = min(1.0, room / wanted) if wanted > DUST else 0.0
    return {who: claim * share for who, claim in claims.items()}
