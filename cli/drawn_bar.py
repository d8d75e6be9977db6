"""One bar of rich, as bars.py wants it: label, bar, count, rate, remaining time.

Apart, because rich is imported with it, which a node without a terminal need not carry.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def make_bar(what: str, unit: str, done: Callable[[], int] | None = None) -> Progress:
    """done: looked at each time that it is drawn; None: it is told."""
    first: ProgressColumn = TextColumn(what) if done is None else _Looks(what, done)
    return Progress(
        first, BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip


class _Looks(ProgressColumn):
    """A label that has the bar behind it follow what it looks at, each time that it is drawn."""

    max_refresh = None

    def __init__(self, what: str, done: Callable[[], int]) -> None:
        super().__init__()
        self._what = what
        self._done = done
        self._seen = 0

    def render(self, task: Task) -> Text:
        now = self._done()
        if now > self._seen:
            self._seen = now
            task.completed = now
        return Text(self._what)


class _Rate(ProgressColumn):
    """So many a second, since the beginning."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        spent_s = task.elapsed or 0.0
        return Text(f"{task.completed / spent_s:.1f} {self._unit}/s" if spent_s else "")
