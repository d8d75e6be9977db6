"""Rotary embedding as multiplication by complex numbers of length one.

A pair of a head's elements is one complex number; position p turns pair i by the angle
p * frequency_i. Checkpoints of these families keep the two halves of a pair half a head apart;
`interleave` puts them side by side once, when weights load, so that a step is a single product.
Attention sees only products of queries with keys, which such a reordering leaves as they are.

Source: Su et al., 2021 (RoFormer); frequencies after transformers 5, `modeling_rope_utils.py`.
"""

import math

import torch
from torch import Tensor

from .ropespec import RopeSpec

_CHUNK = 1024  # positions whose turns are computed together: always the same, so always equal bits


def interleave(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder rows (heads * head_dim, ...) from (first halves, second halves) to pairs."""
    halves = weight.view(-1, 2, head_dim // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def frequencies(spec: RopeSpec, head_dim: int, positions: int) -> tuple[Tensor, float]:
    """Angles per position, (head_dim / 2,), and the factor on cosine and sine.

    positions: for the dynamic kind, how many positions the sequence has by now, and at least
    `max_position_embeddings` of the model.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    periods: Tensor = spec.theta**exponents
    plain = 1.0 / periods
    if spec.kind == "linear":
        return plain / spec.factor, 1.0
    if spec.kind == "llama3":
        return _llama3(spec, plain), 1.0
    if spec.kind == "yarn":
        return _yarn(spec, head_dim, periods), _yarn_factor(spec)
    return plain, 1.0


def dynamic_frequencies(
    spec: RopeSpec, head_dim: int, *, positions: int, model_positions: int
) -> Tensor:
    """Angles per position of NTK scaling when the sequence has `positions` positions."""
    length = torch.tensor(max(positions, model_positions))  # a tensor: fp32 as in transformers
    stretch = spec.factor * length / model_positions - (spec.factor - 1)
    theta = spec.theta * stretch ** (head_dim / (head_dim - 2))
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / torch.pow(theta, exponents)


def _llama3(spec: RopeSpec, plain: Tensor) -> Tensor:
    """Long waves are stretched, short ones kept, those between blended."""
    low_wave = spec.original_positions / spec.low_freq_factor
    high_wave = spec.original_positions / spec.high_freq_factor
    wave = 2 * math.pi / plain
    stretched = torch.where(wave > low_wave, plain / spec.factor, plain)
    smooth = (spec.original_positions / wave - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    blended = (1 - smooth) * stretched / spec.factor + smooth * stretched
    between = (wave >= high_wave) & (wave <= low_wave)
    return torch.where(between, blended, stretched)


def _yarn(spec: RopeSpec, head_dim: int, periods: Tensor) -> Tensor:
    """YaRN (Peng et al., 2023): interpolate slow pairs, keep fast ones, ramp between."""

    def pair_of(rotations: float) -> float:
        turns = math.log(spec.original_positions / (rotations * 2 * math.pi))
        return head_dim * turns / (2 * math.log(spec.theta))

    low, high = pair_of(spec.beta_fast), pair_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # transformers' guard against a division by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (spec.factor * periods) * (1 - keep) + 1.0 / periods * keep


def _yarn_factor(spec: RopeSpec) -> float:
    if spec.attention_factor is not None:
        return spec.attention_factor

    def magnitude(scale: float) -> float:
        return 1.0 if spec.factor <= 1 else 0.1 * scale * math.log(spec.factor) + 1.0

    if spec.mscale and spec.mscale_all_dim:
        return magnitude(spec.mscale) / magnitude(spec.mscale_all_dim)
    return magnitude(1.0)


class Turns:
    """The turns of every position so far asked for, kept as one growing table."""

    def __init__(
        self, spec: RopeSpec, head_dim: int, *, model_positions: int, device: torch.device
    ) -> None:
        self._spec = spec
        self._head_dim = head_dim
        self._model_positions = model_positions
        self.device = device
        self._frequencies, self._factor = frequencies(spec, head_dim, model_positions)
        self._table = torch.empty((0, 1, head_dim // 2), dtype=torch.complex64, device=device)

    def rows(self, at: int, stop: int) -> Tensor:
        """Turns of positions at..stop, (stop - at, 1, head_dim / 2), complex64.

        The dynamic kind turns by the length of the sequence once that is beyond the model's
        positions, as transformers does: rows already in a cache keep the turn they got.
        """
        if self._spec.kind == "dynamic" and stop > self._model_positions:
            stretched = dynamic_frequencies(
                self._spec,
                self._head_dim,
                positions=stop,
                model_positions=self._model_positions,
            )
            return self._turn(at, stop, stretched)
        if stop > len(self._table):
            self._grow(stop)
        return self._table[at:stop]

    def _grow(self, stop: int) -> None:
        parts = [self._table]
        have = len(self._table)
        while have < stop:
            parts.append(self._turn(have, have + _CHUNK, self._frequencies))
            have += _CHUNK
        self._table = torch.cat(parts)

    def _turn(self, at: int, stop: int, per_position: Tensor) -> Tensor:
        positions = torch.arange(at, stop, dtype=torch.int64).float()
        angles = positions[:, None] * per_position[None, :]
        turns = torch.complex(angles.cos() * self._factor, angles.sin() * self._factor)
        return turns[:, None, :].to(self.device)
