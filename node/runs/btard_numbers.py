"""The arithmetic of a guarded group (swarm/run/btard.py): cut, clip, measure.

    contribution [d] fp32 ──cut──▶ n parts ──▶ reducer: CenteredClip of n shares ──▶ result, fp32
    share, result, coin ──▶ clip(share - result) . direction,  |share - result|,  |result|

CenteredClip is taken to its fixed point, where the clipped shares cancel: then everybody can check
a result without the shares, and a reducer that is off by more than fp32's rounding is seen. It is
reached by reweighting, v = sum w x / sum w with w = min(1, radius / |x - v|), from the median of
each coordinate; each round is a minimum above the Huber loss, so none raises it.

Directions are sixteen-bit integers from an extendable hash: the same numbers on every machine, and
no difference of two results is orthogonal to them but by a chance of 2^-16.

Sources: Karimireddy et al., 2021 (CenteredClip); Gorbunov et al., 2022; Weiszfeld, 1937, and Huber,
1981 (reweighting).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import shake_256
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...swarm.run.btard_attempt import SLACK_OF_RADIUS, SLACK_OF_RESULT
from ...swarm.run.coin import direction_seed

Floats = NDArray[np.float64]
NUMBER: Final = np.dtype("<f4")
ROUNDS_MAX: Final = 5000
STILL: Final = 0.2 * SLACK_OF_RADIUS  # what is left over a share and the radius, before rounding


def bounds(count: int, parts: int) -> list[tuple[int, int]]:
    """Where each of so many parts of a vector begins and ends."""
    return [(count * at // parts, count * (at + 1) // parts) for at in range(parts)]


def cut(vector: bytes, parts: int) -> list[bytes]:
    """The bytes of each part of an fp32 vector."""
    size = NUMBER.itemsize
    return [
        vector[start * size : stop * size] for start, stop in bounds(len(vector) // size, parts)
    ]


def numbers(load: bytes | None, count: int) -> Floats | None:
    """[count]; None where it is no finite vector of that length."""
    if load is None or len(load) != NUMBER.itemsize * count:
        return None
    found = np.frombuffer(load, NUMBER).astype(np.float64)
    return found if bool(np.isfinite(found).all()) else None


def clip(shares: Sequence[Floats], radius: float) -> bytes:
    """CenteredClip of the shares, [d] each: fp32."""
    points = np.stack(shares)
    if not points.size:
        return b""  # fewer numbers than parts
    at = np.median(points, axis=0)
    for _ in range(ROUNDS_MAX):
        weights = _weights(points - at, radius)
        left = (weights[:, None] * (points - at)).sum(0)
        if _norm(left) <= STILL * radius * len(points):
            break
        at = at + left / weights.sum()
    return at.astype(NUMBER).tobytes()


def is_fixed(shares: Sequence[Floats], result: Floats, radius: float) -> bool:
    """Whether the clipped shares cancel at this result, but for its rounding."""
    away = np.stack(shares) - result
    left = (_weights(away, radius)[:, None] * away).sum(0)
    slack = SLACK_OF_RESULT * _norm(result) + SLACK_OF_RADIUS * radius
    return _norm(left) <= len(shares) * slack


def direction(coin: bytes, part: int, count: int) -> Floats:
    """[count], of length 1, known once the coin is."""
    drawn = np.frombuffer(shake_256(direction_seed(coin, part)).digest(2 * count), "<i2")
    found = drawn.astype(np.float64) + 0.5  # never nothing
    length = _norm(found)
    return found / length if length else found


def measure(
    share: Floats, result: Floats | None, radius: float, along: Floats
) -> tuple[float, float, float]:
    """(clipped share along the direction, how far it was, norm of the result). A result that is no
    vector gives a norm that is no number, which makes the part doubtful to everybody."""
    if result is None:
        return 0.0, 0.0, math.nan
    away = share - result
    far = _norm(away)
    scale = radius / far if far > radius else 1.0
    return float(along @ away) * scale, far, _norm(result)


def _weights(away: Floats, radius: float) -> Floats:
    far = np.sqrt((away * away).sum(1))
    return np.where(far > radius, radius / np.maximum(far, radius), 1.0)


def _norm(vector: Floats) -> float:
    return math.sqrt(float((vector * vector).sum()))
