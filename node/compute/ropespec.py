"""How positions turn queries and keys: the settings of rotary embedding.

transformers 5 writes one `rope_parameters` (theta inside); before it `rope_theta` stood beside
`rope_scaling`, whose kind was `type` and later `rope_type`. All of them are read.

Source: transformers 5, `modeling_rope_utils.py`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .fields import Fields, Unserved

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_POSITIONS_MAX = 1 << 27
_SU_POSITIONS = 4096  # Phi3Config's default of training
_LATER = ("short", "long")  # not in the canonical form where they say nothing


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """One kind of rotary embedding; fields of other kinds keep their defaults."""

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_positions: int = 0  # of training, before stretching: llama3, yarn and longrope
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    attention_factor: float | None = None  # yarn, longrope: on cos and sin; None: from `factor`
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    mscale: float = 0.0  # yarn
    mscale_all_dim: float = 0.0  # yarn
    truncate: bool = True  # yarn
    short: tuple[float, ...] = ()  # longrope: how far each pair is slowed within those of training
    long: tuple[float, ...] = ()  # longrope: and in a session that goes beyond them

    def canonical(self) -> dict[str, Any]:
        """The fields for the digest: as they were before the later ones came."""
        fact = dataclasses.asdict(self)
        for name in _LATER:
            if not fact[name]:
                del fact[name]
        return fact


def rotary_from(config: Fields, head_dim: int) -> int:
    """How many of a head's first elements are turned: `partial_rotary_factor` of them."""
    share = config.number("partial_rotary_factor", 1.0)
    for name in ("rope_scaling", "rope_parameters"):
        chosen = config.take(name, None)
        if isinstance(chosen, dict) and chosen:
            share = Fields(chosen, f"config.json {name}").number("partial_rotary_factor", share)
            break
    rotary = int(head_dim * share)
    if not 2 <= rotary <= head_dim or rotary % 2:
        raise config.wrong("partial_rotary_factor", f"turns {rotary} of {head_dim} elements")
    return rotary


def rope_from(config: Fields, positions: int, rotary: int, theta: float, *, su: bool) -> RopeSpec:
    """Take the rope settings out of config.json. Raises UserError for what is not served.

    rotary: how many elements are turned; theta: of a silent config; su: whether it is Phi-3's,
    whose older configs say `su` or `yarn` where they mean longrope.
    """
    new = config.take("rope_parameters", None)
    old = config.take("rope_scaling", None)
    theta = config.number("rope_theta", theta)
    outer = None
    if su or config.has("original_max_position_embeddings"):
        outer = config.whole("original_max_position_embeddings", _SU_POSITIONS, top=_POSITIONS_MAX)
    chosen = old if old else new  # transformers gives the old name precedence
    if chosen is None:
        return RopeSpec(theta=theta)
    where = "rope_scaling" if old else "rope_parameters"
    if not isinstance(chosen, dict):
        raise config.wrong(where, f"is {chosen!r}, not an object")
    if su:
        kind = chosen.get("rope_type") or chosen.get("type") or "default"
        chosen = chosen | {"rope_type": "longrope" if kind in ("su", "yarn") else kind}
        chosen.pop("partial_rotary_factor", None)  # rotary_from has read it
    found = _from_object(chosen, where, theta, positions, outer, rotary)
    if found.kind == "dynamic" and rotary <= 2:
        raise config.wrong("head_dim", "is too small for dynamic rope")
    return found


def ropes_from(
    config: Fields, positions: int, rotary: int, *, theta: float, local_theta: float
) -> tuple[RopeSpec, RopeSpec]:
    """Gemma 3's two: of blocks that see everything, and of blocks with a window.

    A scaling that names no kind of block is that of the former: the windows need no stretching.
    """
    new = config.take("rope_parameters", None) or {}
    old = config.take("rope_scaling", None) or {}
    theta = config.number("rope_theta", theta)
    local_theta = config.number("rope_local_base_freq", local_theta)
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if not isinstance(value, dict):
            raise config.wrong(name, f"is {value!r}, not an object")
    if not {"full_attention", "sliding_attention"} >= set(new):
        raise config.wrong("rope_parameters", "has other fields than the two kinds of block")
    wide = (new.get("full_attention") or {}) | old
    near = new.get("sliding_attention") or {}
    if not isinstance(wide, dict) or not isinstance(near, dict):
        raise config.wrong("rope_parameters", "does not hold objects")
    where = "rope_scaling" if old else "rope_parameters"
    return (
        _from_object(wide, where, theta, positions, None, rotary),
        _from_object(near, "rope_parameters", local_theta, positions, None, rotary),
    )


def _from_object(
    chosen: Mapping[str, Any],
    where: str,
    theta: float,
    positions: int,
    outer: int | None,
    rotary: int,
) -> RopeSpec:
    inner = Fields(chosen, f"config.json {where}")
    legacy = inner.text("type", "default")
    kind = inner.text("rope_type", legacy)
    if kind not in KINDS:
        raise Unserved(f"config.json {where}: rope_type {kind!r} is not served")
    theta = inner.number("rope_theta", theta)
    if kind == "longrope":
        found = _longrope(inner, theta, positions, outer, rotary)
    else:
        found = _of_kind(inner, kind, theta, positions, outer)
    inner.refuse_unknown(frozenset(), {"partial_rotary_factor": (1, None)})
    return found


def _of_kind(inner: Fields, kind: str, theta: float, positions: int, outer: int | None) -> RopeSpec:
    if kind == "default":
        return RopeSpec(theta=theta)
    if kind in ("linear", "dynamic"):
        return RopeSpec(kind=kind, theta=theta, factor=inner.number("factor"))
    trained = inner.whole("original_max_position_embeddings", positions, top=_POSITIONS_MAX)
    trained = outer or trained  # transformers gives the outer name precedence
    if kind == "llama3":
        low = inner.number("low_freq_factor")
        high = inner.number("high_freq_factor")
        if high <= low:
            raise inner.wrong("high_freq_factor", f"is {high:g}, not above low_freq_factor {low:g}")
        return RopeSpec(
            kind=kind,
            theta=theta,
            factor=inner.number("factor"),
            original_positions=trained,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    return RopeSpec(
        kind=kind,
        theta=theta,
        factor=inner.number("factor", positions / trained),
        original_positions=trained,
        attention_factor=inner.optional_number("attention_factor", None),
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        mscale=inner.number("mscale", 0.0, least=-1.0),
        mscale_all_dim=inner.number("mscale_all_dim", 0.0, least=-1.0),
        truncate=inner.switch("truncate", True),
    )


def _longrope(
    inner: Fields, theta: float, positions: int, outer: int | None, rotary: int
) -> RopeSpec:
    """LongRoPE (Ding et al., 2024): each pair is slowed by a factor of its own, found by search."""
    trained = inner.whole("original_max_position_embeddings", positions, top=_POSITIONS_MAX)
    trained = outer or trained
    return RopeSpec(
        kind="longrope",
        theta=theta,
        factor=inner.number("factor", positions / trained),
        original_positions=trained,
        attention_factor=inner.optional_number("attention_factor", None),
        short=inner.numbers("short_factor", rotary // 2),
        long=inner.numbers("long_factor", rotary // 2),
    )
