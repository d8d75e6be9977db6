"""The loss of a run over the tokens it was trained on, as a PNG, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..node.runs.checkpoint import Progress
from .simulation_plot import pyplot


def draw(history: Sequence[Progress], path: Path) -> None:
    """Raises UserError."""
    figure, axes = pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    tokens = [one.tokens for one in history]
    axes.plot(tokens, [one.loss for one in history], label="of the steps", linewidth=2)
    measured = [(one.tokens, one.held_out) for one in history if one.held_out is not None]
    if measured:
        axes.plot(*zip(*measured, strict=True), label="held out", linewidth=2, linestyle="--")
    axes.set(xlabel="tokens", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=120, format="png")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from None
