"""How positions turn queries and keys: the settings of rotary embedding.

transformers 5 writes one `rope_parameters` (theta inside); before it `rope_theta` stood beside
`rope_scaling`, whose kind was `type` and later `rope_type`. All of them are read.

Source: transformers 5, `modeling_rope_utils.py`.
"""

from dataclasses import dataclass

from ...errors import UserError
from .fields import Fields

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
_POSITIONS_MAX = 1 << 27


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """One kind of rotary embedding; fields of other kinds keep their defaults."""

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_positions: int = 0  # of training, before stretching: llama3 and yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    attention_factor: float | None = None  # yarn: on cos and sin; None: from `factor`
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    mscale: float = 0.0  # yarn
    mscale_all_dim: float = 0.0  # yarn
    truncate: bool = True  # yarn


def rope_from(config: Fields, positions: int, head_dim: int) -> RopeSpec:
    """Take the rope settings out of config.json. Raises UserError for what is not served."""
    new = config.take("rope_parameters", None)
    old = config.take("rope_scaling", None)
    theta = config.number("rope_theta", 10_000.0)
    outer = config.take("original_max_position_embeddings", None)
    chosen = old if old else new  # transformers gives the old name precedence
    if chosen is None:
        return RopeSpec(theta=theta)
    where = "rope_scaling" if old else "rope_parameters"
    if not isinstance(chosen, dict):
        raise config.wrong(where, f"is {chosen!r}, not an object")
    inner = Fields(chosen, f"config.json {where}")
    legacy = inner.text("type", "default")
    kind = inner.text("rope_type", legacy)
    if kind not in KINDS:
        raise UserError(f"config.json {where}: rope_type {kind!r} is not served")
    theta = inner.number("rope_theta", theta)
    found = _of_kind(inner, kind, theta, positions, outer)
    inner.refuse_unknown(frozenset(), {"partial_rotary_factor": (1, None)})
    if kind == "dynamic" and head_dim <= 2:
        raise config.wrong("head_dim", "is too small for dynamic rope")
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
        attention_factor=(
            inner.number("attention_factor") if inner.has("attention_factor") else None
        ),
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        mscale=inner.number("mscale", 0.0, least=-1.0),
        mscale_all_dim=inner.number("mscale_all_dim", 0.0, least=-1.0),
        truncate=inner.switch("truncate", True),
    )
