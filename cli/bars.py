"""Bars for what takes long, on a terminal's stderr: how much is done, how fast, what is left.

What is downloaded from the hub shows bars of the hub's own package.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..node.generation import Generation

LONG_TOKENS = 512  # guess: a prompt that takes no more than a moment needs no bar


def shows_bars() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def show_loading() -> None:
    """From now on, whenever blocks are loaded."""
    if not shows_bars():
        return
    from ..node.compute.loading import LISTENERS
    from .drawn_bar import make_bar

    bar: Progress | None = None

    def tell(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = make_bar("loading", "blocks")
            bar.add_task("loading", total=total)
            bar.start()
        bar.update(bar.task_ids[0], completed=done)
        if done == total:
            stop()

    def stop() -> None:
        nonlocal bar
        if bar is not None:
            bar.stop()
        bar = None

    LISTENERS.append(tell)
    atexit.register(stop)  # a load that failed leaves a terminal without a cursor


@contextmanager
def prefill_bar(answer: Generation, shown: bool) -> Iterator[Callable[[], None]]:
    """While a long prompt is read; what is yielded ends it."""
    if not shown or not shows_bars() or answer.prompt_tokens < LONG_TOKENS:
        yield lambda: None
        return
    from .drawn_bar import make_bar

    with make_bar("reading the prompt", "tokens", lambda: answer.prompt_read) as bar:
        bar.add_task("reading the prompt", total=answer.prompt_tokens)
        yield bar.stop
