"""A run's loss over its epochs, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..node.jobs.store import Job
from .simulation_plot import pyplot


def draw(job: Job, points: Sequence[tuple[int, float]], picture: Path) -> None:
    """Raises UserError when there is nothing to draw, or nowhere."""
    if not points:
        raise UserError(f"job {job.id} has told no loss: only a fine-tuning run does")
    figure, axes = pyplot().subplots(figsize=(8, 5), layout="constrained")
    axes.plot([epoch for epoch, _ in points], [loss for _, loss in points], linewidth=1.2)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_title(f"job {job.id}: {job.title}, {job.state}")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(picture, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {picture}: {error}") from None
