"""DiLoCo's outer step, the same to the bit on every member of a group, a fragment at a time.

    mean of (theta - phi) = -D  ──▶  u <- .5 u + D,  phi <- phi - .7 (D + .5 u)

phi: the anchor, where everybody's inner steps began. Each operation is one rounding of IEEE 754 by
itself (no fused multiply-add, no sum whose order a library chooses), so machines of every kind
agree, and the digest of all anchors and momenta tells who stands where.

Streaming DiLoCo: the vector is cut into fragments, of which one at a time is averaged while inner
steps go on; what comes back is mixed into weights that have moved since (`Landing`).

Sources: Douillard et al., 2023 (DiLoCo: lr .7, and .9 for momentum, in runs of thousands of steps;
ours is NoLoCo's); Douillard et al., 2025 (Streaming DiLoCo: fragments, overlap, alpha .5);
algorithms.md, 3.3 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from torch import Tensor

from ....crypto.digest import digest
from ....errors import RemoteError
from .codec import GROUP, Bits, decode, encode

LR: Final = 0.7
MOMENTUM: Final = 0.5  # NoLoCo's; with .9 adapters ended worse than begun (DECISIONS.md)
GREATEST: Final = 1e30  # of a number: sums of some are finite too
MIX: Final = 0.5  # Streaming DiLoCo's alpha: how much of the own weights stays
T = TypeVar("T")
Vector = Tensor  # [d] or a fragment's [f]; fp32, on the CPU


def cuts(count: int, fragments: int) -> tuple[int, ...]:
    """Numbers of each fragment: alike, and begun where the codec's groups begin; none is empty."""
    groups = -(-count // GROUP)
    fragments = min(fragments, groups)
    ends = [min(count, GROUP * (groups * at // fragments)) for at in range(1, fragments + 1)]
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


@dataclass(frozen=True, slots=True)
class Nesterov:
    """Where a group stands. anchors, momenta: [f] of each fragment; digests: of both, in it."""

    anchors: tuple[Vector, ...]
    momenta: tuple[Vector, ...]
    digests: tuple[bytes, ...]

    @classmethod
    def begin(cls, weights: Vector, counts: Sequence[int]) -> Nesterov:
        anchors = tuple(part.clone() for part in parted(weights.float(), counts))
        return cls.of(anchors, tuple(map(torch.zeros_like, anchors)))

    @classmethod
    def of(cls, anchors: tuple[Vector, ...], momenta: tuple[Vector, ...]) -> Nesterov:
        return cls(anchors, momenta, tuple(map(_digest, anchors, momenta)))

    @classmethod
    def unpack(cls, raw: bytes, counts: Sequence[int]) -> Nesterov:
        """Raises RemoteError for what `pack` does not write."""
        numbers = decode(raw, 2 * sum(counts), 32)
        anchors, momenta = parted(numbers, (sum(counts),) * 2)
        return cls.of(parted(anchors, counts), parted(momenta, counts))

    def pack(self) -> bytes:
        return b"".join(encode(part, 32) for part in (*self.anchors, *self.momenta))

    def at(self, fragment: int, anchor: Vector) -> Nesterov:
        """There, at rest. Raises Unreadable where numbers are too large."""
        return self._moved(fragment, anchor, torch.zeros_like(anchor))

    def after(self, fragment: int, motion: Vector) -> Nesterov:
        """motion: [f], the mean of theta - phi. Raises Unreadable where numbers grow too large."""
        momentum = MOMENTUM * self.momenta[fragment]
        momentum = momentum - motion
        step = MOMENTUM * momentum
        step = step - motion
        step = LR * step
        return self._moved(fragment, self.anchors[fragment] - step, momentum)

    def _moved(self, fragment: int, anchor: Vector, momentum: Vector) -> Nesterov:
        if not (is_sound(anchor) and is_sound(momentum)):
            raise Unreadable((), "the weights of this group have grown too large")
        return replace(
            self,
            anchors=_with(self.anchors, fragment, anchor),
            momenta=_with(self.momenta, fragment, momentum),
            digests=_with(self.digests, fragment, _digest(anchor, momentum)),
        )


@dataclass(frozen=True, slots=True)
class Landing:
    """What a commit, or a fetched state, makes of weights that have moved since.

    before, after: the anchors. sent: the own weights that are in `after`; None: none are. mix: how
    much of the own weights stays.
    """

    fragment: int
    before: Vector
    after: Vector
    sent: Vector | None = None
    mix: float = 0.0

    def on(self, weights: Vector) -> Vector:
        """weights: [f], as they are now. What the own steps did that is in no mean yet is kept."""
        if self.sent is None:
            return weights + (self.after - self.before)
        if self.mix:
            return self.mix * weights + (1 - self.mix) * self.after
        return self.after + (weights - self.sent)


def cut(values: Vector, counts: Sequence[int], bits: Bits) -> tuple[tuple[bytes, ...], Vector]:
    """The parts on the wire, and what their receivers will read: [f]."""
    parts = tuple(encode(part, bits) if len(part) else b"" for part in parted(values, counts))
    read = [decode(part, count, bits) for part, count in zip(parts, counts, strict=True) if count]
    return parts, concatenated(read)


class Unreadable(RemoteError):
    """Parts that hold no numbers. at: which of those that were given."""

    def __init__(self, at: tuple[int, ...], reason: str) -> None:
        super().__init__(reason)
        self.at = at


def joined(parts: Sequence[bytes], counts: Sequence[int], bits: Bits) -> Vector:
    """[f]. Raises Unreadable."""
    read = _read(
        [part if count else None for part, count in zip(parts, counts, strict=True)], counts, bits
    )
    return concatenated([part for part in read if part is not None])


def parted(values: Vector, counts: Sequence[int]) -> tuple[Vector, ...]:
    """Views."""
    return torch.split(values, list(counts))


def concatenated(parts: Sequence[Vector]) -> Vector:
    """One vector: a copy."""
    return torch.cat(list(parts))


def mean_of(gifts: Sequence[bytes | None], tokens: Sequence[int], count: int, bits: Bits) -> Vector:
    """[count]: by tokens, summed in the order given. Raises Unreadable."""
    total = sum(tokens)
    found = torch.zeros(count)
    read = _read(gifts, [count] * len(gifts), bits)
    for gift, weight in zip(read, tokens, strict=True):
        if gift is not None and weight:
            share = gift * (weight / total)
            found = found + share
    return found


def vector_of(raw: bytes) -> Vector:
    """A number for each byte, for a file of vectors."""
    return torch.tensor(list(raw), dtype=torch.float32)


def bytes_of(vector: Vector) -> bytes:
    """What `vector_of` made a vector of. Raises RemoteError for another one."""
    if not bool(((vector >= 0) & (vector <= 255)).all()):
        raise RemoteError("numbers that are no bytes")
    return bytes(vector.to(torch.uint8).tolist())


def is_sound(values: Vector) -> bool:
    """Whether every number can be reckoned with."""
    return bool((values.abs() < GREATEST).all())


def _read(parts: Sequence[bytes | None], counts: Sequence[int], bits: Bits) -> list[Vector | None]:
    found: list[Vector | None] = []
    bad: dict[int, str] = {}
    for at, (part, count) in enumerate(zip(parts, counts, strict=True)):
        try:
            read = None if part is None else decode(part, count, bits)
        except RemoteError as error:
            bad[at] = str(error)
            continue
        if read is not None and not is_sound(read):
            bad[at] = f"numbers beyond {GREATEST:g}"
        found.append(read)
    if bad:
        raise Unreadable(tuple(bad), next(iter(bad.values())))
    return found


def _with(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _digest(anchor: Vector, momentum: Vector) -> bytes:
    return digest("group fragment", encode(anchor, 32), encode(momentum, 32))
