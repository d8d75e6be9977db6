"""What the rows of a step see of the positions that a session remembers.

Rows by rows, so that no mask is large: a long prompt over a long past would fill memory.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK_MAX = 1 << 22  # rows times positions: 4 MiB as bool, and 16 MiB once inside a kernel
_MASK_ROWS_MIN = 16  # fewer rows at once would read all keys too often


@dataclass(frozen=True, slots=True)
class Sight:
    """What some rows of a step see of the remembered positions, in blocks of one window.

    Rows first..last of the step see positions start..stop; of those, row i sees start..start+i
    when `causal`, those that `mask` (rows, positions) says when there is one, else all.
    """

    first: int
    last: int
    start: int
    stop: int
    causal: bool = False
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What all blocks share in one step: where it stands, its turns, what its rows see."""

    at: int
    stop: int
    turns: tuple[Tensor, ...]  # by kind of rope, (rows, 1, head_dim / 2) each, complex64
    sights: dict[int | None, tuple[Sight, ...]]  # by window; together they hold every row


def plan_step(
    turns: tuple[Tensor, ...],
    windows: frozenset[int | None],
    at: int,
    stop: int,
    *,
    device: torch.device,
) -> Plan:
    """The plan of a step over positions at..stop."""
    return Plan(
        at=at,
        stop=stop,
        turns=turns,
        sights={window: _sights(window, at, stop, device) for window in windows},
    )


def _sights(window: int | None, at: int, stop: int, device: torch.device) -> tuple[Sight, ...]:
    size = _MASK_MAX // stop
    if window is not None:  # so many rows see as many positions, and a window before them
        size = max(size, (math.isqrt(window * window + 4 * _MASK_MAX) - window) // 2)
    size = max(size, _MASK_ROWS_MIN)
    tokens = stop - at
    if at == 0 and (window is None or stop <= window) and tokens > 1:
        return (Sight(0, tokens, 0, stop, causal=True),)
    return tuple(
        _sight(window, at, first, min(first + size, tokens), device)
        for first in range(0, tokens, size)
    )


def _sight(window: int | None, at: int, first: int, last: int, device: torch.device) -> Sight:
    start = 0 if window is None else max(0, at + first + 1 - window)
    stop = at + last
    if last - first == 1:
        return Sight(first, last, start, stop)
    return Sight(first, last, start, stop, mask=_mask(window, at + first, start, stop, device))


def _mask(window: int | None, first: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Which of positions start..stop the rows at positions first..stop see."""
    seen = torch.arange(start, stop, device=device)[None, :]
    row = torch.arange(first, stop, device=device)[:, None]
    mask = seen <= row
    if window is not None and stop > window:
        mask &= seen > row - window
    return mask
