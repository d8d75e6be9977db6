"""How much of a vector each member of a group reduces, so that the slowest road is done soonest.

In a butterfly all-reduce of n members, member i gives away all of its vector but the part that it
reduces itself, and sends the mean of that part to n - 1 others: for a part f_i of the vector

    T_i = (1 - f_i + (n - 1) f_i) / b_i = (1 + (n - 2) f_i) / b_i         b_i: its rate

times the vector's bytes. DeDLOC finds the f_i by a linear programme; it has a closed form. Nobody
is done before T = max(1 / b_min, (2n - 2) / sum b): each must send what it gives away, and all of
them together send 2n - 2 vectors. And T is reached: by f_i = (T b_i - 1) / (n - 2) these parts
would add up to at least the whole, since T sum b >= 2n - 2; scaled down to the whole, nobody's
time grows. With two members the time does not depend on the parts, which are then as their rates.

A member that reduces costs the others a stream, so parts of nothing are left out. All in whole
numbers: every member finds the same parts.

Source: Diskin et al., 2021 (DeDLOC), section 3 and appendix; algorithms.md, 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Final

ALIGN: Final = 128  # numbers: parts begin where the codec's groups do (compute/average/codec.py)


def split(count: int, rates: Sequence[int]) -> tuple[int, ...]:
    """Of so many numbers, how many each member reduces. rates: bytes a second, each above 0."""
    wishes = _wishes(rates)
    total = sum(wishes)
    groups = -(-count // ALIGN)
    exact = [groups * wish / total for wish in wishes]
    found = [int(one) for one in exact]
    by_rest = sorted(range(len(found)), key=lambda at: (found[at] - exact[at], at))
    for at in by_rest[: groups - sum(found)]:
        found[at] += 1
    parts = [one * ALIGN for one in found]
    last = max(at for at, one in enumerate(parts) if one)
    parts[last] -= groups * ALIGN - count
    return tuple(parts)


def seconds_a_byte(rates: Sequence[int]) -> Fraction:
    """T, of two members or more: until the slowest has sent all that it sends."""
    return max(Fraction(1, min(rates)), Fraction(2 * len(rates) - 2, sum(rates)))


def _wishes(rates: Sequence[int]) -> list[Fraction]:
    if len(rates) <= 2:
        return [Fraction(rate) for rate in rates]
    time = seconds_a_byte(rates)
    return [time * rate - 1 for rate in rates]
