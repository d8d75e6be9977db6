"""Importing what a command works with, without the garbage collector's walks.

torch alone makes half a million objects that live as long as the process. Collections on the way
cost 0.3 s of a start, and each full one later 0.1 to 0.4 s, in which a node serves nobody and a
client prints nothing: so none happens meanwhile, and none will ever look at these objects again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """What is made inside stays for good."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
