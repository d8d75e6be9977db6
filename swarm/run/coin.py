"""One number that no member of a group can choose or foresee: all commit, then all reveal.

    toss:    commit H(place, peer, value, salt) ──▶ all ──▶ reveal (value, salt) ──▶ all
    number = H(place, XOR of the values)

While one member's value is drawn at random and kept until all have committed, the number is random,
whatever the others do. Whoever commits and does not reveal has seen what the number would have
been: it is left out, and everybody draws again, in another place, so that nothing of the first draw
says anything of the second. That costs it its seat (btard.py), so a group of liars has no more
draws than members.

A commitment is bound to its place and its peer: another's, copied, opens for nobody.

Sources: Blum, 1983 (coin tossing by telephone); Gorbunov et al., 2022 (MPRNG).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import xor
from typing import Annotated, Final

from ...crypto.codec import Size
from ...crypto.digest import digest

VALUE_BYTES: Final = 32
Value = Annotated[bytes, Size(VALUE_BYTES, least=VALUE_BYTES)]


@dataclass(frozen=True, slots=True)
class Secret:
    """What one member puts in. salt: so that a value cannot be tried against the commitment."""

    value: Value
    salt: Value


def commitment(place: bytes, peer: str, secret: Secret) -> bytes:
    """What to publish before the others' secrets are known."""
    return digest("coin commitment", place, peer.encode(), secret.value, secret.salt)


class Toss:
    """One draw among these members, as one of them sees it. place: says which draw of all."""

    def __init__(self, place: bytes, members: Sequence[str]) -> None:
        self._place = place
        self._members = tuple(sorted(set(members)))
        self._committed: dict[str, bytes] = {}
        self._revealed: dict[str, bytes] = {}
        self._number: bytes | None = None

    def commit(self, peer: str, said: bytes) -> None:
        """The first word of a member counts. ValueError for anybody else."""
        if peer not in self._members:
            raise ValueError(f"{peer} has no part in this draw")
        self._committed.setdefault(peer, said)

    def reveal(self, peer: str, secret: Secret) -> bool:
        """Whether this opens what the peer committed to, now that all have; else it is nothing."""
        if len(self._committed) < len(self._members):
            return False
        if self._committed.get(peer) != commitment(self._place, peer, secret):
            return False
        self._revealed[peer] = secret.value
        return True

    def missing(self) -> tuple[str, ...]:
        """Who has not revealed."""
        return tuple(peer for peer in self._members if peer not in self._revealed)

    def number(self) -> bytes | None:
        """32 bytes; None while somebody is missing."""
        if len(self._revealed) < len(self._members):
            return None
        if self._number is None:
            mixed = reduce(xor, map(int.from_bytes, self._revealed.values()), 0)
            self._number = digest("coin", self._place, mixed.to_bytes(VALUE_BYTES))
        return self._number


def elect(coin: bytes, members: Sequence[str], pairs: int) -> tuple[tuple[str, str], ...]:
    """(validator, whom it checks), as many pairs as asked for and as fit; nobody is in two.

    With one pair, of n members b of whom lie, a given liar is checked by somebody honest with
    probability (n - b) / n / (n - 1): Gorbunov et al., 2022, check_proba of its code.
    """
    drawn = sorted(set(members), key=lambda peer: digest("coin elects", coin, peer.encode()))
    count = min(pairs, len(drawn) // 2)
    return tuple(zip(drawn[:count], drawn[count : 2 * count], strict=True))


def batch_seed(coin: bytes, peer: str) -> bytes:
    """What fixes a peer's next batches: public, and unknown until the draw was over."""
    return digest("coin batch", coin, peer.encode())


def direction_seed(coin: bytes, part: int) -> bytes:
    """What fixes the direction in which a part's shares are measured."""
    return digest("coin direction", coin, part.to_bytes(4))
