"""Rotary embedding: cosines and sines by position, and the same as complex numbers.

A pair of a head's elements is one complex number; position p turns pair i by the angle
p * frequency_i. Checkpoints of these families keep the two halves of a pair half a head apart;
for torch `interleave` puts them side by side once, when weights load, so that a step is a single
product. Attention sees only products of queries with keys, which such a reordering leaves as they
are. Elements beyond the turned ones are turned by nothing: 1 + 0i.

A row's turn depends on its position and on how many positions its session agreed to have, and on
nothing else: not on the step it came in. And it is the same number on every machine: frequencies
and sines are computed by additions and products alone, logarithms in decimals.

Source: Su et al., 2021 (RoFormer); frequencies after transformers 5, `modeling_rope_utils.py`;
LongRoPE's choice by the agreed size after vLLM, which chooses by the largest allowed.
"""

import math
from decimal import Context, Decimal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .ropespec import RopeSpec
from .spec import ModelSpec

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_CHUNK = 1024  # positions by which a table grows
_ONE = np.float32(1)
_DIGITS = Context(prec=30)  # far beyond a double: rounding it never depends on the last one
# pi / 2 in parts of 24 bits, so that a multiple below 2**29 of the first two is exact
_HALF_PI = (1.570796251296997, 7.549789415861596e-08, 5.390302858158119e-15)
_SIN = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(9))  # up to r**17: 1e-18 left
_LN2 = (0.6931471824645996, -1.904654299957768e-09)  # the first in 24 bits
_EXP = tuple(1 / math.factorial(n) for n in range(15))  # up to r**14: 1e-18 left
_COS = tuple((-1) ** n / math.factorial(2 * n) for n in range(9))


