"""How far a job is, as it is kept and shown; and the rates of what comes in."""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

WINDOW_S: Final = 30.0  # guess: a rate that follows a kill, and does not jump at every answer


@dataclass(frozen=True, slots=True)
class Progress:
    """done, total: lines of a batch, or epochs of a run. errors: lines whose answer is an error.

    tokens: generated or trained on. sent_bytes: of activations or updates. peers: that computed
    for it lately. left_s: at this rate; None: nobody knows. note: what it waits for.
    """

    done: int = 0
    total: int = 0
    errors: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    sent_bytes: int = 0
    peers: int = 0
    left_s: float | None = None
    loss: float | None = None
    note: str = ""

    def text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str) -> Progress:
        """What `text` told; what is unknown in it is passed over."""
        told = json.loads(text) if text else {}
        known = {one.name for one in fields(Progress)}
        return Progress(**{name: value for name, value in told.items() if name in known})


class Rate:
    """So many a second, of the last `window_s`, from `began_s` on."""

    def __init__(self, began_s: float, window_s: float = WINDOW_S) -> None:
        self._began_s = began_s
        self._window_s = window_s
        self._seen: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def count(self, amount: float, now: float) -> None:
        self._seen.append((now, amount))
        self._sum += amount

    def per_s(self, now: float) -> float:
        """Of a window that is not full yet, over what there is of it."""
        while self._seen and self._seen[0][0] < now - self._window_s:
            self._sum -= self._seen.popleft()[1]
        spent_s = min(now - self._began_s, self._window_s)
        return self._sum / spent_s if spent_s > 0 else 0.0


def left_s(missing: int, per_s: float) -> float | None:
    """Seconds until nothing is missing."""
    if missing <= 0:
        return 0.0
    found = missing / per_s if per_s > 0 else math.inf
    return found if math.isfinite(found) else None


def finite(value: Any) -> float | None:
    """A number that somebody told, if it is one."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None