def interleave(weight: Tensor, head_dim: int, rotary: int) -> Tensor:
    """Reorder rows (heads * head_dim, ...): the first `rotary` of a head from halves to pairs."""
    heads = weight.view(-1, head_dim, *weight.shape[1:])
    halves = heads[:, :rotary].reshape(-1, 2, rotary // 2, *weight.shape[1:])
    pairs = halves.transpose(1, 2).flatten(1, 2)
    return torch.cat([pairs, heads[:, rotary:]], 1).view(weight.shape)


def frequencies(spec: RopeSpec, rotary: int, *, stretched: bool = False) -> tuple[Floats, float]:
    """Angles per position of each pair, (rotary / 2,), and the factor on cosine and sine.

    stretched: for longrope, the angles of sessions beyond the positions of training.

    Each step is rounded to fp32 as transformers rounds it: thousands of positions on, one rounding
    more or fewer is seen in the logits (8e-4 at 6,000).
    """
    periods = _periods(_ln(spec.theta), rotary)
    if spec.kind == "linear":
        return _ONE / periods / np.float32(spec.factor), 1.0
    if spec.kind == "llama3":
        return _llama3(spec, _ONE / periods), 1.0
    if spec.kind == "yarn":
        return _yarn(spec, rotary, periods), _yarn_factor(spec)
    if spec.kind == "longrope":
        slowed = periods * np.array(spec.long if stretched else spec.short, np.float32)
        return _ONE / slowed, _longrope_factor(spec)
    return _ONE / periods, 1.0


def sin_cos(angles: Floats) -> tuple[Doubles, Doubles]:
    """Sine and cosine with the same bits on every machine that adds and multiplies by IEEE 754."""
    x = angles.astype(np.float64)
    turns = np.rint(x * (2 / math.pi))
    r = x - turns * _HALF_PI[0]
    r = r - turns * _HALF_PI[1]
    r = r - turns * _HALF_PI[2]
    square = r * r
    sine, cosine = np.full_like(r, _SIN[-1]), np.full_like(r, _COS[-1])
    for a, b in zip(_SIN[-2::-1], _COS[-2::-1], strict=True):
        sine, cosine = sine * square + a, cosine * square + b
    sine = sine * r
    quarter = turns.astype(np.int64) & 3
    odd = (quarter & 1) == 1
    signs = np.where(quarter >= 2, -1.0, 1.0)
    return (
        np.where(odd, cosine, sine) * signs,
        np.where(odd, -sine, cosine) * signs,
    )


class Angles:
    """Cosines and sines of every position so far asked for: one growing table."""

    def __init__(
        self, spec: RopeSpec, rotary: int, *, model_positions: int, stretched: bool = False
    ) -> None:
        self._spec = spec
        self._rotary = rotary
        self._model_positions = model_positions
        self._frequencies, self._factor = frequencies(spec, rotary, stretched=stretched)
        self._cos = self._sin = np.empty((0, rotary // 2), np.float32)

    def rows(self, at: int, stop: int) -> tuple[Floats, Floats]:
        """Cosines and sines of positions at..stop, (stop - at, rotary / 2) each."""
        if stop > len(self._cos):
            parts = [(self._cos, self._sin)]
            for start in range(len(self._cos), stop, _CHUNK):
                parts.append(self._turn(start, start + _CHUNK))
            self._cos = np.concatenate([cos for cos, _ in parts])
            self._sin = np.concatenate([sin for _, sin in parts])
        return self._cos[at:stop], self._sin[at:stop]

    def _turn(self, at: int, stop: int) -> tuple[Floats, Floats]:
        positions = np.arange(at, stop, dtype=np.float32)[:, None]
        per_position: Floats = self._frequencies[None, :]
        if self._spec.kind == "dynamic" and stop > self._model_positions:
            per_position = self._dynamic(at, stop)
        sine, cosine = sin_cos(positions * per_position)
        return (
            (cosine * self._factor).astype(np.float32),
            (sine * self._factor).astype(np.float32),
        )

    def _dynamic(self, at: int, stop: int) -> Floats:
        """NTK scaling turns a row by the length of the sequence that it ends.

        So transformers decodes; a prompt it turns as a whole by its last row, for which a prompt
        in parts would give other numbers.
        """
        spec, grown = self._spec, self._model_positions
        power = self._rotary / (self._rotary - 2)
        stretches = [
            spec.factor * max(end, grown) / grown - (spec.factor - 1)
            for end in range(at + 1, stop + 1)
        ]
        logs = [_ln(spec.theta) + power * _ln(one) for one in stretches]
        return _ONE / _periods(np.array(logs)[:, None], self._rotary)


class Ropes:
    """The tables of one model, shared by its sessions: for all blocks, and for those near-sighted.

    Where a model has one rotary embedding, both are one.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._tables: dict[tuple[RopeSpec, bool], Angles] = {}

    def angles(self, rope: RopeSpec, session_tokens: int) -> Angles:
        """The table of a session that agreed to `session_tokens` positions."""
        stretched = is_stretched(rope, session_tokens)
        found = self._tables.get((rope, stretched))
        if found is None:
            spec = self._spec
            found = self._tables[rope, stretched] = Angles(
                rope, spec.rotary_dim, model_positions=spec.positions, stretched=stretched
            )
        return found


class Turns:
    """A table as complex numbers on a device, for rows whose pairs are interleaved."""

    def __init__(self, angles: Angles, head_dim: int, *, device: torch.device) -> None:
        self._angles = angles
        self._pairs = head_dim // 2
        self.device = device
        self._table = torch.empty((0, 1, self._pairs), dtype=torch.complex64, device=device)

    def rows(self, at: int, stop: int) -> Tensor:
        """Turns of positions at..stop, (stop - at, 1, head_dim / 2), complex64."""
        have = len(self._table)
        if stop > have:
            want = -(-stop // _CHUNK) * _CHUNK
            cos, sin = self._angles.rows(have, want)
            new = torch.ones((want - have, 1, self._pairs), dtype=torch.complex64)
            turned = torch.complex(torch.from_numpy(cos.copy()), torch.from_numpy(sin.copy()))
            new[:, 0, : cos.shape[1]] = turned
            self._table = torch.cat([self._table, new.to(self.device)])
        return self._table[at:stop]

    def of(self, positions: Tensor, stop: int) -> Tensor:
        """Turns of these positions, which are below `stop`, as `rows` gives them."""
        self.rows(0, stop)
        return self._table[positions]


def is_stretched(rope: RopeSpec, session_tokens: int) -> bool:
    """Whether a session of so many positions turns by longrope's long factors, from its first."""
    return rope.kind == "longrope" and session_tokens > rope.original_positions


def _periods(log_theta: float | Doubles, rotary: int) -> Floats:
    """Positions in which each pair turns by one radian: theta ** (2 i / rotary)."""
    exponents = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
    return _exp(exponents.astype(np.float64) * log_theta).astype(np.float32)


def _ln(x: float) -> float:
    return float(Decimal(x).ln(_DIGITS))


def _exp(x: Doubles) -> Doubles:
    """e ** x for x of some tens, by additions and products alone, to some 1e-15 of itself."""
    doublings = np.rint(x * (1 / math.log(2)))
    r = x - doublings * _LN2[0]
    r = r - doublings * _LN2[1]
    found = np.full_like(r, _EXP[-1])
    for term in _EXP[-2::-1]:
        found = found * r + term
    return np.ldexp(found, doublings.astype(np.int32))


def _llama3(spec: RopeSpec, plain: Floats) -> Floats:
    """Long waves are stretched, short ones kept, those between blended."""
    low_wave = spec.original_positions / spec.low_freq_factor
    high_wave = spec.original_positions / spec.high_freq_factor
    wave = 2 * math.pi / plain
    stretched = np.where(wave > low_wave, plain / spec.factor, plain)
    smooth = (spec.original_positions / wave - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    blended = (1 - smooth) * stretched / spec.factor + smooth * stretched
    between = (wave >= high_wave) & (wave <= low_wave)
    return np.where(between, blended, stretched).astype(np.float32, copy=False)


def _yarn(spec: RopeSpec, rotary: int, periods: Floats) -> Floats:
    """YaRN (Peng et al., 2023): interpolate slow pairs, keep fast ones, ramp between."""

    def pair_of(rotations: float) -> float:
        turns = _ln(spec.original_positions / (rotations * 2 * math.pi))
        return rotary * turns / (2 * _ln(spec.theta))

    low, high = pair_of(spec.beta_fast), pair_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary - 1)
    if low == high:
        high += 0.001  # transformers' guard against a division by zero
    ramp = np.clip((np.arange(rotary // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    kept = 1 - ramp
    found: Floats = 1 / (spec.factor * periods) * (1 - kept) + 1 / periods * kept
    return found


def _yarn_factor(spec: RopeSpec) -> float:
    if spec.attention_factor is not None:
        return spec.attention_factor

    def magnitude(scale: float) -> float:
        return 1.0 if spec.factor <= 1 else 0.1 * scale * _ln(spec.factor) + 1.0

    if spec.mscale and spec.mscale_all_dim:
        return magnitude(spec.mscale) / magnitude(spec.mscale_all_dim)
    return magnitude(1.0)


def _longrope_factor(spec: RopeSpec) -> float:
    if spec.attention_factor is not None:
        return spec.attention_factor
    if spec.factor <= 1:
        return 1.0
    return math.sqrt(1 + _ln(spec.factor) / _ln(spec.original_positions))
